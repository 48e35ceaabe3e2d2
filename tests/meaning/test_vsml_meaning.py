"""VS-ML against a plain implementation with loops, networks of torch, the theorems of the paper, and itself."""

import itertools
import math

import pytest
import torch
from graphs import GRAPHS
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import batch, distance, largest, networks, randomised

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.interpreter import interpreter
from mpgraph.protocols import VSML
from mpgraph.protocols.vsml import imitation

pytestmark = pytest.mark.filterwarnings("ignore::mpgraph.FlatUnitWarning")
DOUBLE = {"dtype": torch.float64}


def shaken(rule, seed=0, scale=0.5):
    """The rule with random numbers in all of its parameters, offsets and scales included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in rule.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))
    return rule


def examples(sizes, size, steps=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(size, sizes[0], generator=generator, **DOUBLE)
        yield x, torch.randint(0, sizes[-1], (size,), generator=generator)


# -- a plain implementation -------------------------------------------------------------------------------------


def cell(kind, p, inputs, state, keep, admit, clip):
    """One tick of all synapses of a layer; ``inputs`` a function from a gate to what it hears from outside."""
    gate = [inputs(i) + state["h"] @ p.W[i] for i in range(len(p.W))]
    if kind == "vanilla":
        return {"h": torch.tanh(gate[0])}
    if kind == "gru":
        r, k = torch.sigmoid(gate[0]), torch.sigmoid(gate[2] + keep)
        u = torch.tanh(inputs(1) + r * (state["h"] @ p.W[1]))
        return {"h": k * state["h"] + (1 - k) * u}
    c = torch.sigmoid(gate[2] + keep) * state["c"] + torch.sigmoid(gate[0] + admit) * torch.tanh(gate[1])
    c = c if clip is None else c.clamp(-clip, clip)
    return {"c": c, "h": torch.sigmoid(gate[3]) * torch.tanh(c)}


def plain(rule, sizes, states, data, *, kind, ticks, merge, exchange, error, feed_label, average, clip, apply, ln):
    """Predictions and states ``(batch, pre, post, n)`` of a stack of dense layers, layer by layer as published."""
    p, m = rule.agents["weight"], rule.agents["weight"].m
    layers = len(sizes) - 1
    size = len(next(iter(states[0].values())))
    g = [torch.zeros(size, n, m, **DOUBLE) for n in sizes[1:]]
    fed = torch.zeros(size, sizes[-1], m, **DOUBLE)

    def head(h, matrix, offset, scale, shift):
        message = h @ matrix + offset
        return torch.nn.functional.layer_norm(message, (m,), scale, shift) if ln else message

    def outgoing(k, way):
        own = [getattr(p, f"{way}{x}", None) for x in ("", "_b", "_scale", "_offset")]
        message = head(states[k]["h"], *own)
        return getattr(message, merge)(1 if way == "C" else 2)

    def tick(k, f, times, q=p):
        for _ in range(times):
            heard = {i: (f @ q.F[i])[:, :, None] + (g[k] @ q.G[i])[:, None] + q.b[i] for i in range(len(q.W))}
            states[k] = cell(kind, q, heard.__getitem__, states[k], 5.0, -5.0, clip)

    def forward(x, times):
        message, below = torch.nn.functional.pad(x[..., None], (0, m - 1)), []
        for k in range(layers):
            below.append(message)
            tick(k, message, times)
            message = outgoing(k, "C")
            message = apply(message) if k < layers - 1 else message
        return message, below

    for x, labels in data:
        if average:
            cut = round(average * p.n)
            for state in states:
                for name, value in state.items():
                    common = value.mean(0, keepdim=True).expand_as(value)
                    state[name] = torch.cat([common[..., :cut], value[..., cut:]], -1)
        rounds, once = (ticks, 1) if exchange else (1, ticks)
        g[-1] = torch.zeros_like(fed) if error == "reverse" else fed
        for turn in range(rounds):
            if turn and error == "next":
                g[:-1] = [outgoing(k, "U") for k in range(1, layers)]
            message, below = forward(x, once)
        y = 100 * torch.tanh(message[..., 1] / 100)
        target = torch.eye(sizes[-1], **DOUBLE)[labels]
        fed = torch.zeros_like(fed)
        fed[..., 0] = (torch.softmax(y, -1) - target) / size
        if feed_label:
            fed[..., 1] = target
        if error == "reverse":
            for _ in range(rounds):
                g[-1] = fed
                for k in reversed(range(layers)):
                    tick(k, below[k], once, p.back or p)
                    if k:
                        g[k - 1] = outgoing(k, "U")
        else:
            g[:-1] = [outgoing(k, "U") for k in range(1, layers)]
        yield y, [dict(s) for s in states]


OPTIONS = {
    "published": {},
    "sum": {"merge": "sum", "scale": 0.3},
    "gru": {"cell": "gru"},
    "vanilla": {"cell": "vanilla"},
    "messages exchanged": {"exchange": True, "ticks": 3},
    "reverse": {"error": "reverse", "feed_label": True},
    "reverse, exchanged": {"error": "reverse", "exchange": True, "ticks": 2},
    "reverse, two sets": {"error": "reverse", "two_sets": True, "cell": "gru"},
    "all averaged": {"average": 1.0},
    "a quarter averaged": {"average": 0.25, "layer_norm": True},
    "private": {"average": 0.0, "cell": "gru", "error": "reverse"},
    "clipped": {"clip": 0.3, "scale": 2.0},
    "units apply": {"units": "apply", "feed_label": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_equals_a_plain_implementation(name):
    options = dict(OPTIONS[name])
    scale = options.pop("scale", 0.5)
    sizes = [3, 4, 2, 3]
    rule = shaken(VSML(4, 3, **options), scale=scale)
    program = mg.compile(mlp(sizes, activation="tanh"), rule, **DOUBLE)
    state = program.init(seed=1, batch_size=3)
    wires = list(program.graph.network.wires)
    memory = ("h", "c") if rule.agents["weight"].gates == 4 else ("h",)
    for wire in wires:  # different memories in every slot
        for c in memory:
            state[wire][c] = torch.randn(state[wire][c].shape, generator=torch.Generator().manual_seed(3), **DOUBLE)
    states = [{c: state[wire][c].transpose(1, 2) for c in memory} for wire in wires]
    meant = plain(
        rule,
        sizes,
        states,
        examples(sizes, 3, 4),
        kind=options.get("cell", "lstm"),
        ticks=options.get("ticks", 2),
        merge=options.get("merge", "mean"),
        exchange=options.get("exchange", False),
        error=options.get("error", "next"),
        feed_label=options.get("feed_label", False),
        average=options.get("average", 0.5),
        clip=options.get("clip"),
        apply=torch.tanh if options.get("units") == "apply" else lambda z: z,
        ln=options.get("layer_norm", False),
    )
    for (x, y), (prediction, after) in zip(examples(sizes, 3, 4), meant, strict=True):
        assert (program.predict(state, x) - prediction).abs().max() < 1e-12
        state, out = program.step(state, x, y)
        assert (out.prediction - prediction).abs().max() < 1e-12
        for wire, layer in zip(wires, after, strict=True):
            for c in memory:
                assert (state[wire][c].transpose(1, 2) - layer[c]).abs().max() < 1e-12, (wire, c)


def test_a_second_set_begins_as_the_first_and_is_learned_apart():
    """Copies change nothing; the derivative of the shared set is the sum of those of the two (chain rule)."""
    losses, gradients, sizes = [], [], [3, 4, 3]
    for two in (False, True):
        rule = VSML(4, 3, error="reverse", two_sets=two, genome="random", seed=3)
        program = mg.compile(mlp(sizes), rule, **DOUBLE)
        parameters = {name: t.detach().clone().requires_grad_() for name, t in rule.named_parameters()}
        state = program.init(seed=1, batch_size=3)
        for x, y in examples(sizes, 3, 4):
            state, out = program.step(state, x, y, parameters=parameters)
        found = torch.autograd.grad(out.loss, parameters.values(), allow_unused=True)
        gradients.append(dict(zip(parameters, found, strict=True)))
        losses.append(out.loss.item())
    assert losses[0] == losses[1]
    for name in "WFGb":
        (shared,) = (g for n, g in gradients[0].items() if n.endswith(f".{name}"))
        parts = [g for n, g in gradients[1].items() if n.endswith(f".{name}")]
        assert len(parts) == 2
        assert all(part.abs().max() > 1e-9 for part in parts)
        assert torch.allclose(sum(parts), shared, rtol=1e-9, atol=1e-12)


def test_options_make_a_difference():
    """Each option of the test above changes the prediction of the last example: none is without effect."""
    sizes, found = [3, 4, 2, 3], {}
    for name, options in OPTIONS.items():
        options = {k: v for k, v in options.items() if k != "scale"}
        program = mg.compile(mlp(sizes), shaken(VSML(4, 3, **options)), **DOUBLE)
        state = program.init(batch_size=3)
        for x, y in examples(sizes, 3, 4):
            state, out = program.step(state, x, y)
        found[name] = out.prediction.detach()
    for one, two in itertools.combinations(found, 2):
        assert not torch.allclose(found[one], found[two], atol=1e-9), (one, two)


# -- the paper's claims -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lstm", "gru", "vanilla"])
def test_one_input_and_one_output_make_a_meta_rnn(kind):
    """A = B = 1 (Eq. 1): the cell of torch on [input, error], its hidden state read out; gates permuted."""
    n, m = 5, 2
    rule = shaken(VSML(n, m, cell=kind, ticks=1, average=0.0, offsets=(0.5, -0.25)))
    program = mg.compile(mlp([1, 1], loss="l2"), rule, **DOUBLE)
    p = rule.agents["weight"]
    torch_cell = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell, "vanilla": torch.nn.RNNCell}[kind](2, n, **DOUBLE)
    order = {"lstm": [0, 2, 1, 3], "gru": [0, 2, 1], "vanilla": [0]}[kind]  # theirs: i f u o and r k u
    offsets = torch.zeros(len(order), n, **DOUBLE)
    if kind != "vanilla":
        offsets[2] = 0.5
    if kind == "lstm":
        offsets[0] = -0.25
    with torch.no_grad():
        torch_cell.weight_hh.copy_(p.W[order].transpose(1, 2).flatten(0, 1))
        heard = torch.stack([p.F[:, 0], p.G[:, 0]], -1)  # the first number of either message
        torch_cell.weight_ih.copy_(heard[order].flatten(0, 1))
        torch_cell.bias_ih.copy_((p.b + offsets)[order].flatten())
        torch_cell.bias_hh.zero_()
    state = program.init(batch_size=1)
    own = [state["x->y"][c][:, 0, 0] for c in ("h", "c")] if kind == "lstm" else state["x->y"]["h"][:, 0, 0]
    error = torch.zeros(1, 1, **DOUBLE)
    for t in range(6):
        x, target = torch.full((1, 1), math.sin(t), **DOUBLE), torch.full((1, 1), math.cos(2 * t), **DOUBLE)
        state, out = program.step(state, x, target)
        own = torch_cell(torch.cat([x, error], 1), own)
        h = own[0] if kind == "lstm" else own
        y = 100 * torch.tanh((h @ p.C + p.C_b)[:, 1:] / 100)
        error = y - target
        assert (state["x->y"]["h"][:, 0, 0] - h).abs().max() < 1e-14
        assert (out.prediction - y).abs().max() < 1e-14


def test_the_whole_is_a_recurrent_network_with_shared_and_zero_weights():
    """Theorem 1 (Eqs. 3, 4 and 19): a grid of A x A networks of N states ticks as one network of A*A*N states does."""
    size, n, ticks = 3, 4, 6
    rule = shaken(VSML(n, n, cell="vanilla", merge="sum", ticks=1, average=0.0, random=0.0))
    p = rule.agents["weight"]
    with torch.no_grad():  # what a synapse hears enters its sum as it is, so C is all there is between two of them
        p.F.copy_(torch.eye(n)[None]), p.G.zero_(), p.C_b.zero_()
    network = mg.Network(ticks=ticks)
    network.input("x", size), network.unit("s", size), network.loss("s", "l2")
    network.connect("x", "s", "identity"), network.connect("s", "s", delay=1)  # what one says the others hear next
    program = mg.compile(network, rule, **DOUBLE)
    x = torch.randn(1, ticks, size, generator=torch.Generator().manual_seed(0), **DOUBLE)
    uses = [f"s->s@{t}" for t in range(1, ticks - 1)] + ["s->s"]
    _, out = program.step(
        program.init(batch_size=1), x, torch.zeros(1, size, **DOUBLE), record={use: ["out"] for use in uses}
    )
    shape = (size, size, n)
    big = torch.zeros(*shape, *shape, **DOUBLE)  # c, d, i, a, b, j
    for c, d, a, b in itertools.product(range(size), repeat=4):
        big[c, d, :, a, b] = (d == a) * p.C.detach() + (d == b and c == a) * p.W[0].detach()
    assert 0 < int((big != 0).sum()) < big.numel()
    big, s = big.reshape(math.prod(shape), -1), torch.zeros(math.prod(shape), **DOUBLE)
    for tick, use in enumerate(uses):
        data = torch.zeros(shape, **DOUBLE)
        data[..., 0] = x[0, tick, :, None]  # s_ab1 = x_a for any b
        s = torch.tanh(p.b[0].detach().repeat(size * size) + s @ big + data.reshape(-1))
        found = out.recorded[use]["out"][0].transpose(0, 1)  # kept as b, a, j
        assert (found.reshape(-1) - s).abs().max() < 1e-14


def test_fast_weights_whose_rule_is_a_gated_step_are_synapses_of_one_state():
    """Eqs. 9 to 12 with w_ab = c_ab: x_b = sum_a C o(x_a) tanh(w_ab), and w moves by f(x_a, error_b, w_ab)."""
    rule = shaken(VSML(1, 2, merge="sum", ticks=1, average=0.0, random=1.0, offsets=(1.0, -1.0)), scale=1.0)
    p = {k: v.detach() for k, v in rule.agents["weight"].named_parameters()}
    with torch.no_grad():
        rule.agents["weight"].W.zero_()  # the weight itself is the memory; h is what it says
    program = mg.compile(mlp([3, 2], loss="l2"), rule, **DOUBLE)
    state = program.init(seed=4, batch_size=1)
    w = state["x->y"]["c"][0, :, :, 0].tolist()
    p = {k: v.detach() for k, v in rule.agents["weight"].named_parameters()}
    error = [0.0, 0.0]

    def gate(i, x, e, offset=0.0):
        z = x * p["F"][i, 0, 0] + e * p["G"][i, 0, 0] + p["b"][i, 0] + offset
        return float(torch.tanh(z) if i == 1 else torch.sigmoid(z))

    for t in range(5):
        x, target = [math.sin(t + a) for a in range(3)], [math.cos(t), -math.cos(t)]
        state, out = program.step(state, torch.tensor([x], **DOUBLE), torch.tensor([target], **DOUBLE))
        prediction = []
        for b in range(2):
            total = 0.0
            for a in range(3):
                keep, admit = gate(2, x[a], error[b], 1.0), gate(0, x[a], error[b], -1.0)
                w[b][a] += (keep - 1.0) * w[b][a] + admit * gate(1, x[a], error[b])  # Eqs. 10 and 11
                says = gate(3, x[a], error[b]) * math.tanh(w[b][a])
                total += says * float(p["C"][0, 1]) + float(p["C_b"][1])
            prediction.append(100 * math.tanh(total / 100))
        error = [y - z for y, z in zip(prediction, target, strict=True)]
        assert (out.prediction[0] - torch.tensor(prediction, **DOUBLE)).abs().max() < 1e-14
        assert (state["x->y"]["c"][0, :, :, 0] - torch.tensor(w, **DOUBLE)).abs().max() < 1e-14


def test_messages_from_above_reach_every_pixel_of_a_strided_convolution():
    """Against loops over places; the published code leaves all but the first rows and columns without any."""
    rule = shaken(VSML(2, 2, ticks=1, average=0.0))
    p = rule.agents["weight"]
    network = mg.Network()
    network.input("x", (1, 6, 6)), network.unit("c", (1, 6, 6)), network.unit("h", (2, 3, 3))
    meeting = mg.Conv2d(3, stride=2, padding=1)
    network.connect("x", "c", "identity"), network.connect("c", "h", meeting)
    program = mg.compile(network, rule, **DOUBLE)
    state = program.init(batch_size=1)
    record = {"c->h": ["out"], "c": ["up"]}
    _, out = program.step(state, torch.randn(1, 1, 6, 6, **DOUBLE), record=record)
    own, found = out.recorded["c->h"]["out"][0], out.recorded["c"]["up"][0, 0]  # own: out, in, kh, kw, ho, wo, n
    wanted = torch.zeros(6, 6, 2, **DOUBLE)
    for o, k, m, i, j in itertools.product(range(2), range(3), range(3), range(3), range(3)):
        row, column = 2 * i + k - 1, 2 * j + m - 1
        if 0 <= row < 6 and 0 <= column < 6:
            wanted[row, column] += own[o, 0, k, m, i, j] @ p.U.detach() + p.U_b.detach()
    assert (found - wanted / 18).abs().max() < 1e-14
    assert (wanted != 0).all()


# -- on every network -------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(networks(), st.sampled_from(sorted(OPTIONS)), st.booleans(), st.integers(0, 99))
def test_compiled_means_what_the_interpreter_does(network, name, biases, seed):
    options = {k: v for k, v in OPTIONS[name].items() if k != "scale"}
    rule = shaken(VSML(2, 2, biases=biases, coordinates=biases, **options), seed)
    program = mg.compile(network, rule, **DOUBLE)
    state = program.init(seed, batch_size=2)
    x, targets = batch(network, 2, torch.Generator().manual_seed(seed))
    for _ in range(2):
        meaning, predictions = interpreter.step(program, state, x, targets)
        state, out = program.step(state, x, targets)
        assert distance(state, meaning) < 1e-10
        found = out.prediction if len(predictions) > 1 else dict.fromkeys(predictions, out.prediction)
        assert largest(found[k] - predictions[k] for k in predictions) < 1e-10


@pytest.mark.parametrize(
    "options", [{}, {"layer_norm": True, "feed_label": True}, {"cell": "gru"}, {"error": "reverse"}]
)
def test_every_parameter_learns_on_two_layers(options):
    rule = VSML(4, 3, **options)
    program = mg.compile(mlp([5, 4, 3]), rule, **DOUBLE)
    state, losses = program.init(batch_size=2), []
    for x, y in examples([5, 4, 3], 2):
        state, out = program.step(state, x, y)
        losses.append(out.loss)
    sum(losses).backward()
    for name, parameter in rule.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def gate():
    """An output that is an operation, and units with a loss that have others above them."""
    network = mg.Network()
    network.input("x", 3), network.unit("h", 2, "tanh"), network.unit("g", 2, "step")
    network.connect("x", "h"), network.connect("x", "g"), network.connect("h", "g")
    network.operation("y", "product", "h", "g")
    network.loss("y", "cross_entropy"), network.loss("h", "l2")
    return network


class Twice(mg.Activation):
    """A node of a user's own."""

    def apply(self, z):
        return 2 * z


def own_kinds():
    network = mg.Network()
    network.input("x", (1, 4, 4)), network.unit("c", (1, 4, 4), mg.BatchNorm(), bias=False)
    network.unit("t", (1, 4, 4), Twice()), network.connect("x", "c", mg.Conv2d(3, padding=1))
    network.connect("c", "t", "identity"), network.operation("p", mg.MaxPool(2), "t")
    network.operation("f", "flatten", "p"), network.unit("y", 2), network.connect("f", "y")
    network.unit("z", 2, mg.LayerNorm()), network.connect("y", "z")
    network.loss("y", "cross_entropy"), network.loss("z", "l2")
    return network


@pytest.mark.parametrize("name", ["reverse", "messages exchanged", "a quarter averaged", "units apply"])
@pytest.mark.parametrize("build", [gate, own_kinds, *(GRAPHS[n] for n in ("strided, padded", "recurrence", "tied"))])
def test_options_on_operations_kinds_and_uses(build, name):
    network, options = build(), {k: v for k, v in OPTIONS[name].items() if k != "scale"}
    program = mg.compile(network, shaken(VSML(2, 2, coordinates=True, **options)), **DOUBLE)
    state = randomised(program.init(batch_size=2), torch.Generator().manual_seed(0))
    x, targets = batch(network, 2, torch.Generator().manual_seed(1))
    if network.ticks > 1:
        x = {k: v[:, None].expand(-1, network.ticks, *v.shape[1:]) for k, v in x.items()}
    meaning, _ = interpreter.step(program, state, x, targets)
    after, _ = program.step(state, x, targets)
    assert distance(after, meaning) < 1e-10


def test_layers_with_parameters_of_their_own():
    """Only what the first layer sends down, to the input, is structurally unused; and so is the shared genome here."""
    rule = VSML(4, 3, layers=("x->*", "h1->*"))
    program = mg.compile(mlp([5, 4, 3]), rule, **DOUBLE)
    state = program.init(batch_size=2)
    for x, y in examples([5, 4, 3], 2):
        state, out = program.step(state, x, y)
    out.loss.backward()
    unused = {n for n, p in rule.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert unused == {n for n, _ in rule.agents["weight"].named_parameters(prefix="agents.weight")} | {
        "layers.0.U",
        "layers.0.U_b",
    }
    one, two = rule.layers
    assert not torch.equal(one.W, two.W)


# -- what a user does with it -----------------------------------------------------------------------------------


def test_prediction_does_not_tick_and_learning_goes_on_from_a_file(tmp_path):
    program = mg.compile(mlp([3, 4, 2]), shaken(VSML(4, 3)), **DOUBLE)
    state = program.init(batch_size=1)
    data = list(examples([3, 4, 2], 1, 6))
    for x, y in data[:3]:
        state, _ = program.step(state, x, y)
    kept = {n: {c: t.clone() for c, t in channels.items()} for n, channels in state.items()}
    first = program.predict(state, data[3][0])
    assert torch.equal(first, program.predict(state, data[3][0]))
    assert distance(state, kept) == 0.0
    program.save({n: {c: t.detach() for c, t in k.items()} for n, k in state.items()}, tmp_path / "state.safetensors")
    again = program.load(tmp_path / "state.safetensors")
    for x, y in data[3:]:
        state, one = program.step(state, x, y)
        again, two = program.step(again, x, y)
        assert torch.equal(one.prediction, two.prediction)


def test_initial_states():
    """h = 0; half of c normal with deviation 1/sqrt(784), cut off at two; the same in every slot of the batch."""
    program = mg.compile(mlp([784, 10]), VSML())
    state = program.init(batch_size=2)["x->y"]
    assert state["c"].shape == (2, 10, 784, 16)
    assert not state["h"].any()
    assert torch.equal(state["c"][0], state["c"][1])
    drawn, rest = state["c"][0, ..., :8], state["c"][0, ..., 8:]
    assert not rest.any()
    assert float(drawn.abs().max()) <= 2 / 28
    assert abs(float(drawn.std()) * 28 - 0.88) < 0.01
    assert not torch.equal(drawn, program.init(1, batch_size=2)["x->y"]["c"][0, ..., :8])
    assert sum(p.numel() for p in VSML().parameters()) == 2384  # as published
    assert sum(p.numel() for p in VSML(layer_norm=True).parameters()) == 2416
    assert all(torch.equal(a, b) for a, b in zip(VSML().parameters(), VSML().parameters(), strict=True))
    assert not torch.equal(VSML().agents["weight"].W, VSML(seed=1).agents["weight"].W)


def test_coordinates_say_where_a_synapse_sits():
    program = mg.compile(mlp([3, 5]), VSML(4, 3, coordinates=True), **DOUBLE)
    state = program.init(batch_size=1)
    at = state["x->y"]["at"]
    assert at.shape == (5, 3, 2)
    assert torch.equal(at[2, :, 0], torch.tensor([-1.0, 0.0, 1.0], **DOUBLE))
    assert torch.equal(at[:, 1, 1], torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], **DOUBLE))
    network = mg.Network()
    network.input("x", (2, 5, 5)), network.unit("h", (3, 3, 3)), network.connect("x", "h", mg.Conv2d(3))
    program = mg.compile(network, VSML(4, 3, coordinates=True), **DOUBLE)
    at = program.init(batch_size=1)["x->h"]["at"]
    assert at.shape == (3, 2, 3, 3, 2)
    assert torch.equal(at[0, ..., 0].flatten(), torch.linspace(-1, 1, 18, **DOUBLE))
    assert "at" not in mg.compile(mlp([3, 5]), VSML(4, 3)).init(batch_size=1)["x->y"]


def test_biases_are_synapses_only_if_asked_for():
    plain = mg.compile(mlp([3, 2]), VSML(4, 3)).init(batch_size=1)
    assert set(plain) == {"x->y", "loss", "program"}
    asked = mg.compile(mlp([3, 2]), VSML(4, 3, biases=True)).init(batch_size=1)
    assert asked["y.bias"]["h"].shape == (1, 2, 4)


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "rnn"},
        {"merge": "max"},
        {"error": "now"},
        {"units": "ignore"},
        {"width": 1},
        {"ticks": 0},
        {"output": 8},
        {"bound": 0.0},
        {"clip": -1.0},
        {"average": 1.5},
        {"random": -0.1},
        {"state": 0},
    ],
)
def test_arguments_out_of_range(options):
    ((name, value),) = options.items()
    with pytest.raises(mg.ProtocolError, match=rf"VSML: {name}={value!r} must be"):
        VSML(**options)


# -- cloning --------------------------------------------------------------------------------------------------------

CLONE = {
    "width": 3, "error": "reverse", "quiet": True, "reduction": "sum", "ticks": 1, "average": 1.0, "merge": "sum",
    "output": 0, "bound": None, "biases": True,
}  # fmt: skip


def test_a_synapse_alone_is_one_of_a_network():
    """What `meta.Alone` trains is what a network runs: a unit whose error is given by its target."""
    rule = shaken(VSML(6, random=0.5, clip=0.5, **CLONE))
    network = mlp([imitation.INPUTS, 1], loss="l2", bias=False)
    program, draw = mg.compile(network, rule, **DOUBLE), imitation.Numbers(torch.Generator().manual_seed(0), 2)
    w = draw.normal(2, 1, imitation.INPUTS, 3).double().expand(-1, imitation.BATCH, -1, -1)
    synapses, state = imitation.Synapses(rule.cells[0], w), program.init(0, batch_size=imitation.BATCH)
    state["x->y"] |= {name: getattr(synapses, name)[1][:, None].contiguous() for name in ("c", "h")}
    for _ in range(3):
        x, e = (part.double() for part in draw.step())
        up, _ = synapses.step(x, e)
        y = up.sum(2, keepdim=True)
        state, out = program.step(state, x[1], (y - e)[1])  # the error of l2 is y - t
        torch.testing.assert_close(out.prediction, y[1], rtol=0, atol=1e-12)
        for name in ("c", "h"):
            torch.testing.assert_close(state["x->y"][name][:, 0], getattr(synapses, name)[1], rtol=0, atol=1e-12)


def test_the_genome_that_is_written_down_is_backpropagation():
    """Changes of the weights in the states, against autograd; tanh before each layer, biases from tanh(1)."""
    rule = VSML(6, random=0.34, genome="backprop", **CLONE)
    program = mg.compile(mlp([5, 4, 3], "tanh"), rule, **DOUBLE)
    state, generator = program.init(0, batch_size=8), torch.Generator().manual_seed(1)
    state = {n: {c: 0.3 * v if c == "c" else v for c, v in cs.items()} for n, cs in state.items()}  # where it is exact

    def weights(state):
        return {n: imitation.weight(c["c"].mean(0), 2) for n, c in state.items() if "c" in c}

    for t in range(6):
        x, y = torch.randn(8, 5, generator=generator, **DOUBLE), torch.randint(0, 3, (8,), generator=generator)
        w = {n: v.detach().requires_grad_() for n, v in weights(state).items()}
        one = math.tanh(1.0)
        h = torch.tanh(x) @ w["x->h1"].T + one * w["h1.bias"]
        z = torch.tanh(h) @ w["h1->y"].T + one * w["y.bias"]
        loss = torch.nn.functional.cross_entropy(z, y)
        wanted = torch.autograd.grad(loss, list(w.values()))
        state, out = program.step(state, x, y)
        if t:  # before the first one nothing shows of the memory
            assert (out.prediction - z).norm() < 0.1 * z.norm()
            for (name, after), g in zip(weights(state).items(), wanted, strict=True):
                assert (after - w[name] + imitation.RATE * g).norm() < 0.1 * imitation.RATE * g.norm(), name


def test_errors_that_nobody_hears_again():
    """With `quiet` messages from above are empty when a step ends, in hidden layers too; without it they are not."""
    for quiet in (True, False):
        rule = shaken(VSML(4, **{**CLONE, "quiet": quiet}))
        program = mg.compile(mlp([3, 4, 2]), rule, **DOUBLE)
        state = program.init(0, batch_size=2)
        for x, y in examples((3, 2), 2, steps=2):
            state, _ = program.step(state, x, y)
        assert not state["h1->y"]["g"].any()  # the error itself
        assert bool(state["x->h1"]["g"].any()) is not quiet


def test_the_sum_of_errors_does_not_know_the_batch():
    """Examples that are all the same, with averaged states, are as one."""
    found = []
    for size in (1, 5):
        program = mg.compile(mlp([3, 4, 2]), shaken(VSML(4, **CLONE)), **DOUBLE)
        state = program.init(0, batch_size=size)
        for x, y in examples((3, 2), 1, steps=3):
            state, out = program.step(state, x.expand(size, -1), y.expand(size))
        found.append(out.prediction[0])
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ticks": 2}, "ticks=2 must be 1 to imitate gradient descent"),
        ({"quiet": False}, "quiet=False must be True"),
        ({"average": 0.0}, "part of the state must start at random"),
    ],
)
def test_rules_that_cannot_imitate_say_why(changes, said):
    program = mg.compile(mlp([3, 2]), VSML(6, **{**CLONE, **changes}))
    with pytest.raises(mg.ProtocolError, match=said):
        program.protocol.alone(program.graph, torch.Generator(), 256)


def test_a_scalar_genome_reads_and_sends_one_number():
    """What other numbers say changes nothing, and they are never said, in a hidden layer too."""
    rule = VSML(5, genome="scalar", **{**CLONE, "cell": "gru", "width": 3})
    synapse, generator = rule.cells[0], torch.Generator().manual_seed(0)
    random = VSML(5, **{**CLONE, "cell": "gru", "width": 3}).cells[0]
    torch.testing.assert_close(synapse.W, random.W, rtol=0, atol=0)  # the rest is the random genome
    for read, sent in ((synapse.F, synapse.C), (synapse.G, synapse.U)):
        message, state = torch.randn(3, generator=generator), torch.randn(5, generator=generator)
        torch.testing.assert_close(message @ read, message[:1] @ read[:, :1])
        assert (state @ sent)[0] != 0
        assert not (state @ sent)[1:].any()
    program = mg.compile(mlp([3, 4, 2]), rule, **DOUBLE)
    state = program.init(0, batch_size=2)
    for x, y in examples((3, 2), 2, steps=2):
        state, _ = program.step(state, x, y)
    assert state["h1->y"]["h"].any()


def test_errors_of_a_softmax_are_those_of_its_loss():
    """One class in ten is the target, where p - t is negative; over all classes they would sum to zero."""
    draw = imitation.Numbers(torch.Generator().manual_seed(0), 2000)
    e = draw.of_a_softmax()
    assert bool((e.abs() <= 1).all())
    wrong = (e < 0).double().mean()
    assert abs(float(wrong) - 1 / imitation.CLASSES) < 0.01  # 32,000 draws: a deviation of 0.002
    assert abs(float(e.mean())) < 0.02


def test_a_mean_shows_what_a_geometric_mean_hides():
    """One unit in ten that fails altogether: exp(mean log) is 0.0025, the mean is 0.1."""
    errors = torch.tensor([1.0] + [1e-3] * 9, **DOUBLE)
    found = float(imitation.logarithm(errors))
    geometric, mean = math.log(1.0 + imitation.EXACT), math.log(1e-3 + imitation.EXACT)
    wanted = 0.5 * (0.1 * geometric + 0.9 * mean) + 0.5 * math.log(0.1009 + imitation.EXACT)
    assert math.isclose(found, wanted, rel_tol=1e-9)


def test_the_genome_that_is_written_down_has_six_numbers():
    with pytest.raises(mg.ProtocolError, match="state=6 and random=0.34"):
        VSML(8, genome="backprop")
    with pytest.raises(mg.ProtocolError, match="quiet=True must be False with error='next'"):
        VSML(quiet=True)
