"""The synapses of BLUR, the units' part in what holds them back, and how they learn (Eqs. 7 and 8).

    meet        both units send their states
    measure     a synapse sends w^2 up and v^2 down; a unit sums them over its synapses: sum_r w_rj^2
    compare     the unit sends the sums back
    project     a synapse sends w (a nu~); a unit sums: sum_r w_rj (a_r nu~)
    inhibit     the unit sends the sums back

A schedule has those of these passes that its options need.
"""

from __future__ import annotations

from typing import Any

import torch

import mpgraph as mg
from mpgraph import fast, slow

from .genome import SynapseGenome
from .parts import Part


class Synapse(Part):
    """A synapse with weight ``w`` up and ``v`` down; a symmetric one has only ``w``.

    Where something treats the two directions of a symmetric synapse apart (Oja's term, stored lengths), their
    difference is kept as ``d``: v = w + d.

    Args:
        rule: the whole rule.
        v: whether it may keep one: nothing goes down to the number one, and inputs receive nothing.
    """

    w, v, d = slow("c", init="start"), slow("own", init="start"), slow("apart")
    x, y = fast("k"), fast("k")
    w_used, v_used = fast("c"), fast("c")  # what messages are multiplied by, if not w and v
    w_sum, v_sum, w_drive, v_drive = fast("c"), fast("c"), fast("c"), fast("c")

    def __init__(self, rule: Any, v: bool = True) -> None:
        super().__init__(rule)
        self.has_v = v and not rule.symmetric
        self.has_d = v and rule.symmetric and bool(rule.oja or rule.lengths == "stored")
        self.own, self.apart = self.c if self.has_v else 0, self.c if self.has_d else 0

    def start(self, *given: Any) -> torch.Tensor:
        """Initial weights."""
        return self.o.init(*given)

    def down(self, s: mg.View) -> Any:
        """The weight down."""
        return s.v if self.has_v else s.w + s.d if self.has_d else s.w

    def write(self, s: mg.View, w: Any, v: Any) -> mg.View:
        """Keep new weights."""
        s = s.set(w=w)
        return s.set(v=v) if self.has_v else s.set(d=v - w) if self.has_d else s

    # -- Eqs. 5 and 6: what units send each other ----------------------------------------------------------

    def forward_update(self, s: mg.View, pre: Any) -> mg.View:
        """Keep the states of unit i."""
        return s.set(x=pre)

    def forward_message(self, s: mg.View) -> Any:
        """w^c sum_d nu^cd a_i^d, summed over i on its way to unit j."""
        w = s.w_used if self.o.lengths == "computing" else s.w
        return w * (self.gene(s, "nu") @ s.x)

    def backward_update(self, s: mg.View, post: Any) -> mg.View:
        """Keep the states of unit j."""
        return s.set(y=post)

    def backward_message(self, s: mg.View) -> Any:
        """v^c sum_d mu^cd a_j^d, summed over j on its way to unit i."""
        v = s.v_used if self.o.lengths == "computing" else self.down(s)
        return v * (self.gene(s, "mu") @ s.y)

    # -- lengths: w / (sum_r w_rj^2)^1/2, Appendix C.6 -------------------------------------------------------

    def measure_message(self, s: mg.View) -> Any:
        """w^2 for the unit above, v^2 for the one below."""
        v = self.down(s)
        return {"w": s.w * s.w, "v": v * v}

    def compare_update(self, s: mg.View, post: Any, pre: Any = None) -> mg.View:
        """Keep the sums over all synapses of the unit that receives w, and of the one that receives v."""
        return s.set(w_sum=post["w"], v_sum=0.0 if pre is None else pre["v"])

    def normalise_update(self, s: mg.View) -> mg.View:
        """Weights of length rho, for good or only for computing."""
        rho = self.gene(s, "rho") if self.o.rescale else 1.0
        w = s.w * (rho * (s.w_sum + 1e-9) ** -0.5)
        v = self.down(s) * (rho * (s.v_sum + 1e-9) ** -0.5)
        return s.set(w_used=w, v_used=v) if self.o.lengths == "computing" else self.write(s, w, v)

    # -- Eq. 7 ----------------------------------------------------------------------------------------------

    def remember_update(self, s: mg.View, pre: Any, post: Any) -> mg.View:
        """Keep the states of both units after the forward pass."""
        return s.set(x=pre, y=post)

    def meet_update(self, s: mg.View, pre: Any, post: Any) -> mg.View:
        """Keep the states of both units; those of unit i may stay as they were after the forward pass."""
        return s.set(y=post) if self.o.early_pre else s.set(x=pre, y=post)

    def learn_update(self, s: mg.View) -> mg.View:
        """w^c <- f~ w^c + eta~ sum_ed a_i^e nu~^ec mu~^cd a_j^d; and v with the units exchanged."""
        return self.learnt(s, self.book.below(s.node))

    def early_update(self, s: mg.View) -> mg.View:
        """The same after the forward pass, by numbers of its own."""
        return self.learnt(s, self.book.below(s.node).early)

    def learnt(self, s: mg.View, g: SynapseGenome) -> mg.View:
        """The view with new weights."""
        hebb = self.hebb(s, g, s.x, s.y)
        w = self.changed(s, g, s.w, hebb, s.y, "w")
        if not (self.has_v or self.has_d):
            return s.set(w=w)
        hebb = self.hebb(s, g, s.y, s.x) if self.has_v else hebb
        return self.write(s, w, self.changed(s, g, self.down(s), hebb, s.x, "v"))

    def hebb(self, s: mg.View, g: SynapseGenome, sent: Any, received: Any) -> Any:
        """eta~ (a nu~) (mu~ a) of all examples."""
        received = g.at(s, "eta_tilde") * (g.at(s, "mu_tilde") @ received)
        return s.examples((sent @ g.at(s, "nu_tilde")) * received, self.o.batch)

    def changed(self, s: mg.View, g: SynapseGenome, w: Any, hebb: Any, received: Any, which: str) -> Any:
        """A new weight: Eq. 7 with Oja's term and saturation."""
        change = hebb + w * self.inhibition(s, g, received, which) if self.o.oja else hebb
        if self.o.saturation == "exp":
            change = change + (g.at(s, "f_tilde") - 1.0) * w
            return w + change * torch.exp(-torch.abs(w) * torch.abs(g.at(s, "alpha")))
        new = g.at(s, "f_tilde") * w + change
        if self.o.saturation == "tanh":
            alpha = g.at(s, "alpha")
            return alpha * torch.tanh(new / alpha)
        return self.o.saturation(new) if callable(self.o.saturation) else new

    # -- Eq. 8 and its relatives ----------------------------------------------------------------------------

    def inhibition(self, s: mg.View, g: SynapseGenome, received: Any, which: str) -> Any:
        """What Oja's term multiplies the weight by."""
        eta, gamma = g.at(s, "eta_tilde"), torch.abs(g.at(s, "gamma"))
        if self.o.oja == "activation":
            return -torch.abs(eta) * gamma * s.examples((g.at(s, "mu_tilde") @ received) ** 2, self.o.batch)
        length = getattr(s, f"{which}_sum")
        if self.o.oja == "weights":
            return -torch.abs(eta) * gamma * length
        forgetting = -(g.at(s, "f_tilde") - 1.0) * gamma * length
        if self.o.oja == "forgetting":
            return forgetting
        drive = getattr(s, f"{which}_drive") * (g.at(s, "mu_tilde") @ received)
        return forgetting - eta * gamma * s.examples(drive, self.o.batch)

    def project_message(self, s: mg.View) -> Any:
        """w (a nu~) for the unit above, v (a nu~) for the one below."""
        return self.projected(s, self.book.below(s.node))

    def early_project_message(self, s: mg.View) -> Any:
        """The same after the forward pass."""
        return self.projected(s, self.book.below(s.node).early)

    def projected(self, s: mg.View, g: SynapseGenome) -> Any:
        """By the numbers of one update or the other."""
        nu_tilde = g.at(s, "nu_tilde")
        return {"w": s.w * (s.x @ nu_tilde), "v": self.down(s) * (s.y @ nu_tilde)}

    def inhibit_update(self, s: mg.View, post: Any, pre: Any = None) -> mg.View:
        """Keep what the units make of them."""
        return s.set(w_drive=post["w"], v_drive=0.0 if pre is None else pre["v"])
