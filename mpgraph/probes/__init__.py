"""Measuring a rule from outside: probes read, and never change a run."""

from .gradient import gradients as gradients
from .gradient import weight_gradients as weight_gradients
from .jacobian import Asymmetry as Asymmetry
from .jacobian import asymmetry as asymmetry
from .measures import Follow as Follow
from .measures import Update as Update
from .measures import angle as angle
from .measures import angles as angles
from .measures import angles_by_example as angles_by_example
from .measures import dead_units as dead_units
from .measures import norm_ratios as norm_ratios
from .measures import orthonormality as orthonormality
from .measures import silent_units as silent_units
from .measures import update_norms as update_norms
from .measures import updates as updates
from .measures import weight_angles as weight_angles
