"""The exact gradient at every unit, through the forward pass of whatever rule runs there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from mpgraph.errors import ProtocolError
from mpgraph.graph.arrows import Arrow
from mpgraph.lowering.trace import Trace
from mpgraph.lowering.value import Value
from mpgraph.network.axes import BATCH
from mpgraph.program.program import Batch, Program, State

from .channels import is_unit, nodes_with, refuse_sequences


class Perturbed(Trace):
    """A trace of the forward pass that adds a number to the sum of messages that each unit receives.

    Of several forward passes it is the first. The numbers are zero; the derivative of the loss with respect to them is
    the gradient at the unit, through the rule's own forward pass, whatever that is.

    Attributes:
        added: size of the numbers of each unit, but for the batch.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.added: dict[str, tuple[int, ...]] = {}

    def bag(self, index: int, arrows: Sequence[Arrow]) -> Any:
        """All messages of one role as one, and to those from below a number."""
        received, target = super().bag(index, arrows), arrows[0].target
        late = target.name in self.added or arrows[0].pass_name != "forward"
        if late or arrows[0].role != "pre" or not is_unit(target) or not isinstance(received, Value):
            return received
        self.added[target.name] = (*target.shape, *received.shape)
        return received + self.leaf(self.emitter.input(f"{target.name}.added"), (BATCH, *target.axes), received.shape)


class _Gradient(NamedTuple):
    module: fx.GraphModule
    noise: dict[str, Any]
    added: dict[str, tuple[int, ...]]


_gradients: WeakKeyDictionary[Program, _Gradient] = WeakKeyDictionary()


def _gradient_of(program: Program) -> _Gradient:
    """The forward pass with its losses as a function of what is added at each unit, compiled once for a program."""
    if program not in _gradients:
        trace = Perturbed(program.graph, program.dtype)
        with trace.parameters_of(program):
            trace.follow(program.protocol.predict_passes)
            outputs = trace.results(True, {})
        module = trace.emitter.finish(outputs).to(program.device)
        _gradients[program] = _Gradient(module, trace.noise, trace.added)
    return _gradients[program]


def gradients(program: Program, state: State, x: Batch, y: Batch | None = None, *, at: int = 0) -> dict[str, Tensor]:
    """Each unit's exact derivative of each example's loss, by autograd through the rule's own forward pass.

    Args:
        program: of a network with a loss.
        state: where.
        x, y: a batch, as for ``program.step``.
        at: which number of its messages, where they are vectors.

    Returns:
        By unit ``(batch, *unit)``: dL/dz with z the sum of the messages that the unit receives, not divided by the
        batch.

    Raises:
        ProtocolError: for a network without a loss, a program of sequences, a rule that predicts by other passes than
            ``forward``, or a forward pass that autograd cannot follow.
    """
    refuse_sequences(program)
    if not _gradient_of(program).added:
        protocol = program.protocol
        raise ProtocolError(
            f"gradients: {type(protocol).__name__} predicts without a pass 'forward' in which units add up what they "
            f"hear, so there is nothing to differentiate by; its passes are {', '.join(protocol.all_passes)}"
        )
    found = _derivatives("gradients", program, state, x, y, None)
    axes = {name: len(program.graph.nodes[name].axes) for name in found}
    return {name: tensor if tensor.ndim == 1 + axes[name] else tensor[..., at] for name, tensor in found.items()}


def weight_gradients(
    program: Program, state: State, x: Batch, y: Batch | None = None, *, channel: str = "w"
) -> dict[str, Tensor]:
    """The exact derivative of the loss with respect to each trained weight and bias, through the rule's forward pass.

    The loss is that of ``out.losses``, their sum: means over the batch.

    Args:
        program: of a network with a loss.
        state: where.
        x, y: a batch, as for ``program.step``.
        channel: of synapses and biases that holds the weight.

    Returns:
        By connection and bias, in the shape of the channel.

    Raises:
        ProtocolError: for a network without a loss, a program of sequences, a rule that keeps no such channel, or a
            forward pass that autograd cannot follow.
    """
    refuse_sequences(program)
    trained = {node.owner for node in program.graph.nodes.values() if node.trained}
    kept = [name for name in nodes_with(state, channel) if name in trained]
    return _derivatives("weight_gradients", program, state, x, y, dict.fromkeys(kept, channel))


def _derivatives(
    caller: str, program: Program, state: State, x: Batch, y: Batch | None, weights: Mapping[str, str] | None
) -> dict[str, Tensor]:
    """Derivatives by the channels of ``weights`` of the mean loss; without any, by what is added of the summed loss."""
    if not program.graph.network.losses:
        raise ProtocolError(f"{caller}: the network has no loss to differentiate; add one with network.loss(...)")
    module, needed, sizes = _gradient_of(program)
    tensors, batch = program._batches.tensors(x, y)
    noise = program._layout.noise(state, needed, batch)
    like: dict[str, Any] = {"dtype": program.dtype, "device": program.device, "requires_grad": True}
    by = {name: torch.zeros((batch, *size), **like) for name, size in sizes.items()}
    added = list(by.values())
    if weights is not None:
        by = {name: state[name][channel].detach().requires_grad_() for name, channel in weights.items()}
        state = {n: {c: by[n] if weights.get(n) == c else t for c, t in kept.items()} for n, kept in state.items()}
    with torch.enable_grad():
        try:
            losses = module(state, program._parameters_now(), noise, *tensors, *added)[2].values()
            total: Any = sum(losses) * (batch if weights is None else 1)
            found = torch.autograd.grad(total, list(by.values()), allow_unused=True, materialize_grads=True)
        except RuntimeError as error:
            raise ProtocolError(
                f"{caller}: autograd cannot follow the forward pass ({str(error).splitlines()[0]}). A function that "
                "leaves torch has no gradient; compare with another state of the rule instead, angles(against=...)"
            ) from None
    return dict(zip(by, found, strict=True))
