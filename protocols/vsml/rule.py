"""Variable Shared Meta Learning: every synapse is a small recurrent network, and all share one set of parameters.

Kirsch and Schmidhuber (2021), "Meta Learning Backpropagation And Improving It", NeurIPS; the equation numbers are those
of the workshop version, the defaults those of the published code. Synapse ab holds a state; with f_a the message that
reaches unit a from below and g_b the one that reaches unit b from above, one tick is

    s_ab <- sigma(b + s_ab W + f_a F + g_b G)             vanilla network, Eqs. 1-3 and 14
    c_ab <- f c_ab + i u,    h_ab <- o tanh(c_ab)         LSTM, Eq. 6: each gate as above

    forward     f_b = merge over a of  h_ab C             Eq. 3, read out at the outputs
    backward    g_a = merge over b of  h_ab U             Eq. 14

Nothing else happens: weights, activations, errors and the learning algorithm are what these states come to mean. The
parameters W, F, G, b, C, U are the genome; there is no gradient of the network in it.

What differs from the paper, as in the published code unless said otherwise. Messages are inputs of the cell (its
appendix C) and are merged by their mean. Data come in on channel 0 of a message, predictions leave on channel 1. The
error, the loss's derivative divided by the batch size, is fed on channel 0 from above with the *next* input, so that a
synapse must remember; it travels one layer down with every example. Gates are offset so that synapses start as slow
memories. Units are only where messages meet: an activation that the network draws is left to the synapses to learn
(``units="apply"`` applies it to each channel of what goes up, but for batch normalisation; what comes down is never
multiplied by a derivative). Operations (pooling, products) are applied channel by channel. The random part of the
initial state has deviation 1/sqrt(fan-in), which for dense layers is the published one. Backward messages of strided
convolutions reach every pixel; the published ones do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import torch
from torch import nn

import mpgraph as mg
from mpgraph import Protocol
from mpgraph.agents.protocol import AgentNode
from mpgraph.arguments import Arguments

from .synapses import CELLS, Synapse
from .units import Form, Loss, Operation, Silent, Source, Target, Unit


class VSML(Protocol):
    """Learning by recurrent synapses that share a genome; by default a random one.

    Args:
        state: length of a synapse's state (an LSTM has two, h and c).
        width: numbers in a message, at least 2.
        cell: ``"lstm"``, ``"gru"`` or ``"vanilla"``.
        merge: of the messages that meet at a unit, ``"mean"`` or ``"sum"``.
        ticks: of every cell for one visit ("micro ticks").
        exchange: whether messages are exchanged anew between ticks: sweeps of one tick, ``ticks`` times. By default
            messages are held while a cell ticks.
        error: ``"next"`` feeds the error with the next input, ``"reverse"`` by a sweep back over the same example.
        feed_label: whether the label is fed beside the error, on channel 1.
        layer_norm: whether each synapse's message is normalised before it is merged.
        offsets: of the gates that keep and of the gates that let in.
        output: channel that an output predicts on.
        bound: predictions are ``bound * tanh(y / bound)``; ``None`` leaves them as they are.
        clip: bound on an LSTM's memory, or ``None``; the paper clips at 4 when it tests.
        average: share of the state (rounded down) that the examples of a batch have in common: averaged before a step.
        random: share of the state (rounded down) that starts at random.
        layers: patterns of connection names (``"x->h1"``); the connections of each pattern have a genome of their own.
        coordinates: whether every synapse hears where it sits at its two ends (appendix D).
        units: ``"merge"`` leaves activations to the synapses, ``"apply"`` applies those that the network draws.
        biases: whether a unit's bias is a synapse too, from the number one; by default there is none.
        seed: of the genome.

    Meta-parameters, for each genome (``gates``, ``state`` n, ``width`` m): ``W`` (gates, n, n), ``F``, ``G`` (gates, m,
    n), ``b`` (gates, n), ``C``, ``U`` (n, m), ``C_b``, ``U_b`` (m,), with layer normalisation ``C_scale``,
    ``C_offset``, ``U_scale``, ``U_offset`` (m,), with coordinates ``P`` (gates, 2, n).

    Raises:
        ProtocolError: for an argument out of range, and patterns that match no connection of the network.
    """

    random_defaults = True
    source = """
@inproceedings{kirsch2021meta,
  title={Meta Learning Backpropagation And Improving It},
  author={Kirsch, Louis and Schmidhuber, J{\\"u}rgen},
  booktitle={Advances in Neural Information Processing Systems}, volume={34}, year={2021}
}"""

    def __init__(
        self,
        state: int = 16,
        width: int = 8,
        *,
        cell: Literal["lstm", "gru", "vanilla"] = "lstm",
        merge: Literal["mean", "sum"] = "mean",
        ticks: int = 2,
        exchange: bool = False,
        error: Literal["next", "reverse"] = "next",
        feed_label: bool = False,
        layer_norm: bool = False,
        offsets: tuple[float, float] = (5.0, -5.0),
        output: int = 1,
        bound: float | None = 100.0,
        clip: float | None = None,
        average: float = 0.5,
        random: float = 0.5,
        layers: Sequence[str] = (),
        coordinates: bool = False,
        units: Literal["merge", "apply"] = "merge",
        biases: bool = False,
        seed: int = 0,
        **agents: mg.Agent,
    ) -> None:
        given = Arguments("VSML")
        state, width = given.integer("state", state, 1), given.integer("width", width, 2)
        ticks, output = given.integer("ticks", ticks, 1), given.integer("output", output, 0, width - 1)
        given.choice("cell", cell, CELLS), given.choice("merge", merge, ("mean", "sum"))
        given.choice("error", error, ("next", "reverse")), given.choice("units", units, ("merge", "apply"))
        bound, clip = given.positive("bound", bound), given.positive("clip", clip)
        if clip is not None and cell != "lstm":
            given.refuse("clip", clip, f"None with cell={cell!r}, which has no memory c to bound")
        average, random = given.number("average", average, 0, 1), given.number("random", random, 0, 1)
        flags = {"exchange": exchange, "feed_label": feed_label, "layer_norm": layer_norm, "biases": biases}
        _ = [given.flag(name, value) for name, value in {**flags, "coordinates": coordinates}.items()]
        (keep, admit), seed = given.numbers("offsets", offsets, 2), given.seed("seed", seed)
        layers = given.patterns("layers", layers)
        reverse = error == "reverse"
        generator = torch.Generator("cpu").manual_seed(seed)
        synapses = [
            CELLS[cell](
                state,
                width,
                generator,
                ticks=1 if exchange else ticks,
                reverse=reverse,
                layer_norm=layer_norm,
                offsets=(keep, admit),
                clip=clip,
                average=average,
                random=random,
                coordinates=coordinates,
            )
            for _ in (None, *layers)
        ]
        form = Form(width, output, bound)
        merged = "window_mean" if merge == "mean" else merge  # published convolutions divide by the whole window
        own: dict[str, Any] = {
            "input": Source(form),
            "target": Target(),
            "constant": Source(form, 1.0),
            "zero": Source(form, 0.0),
            "weight": synapses[0],
            "bias": synapses[0] if biases else Silent(),
            "unit": Unit(form, merged, units == "apply"),
            "batchnorm": Unit(form, merged, False),
            "operation": Operation(form, merged),
            "loss": Loss(form, feed_label),
        }
        super().__init__(**{**own, **agents})
        self.patterns, self.cell = layers, cell
        self.layers = nn.ModuleList(synapses[1:])
        again = ticks - 1 if exchange else 0
        begin = ("average",) if average else ()
        if reverse:
            self.predict_passes = (*begin, "forward", *("forward",) * again)
            back = ("backward",) * (1 + again)
            self.passes = (*self.predict_passes, "compare", "feedback", *back, "clear")
        else:
            self.predict_passes = (*begin, *("forward", "feedback", "backward") * again, "forward")
            self.passes = (*self.predict_passes, "compare", "feedback", "backward")

    def agent(self, node: AgentNode) -> mg.Agent:
        """The synapse of the first pattern that matches, else the shared one."""
        found = super().agent(node)
        own = [a for p, a in zip(self.patterns, self.layers, strict=True) if fnmatchcase(node.owner, p)]
        return cast(Synapse, own[0]) if own and isinstance(found, Synapse) else found

    def check(self, agents: Any) -> None:
        """Refuse patterns of ``layers`` that serve no synapse."""
        own = [self.agents["weight"], *self.layers]
        names = dict.fromkeys(node.owner for node, agent in agents.items() if agent in own)
        Arguments("VSML").serving("layers", self.patterns, names, "connections")

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        synapse = cast(Synapse, self.agents["weight"])
        return f"state={synapse.n}, width={synapse.m}, cell={self.cell!r}"
