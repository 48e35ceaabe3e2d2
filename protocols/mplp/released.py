"""The parameter files that the authors of MPLP released, as rules; see ``rule.py``.

A file is one flat float32 vector without names (github.com/google-research/self-organising-systems, folder mplp,
Apache-2.0). In it lie, layer by layer of a chain of layers and last the loss, for the weights, the biases, then the
activation: the standardizers' factors and shifts (message, parameter, input), f, the scale and mean of updates, g. One
GRU, where it is f and g, stands in the place of f; learners that layers share come last: of weights, of biases.

    MNIST   mnist_weights_00005000          144-50-10, 20 steps of 8 images
    MAML    maml_sin_net_weights_00258202   1-20-20-1 ReLU, 2 steps of 10 points, with maml_sin_prior_weights_00258202
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mpgraph as mg

from .rule import MPLP

MNIST: Mapping[str, Any] = {"k": 4, "n": 7, "share": {"weight": "kind", "bias": "kind"}}
MAML: Mapping[str, Any] = {"k": 8, "learner": "stateless", "share": "node", "train_g": False}


def released(path: Any, network: mg.Network, arguments: Mapping[str, Any]) -> MPLP:
    """A rule with the learners and statistics of a released file.

    Args:
        path: of the ``.npy`` file.
        network: the chain of layers that the file was made for. Others may be compiled with the rule afterwards, if
            they have the same names.
        arguments: of :class:`MPLP`, such as ``MNIST`` or ``MAML``.

    Raises:
        FileError: for a file that cannot be read or has another length than such a rule.
    """
    rule = MPLP(**arguments)
    mg.compile(network, rule, dtype=torch.float32)
    chain = [name for unit, wire in _layers(network) for name in (wire, f"{unit}.bias", unit)]
    losses = [name for loss in network.losses for name in (f"{loss}.link", loss)]
    keys = [name.replace(".", "/") for name in (*chain, *losses)]
    tensors = [t for key in keys if key in rule.standardisers for t in _own(rule, key)]
    tensors += [t for key in ("weight", "bias") if key in rule.learners for t in _tensors(rule.learners[key])]
    _fill(path, tensors)
    return rule


def released_prior(path: Any, program: mg.Program, **options: Any) -> dict[str, dict[str, Tensor]]:
    """A state with the initial weights of a released file, and fresh memories.

    Args:
        path: of the ``.npy`` file.
        program: of the network that the file was made for.
        options: of ``program.init``.

    Raises:
        FileError: for a file that cannot be read or has another length.
    """
    state = program.init(**options)
    pairs = [(state[wire], state[f"{unit}.bias"]) for unit, wire in _layers(program.graph.network)]
    _fill(path, [t for weight, bias in pairs for t in (weight["w"].T, bias["w"])])  # theirs are (pre, post)
    return state


def _layers(network: mg.Network) -> list[tuple[str, str]]:
    """Units and the connections into them, first to last."""
    return [(wire.post, wire.name) for wire in network.wires.values()]


def _own(rule: MPLP, key: str) -> list[Tensor]:
    """The tensors of one node in their order."""
    standardiser: Any = rule.standardisers[key]
    output: list[Any] = [rule.outputs[key]] if key in rule.outputs else []
    f, g = _halves(rule.learners[key]) if key in rule.learners else ([], [])
    scale = [t for part in output for t in (part.scale, part.mean)]
    return [standardiser.factor, standardiser.shift, *f, *scale, *g]


def _halves(learner: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors of f and of g; one network that is both counts as f."""
    f = [] if learner.f is None else _tensors(learner.f)
    return f, [] if learner.f is learner.g else _tensors(learner.g)


def _tensors(module: nn.Module) -> list[Tensor]:
    return list(module.state_dict().values())


def _fill(path: Any, tensors: list[Tensor]) -> None:
    """Cut the vector of a file into tensors, in their order."""
    try:
        vector = torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise mg.FileError(f"cannot read {path}: {error}") from None
    sizes = [tensor.numel() for tensor in tensors]
    if vector.shape != (sum(sizes),):
        raise mg.FileError(f"{path} holds {tuple(vector.shape)} numbers, this network and rule need {sum(sizes)}")
    parts = vector.split(sizes)
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))
