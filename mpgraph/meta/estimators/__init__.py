"""Estimators of the meta-gradient, interchangeable."""

from .alone import Alone as Alone
from .base import Estimate as Estimate
from .base import Estimator as Estimator
from .base import Growing as Growing
from .base import LogUniform as LogUniform
from .base import NeverEnding as NeverEnding
from .cloning import Cloning as Cloning
from .evolution import Evolution as Evolution
from .recompute import Recomputed as Recomputed
from .truncated import Truncated as Truncated
from .unroll import Unroll as Unroll
