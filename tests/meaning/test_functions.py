"""Functions for learned rules. Oracle: those of torch."""

import pytest
import torch

from mpgraph.agents.functions import fast_tanh


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fast_tanh_is_tanh_to_rounding(dtype):
    wide, tiny = torch.linspace(-30, 30, 100_001, dtype=dtype), torch.logspace(-30, 30, 10_001, dtype=dtype)
    x = torch.cat([wide, tiny, -tiny, torch.tensor([0.0, torch.inf, -torch.inf], dtype=dtype)])
    x.requires_grad_()
    wanted = torch.tanh(x.double())
    assert (fast_tanh(x) - wanted).abs().max() <= 2 * torch.finfo(dtype).eps
    (gradient,) = torch.autograd.grad(fast_tanh(x).sum(), x)
    assert (gradient - (1 - wanted**2)).abs().max() <= 4 * torch.finfo(dtype).eps


def test_it_keeps_zero_and_the_ends():
    x = torch.tensor([0.0, 1e4, -1e4])
    assert torch.equal(fast_tanh(x), torch.tensor([0.0, 1.0, -1.0]))
