"""A rule, a kind of node and a family of tasks for mpgraph, registered by entry points."""

from .node import SoftSign as SoftSign
from .rule import DecayingFeedback as DecayingFeedback
from .tasks import Stripes as Stripes
