"""BLUR against autograd, the interpreter and its own equations written out."""

import hypothesis
import pytest
import torch
from graphs import GRAPHS, batch
from hypothesis import strategies as st
from reference import autograd_steps, distance, largest, networks, randomised, weights_of
from reference import batch as random_batch
from torch.nn import functional

import mpgraph as mg
from mpgraph.architectures import convnet, mlp
from mpgraph.interpreter import interpreter
from mpgraph.protocols import BLUR

pytestmark = pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
GENERAL = {"initial": "random", "activation": "unit", "backward_activation": "unit", "eta_tilde": -0.05}
WIDE = {**GENERAL, "single": False, "symmetric": False, "backward": "additive", "feedback": "target"}
RULES = {
    "backprop": {},
    "additive": WIDE,
    "three states": {**WIDE, "k": 3, "feedback": "sign", "batch": "mean"},
    "one channel, both ways": {**WIDE, "single": True, "symmetric": True, "backward": "multiplicative"},
    "second, derivative": {**WIDE, "k": 3, "backward": "second", "activation": "derivative"},
    "standardised": {**WIDE, "normalise": True},
    "stored lengths": {**WIDE, "lengths": "stored", "rescale": True},
    "symmetric, stored lengths": {**WIDE, "symmetric": True, "lengths": "stored", "early": True},
    "computing lengths": {**WIDE, "lengths": "computing", "early": True, "early_pre": True},
    "oja, activation": {**WIDE, "oja": "activation", "saturation": "exp"},
    "oja, weights": {**WIDE, "oja": "weights", "single": True, "saturation": "tanh"},
    "oja, whole": {**WIDE, "oja": "whole", "early": True, "layers": ("h*", "*"), "steps": 2},
    "symmetric oja": {**WIDE, "oja": "whole", "symmetric": True, "saturation": torch.tanh},
    "kept states": {**WIDE, "keep_states": True, "input_backward": True},
}


def scattered(rule, seed=3):
    """The rule with random numbers in all of its genome, gates near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in rule.genome.parameters():
            parameter.add_(0.2 * torch.rand(parameter.shape, generator=generator))
    return rule


# -- backpropagation is one of its genomes --------------------------------------------------------------------


def assert_descends(network, rate=1 / 128, examples=6, steps=3):
    """``BLUR()`` makes the steps of gradient descent on the sum of the loss over the batch."""
    generator = torch.Generator().manual_seed(1)
    program = mg.compile(network, BLUR(eta_tilde=-rate), dtype=torch.float64)
    state = program.init()
    batches = [random_batch(network, examples, generator) for _ in range(steps)]
    wanted = autograd_steps(network, weights_of(state), batches, rate * examples)
    for x, y in batches:
        state, _ = program.step(state, x, y)
    found = weights_of(state)
    assert largest(found[n] - wanted[n] for n in wanted) < 1e-12


def test_backprop_genome_is_gradient_descent_on_a_chain():
    assert_descends(mlp([5, 6, 4, 3], activation="tanh"))


@hypothesis.given(networks(activations=("identity", "tanh", "sigmoid", "relu", "softplus")))
def test_backprop_genome_is_gradient_descent_on_random_graphs(network):
    assert_descends(network)


def test_backprop_genome_is_gradient_descent_on_a_convnet():
    network = convnet((1, 8, 8), (2, 3), (5,), 4, kernel=3)
    program = mg.compile(network, BLUR(eta_tilde=-1 / 128), dtype=torch.float64)
    state = program.init()
    w = {n: t.clone().requires_grad_() for n, t in weights_of(state).items()}
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x, y = torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64), torch.arange(6) % 4
        c1 = torch.tanh(functional.conv2d(x, w["x->c1"], w["c1.bias"], padding=1))
        c2 = torch.tanh(functional.conv2d(functional.max_pool2d(c1, 2), w["p1->c2"], w["c2.bias"]))
        h1 = torch.tanh(functional.linear(functional.max_pool2d(c2, 2).flatten(1), w["flat->h1"], w["h1.bias"]))
        loss = functional.cross_entropy(functional.linear(h1, w["h1->y"], w["y.bias"]), y, reduction="sum")
        gradients = torch.autograd.grad(loss, list(w.values()))
        w = {n: (t - g / 128).detach().requires_grad_() for (n, t), g in zip(w.items(), gradients, strict=True)}
        state, _ = program.step(state, x, y)
        found = weights_of(state)
        assert largest(found[n] - w[n] for n in w) < 1e-12


@pytest.mark.parametrize("kind", ["residual", "operations", "recurrence", "tied", "sparse", "pieces"])
def test_backprop_genome_is_backprop_elsewhere(kind):
    """Where the small oracles do not reach, the backprop protocol, which is held to autograd elsewhere."""
    network = GRAPHS[kind]()
    x, y = batch(network, 4)
    rules = BLUR(eta_tilde=-1 / 128), mg.make_protocol("backprop", lr=4 / 128)
    programs = [mg.compile(network, rule, dtype=torch.float64) for rule in rules]
    states = [program.init() for program in programs]
    for _ in range(3):
        states = [program.step(state, x, y)[0] for program, state in zip(programs, states, strict=True)]
    found, wanted = map(weights_of, states)
    assert largest(found[n] - wanted[n] for n in wanted) < 1e-12


# -- the interpreter ------------------------------------------------------------------------------------------


def assert_meaning(network, rule, x, y, examples):
    program = mg.compile(network, rule, dtype=torch.float64)
    state = randomised(program.init(batch_size=examples), torch.Generator().manual_seed(0))
    state["program"]["step"] = torch.tensor(1)
    after, out = program.step(state, x, y)
    targets = y if isinstance(y, dict) else {"y": torch.eye(2, dtype=torch.float64)[y]}
    meaning, predictions = interpreter.step(program, state, x, targets, {})
    scale = max(1.0, *(float(t.detach().abs().max()) for k in meaning.values() for t in k.values()))
    assert distance(after, meaning) < 1e-10 * scale
    prediction = out.prediction if isinstance(out.prediction, dict) else {network.outputs[0]: out.prediction}
    for name, wanted in predictions.items():
        torch.testing.assert_close(prediction[name], wanted.to(torch.float64), rtol=1e-10, atol=1e-10)


SOME = ["additive", "second, derivative", "symmetric, stored lengths", "computing lengths", "symmetric oja"]


@pytest.mark.parametrize(
    ("rule", "kind"),
    [*((rule, kind) for rule in RULES for kind in ("small convolution", "sparse"))]
    + [(rule, kind) for rule in SOME for kind in ("recurrence", "tied", "pieces")]
    + [("additive", "operations"), ("additive", "residual")],
)
def test_compiled_means_what_the_interpreter_does(rule, kind):
    network = small_convolution() if kind == "small convolution" else GRAPHS[kind]()
    assert_meaning(network, scattered(BLUR(**RULES[rule])), *batch(network, 2), 2)


@pytest.mark.parametrize("options", RULES.values(), ids=RULES)
def test_batches_of_one_which_have_a_function_of_their_own(options):
    network = mlp([3, 3, 2], activation="tanh")
    assert_meaning(network, scattered(BLUR(**options)), *batch(network, 1), 1)


def small_convolution():
    """A strided and a padded one, an operation, a skip."""
    network = mg.Network()
    network.input("x", (1, 4, 3))
    network.unit("h", (2, 2, 2), "tanh"), network.unit("g", (1, 2, 2), "step")
    network.connect("x", "h", mg.Conv2d(2, stride=(2, 1)))
    network.connect("h", "g", mg.Conv2d((2, 3), padding=1, dilation=(2, 1)))
    network.operation("row", "flatten", "g")
    network.unit("y", 2), network.connect("row", "y"), network.connect("h", "y"), network.loss("y", "cross_entropy")
    return network


@hypothesis.given(networks(), st.sampled_from([o for o in RULES.values() if "layers" not in o]))
def test_compiled_means_what_the_interpreter_does_on_random_graphs(network, options):
    x, y = random_batch(network, 3, torch.Generator().manual_seed(2))
    assert_meaning(network, scattered(BLUR(**options)), x, y, 3)


# -- what its options say, written out for one synapse of a dense layer ----------------------------------------


def learnt(examples=4, **options):
    """A network 3-2-2 before and after a step, and the states ``(batch, n, k)`` that its synapses x->h learn from."""
    network = mlp([3, 2, 2], activation="tanh", loss="l2")
    program = mg.compile(network, scattered(BLUR.published(**options)), dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    state = randomised(program.init(), generator)
    x, y = (torch.randn(examples, n, generator=generator, dtype=torch.float64) for n in (3, 2))
    after, out = program.step(state, x, y, record={"x": ["a"], "h1": ["a"], "y": ["a"]})
    genome = dict(program.protocol.genome.named_parameters())
    return genome, state, after, *(out.recorded[n]["a"] for n in ("x", "h1", "y"))


def hebb(g, sent, heard):
    """sum_b (a_i nu~)^c (mu~ a_j)^c, ``(post, pre, c)``."""
    return torch.einsum("bie,ec,cd,bjd->jic", sent, g["nu_tilde"], g["mu_tilde"], heard)


def test_oja_of_equation_8():
    """-(f~ - 1) w sum_r w_rj^2 - eta~ w sum_r w_rj sum_ed a_r^e nu~^ec mu~^cd a_j^d, with the bias among the r."""
    g, before, after, x, h, y = learnt(oja="whole")
    ones = torch.ones(len(x), 1, 2, dtype=x.dtype)
    for wire, bias, sent, heard in (("x->h1", "h1.bias", x, h), ("h1->y", "y.bias", h, y)):
        w, b = before[wire]["w"], before[bias]["w"]
        column = torch.cat([w, b[:, None]], 1)  # (post, all sources, c)
        phi = hebb(g, torch.cat([sent, ones], 1), heard)
        length, drive = (column**2).sum(1, keepdim=True), (column * phi).sum(1, keepdim=True)
        oja = -(g["f_tilde"] - 1) * column * length - g["eta_tilde"] * column * drive
        wanted = g["f_tilde"] * column + g["eta_tilde"] * phi + g["gamma"].abs() * oja
        torch.testing.assert_close(after[wire]["w"], wanted[:, :-1], rtol=0, atol=1e-12)
        torch.testing.assert_close(after[bias]["w"], wanted[:, -1], rtol=0, atol=1e-12)
    v, phi = before["h1->y"]["v"], hebb(g, y, h).transpose(0, 1)  # from y to h1: the sum runs over y
    oja = -(g["f_tilde"] - 1) * (v**2).sum(0) - g["eta_tilde"] * (v * phi).sum(0)
    wanted = (g["f_tilde"] + g["gamma"].abs() * oja) * v + g["eta_tilde"] * phi
    torch.testing.assert_close(after["h1->y"]["v"], wanted, rtol=0, atol=1e-12)


def test_first_term_of_equation_8_alone():
    g, before, after, x, h, _ = learnt(oja="forgetting")
    w = before["x->h1"]["w"]
    length = (w**2).sum(1, keepdim=True) + before["h1.bias"]["w"][:, None] ** 2
    wanted = g["f_tilde"] * w + g["eta_tilde"] * hebb(g, x, h) - g["gamma"].abs() * (g["f_tilde"] - 1) * w * length
    torch.testing.assert_close(after["x->h1"]["w"], wanted, rtol=0, atol=1e-12)


def test_saturation_by_tanh_and_mean_over_the_batch():
    g, before, after, x, h, _ = learnt(saturation="tanh", batch="mean")
    w = g["f_tilde"] * before["x->h1"]["w"] + g["eta_tilde"] * hebb(g, x, h) / len(x)
    torch.testing.assert_close(after["x->h1"]["w"], g["alpha"] * torch.tanh(w / g["alpha"]), rtol=0, atol=1e-12)


def test_lengths_of_all_that_reaches_a_unit():
    """Two connections and a bias together have length rho; what is stored stays as it was if that is for computing."""
    network = mg.Network()
    network.input("x", 3), network.input("v", 2), network.unit("y", 2), network.loss("y", "l2")
    network.connect("x", "y"), network.connect("v", "y")
    x = {n: torch.randn(4, s, dtype=torch.float64) for n, s in (("x", 3), ("v", 2))}
    predictions = []
    for lengths in ("computing", "stored"):
        rule = BLUR.published(lengths=lengths, rescale=True)
        with torch.no_grad():
            rule.genome.rho.fill_(1.5), rule.genome.eta_tilde.zero_()
        program = mg.compile(network, rule, dtype=torch.float64)
        state = randomised(program.init(), torch.Generator().manual_seed(0))
        after, _ = program.step(state, x, torch.zeros(4, 2, dtype=torch.float64))
        length = sum((after[n]["w"] ** 2).reshape(2, -1, 2).sum(1) for n in ("x->y", "v->y", "y.bias"))
        kept = sum((state[n]["w"] ** 2).reshape(2, -1, 2).sum(1) for n in ("x->y", "v->y", "y.bias"))
        torch.testing.assert_close(length, kept if lengths == "computing" else torch.full_like(kept, 2.25))
        predictions.append(program.predict(state, x))
    torch.testing.assert_close(*predictions)


def test_weights_that_the_network_gives_start_every_channel():
    network, given = mg.Network(), torch.randn(2, 3)
    network.input("x", 3), network.unit("y", 2, bias=torch.tensor([1.0, 2.0])), network.loss("y", "l2")
    network.connect("x", "y", weight=given)
    state = mg.compile(network, BLUR.published(k=4)).init()
    assert torch.equal(state["x->y"]["w"], given[..., None].expand(2, 3, 4))
    assert torch.equal(state["y.bias"]["w"], torch.tensor([[1.0] * 4, [2.0] * 4]))


def test_a_genome_for_each_step():
    rule = BLUR.published(steps=2)
    assert rule.genome.nu.shape == (2, 2, 2)
    with torch.no_grad():
        rule.genome.nu[1] = torch.randn(2, 2, generator=torch.Generator().manual_seed(9))
        rule.genome.eta_tilde[1] = 0.02
    network = mlp([3, 2, 2], activation="tanh", loss="l2")
    program = mg.compile(network, rule, dtype=torch.float64)
    x, y = torch.randn(3, 4, 3, dtype=torch.float64), torch.randn(3, 4, 2, dtype=torch.float64)
    state = wanted = program.init()
    for step in range(3):  # the second genome also serves the third step
        state, _ = program.step(state, x[step], y[step])
        alone = BLUR.published()
        with torch.no_grad():
            values = dict(rule.genome.named_parameters())
            for name, parameter in alone.genome.named_parameters():
                parameter.data = values[name][min(step, 1)].clone()
        wanted, _ = mg.compile(network, alone, dtype=torch.float64).step(wanted, x[step], y[step])
    assert distance(state, wanted) < 1e-12
    assert float((state["x->h1"]["w"] - program.init()["x->h1"]["w"]).detach().abs().max()) > 1e-3


def test_feedback_every_third_step():
    program = mg.compile(mlp([3, 4, 2]), BLUR.published(feedback="sign", every=3), dtype=torch.float64)
    state, x, y = program.init(), torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    changed = []
    for _ in range(6):
        new, _ = program.step(state, x, y)
        changed.append(not torch.equal(new["x->h1"]["w"], state["x->h1"]["w"]))
        state = new
    assert changed == [False, False, True] * 2


def test_feedback_may_be_any_function():
    """Softmax minus one-hot written as a function of one agent and its peers is the derivative of the cross-entropy."""

    def error(s, z, t):
        e = torch.exp(z - s.population(z, "max"))
        return e / s.population(e) - t

    network, states = mlp([4, 5, 3]), []
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    for feedback in (error, "gradient"):
        program = mg.compile(network, BLUR(feedback=feedback, eta_tilde=-0.125), dtype=torch.float64)
        states.append(program.step(program.init(), x, y)[0])
    assert distance(*states) < 1e-14


def test_an_inner_loss_and_what_lies_above_it_add_up():
    """A unit with a loss that also feeds others learns from both, as gradient descent on the sum of both losses."""
    network = mg.Network()
    network.input("x", 3), network.unit("h", 4, "tanh"), network.unit("y", 2)
    network.connect("x", "h"), network.connect("h", "y")
    network.loss("h", "l2"), network.loss("y", "l2")
    assert_descends(network)


# -- meta-gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", RULES.values(), ids=RULES)
def test_every_learned_tensor_gets_a_meta_gradient(options):
    """Of a two-layer network after three steps.

    In a genome for connections from inputs alone f and mu are without use, as nothing comes back to inputs.
    """
    unused = {"protocol.genome.0.f", "protocol.genome.0.mu"} if "layers" in options else set()
    options = {**options, "layers": ("h1", "y")} if "layers" in options else options
    rule = scattered(BLUR(**options))
    network = mlp([3, 4, 2], activation="tanh", loss="l2")
    program = mg.compile(network, rule, dtype=torch.float64)
    generator, state = torch.Generator().manual_seed(5), program.init(batch_size=8)
    for _ in range(3):
        x, y = (torch.randn(8, n, generator=generator, dtype=torch.float64) for n in (3, 2))
        state, _ = program.step(state, x, y)
    program.step(state, x, y)[1].loss.backward()
    parameters = dict(program.named_parameters())
    assert set(parameters) == {f"protocol.genome.{name}" for name, _ in rule.genome.named_parameters()}
    assert {name for name, p in parameters.items() if p.grad is None or not p.grad.any()} == unused
    assert all(torch.isfinite(p.grad).all() for name, p in parameters.items() if name not in unused)


@pytest.mark.parametrize(
    "options",
    [
        {"k": 1},
        {"every": 0},
        {"steps": 1.5},
        {"backward": "sum"},
        {"oja": "weight"},
        {"initial": "zero"},
        {"rescale": True},
    ],
)
def test_wrong_arguments_are_refused_in_words(options):
    (name,) = options
    with pytest.raises(mg.ProtocolError, match=f"BLUR: {name}="):
        BLUR(**options)


def test_ambiguous_and_missing_genomes_of_layers_are_refused():
    network = mg.Network()
    network.input("x", 2), network.unit("h", 2), network.unit("g", 2), network.unit("y", 2), network.loss("y", "l2")
    for pre, post in (("x", "h"), ("h", "g"), ("g", "y"), ("h", "y")):
        network.connect(pre, post)
    with pytest.raises(mg.ProtocolError, match="'h' sends to g, y"):
        mg.compile(network, BLUR(layers=("h", "g", "y")))
    with pytest.raises(mg.ProtocolError, match="matches unit 'g'"):
        mg.compile(network, BLUR(layers=("h", "y")))
    mg.compile(network, BLUR(layers=("h", "*")))
