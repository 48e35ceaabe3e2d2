"""Learning rules. Each file reads like its paper."""

from .backprop import Backprop as Backprop
from .direct_feedback_alignment import DirectFeedbackAlignment as DirectFeedbackAlignment
from .feedback_alignment import FeedbackAlignment as FeedbackAlignment
from .node_perturbation import NodePerturbation as NodePerturbation
