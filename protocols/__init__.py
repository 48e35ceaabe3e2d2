"""Learning rules. Each file reads like its paper."""

from .backprop import Backprop as Backprop
from .feedback_alignment import FeedbackAlignment as FeedbackAlignment
