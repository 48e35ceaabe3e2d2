"""Lazy values beside the full arrays that they stand for."""

import torch

from mpgraph.lowering.emitter import Emitter
from mpgraph.lowering.terms import Factor
from mpgraph.lowering.value import Value
from mpgraph.network.axes import BATCH, Axis

SIZES = {"batch": 3, "i": 4, "j": 2}


class Sheet:
    """Pairs of a lazy value and the full array (batch, i, j[, k]) that it stands for."""

    def __init__(self, seed=0, single=False):
        self.sizes = {**SIZES, "batch": 1 if single else SIZES["batch"]}
        self.emitter = Emitter(torch.float64, single)
        self.axes = {"batch": BATCH, "i": Axis("i", 4), "j": Axis("j", 2)}
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors = {}
        node = self.emitter.input("anchor")
        self.tensors["anchor"] = torch.zeros(self.sizes["batch"], dtype=torch.float64)
        self.emitter.batched(node)

    def leaf(self, names, k=None):
        shape = [self.sizes[n] for n in names] + ([k] if k else [])
        name = f"t{len(self.tensors)}"
        self.tensors[name] = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        local = (Axis("k", k, rank=1),) if k else ()
        factor = Factor(self.emitter.input(name), (*(self.axes[n] for n in names), *local))
        return Value(self.emitter, (), local).like(factor), self.spread(self.tensors[name], names, k)

    def spread(self, tensor, names, k=None):
        order = [names.index(n) for n in self.sizes if n in names]
        tensor = tensor.permute([*order, *([len(names)] if k else [])])
        full = [self.sizes[n] if n in names else 1 for n in self.sizes] + ([k] if k else [])
        return tensor.reshape(full).expand(*self.sizes.values(), *([k] if k else []))

    def evaluate(self, value):
        """The lazy value's array, by running the code that was written for it."""
        node = self.emitter.full(value.materialize(), (*self.axes.values(), *value.local))
        module = self.emitter.finish(node)
        return module(*self.tensors.values()), module
