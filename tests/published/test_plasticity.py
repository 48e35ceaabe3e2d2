"""The pool of plasticity terms: reference vectors, meta-gradients, formulas, and what the engine makes of it."""

import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from reference import distance, randomised

import mpgraph as mg
from mpgraph import probes
from mpgraph.architectures import mlp
from mpgraph.protocols import Backprop, FeedbackAlignment, Plasticity
from mpgraph.protocols.plasticity import TERMS

UNITS = ["x", "h1", "h2", "y"]
WIRES = ["x->h1", "h1->h2", "h2->y"]


@pytest.fixture(scope="session")
def golden():
    path = ROOT.parent / "shared" / "reference" / "golden" / "plasticity_small.npz"
    if not path.exists():
        pytest.skip("no reference vectors here")
    with np.load(path) as file:
        return {name: torch.as_tensor(file[name]) for name in file.files}


def small(**arguments):
    """The network of the vectors with a rule; the errors of inputs are those of the published code."""
    rule = Plasticity(**arguments, input_slope=10.0)
    return mg.compile(mlp([6, 5, 4, 3], mg.Softplus(10.0), bias=False), rule, dtype=torch.float64)


def begin(program, golden):
    """The state of the vectors."""
    state = program.init()
    for layer, name in enumerate(WIRES, 1):
        given = {"w": golden[f"W{layer}"], "b": golden[f"B{layer}"]}
        state[name] = {channel: given[channel] for channel in state[name]}
    return state


def adapted(program, golden):
    """After the six points, one at a time."""
    state = begin(program, golden)
    for x, y in zip(golden["seq_x"], golden["seq_label"], strict=True):
        state, _ = program.step(state, x[None], y[None])
    return state


def meta(program, golden, thetas):
    """Weights after six points, loss of the query, and its gradient by the coefficients."""
    state = adapted(program, golden)
    _, out = program.step(state, golden["query_x"], golden["query_label"])
    return state, out.loss, torch.stack(torch.autograd.grad(out.loss, thetas))


def close(one, two, atol):
    torch.testing.assert_close(one.detach(), two, rtol=0, atol=atol)


# -- reference vectors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "name"), list(enumerate(TERMS, 1)))
@pytest.mark.parametrize("learned", [False, True])
def test_each_term(golden, double, number, name, learned):
    program = small(**{name: mg.learnable(1.0) if learned else 1.0})
    state = begin(program, golden)
    after, _ = program.step(state, golden["x"][None], golden["label"])
    for layer, wire in enumerate(WIRES, 1):
        close(after[wire]["w"] - state[wire]["w"], golden[f"term{number}_W{layer}"], 1e-12)


def test_each_term_in_single_precision(golden):
    for number, name in enumerate(TERMS, 1):
        rule = Plasticity(**{name: 1.0}, input_slope=lambda y: 1.0 - torch.exp(-10.0 * y))  # the same as 10.0
        program = mg.compile(mlp([6, 5, 4, 3], mg.Softplus(10.0), bias=False), rule)
        state = {
            n: {c: t.float() if c != "step" else t for c, t in k.items()} for n, k in begin(program, golden).items()
        }
        after, _ = program.step(state, golden["x"][None].float(), golden["label"])
        for layer, wire in enumerate(WIRES, 1):
            new = golden[f"term{number}_W{layer}"] + golden[f"W{layer}"]
            torch.testing.assert_close(after[wire]["w"], new.float(), rtol=1e-5, atol=1e-6)


def test_activities_and_errors(golden):
    program = small()
    record = {"x": ["e"], "h1": ["z", "y", "e"], "h2": ["z", "y", "e"], "y": ["z", "activity", "e"]}
    _, out = program.step(begin(program, golden), golden["x"][None], golden["label"], record=record)
    close(out.loss, golden["loss"], 1e-12)
    for layer, unit in enumerate(UNITS):
        found = out.recorded[unit]
        close(found["e"][0], golden[f"e{layer}"], 1e-12)
        if layer:
            close(found["z"][0], golden[f"z{layer}"], 1e-12)
            close(found.get("y", found.get("activity"))[0], golden[f"y{layer}"], 1e-12)


def test_signs_of_the_released_code(golden):
    for name, published, sign in (("pseudo", "pseudo", 1.0), ("ehebb", "eHebb", 1.0), ("oja", "Oja", -1.0)):
        program = small(**{name: sign})
        state = begin(program, golden)
        after, _ = program.step(state, golden["x"][None], golden["label"])
        for layer, wire in enumerate(WIRES, 1):
            close(after[wire]["w"] - state[wire]["w"], golden[f"refcode_{published}_W{layer}"], 1e-12)


def test_a_sequence_and_its_meta_gradient_with_three_terms(golden, double):
    code = golden["bio_theta_refcode"]
    thetas = [mg.learnable(code[0]), mg.learnable(code[1]), mg.learnable(-code[2])]
    program = small(pseudo=thetas[0], ehebb=thetas[1], oja=thetas[2])
    state, loss, gradient = meta(program, golden, thetas)
    for layer, wire in enumerate(WIRES, 1):
        close(state[wire]["w"], golden[f"bio_Wfinal{layer}"], 1e-10)
    close(loss, golden["bio_query_loss"], 1e-10)
    signs = torch.tensor([1.0, 1.0, -1.0])
    torch.testing.assert_close(gradient * signs, golden["bio_meta_grad"], rtol=1e-7, atol=0)
    for theta, value in zip(thetas, gradient, strict=True):
        theta.grad = value
    torch.optim.Adam(thetas, lr=1e-3).step()
    close(torch.stack(thetas) * signs, golden["bio_theta_after_adam"], 1e-10)


def test_a_sequence_and_its_meta_gradient_with_ten_terms(golden, double):
    thetas = [mg.learnable(value) for value in golden["pool_theta"]]
    program = small(**dict(zip(TERMS, thetas, strict=True)))
    state, loss, gradient = meta(program, golden, thetas)
    for layer, wire in enumerate(WIRES, 1):
        close(state[wire]["w"], golden[f"pool_Wfinal{layer}"], 1e-10)
    close(loss, golden["pool_query_loss"], 1e-10)
    torch.testing.assert_close(gradient, golden["pool_meta_grad"], rtol=1e-7, atol=0)


@pytest.mark.parametrize(("feedback", "vector"), [("symmetric", "true"), ("detached", "Bdetached")])
def test_meta_gradient_of_backprop(golden, double, feedback, vector):
    theta = mg.learnable(golden["bp_theta"])
    program = small(pseudo=theta, feedback=feedback)
    state, loss, gradient = meta(program, golden, [theta])
    for layer, wire in enumerate(WIRES, 1):
        close(state[wire]["w"], golden[f"bp_Wfinal{layer}"], 1e-10)
    close(loss, golden["bp_query_loss"], 1e-10)
    torch.testing.assert_close(gradient[0], golden[f"bp_meta_grad_{vector}"], rtol=1e-7, atol=0)


def test_metrics(golden):
    program = small(pseudo=0.05, ehebb=0.02, oja=-0.01)
    state = adapted(program, golden)
    x, y = golden["query_x"], golden["query_label"]
    accuracy = (program.predict(state, x).argmax(-1) == y).double().mean()
    close(accuracy, golden["metric_accuracy"], 0)
    found = probes.angles(program, state, x, y, against={"b": "w"}, nodes=UNITS)
    for unit, degrees in zip(UNITS, golden["metric_angles_deg_e0_to_eL"], strict=True):
        assert found[unit] == pytest.approx(float(degrees), abs=1e-6)
    _, out = program.step(state, x, y, record={n: ["activity"] for n in UNITS})
    activity = [out.recorded[n]["activity"] for n in UNITS]
    for layer, wire in enumerate(WIRES, 1):
        w = state[wire]["w"]
        below, above = activity[layer - 1], activity[layer]
        error = (below @ w.T - above @ w @ w.T).square().sum()
        close(error, golden["metric_orth_E1_per_layer"][layer - 1], 1e-10)


# -- formulas: batches, biases, relations to other rules ------------------------------------------------------------


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    network = mlp([5, 6, 4, 3])
    x = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return network, x, torch.randint(0, 3, (7,), generator=generator), generator


def written_out(number, w, below, above, e_below, e_above):
    """F_r of one example, column vectors, as Appendix B prints it."""
    one = torch.ones_like(above)
    return {
        1: lambda: -torch.outer(e_above, below),
        2: lambda: -torch.outer(above, e_below),
        3: lambda: -torch.outer(e_above, e_below),
        4: lambda: -w,
        5: lambda: -torch.outer(one, e_below),
        6: lambda: -torch.outer(e_above, one) @ torch.outer(above, below),
        7: lambda: -torch.outer(above, above) @ w @ torch.outer(e_below, e_below),
        8: lambda: -torch.outer(e_above, above) @ w @ torch.outer(e_below, below),
        9: lambda: -torch.outer(above, below) @ w.T @ torch.outer(e_above, e_below),
        10: lambda: -(torch.outer(above, below) - torch.outer(above, above) @ w),
    }[number]()


@pytest.mark.parametrize(("number", "name"), list(enumerate(TERMS, 1)))
def test_a_batch_is_the_average_of_its_examples_biases_included(problem, number, name):
    network, x, y, generator = problem
    program = mg.compile(network, Plasticity(**{name: 0.3}), dtype=torch.float64)
    state = randomised(program.init(), generator)
    w = {n: channels["w"] for n, channels in state.items() if "w" in channels}
    h1 = torch.tanh(x @ w["x->h1"].T + w["h1.bias"])
    h2 = torch.tanh(h1 @ w["h1->h2"].T + w["h2.bias"])
    p = torch.softmax(h2 @ w["h2->y"].T + w["y.bias"], -1)
    e3 = p - torch.nn.functional.one_hot(y, 3)
    e2 = (e3 @ state["h2->y"]["b"]) * (1 - h2**2)
    e1 = (e2 @ state["h1->h2"]["b"]) * (1 - h1**2)
    e0, one, none = e1 @ state["x->h1"]["b"], torch.ones(7, 1).double(), torch.zeros(7, 1).double()
    around = {
        "x->h1": (x, h1, e0, e1), "h1->h2": (h1, h2, e1, e2), "h2->y": (h2, p, e2, e3),
        "h1.bias": (one, h1, none, e1), "h2.bias": (one, h2, none, e2), "y.bias": (one, p, none, e3),
    }  # fmt: skip
    after, _ = program.step(state, x, y)
    for place, vectors in around.items():
        weight = w[place].reshape(len(vectors[1][0]), -1)
        change = sum(written_out(number, weight, *(v[i] for v in vectors)) for i in range(7)) / 7
        close(after[place]["w"], w[place] + 0.3 * change.reshape(w[place].shape), 1e-12)


@pytest.mark.parametrize(
    ("feedback", "rule"), [("symmetric", Backprop), ("detached", Backprop), ("random", FeedbackAlignment)]
)
def test_the_first_term_alone_is_gradient_descent(problem, feedback, rule):
    network, x, y, generator = problem
    one = mg.compile(network, Plasticity(pseudo=0.2, feedback=feedback), dtype=torch.float64)
    two = mg.compile(network, rule(0.2), dtype=torch.float64)
    state = randomised(two.init(), generator)
    other = state
    for _ in range(3):
        state, other = one.step(state, x, y)[0], two.step(other, x, y)[0]
    assert distance(other, state) < 1e-12


@pytest.mark.parametrize(("name", "places"), [("pseudo", 1), ("crossed", 12), ("ehebb", 12), ("decay", 1)])
def test_terms_of_a_convolution_are_averaged_over_positions_but_the_gradient(name, places):
    network = mg.Network()
    network.input("x", (2, 4, 5)), network.unit("c", (3, 3, 4), "tanh", bias=False)
    network.connect("x", "c", mg.Conv2d(2)), network.loss("c", "l2")
    program = mg.compile(network, Plasticity(**{name: 0.3}), dtype=torch.float64)
    state, x = program.init(), torch.randn(6, 2, 4, 5, dtype=torch.float64)
    target = torch.randn(6, 3, 3, 4, dtype=torch.float64)
    after, out = program.step(state, x, target, record={"x": ["e"], "c": ["e", "activity"]})
    e_i, e_j, y_j = out.recorded["x"]["e"], out.recorded["c"]["e"], out.recorded["c"]["activity"]
    w = state["x->c"]["w"].clone().requires_grad_()
    below, above = {"pseudo": (x, e_j), "crossed": (e_i, y_j), "ehebb": (e_i, e_j), "decay": (x, None)}[name]
    met = 6 * w.square().sum() / 2 if above is None else (torch.nn.functional.conv2d(below, w) * above).sum()
    (change,) = torch.autograd.grad(met, w)  # the sum over examples and positions of what meets at both ends
    close(after["x->c"]["w"], (w - 0.3 * change / 6 / places).detach(), 1e-12)


def test_rules_of_their_own_for_layers(problem):
    network, x, y, generator = problem
    regions = mg.compile(
        network, {"h2->y": Plasticity(pseudo=0.1, ehebb=-0.2), "*": Plasticity(pseudo=0.1)}, dtype=torch.float64
    )
    without, both = (mg.compile(network, Plasticity(pseudo=0.1, ehebb=c), dtype=torch.float64) for c in (None, -0.2))
    state = randomised(regions.init(), generator)
    found, plain, everywhere = (program.step(state, x, y)[0] for program in (regions, without, both))
    for name in plain:
        expected = everywhere if name == "h2->y" else plain
        assert all(torch.equal(found[name][c], expected[name][c]) for c in found[name])
    assert not torch.equal(plain["h2->y"]["w"], everywhere["h2->y"]["w"])


def test_backprop_on_top_of_it(problem):
    network, x, y, generator = problem
    local = {"ehebb": -0.2, "oja": -0.1, "pseudo": 0.1}
    hybrid = mg.compile(network, {"h2->y": Backprop(0.3), "*": Plasticity(**local)}, dtype=torch.float64)
    state = randomised(hybrid.init(), generator)
    whole = mg.compile(network, Plasticity(**local, feedback="symmetric"), dtype=torch.float64)
    assert "b" not in state["h2->y"]
    w = {**state, "x->h1": {"w": state["x->h1"]["w"]}, "h1->h2": {"w": state["h1->h2"]["w"]}}
    same = {n: {**c, "b": c["w"]} if "b" in c else c for n, c in state.items()}
    found, expected = hybrid.step(same, x, y)[0], whole.step(w, x, y)[0]
    assert all(torch.allclose(found[n]["w"], expected[n]["w"], atol=1e-12) for n in ("x->h1", "h1->h2", "h1.bias"))
    gradient = mg.compile(network, Backprop(0.3), dtype=torch.float64).step(w, x, y)[0]
    close(found["h2->y"]["w"], gradient["h2->y"]["w"], 1e-12)


def test_from_a_file(problem, tmp_path):
    network, x, y, generator = problem
    rule = Plasticity(pseudo=mg.learnable(0.1), oja=mg.learnable(-0.2), crossed=0.3, input_slope=10.0)
    rule.save(tmp_path / "rule")
    one, two = (mg.compile(network, r, dtype=torch.float64) for r in (rule, mg.load_protocol(tmp_path / "rule")))
    state = randomised(one.init(), generator)
    assert distance(one.step(state, x, y)[0], two.step(state, x, y)[0]) == 0.0
    assert rule.name == two.protocol.name


def test_coefficients_of_each_node_are_learned_apart(problem, double):
    network, x, y, _ = problem
    rules = {name: Plasticity(pseudo=mg.learnable(0.1)) for name in ("x->h1", "h1->h2", "*")}
    program = mg.compile(network, rules, dtype=torch.float64)
    assert len(dict(program.named_parameters())) == 3
    state, _ = program.step(program.init(), x, y)
    program.step(state, x, y)[1].loss.backward()
    assert len({float(parameter.grad) for parameter in program.parameters()} - {0.0}) == 3


def test_hebbian_errors_point_to_the_feedback_weights():
    """Appendix D: E[e_l e_{l-1}' | B_l] is var(e_l) B_l', over the feedback weights above, in a linear network."""
    generator = torch.Generator().manual_seed(0)
    program = mg.compile(
        mlp([8, 6, 6, 5, 4], "identity", "l2", bias=False), Plasticity(ehebb=-1.0), dtype=torch.float64
    )
    state, b = program.init(1), torch.randn(6, 6, generator=generator, dtype=torch.float64)
    e4, draws = torch.randn(4, generator=generator, dtype=torch.float64), 20000
    above = {"h2->h3": torch.randn(draws, 5, 6, generator=generator, dtype=torch.float64)}
    above["h3->y"] = torch.randn(draws, 4, 5, generator=generator, dtype=torch.float64)
    x = torch.randn(1, 8, generator=generator, dtype=torch.float64)
    target = program.predict(state, x) - e4  # so that the error of the output is e4

    def change(b23, b34):
        drawn = {**state, "h1->h2": {**state["h1->h2"], "b": b}}
        drawn["h2->h3"], drawn["h3->y"] = {**state["h2->h3"], "b": b23}, {**state["h3->y"], "b": b34}
        return program.step(drawn, x, target)[0]["h1->h2"]["w"] - state["h1->h2"]["w"]

    mean = torch.func.vmap(change, chunk_size=2000)(above["h2->h3"], above["h3->y"]).mean(0)
    variance = 5.0 * float(e4.square().sum())  # of an entry of e_2: five entries of e_3, each of variance |e4|^2
    relative = (mean / variance - b).norm() / b.norm()
    assert relative < 0.06  # sampling error: 6 cross terms of order 1/sqrt(draws), heavier than Gaussian
    assert torch.nn.functional.cosine_similarity(mean.flatten(), b.flatten(), dim=0) > 0.998


# -- what the engine makes of it --------------------------------------------------------------------------------------


def test_ten_terms_take_three_outer_products_a_connection_and_no_square_matrix():
    network = mlp([784, 170, 130, 100, 70, 47], mg.Softplus(10.0), bias=False)
    program = mg.compile(network, Plasticity(**{name: mg.learnable(0.1) for name in TERMS}))
    program.step(program.init(), torch.rand(1, 784), torch.tensor([3]))
    code = program._function(single=True).module.code
    assert len(re.findall(r"addcmul\(", code)) == 3 * 5
    report = program.explain(1)
    assert "materialised" not in report
    sizes = []

    class Sizes(torch.fx.Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    state = program.init()
    target = torch.nn.functional.one_hot(torch.tensor([3]), 47).float()
    Sizes(program._function(single=True).module).run(state, program._parameters_now(), {}, torch.rand(1, 784), target)
    assert max(sizes) == 784 * 170


def test_no_outer_product_over_the_batch():
    program = mg.compile(mlp([64, 32, 10]), Plasticity(**dict.fromkeys(TERMS, 0.1)))
    assert "materialised" not in program.explain(128)
    assert not re.search(r"bmm|einsum", program.code)


def test_what_is_not_asked_for_costs_nothing():
    network = mlp([64, 32, 10])
    code = mg.compile(network, Plasticity(pseudo=0.1, feedback="symmetric")).code
    assert code.count("mm(") == mg.compile(network, Backprop(0.1)).code.count("mm(")


def test_a_step_compiles_whole(double):
    program = mg.compile(mlp([6, 5, 3]), Plasticity(), dtype=torch.float64)
    state, x, y = program.init(), torch.randn(4, 6), torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    expected, _ = program.step(state, x, y)
    found, _ = torch.compile(program.step, fullgraph=True, backend="eager")(state, x, y)
    assert distance(expected, found) < 1e-12


def test_defaults_learn_digits():
    from mpgraph import data
    from mpgraph.experiments import train

    digits = data.load("digits").flat()
    program = mg.compile(mlp([64, 32, 10]), Plasticity())
    assert train(program, digits, epochs=5)[1][-1] > 0.9


def test_what_is_refused():
    with pytest.raises(
        mg.ProtocolError, match="Plasticity: feedback='fixed' must be one of 'random', 'symmetric', 'detached'"
    ):
        Plasticity(feedback="fixed")
    with pytest.raises(mg.ProtocolError, match="hebb=0.1 is neither one of its arguments"):
        Plasticity(hebb=0.1)
    assert Plasticity(pseudo=0.0131, oja=-0.0038).name == "Plasticity(pseudo=0.0131, oja=-0.0038)"
    assert Plasticity(pseudo=1, feedback="symmetric").name == "Plasticity(pseudo=1, feedback='symmetric')"
