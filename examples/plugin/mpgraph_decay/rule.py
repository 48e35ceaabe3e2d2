"""Feedback alignment (Lillicrap et al., 2016) whose weights also decay: w <- w - lr (<e x> + decay w)."""

import mpgraph as mg
from mpgraph import option
from mpgraph.protocols import FeedbackAlignment
from mpgraph.protocols.feedback_alignment import FeedbackWeight


class DecayingWeight(FeedbackWeight):
    """A synapse with a fixed random partner for errors, and decay."""

    def __init__(self, rule):
        super().__init__()
        self.decay = rule.decay

    def learn_update(self, s):
        """Follow the error that came back, and shrink."""
        return s.descend(w=s.examples(s.e * s.x) + self.decay * s.w)


class DecayingFeedback(FeedbackAlignment):
    """Feedback alignment with weights that decay."""

    source = mg.cite(FeedbackAlignment)
    decay: float = option(0.001, "times the weight, added to its increment.", low=0)
    agents = {"weight": DecayingWeight}
