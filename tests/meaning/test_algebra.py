"""The algebra against numpy-style einsum on full arrays: whatever is lazy must equal what is multiplied out."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sheet import SIZES, Sheet

import mpgraph as mg
from mpgraph.lowering.emitter import Emitter
from mpgraph.lowering.terms import Factor, Term
from mpgraph.lowering.value import Value
from mpgraph.network.axes import BATCH, Axis


@st.composite
def expressions(draw, depth=3):
    """A random program of sums, products and aggregations, as a function of a sheet."""
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        names = draw(
            st.sampled_from([(), ("i",), ("j",), ("batch",), ("batch", "i"), ("batch", "j"), ("j", "i"), ("i", "j")])
        )
        return ("leaf", names)
    kind = draw(st.sampled_from(["add", "mul", "mul", "sub", "scale", "sum", "mean", "tanh", "max"]))
    if kind in ("add", "mul", "sub"):
        return (kind, draw(expressions(depth - 1)), draw(expressions(depth - 1)))
    if kind in ("sum", "mean", "max"):
        over = draw(st.sets(st.sampled_from(list(SIZES)), min_size=1))
        return (kind, draw(expressions(depth - 1)), tuple(sorted(over)))
    return (kind, draw(expressions(depth - 1)))


def build(sheet, expression):
    kind, *rest = expression
    if kind == "leaf":
        return sheet.leaf(list(rest[0]))
    value, array = build(sheet, rest[0])
    if kind in ("add", "mul", "sub"):
        other, other_array = build(sheet, rest[1])
        operation = {"add": torch.add, "mul": torch.mul, "sub": torch.sub}[kind]
        return operation(value, other), operation(array, other_array)
    if kind in ("sum", "mean", "max"):
        dims = [list(SIZES).index(n) for n in rest[1]]
        total = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}[kind](array, dims, keepdim=True)
        return value.total([sheet.axes[n] for n in rest[1]], kind), total.expand(array.shape)
    return (value * -1.5, array * -1.5) if kind == "scale" else (torch.tanh(value), torch.tanh(array))


@given(expressions(depth=4), st.booleans())
def test_any_expression_equals_the_multiplied_out_one(expression, single):
    sheet = Sheet(single=single)
    value, array = build(sheet, expression)
    found, _ = sheet.evaluate(value)
    torch.testing.assert_close(found.expand(array.shape), array, rtol=1e-10, atol=1e-10)


def code_of(make):
    sheet = Sheet()
    value, array = make(sheet)
    found, module = sheet.evaluate(value)
    torch.testing.assert_close(found, array.expand(found.shape), rtol=1e-12, atol=1e-12)
    return module.code


def test_forward_product_with_bias_is_one_linear():
    sheet = Sheet()
    w, x, b = (sheet.leaf(n)[0] for n in (["j", "i"], ["batch", "i"], ["j"]))
    value = (w * x).total([sheet.axes["i"]]) + b
    value.materialize()
    calls = [node.target for node in sheet.emitter.graph.nodes if node.op == "call_function"]
    assert calls == [torch.nn.functional.linear]


def test_batch_averaged_update_is_one_addmm():
    sheet = Sheet()
    w, e, x = (sheet.leaf(n)[0] for n in (["i", "j"], ["batch", "i"], ["batch", "j"]))
    value = (w - 0.1 * (e * x)).total([BATCH], "mean")
    code = sheet.evaluate(value)[1].code
    assert code.count("torch.addmm") == 1
    assert "mul" not in code


def test_a_sum_that_spans_is_not_distributed():
    def make(sheet):
        (e, E), (y, Y), (w, W) = (
            sheet.leaf(["batch", "i"]),
            sheet.leaf(["batch", "i"]),
            sheet.leaf(["i", "j"]),
        )
        value = ((e * (1 - y * y)) * w).total([sheet.axes["i"]])
        return value, (E * (1 - Y * Y) * W).sum(1, keepdim=True)

    code = code_of(make)
    assert code.count("mm(") == 1


def test_nothing_is_written_twice():
    def make(sheet):
        (w, W), (x, X) = sheet.leaf(["i", "j"]), sheet.leaf(["batch", "i"])
        one, two = ((w * x).total([sheet.axes["i"]]) for _ in range(2))
        return torch.tanh(one) + torch.sigmoid(two), torch.tanh((W * X).sum(1, keepdim=True)) + torch.sigmoid(
            (W * X).sum(1, keepdim=True)
        )

    assert code_of(make).count("mm(") == 1


def test_equal_terms_cancel():
    def make(sheet):
        (x, _), (y, Y) = sheet.leaf(["batch", "i"]), sheet.leaf(["batch", "i"])
        return 2 * x + y - x - x, Y

    assert "add" not in code_of(make)


def test_local_axes_follow_torch():
    sheet = Sheet()
    v, V = sheet.leaf(["batch", "i"], k=3)
    m, M = (
        torch.arange(6.0, dtype=torch.float64).reshape(3, 2),
        torch.arange(6.0, dtype=torch.float64).reshape(3, 2),
    )
    cases = [
        (v @ m, V @ M),
        (torch.nn.functional.linear(v, m.T), V @ M),
        (v[1:], V[..., 1:]),
        (v[-1], V[..., -1]),
        (v.sum(), V.sum(-1)),
        (torch.cat([v, v[:1]]), torch.cat([V, V[..., :1]], -1)),
        (torch.stack([v[0], v[2]]), torch.stack([V[..., 0], V[..., 2]], -1)),
        (
            v * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
            V * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
        ),
        (torch.softmax(v, -1), torch.softmax(V, -1)),
        (v * v[0] + v.mean(), V * V[..., :1] + V.mean(-1, keepdim=True)),
        (v / (1 + v * v), V / (1 + V * V)),
    ]
    for value, array in cases:
        found, _ = sheet.evaluate(value)
        assert tuple(value.shape) == tuple(array.shape[3:])
        torch.testing.assert_close(found, array.expand(found.shape), rtol=1e-12, atol=1e-12)


INDICES = [
    *(0, -1, slice(None), slice(1, None), slice(-2, None), slice(0, 9), slice(2, 1), slice(None, None, 2), None, ...),
    *((0, 1), (slice(1), -1), (..., 0), (..., slice(1, 3)), (None, 1, slice(1, 2)), (slice(None), None), (1, ...)),
    *([2, 0], (slice(None), [0, 2]), (0, [1, 1])),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("names", [["batch", "i"], ["j"]])
def test_parts_of_a_value(index, names):
    sheet = Sheet()
    v, V = sheet.leaf(names, k=3)
    value, array = torch.stack([v, 2 * v, v * v, -v]), torch.stack([V, 2 * V, V * V, -V], -2)
    part = value[index]
    expected = array[(slice(None),) * 3 + (index if isinstance(index, tuple) else (index,))]
    assert tuple(part.shape) == tuple(expected.shape[3:])
    found, module = sheet.evaluate(part)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    if not any(
        isinstance(i, list) or i == slice(None, None, 2) for i in (index if isinstance(index, tuple) else [index])
    ):
        assert "[(" not in module.code  # calls by name


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda v: bool(v > 0), "torch.where"),
        (lambda v: float(v), "torch.where"),
        (lambda v: v.__setitem__(0, 1.0), "immutable"),
        (lambda v: v.add_(1.0), "in-place"),
        (lambda v: v[5], "index 5"),
        (lambda v: v @ torch.ones(4), r"\(3,\) and \(4,\)"),
        (lambda v: v + torch.ones(4), "do not broadcast"),
        (lambda v: v + "text", "str"),
        (lambda v: v * torch.ones(3, requires_grad=True), "not a parameter"),
        (lambda v: v.total([BATCH], "median"), "median"),
        (lambda v: list(v[0]), "single number"),
    ],
)
def test_what_a_value_refuses(act, message):
    value, _ = Sheet().leaf(["batch"], k=3)
    with pytest.raises(mg.ProtocolError, match=message):
        act(value)


@pytest.mark.parametrize("single", [False, True])
def test_contractions_that_share_a_factor_become_one(single):
    sheet = Sheet(single=single)
    (x, x_), (e, e_), (y, y_), (g, g_) = (
        sheet.leaf(n) for n in (["batch", "i"], ["batch", "j"], ["batch", "j"], ["batch"])
    )
    lazy = (e * x + 2.0 * y * g * x - 0.5 * e * g * x + x).total((BATCH,))
    value, module = sheet.evaluate(lazy)
    full = (e_ * x_ + 2.0 * y_ * g_ * x_ - 0.5 * e_ * g_ * x_ + x_).sum(0, keepdim=True).expand_as(value)
    torch.testing.assert_close(value, full, rtol=0, atol=1e-12)
    assert module.code.count("mm(") == 1
    other, module = sheet.evaluate((e * x + y * g * e).total((BATCH,)))  # would need all of (batch, i, j)
    torch.testing.assert_close(
        other, (e_ * x_ + y_ * g_ * e_).sum(0, keepdim=True).expand_as(other), rtol=0, atol=1e-12
    )


def test_a_vector_of_one_number_stays_a_vector():
    sheet = Sheet()
    (one, array), (other, other_array) = sheet.leaf(["i"], 1), sheet.leaf(["j"], 3)
    number = sheet.leaf(["batch"])
    for value, expected in (
        (1.0 - one, 1.0 - array),
        (one * number[0], array * number[1].unsqueeze(-1)),
        (one + other, array + other_array),
        (other - one, other_array - array),
    ):
        assert tuple(value.shape) == expected.shape[3:]
        torch.testing.assert_close(sheet.evaluate(value)[0], expected)


def test_a_large_tensor_is_multiplied_once():
    def make(sheet):
        (w, W), (a, A), (b, B), (c, C) = (sheet.leaf(n) for n in (["i", "j"], [], [], []))
        return w - a * w + 2.0 * b * c * w - 0.5 * w, W * (1.0 - A + 2.0 * B * C - 0.5)

    calls = code_of(make)
    assert len(re.findall(r"torch\.\w+\([^)]*\bt1\b", calls)) == 1  # t1 is w


def test_a_number_less_a_tensor_is_one_call():
    def make(sheet):
        value, array = sheet.leaf(["batch", "i"])
        return 1.0 - value, 1.0 - array

    code = code_of(make)
    assert code.count("torch.") == code.count("torch.rsub(") == 1


def test_a_sum_of_which_one_use_is_scaled_is_written_once():
    def make(sheet):
        (a, A), (b, B), (c, C) = (sheet.leaf(["batch", "i"]) for _ in range(3))
        total, full = a - 2.0 * (b * c), A - 2.0 * B * C
        return torch.sigmoid(-2.0 * total) + torch.sigmoid(total), torch.sigmoid(-2.0 * full) + torch.sigmoid(full)

    assert code_of(make).count("torch.addcmul(") == 1


@pytest.mark.parametrize(("single", "order", "copies"), [(True, 1, 0), (True, -1, 1), (False, 1, 1), (False, -1, 1)])
def test_a_mean_over_one_example_joins_the_rest_without_a_copy(single, order, copies):
    sheet = Sheet(single=single)
    (v, V), (w, W) = (sheet.leaf(["batch", "i"], k=4) for _ in range(2))
    mean, full = v.total([BATCH], "mean"), V.mean(0, keepdim=True).expand_as(V)
    found, module = sheet.evaluate(torch.cat([mean[:3], v[3:]][::order]))
    torch.testing.assert_close(found, torch.cat([full[..., :3], V[..., 3:]][::order], -1))
    assert module.code.count("cat(") == copies
    found, _ = sheet.evaluate(torch.cat([mean[:3], w[3:]][::order]))  # of another tensor
    torch.testing.assert_close(found, torch.cat([full[..., :3], W[..., 3:]][::order], -1))


def test_a_product_that_is_known_is_not_formed_again():
    """y'W e by the product y'W that another message needed, though W e would be smaller."""

    def make(sheet):
        (w, W), (y, Y), (e, E) = (sheet.leaf(n) for n in (["j", "i"], ["batch", "j"], ["batch", "i"]))
        recalled = (w * y).total([sheet.axes["j"]])
        recalled.materialize()
        form = (y * w * e).total([sheet.axes["i"], sheet.axes["j"]])
        Recalled = (W * Y).sum(2, keepdim=True)
        return recalled * form, Recalled * (Recalled * E).sum(1, keepdim=True)

    assert len(re.findall(r"mm\(|linear\(|matmul\(", code_of(make))) == 1


@pytest.mark.parametrize("sizes", [(2, 300, 400, 1), (1, 400, 300, 2)])
def test_the_cheapest_order_of_a_chain(sizes):
    """(A B) v costs a product of matrices, A (B v) none: counted in multiplications of the code that was written."""
    emitter = Emitter(torch.float64)
    axes = [Axis(f"a{i}", size) for i, size in enumerate(sizes)]
    emitter.batched(emitter.input("anchor"))
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(m, n, generator=generator, dtype=torch.float64) for m, n in itertools.pairwise(sizes)]
    factors = [Factor(emitter.input(f"m{i}"), pair) for i, pair in enumerate(itertools.pairwise(axes))]
    value = Value(emitter, [Term(1.0, 0, tuple(factors), frozenset(axes[1:3]))])
    module = emitter.finish(value.materialize().node)
    torch.testing.assert_close(module(torch.zeros(1), *tensors), tensors[0] @ tensors[1] @ tensors[2])
    work = [math.prod(axis.size for axis in node.meta["work"][1]) for node in module.graph.nodes if "work" in node.meta]
    best = min(
        sizes[0] * sizes[1] * sizes[2] + sizes[0] * sizes[2] * sizes[3],
        sizes[1] * sizes[2] * sizes[3] + sizes[0] * sizes[1] * sizes[3],
    )
    assert sum(work) == best
