"""Oracles: a network evaluated by plain torch with autograd, and random networks for hypothesis."""

import torch
from hypothesis import strategies as st

import mpgraph as mg
from mpgraph.agents.repeat import repeats_of
from mpgraph.errors import unknown
from mpgraph.network.connections import OneToOne

ACTIVATIONS = {
    "identity": lambda z: z,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "softplus": torch.nn.functional.softplus,
    "step": lambda z: (z > 0).to(z.dtype),
}
LOSSES = {
    "cross_entropy": lambda z, t: -(torch.log_softmax(z, -1) * t).sum(-1).mean(),
    "sigmoid_cross_entropy": lambda z, t: torch.nn.functional.binary_cross_entropy_with_logits(z, t) * z.shape[-1],
    "l2": lambda z, t: 0.5 * (z - t).pow(2).sum(-1).mean(),
    "l1": lambda z, t: (z - t).abs().sum(-1).mean(),
}


def function(kind):
    """The elementwise function of a unit, written here independently of the engine."""
    if isinstance(kind, mg.Function):
        return kind.function
    assert kind.name in ACTIVATIONS, unknown("activation", kind.name, ACTIVATIONS)
    return ACTIVATIONS[kind.name]


def forward(network, weights, x):
    """Predictions by output, for weights ``{wire or bias name: tensor}`` and inputs ``{name: (batch, n)}``."""
    values = dict(x)
    while len(values) < len(network.units):
        for name, unit in network.units.items():
            wires = [w for w in network.wires.values() if w.post == name]
            if name in values or any(w.pre not in values for w in wires):
                continue
            z = weights[f"{name}.bias"] if unit.bias else torch.zeros(unit.shape)
            for wire in wires:
                w, v = weights[wire.name], values[wire.pre]
                z = z + (w * v if isinstance(wire.connection, OneToOne) else v @ w.T)
            values[name] = function(unit.activation)(z)
    return {name: values[name] for name in network.outputs}


def autograd_steps(network, weights, batches, lr):
    """Weights after stochastic gradient descent by autograd on ``(x, targets)`` dictionaries."""
    fixed = {w.name for w in network.wires.values() if not w.trained}
    for x, targets in batches:
        leaves = {k: v.clone().requires_grad_() for k, v in weights.items()}
        predictions = forward(network, leaves, x)
        loss = sum(LOSSES[node.loss.name](predictions[node.pre], targets[node.pre]) for node in network.losses.values())
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        weights = {
            k: v if g is None or k in fixed else v - lr * g
            for (k, v), g in zip(weights.items(), gradients, strict=True)
        }
    return weights


def weights_of(state):
    return {name: channels["w"] for name, channels in state.items() if "w" in channels}


POSITIVE = ("var", "_square", "_of_one")  # running variances; what Adam averages


def randomised(state, generator):
    """The state with random numbers in every weight, biases included; positive where a root is taken of them."""
    return {
        name: channels
        if name == "program"
        else {
            c: torch.randn(t.shape, generator=generator, dtype=t.dtype).abs() + 0.5
            if c.endswith(POSITIVE)
            else torch.randn(t.shape, generator=generator, dtype=t.dtype)
            for c, t in channels.items()
        }
        for name, channels in state.items()
    }


def few(program, times=1):
    """A few rounds of each repetition of a rule, for the interpreter; nothing for a rule without."""
    names = {one.name for one in repeats_of(program.protocol.passes_of(program.protocol.phase_named()))}
    return dict.fromkeys(names, times) or None


def distance(one, two):
    """Largest difference between two states."""
    return largest(one[n][c] - two[n][c] for n in one for c in one[n])


def largest(tensors):
    """Largest magnitude of any number; not a number if one of them is none, which Python's max may overlook."""
    return float(torch.stack([t.detach().abs().max().double() for t in tensors if t.numel()]).max())


@st.composite
def networks(draw, activations=tuple(ACTIVATIONS), losses=tuple(LOSSES)):
    """Random acyclic networks: one or two inputs, skips, branches, one-to-one wires, one or two outputs."""
    network = mg.Network()
    names = [network.input(f"x{i}", draw(st.integers(1, 3))) for i in range(draw(st.integers(1, 2)))]
    hidden = draw(st.integers(0, 3))
    outputs = draw(st.integers(1, 2))
    for i in range(hidden + outputs):
        is_output = i >= hidden
        name = f"y{i - hidden}" if is_output else f"h{i}"
        loss = draw(st.sampled_from(losses)) if is_output else None
        shape = draw(st.integers(1, 3))
        activation = draw(st.sampled_from(activations))
        network.unit(name, shape, torch.sin if activation == "sin" else activation, bias=draw(st.booleans()))
        sources = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
        for source in sources:
            one_to_one = network.shape(source) == network.shape(name) and draw(st.booleans())
            network.connect(source, name, "one_to_one" if one_to_one else "dense", trained=draw(st.integers(0, 4)) > 0)
        if loss:
            network.loss(name, loss)
        names.append(name)
    for name in [n for n in names if not network.units[n].is_input and n not in network.outputs]:
        if name not in {wire.pre for wire in network.wires.values()}:  # every unit must lead somewhere
            network.connect(name, "y0")
    return network


@st.composite
def delayed(draw):
    """A random network with connections that take ticks, from anywhere to anywhere."""
    network = draw(networks(activations=("identity", "tanh", "sigmoid"), losses=("l2", "cross_entropy")))
    units = [name for name, unit in network.units.items() if not unit.is_input]
    for _ in range(draw(st.integers(1, 3))):
        ends = draw(st.sampled_from(list(network.units))), draw(st.sampled_from(units))
        network.connect(*ends, delay=draw(st.integers(1, 3)))
    return network


def batch(network, size, generator):
    """Inputs and targets of random numbers; for cross-entropy, probabilities."""
    x = {n: torch.randn(size, *network.shape(n), generator=generator, dtype=torch.float64) for n in network.inputs}
    targets = {}
    for node in network.losses.values():
        t = torch.randn(size, *network.shape(node.pre), generator=generator, dtype=torch.float64)
        if node.loss.name == "cross_entropy":
            t = torch.softmax(t, -1)
        elif node.loss.name == "sigmoid_cross_entropy":
            t = torch.sigmoid(t)
        targets[node.pre] = t
    return x, targets
