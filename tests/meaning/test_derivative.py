"""The backward pass of generated code against autograd: every function that it knows, and steps of whole rules."""

import pytest
import torch
from torch import fx
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.lowering import derivative, transposes
from mpgraph.lowering.derivative import Differentiable
from mpgraph.protocols import Backprop, Plasticity
from mpgraph.protocols.plasticity import TERMS

aten = torch.ops.aten


# Functions of a (3, 4), b (3, 4), m (4, 5), row (1, 4), column (3, 1), v (4,), number () and image (2, 3, 6, 6).
FUNCTIONS = {
    "add": lambda a, row: torch.add(a, row, alpha=-2.5) + 1.0,
    "sub": lambda a, column: 2.0 - torch.sub(column, a, alpha=3.0),
    "rsub": lambda a, v: torch.rsub(a, v) + torch.rsub(a, -1.0, alpha=-2.0),
    "neg": lambda a: -a,
    "mul": lambda a, number, row: number * a * row * 0.5,
    "mul outer": lambda column, row: column * row,
    "mul of numbers": lambda number, a: number * a.sum() * number,
    "addcmul": lambda a, b, number: torch.addcmul(a, number, b, value=-0.3),
    "addcmul outer": lambda a, column, row: torch.addcmul(a, column, row, value=2.0),
    "addcmul of one vector": lambda number, a, v: torch.addcmul(number, a, v),
    "div": lambda a, column, number: a / (2.0 + column.exp()) / number,
    "exp": lambda a: torch.exp(a),
    "log": lambda a: torch.log(a * a + 1.0),
    "sqrt": lambda a: torch.sqrt(a * a + 1.0),
    "square": lambda a: torch.square(a),
    "tanh": lambda a: torch.tanh(a),
    "sigmoid": lambda a: torch.sigmoid(a),
    "relu": lambda a: torch.relu(a),
    "softplus": lambda a: functional.softplus(a, 2.0) + functional.softplus(100.0 * a),
    "options": lambda a: functional.softplus(a, beta=2.0) + torch.softmax(a, dim=0) + a.sum(1, keepdim=True),
    "to": lambda a: a.to(torch.float64) * 1.0 + a.to(torch.float64) + a,
    "softmax": lambda a, b: torch.softmax(a, -1) * b,
    "log_softmax": lambda a, b: torch.log_softmax(a, 0) * b,
    "tanh_backward": lambda a, b: aten.tanh_backward.default(a, b),
    "sigmoid_backward": lambda a, b: aten.sigmoid_backward.default(a, b),
    "softplus_backward": lambda a, b: aten.softplus_backward.default(a, 15.0 * b, 2.0, 20.0),
    "threshold_backward": lambda a, b: aten.threshold_backward.default(a, b, 0),
    "where": lambda a, b, number: torch.where(a > b, a * number, b),
    "reshape": lambda a: a.flatten().reshape(2, 6).unflatten(1, (2, 3)).unsqueeze(0),
    "t": lambda a, b: a.t() @ b + (a @ b.t() @ a).t() @ b + a.t() @ a,
    "t of a product of numbers": lambda a, b: (a * b).t() + a.t(),
    "permute": lambda image: image.permute(2, 0, 3, 1) * 2.0,
    "expand": lambda row, a: row.expand(3, 4) * a + row.expand_as(a),
    "sum": lambda a, b, image: a.sum() + (a * b).sum(1) + image.sum((0, -1)).sum(1, keepdim=True)[:, 0].sum(),
    "select": lambda image, a: image.select(1, 2).select(-1, 0).sum() * a,
    "narrow": lambda a: a.narrow(1, 1, 2),
    "cat": lambda a, b, row: torch.cat([a, row, b], 0) * 2.0,
    "stack": lambda a, b: torch.stack([a, b], 1) * 2.0,
    "mm": lambda a, m: torch.mm(a, m),
    "mm of one row": lambda row, m, a: torch.mm(row, m) + torch.mm(row, row.t()),
    "matmul": lambda image, a: torch.matmul(image.narrow(3, 0, 4), a.t()),
    "addmm": lambda a, b, column, row: torch.addmm(torch.addmm(a, column, row, alpha=-0.1), b, b.t() @ a),
    "linear": lambda a, m, v: functional.linear(a, m.t()) * functional.linear(a, m.t(), m.sum(0)),
    "linear of more": lambda image, a: functional.linear(image.narrow(3, 0, 4), a),
    "mv": lambda a, v: torch.mv(a, v),
    "dot": lambda v, a: torch.dot(v, a.sum(0)) * v,
    "addmv": lambda a, v, column: torch.addmv(column.flatten(), a, v, alpha=0.7),
    "einsum": lambda image, a: torch.einsum("abcd,ec->abed", image.narrow(2, 0, 4), a),
    "conv2d": lambda image, a: functional.conv2d(image, image[:, :, :3, :3] * 1.0, a.sum(0)[:2] * 1.0, padding=1),
    "conv1d": lambda image, a: functional.conv1d(image.select(3, 0), image.select(3, 1) * 1.0, a.sum(0)[:2]),
    "conv3d": lambda image: functional.conv3d(image.unsqueeze(2), image[:, :, :3, :3].unsqueeze(2) * 1.0, stride=2),
    "clamp": lambda a: torch.clamp(a, -0.5, 0.5) * torch.abs(a),
    "max": lambda a: torch.amax(a, (1,)),
    "number twice": lambda a, number: a * number + number,
    "in place": lambda a, b, m: (a * b - a) @ m + torch.addmm(a @ m, a, m),
    "detach": lambda a, b: a.detach() * b,
}  # fmt: skip


def leaves():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (3, 4), "b": (3, 4), "m": (4, 5), "row": (1, 4), "column": (3, 1), "v": (4,), "number": ()}
    shapes["image"] = (2, 3, 6, 6)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for n, s in shapes.items()}


def gradients(result, tensors, create_graph=False):
    generator = torch.Generator().manual_seed(1)
    total = sum((r * torch.randn(r.shape, generator=generator, dtype=r.dtype)).sum() for r in result)
    return torch.autograd.grad(total, tensors, create_graph=create_graph, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_autograds_derivative(name):
    function = FUNCTIONS[name]
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    tensors = [leaves()[n] for n in names]
    code = Differentiable(fx.symbolic_trace(function))
    found = code(*tensors)
    assert code.written == 1, "left to autograd"
    expected = function(*tensors)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    for one, two in zip(gradients([found], tensors), gradients([expected], tensors), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_every_rule_of_the_table_is_tested():
    names = {transposes.name_of(n.target) for f in FUNCTIONS.values() for n in fx.symbolic_trace(f).graph.nodes}
    same = {"truediv", "div", "alias", "contiguous", "clone", "view", "squeeze", "view_as", "reshape_as", "unsqueeze"}
    assert set(transposes.RULES) - names <= same


def wavy(program, steps, batch, seed=0, double=False, retain=False):
    """Gradients of an unroll with respect to everything that it starts from, and again of those gradients."""
    generator = torch.Generator().manual_seed(seed)
    state = program.init(seed)
    state = {
        n: {c: t.clone().requires_grad_() if t.is_floating_point() else t for c, t in v.items()}
        for n, v in state.items()
    }
    tensors = [t for v in state.values() for t in v.values() if t.requires_grad] + list(program.parameters())
    total = 0.0
    for _ in range(steps):
        x = torch.rand(batch, 6, generator=generator, dtype=torch.float64)
        state, out = program.step(state, x, torch.randint(0, 3, (batch,), generator=generator))
        total = total + out.loss + out.prediction.square().sum()
    again = {"create_graph": double, "retain_graph": double or retain, "allow_unused": True, "materialize_grads": True}
    first = torch.autograd.grad(total, tensors, **again)
    if retain:
        second = torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True)
        for one, two in zip(first, second, strict=True):
            assert torch.equal(one, two)  # nothing that was kept is written over
    if double:
        total = sum(g.square().sum() for g in first)
        return torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True)
    return first


WHOLE = {
    "ten terms": lambda: Plasticity(**{t: mg.learnable(0.02 * (i + 1) * (-1) ** i) for i, t in enumerate(TERMS)}),
    "SGD": lambda: Backprop(optimizer=mg.SGD(mg.learnable(0.1), mg.learnable(0.5), True, mg.learnable(0.01))),
    "Adam": lambda: Backprop(optimizer=mg.Adam(mg.learnable(0.01))),
}


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rule", WHOLE)
def test_unrolls_have_autograds_gradients(rule, batch, double, monkeypatch):
    network = mlp([6, 5, 4, 3], mg.Softplus(3.0), bias=True)
    program = mg.compile(network, WHOLE[rule](), dtype=torch.float64)
    found = wavy(program, 3, batch, double=double, retain=not double)
    assert any(compiled.run.written for compiled in program._compiled.values())
    monkeypatch.setattr(derivative, "_plain", lambda: False)
    expected = wavy(mg.compile(network, WHOLE[rule](), dtype=torch.float64), 3, batch, double=double)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


def test_what_nothing_depends_on_has_no_gradient():
    """As under autograd: no gradient flows from results that do not depend on what has one."""
    code = Differentiable(fx.symbolic_trace(lambda a, b: (a * 2.0, b * a, b + 1.0)))
    a, b = torch.ones(3, requires_grad=True), torch.ones(3)
    one, two, three = code(a, b)
    assert [r.requires_grad for r in (one, two, three)] == [True, True, False]
    assert torch.equal(torch.autograd.grad(two.sum(), a)[0], b)


def test_results_of_which_only_some_are_used():
    code = Differentiable(fx.symbolic_trace(lambda a, b: (a * b, torch.tanh(a), b.exp())))
    a, b = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for used in ([0], [1], [0, 2], [1, 2]):
        results, expected = code(a, b), (a * b, torch.tanh(a), b.exp())
        pairs = [
            torch.autograd.grad(sum(r[i].sum() for i in used), (a, b), allow_unused=True) for r in (results, expected)
        ]
        for one, two in zip(*pairs, strict=True):
            assert (one is None) == (two is None)
            if one is not None:
                torch.testing.assert_close(one, two)


def test_the_errors_that_come_in_stay_as_they_are():
    code = Differentiable(fx.symbolic_trace(lambda a, b: (a + b) * 1.0 + torch.addcmul(a, b, b)))
    a, b = (torch.randn(3, requires_grad=True) for _ in range(2))
    error = torch.randn(3)
    before = error.clone()
    torch.autograd.grad(code(a, b), (a, b), error)
    assert torch.equal(error, before)


def test_backward_passes_are_kept_by_kind(monkeypatch):
    """Of each shape, and of each choice of arguments with gradients; the oldest goes where there are too many."""
    monkeypatch.setattr(derivative, "KINDS", 2)
    code = Differentiable(fx.symbolic_trace(lambda a, b: a * b))
    kept = []
    for size, first in ((3, True), (3, True), (3, False), (4, True), (3, True)):
        a, b = torch.ones(size, requires_grad=first), torch.ones(size, requires_grad=True)
        assert torch.equal(torch.autograd.grad(code(a, b).sum(), b)[0], torch.ones(size))
        kept.append(code.written)
    assert kept == [1, 1, 2, 2, 2]
    assert not code(torch.ones(3), torch.ones(3)).requires_grad


def test_a_checkpoint_computes_the_same_again():
    """What is saved never depends on earlier calls, as torch's checkpoints compare it with what they computed first."""
    code, a = Differentiable(fx.symbolic_trace(lambda a: torch.tanh(a) * a)), torch.randn(5, dtype=torch.float64)
    a.requires_grad_()
    result = checkpoint(lambda x: code(code(x)), a, use_reentrant=False)
    (found,) = torch.autograd.grad(result.sum(), a)
    (expected,) = torch.autograd.grad((torch.tanh(y := torch.tanh(a) * a) * y).sum(), a)
    torch.testing.assert_close(found, expected)


def test_transforms_see_the_code_as_it_is():
    code = Differentiable(fx.symbolic_trace(lambda a: torch.tanh(a) * a))
    a = torch.randn(3, dtype=torch.float64, requires_grad=True)
    found = torch.func.vmap(torch.func.grad(lambda x: code(x)))(a)
    torch.testing.assert_close(found, torch.tanh(a) + a * (1 - torch.tanh(a) ** 2))
    assert code.written == 0


@pytest.mark.parametrize("learning", [False, True])
def test_tanh_by_the_sigmoid(learning):
    """Within two spacings of numbers near one, of which 64 bits know all digits; its derivative is tanh's."""
    code = Differentiable(fx.symbolic_trace(lambda x: torch.tanh(x) * 3.0))
    x = torch.cat([torch.linspace(-20, 20, 30001), torch.logspace(-6, 1, 10000), torch.tensor([0.0, 1e4, -1e4])])
    x.requires_grad_(learning)
    with torch.set_grad_enabled(learning):
        found = code(x)
    exact = torch.tanh(x.detach().double())
    assert float((found.detach().double() / 3.0 - exact).abs().max()) < 2 * torch.finfo(torch.float32).eps
    assert found[-3] == 0.0
    if learning:
        assert code.written == 1
        (slope,) = torch.autograd.grad(found.sum(), x)
        torch.testing.assert_close(slope.double() / 3.0, 1.0 - exact**2, rtol=0, atol=1e-6)
    precise, few = x.detach().double(), x.detach()[:100]
    with torch.no_grad():
        assert torch.equal(code(precise), torch.tanh(precise) * 3.0)
        assert torch.equal(code(few), torch.tanh(few) * 3.0)
