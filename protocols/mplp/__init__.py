"""A message passing learning protocol: learners at every weight, bias, unit and loss."""

from .rule import MPLP as MPLP
