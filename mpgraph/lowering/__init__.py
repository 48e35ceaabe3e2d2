"""From arrows to flat torch code: products over named axes, recorded while a rule is traced."""
