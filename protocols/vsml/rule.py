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

What differs from the paper, as in the published code unless noted. Messages are inputs of the cell (its
appendix C) and are merged by their mean. Data come in on channel 0 of a message, predictions leave on channel 1. The
error, the loss's derivative divided by the batch size, is fed on channel 0 from above with the *next* input, so that a
synapse must remember; it travels one layer down with every example. Gates are offset so that synapses start as slow
memories. Units are only where messages meet: the activation of a unit is left to the synapses to learn
(``units="apply"`` applies it to each channel of what goes up, but for batch normalization; what comes down is never
multiplied by a derivative). Operations (pooling, products) are applied channel by channel. The random part of the
initial state has deviation 1/sqrt(fan-in), which for dense layers is the published one. Backward messages of strided
convolutions reach every pixel; the published ones do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

import mpgraph as mg
from mpgraph import Protocol
from mpgraph.agents.options import option
from mpgraph.arguments import Arguments, first_match

from .imitation import differences, solution
from .synapses import CELLS, Gates, Synapse
from .units import Form, Loss, Operation, Silent, Source, Unit


class VSML(Protocol):
    """Learning by recurrent synapses that share a genome; by default a random one.

    Meta-parameters, for each genome (``gates``, ``state`` n, ``width`` m): ``W`` (gates, n, n), ``F``, ``G`` (gates, m,
    n), ``b`` (gates, n), ``C``, ``U`` (n, m), ``C_b``, ``U_b`` (m,), with layer normalization ``C_scale``,
    ``C_offset``, ``U_scale``, ``U_offset`` (m,), with coordinates ``P`` (gates, 2, n); with ``two_sets`` also those of
    ``back``, W, F, G, b and P once more.

    Raises:
        ProtocolError: for an argument out of range, and patterns that match no connection of the network.
    """

    state: int = option(16, "length of a synapse's state (an LSTM has two, h and c).", positional=True, low=1)
    width: int = option(8, "numbers in a message, at least 2.", positional=True, low=2)
    cell: Literal["lstm", "gru", "vanilla"] = option("lstm", "the network in every synapse.")
    merge: Literal["mean", "sum"] = option("mean", "how the messages that meet at a unit become one.")
    ticks: int = option(2, 'of every cell for one visit ("micro ticks").', low=1)
    exchange: bool = option(
        False,
        "whether messages are exchanged anew between ticks: sweeps of one tick, ``ticks`` times. By default messages "
        "are held while a cell ticks.",
    )
    error: Literal["next", "reverse"] = option(
        "next",
        '``"next"`` feeds the error with the next input, ``"reverse"`` by a sweep back over the same example.',
    )
    quiet: bool = option(
        False,
        'with ``error="reverse"``, whether every message from above is empty when the next example comes; by default '
        "only the error of the outputs is.",
    )
    two_sets: bool = option(
        False,
        'with ``error="reverse"``, whether cells tick by a second set of parameters on the sweep back, ``back``, which '
        "begins as a copy of the first.",
    )
    reduction: Literal["mean", "sum"] = option(
        "mean", 'of the error over the batch: ``"sum"`` does not divide it, as fits states that are averaged.'
    )
    feed_label: bool = option(False, "whether the label is fed beside the error, on channel 1.")
    layer_norm: bool = option(False, "whether each synapse's message is normalized before it is merged.")
    offsets: tuple[float, float] = option((5.0, -5.0), "of the gates that keep and of the gates that let in.")
    output: int = option(1, "channel that an output predicts on.")
    bound: float | None = option(
        100.0, "predictions are ``bound * tanh(y / bound)``; ``None`` leaves them as they are.", above=0
    )
    clip: float | None = option(
        None, "bound on an LSTM's memory, or ``None``; the paper clips at 4 when it tests.", above=0
    )
    average: float = option(
        0.5,
        "share of the state (rounded down) that the examples of a batch have in common: averaged before a step.",
        low=0,
        high=1,
    )
    random: float = option(0.5, "share of the state (rounded down) that starts at random.", low=0, high=1)
    layers: Any = option(
        (),
        'patterns of connection names (``"x->h1"``); the connections of each pattern have a genome of their own.',
        check=Arguments.patterns,
    )
    coordinates: bool = option(False, "whether every synapse receives its place at its two ends (appendix D).")
    units: Literal["merge", "apply"] = option(
        "merge", '``"merge"`` leaves activations to the synapses, ``"apply"`` applies those of the network.'
    )
    biases: bool = option(
        False, "whether a unit's bias is a synapse too, from the number one; by default there is none."
    )
    genome: Literal["random", "scalar", "backprop"] = option(
        "random",
        'what it begins with: ``"scalar"`` is random, but reads and sends only the first number of a message, as what '
        'is to imitate alone must; ``"backprop"`` is an LSTM that is gradient descent to first order, see '
        "``imitation.py``.",
    )
    seed: int = option(0, "of a random genome.", check=Arguments.seed)
    without = ("lr", "surrogate")

    agents = {
        "input": Source,
        "constant": lambda rule: Source(rule, 1.0),
        "zero": lambda rule: Source(rule, 0.0),
        "weight": lambda rule: rule.cells[0],
        "bias": lambda rule: rule.cells[0] if rule.biases else Silent(),
        "unit": Unit,
        "operation": Operation,
        "loss": Loss,
    }
    random_defaults = True
    shipped = "vsml_clone"
    source = """
@inproceedings{kirsch2021meta,
  title={Meta Learning Backpropagation And Improving It},
  author={Kirsch, Louis and Schmidhuber, J{\\"u}rgen},
  booktitle={Advances in Neural Information Processing Systems}, volume={34}, year={2021}
}"""

    def setup(self) -> None:
        """Make the genomes and choose the passes."""
        given = Arguments("VSML")
        given.integer("output", self.output, 0, self.width - 1)
        if self.clip is not None and self.cell != "lstm":
            given.refuse("clip", self.clip, f"None with cell={self.cell!r}, which has no memory c to bound")
        if self.quiet and self.error != "reverse":
            given.refuse("quiet", self.quiet, "False with error='next', whose errors come with the next example")
        if self.two_sets and self.error != "reverse":
            given.refuse("two_sets", self.two_sets, "False with error='next', where nothing ticks on the way back")
        generator = torch.Generator().manual_seed(self.seed)
        self.cells = [CELLS[self.cell](self, generator) for _ in (None, *self.layers)]  # the first is the shared one
        if self.genome != "random":
            for cell in self.cells:
                solution(cell) if self.genome == "backprop" else cell.narrow()
        if self.two_sets:
            for cell in self.cells:
                cell.back = Gates(cell)
        self.form = Form(self)
        self.merged = "window_mean" if self.merge == "mean" else "sum"  # as published, by the whole window
        self.patterns: Sequence[str] = self.layers
        self.layers = nn.ModuleList(self.cells[1:])
        again = self.ticks - 1 if self.exchange else 0
        begin = ("average",) if self.average else ()
        if self.error == "reverse":
            self.predict_passes = (*begin, "forward", *("forward",) * again)
            back = ("backward",) * (1 + again)
            self.passes = (*self.predict_passes, "compare", "feedback", *back, "clear")
        else:
            self.predict_passes = (*begin, *("forward", "feedback", "backward") * again, "forward")
            self.passes = (*self.predict_passes, "compare", "feedback", "backward")

    def alone(self, graph: Any, generator: Generator, examples: int) -> dict[str, Tensor]:
        """How far the shared synapse is from one of gradient descent, see ``imitation.py``.

        Args:
            graph: of a program of this rule; nothing of it is needed.
            generator: of the random numbers that the synapse reads.
            examples: how many synapses, times the examples that each sees in a step.

        Returns:
            Logarithms of relative squared errors of messages and updates, by name.

        Raises:
            ProtocolError: for a rule that cannot imitate, which says why.
        """
        return differences(self, generator, examples)

    def agent(self, node: mg.AgentNode) -> mg.Agent:
        """The synapse of the first pattern that matches, otherwise the shared one."""
        found = super().agent(node)
        pattern = first_match(node.owner, self.patterns)
        if pattern is None or not isinstance(found, Synapse):
            return found
        return self.cells[1 + self.patterns.index(pattern)]

    def check(self, agents: Mapping[mg.AgentNode, mg.Agent]) -> None:
        """Refuse patterns of ``layers`` that serve no synapse."""
        names = dict.fromkeys(node.owner for node, agent in agents.items() if agent in self.cells)
        Arguments("VSML").serving("layers", self.patterns, names, "connections")
