"""Sparse products are dense ones with zeros: values, derivatives, vmap, full-graph compilation."""

import pytest
import torch

from mpgraph.lowering import sparse
from mpgraph.network.incidence import Pattern


def pattern(edges=14, sizes=(6, 5), seed=0, ordered=False):
    generator = torch.Generator().manual_seed(seed)
    pre, post = (torch.randint(0, size, (edges,), generator=generator) for size in sizes)
    found = Pattern(pre, post.sort().values if ordered else post, sizes)
    sides = (*found.side("post"), *found.side("pre"))
    return (
        found,
        sides,
        torch.randn(edges, generator=generator).double(),
        torch.randn(3, 6, generator=generator).double(),
    )


def dense(found, values):
    matrix = values.new_zeros(found.sizes[1], found.sizes[0])
    return matrix.index_put((found.post, found.pre), values, accumulate=True)


def into_of(kind):
    generator = torch.Generator().manual_seed(9)
    return {"nothing": None, "bias": torch.randn(5, generator=generator).double(),
            "sums": torch.randn(3, 5, generator=generator).double()}[kind]  # fmt: skip


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("kind", ["nothing", "bias", "sums"])
def test_sparse_product_and_its_derivatives(kind, ordered):
    found, sides, values, x = pattern(ordered=ordered)
    into = into_of(kind)
    extra = () if into is None else (into,)

    def ours(v, a, *into):
        return sparse.product(v, a, *sides, into=into[0] if into else None)

    def theirs(v, a, *into):
        return a @ dense(found, v).T + (into[0] if into else 0.0)

    torch.testing.assert_close(ours(values, x, *extra), theirs(values, x, *extra))
    torch.testing.assert_close(ours(values, x[:1], *(e[:1] if e.ndim == 2 else e for e in extra)),
                               theirs(values, x[:1], *(e[:1] if e.ndim == 2 else e for e in extra)))  # fmt: skip
    leaves = tuple(t.clone().requires_grad_() for t in (values, x, *extra))
    assert torch.autograd.gradcheck(ours, leaves)
    assert torch.autograd.gradgradcheck(ours, leaves)
    for i in range(len(leaves)):
        grads = [
            torch.func.grad(lambda *a, f=f: f(*a).pow(3).sum(), argnums=i)(values, x, *extra) for f in (ours, theirs)
        ]
        torch.testing.assert_close(*grads)
    for which in range(1, 2 ** (2 + len(extra))):  # every choice of what is mapped
        dims = tuple(0 if which >> k & 1 else None for k in range(2 + len(extra)))
        args = [torch.stack([t, 2 * t, t + 1]) if d == 0 else t for t, d in zip((values, x, *extra), dims, strict=True)]
        torch.testing.assert_close(torch.func.vmap(ours, dims)(*args), torch.func.vmap(theirs, dims)(*args))
    gradient = torch.func.vmap(torch.func.grad(lambda v, a: ours(v, a, *extra).pow(2).sum()), (None, 0))
    expected = torch.func.vmap(torch.func.grad(lambda v, a: theirs(v, a, *extra).pow(2).sum()), (None, 0))
    torch.testing.assert_close(gradient(values, torch.stack([x, 2 * x])), expected(values, torch.stack([x, 2 * x])))


@pytest.mark.parametrize("ordered", [False, True])
def test_sparse_outer_and_its_derivatives(ordered):
    found, sides, _, x = pattern(ordered=ordered)
    e = torch.randn(3, 5, generator=torch.Generator().manual_seed(4)).double()

    def ours(e, x):
        return sparse.outer(e, x, *sides)

    def theirs(e, x):
        return (e[:, found.post] * x[:, found.pre]).sum(0)

    torch.testing.assert_close(ours(e, x), theirs(e, x))
    leaves = tuple(t.clone().requires_grad_() for t in (e, x))
    assert torch.autograd.gradcheck(ours, leaves)
    assert torch.autograd.gradgradcheck(ours, leaves)
    for dims in ((0, 0), (0, None), (None, 0)):
        args = [torch.stack([t, 2 * t]) if d == 0 else t for t, d in zip((e, x), dims, strict=True)]
        torch.testing.assert_close(torch.func.vmap(ours, dims)(*args), torch.func.vmap(theirs, dims)(*args))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_sparse_products_compile_as_one_graph(backend):
    found, sides, values, x = pattern()
    into = into_of("bias")

    def ours(v, a):
        return sparse.outer(sparse.product(v, a, *sides, into=into).tanh(), a, *sides)

    def theirs(v, a):
        e = (a @ dense(found, v).T + into).tanh()
        return (e[:, found.post] * a[:, found.pre]).sum(0)

    fast = torch.compile(ours, fullgraph=True, backend=backend)
    torch.testing.assert_close(fast(values, x), theirs(values, x))
    leaves = [values.clone().requires_grad_() for _ in range(2)]
    fast(leaves[0], x).pow(2).sum().backward()
    theirs(leaves[1], x).pow(2).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_more_parallel_edges_than_pairs():
    """Torch refuses a matrix with more entries than places."""
    found = Pattern(torch.tensor([0, 1, 0, 1, 1]), torch.zeros(5, dtype=torch.long), (2, 1))
    sides = (*found.side("post"), *found.side("pre"))
    e, x = torch.tensor([[2.0], [3.0]]), torch.tensor([[1.0, 10.0], [5.0, 7.0]])
    assert sparse.outer(e, x, *sides).tolist() == [17.0, 41.0, 17.0, 41.0, 41.0]
    assert sparse.product(torch.arange(5.0), x, *sides).tolist() == [[82.0], [66.0]]


@pytest.mark.parametrize("edges", [20, 200])
def test_one_example_and_few_edges(edges):
    """Few edges take a kernel of their own; both directions, with and without something to add to."""
    found, sides, values, _ = pattern(edges, (30, 20), ordered=True)
    e = torch.randn(1, 20, generator=torch.Generator().manual_seed(1)).double()
    back = (*sides[4:], *sides[:4])
    expected = e @ dense(found, values)
    torch.testing.assert_close(sparse.product(values, e, *back), expected)
    torch.testing.assert_close(sparse.product(values, e[0], *back), expected[0])
    into = torch.randn(1, 30).double()
    torch.testing.assert_close(sparse.product(values, e, *back, into=into), into + expected)
    torch.testing.assert_close(sparse.product(values, e, *back, into=into[0]), into + expected)
