"""BLUR against vectors of the published code, autograd and the interpreter."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

import mpgraph as mg
from mpgraph.protocols import BLUR
from mpgraph.protocols.blur.units import Output

GOLDEN = Path(os.environ.get("MPGRAPH_GOLDEN", ROOT.parent / "shared" / "reference" / "golden"))
CASES = sorted(GOLDEN.glob("blur_*.npz"))


# -- vectors of the published code ----------------------------------------------------------------------------


class Case:
    """One file: the network, the rule with its genome, and the states in our layout."""

    def __init__(self, path):
        self.data = np.load(path)
        meta = json.loads(str(self.data["meta"]))
        self.case, self.k, self.sizes = meta["case"], meta["k"], meta["sizes"]
        self.steps, self.species, self.replicas = meta["steps"], meta["S"], meta["R"]
        self.names = ["x", *(f"h{i}" for i in range(1, len(self.sizes) - 1)), "y"]
        self.spec = self.case.get("spec", {})
        self.single = bool(self.spec.get("symmetric_states_synapses"))
        self.oja = self.case.get("oja")

    def tensor(self, key):
        return torch.as_tensor(self.data[key])

    def network(self):
        act = self.case.get("act", "default")
        hidden = {"default": lambda z: torch.relu(torch.tanh(z)), "interp_actnorm": "tanh", "none": "identity"}
        kind = hidden.get(act) or act.split("_")[0]
        last = "identity" if act == "none" or act.endswith("linear_last") else "tanh" if act == "default" else kind
        network = mg.Network()
        network.input("x", self.sizes[0])
        for below, name, size in zip(self.names, self.names[1:], self.sizes[1:], strict=False):
            network.unit(name, size, last if name == "y" else kind)
            network.connect(below, name)
        network.loss("y", "l2")
        return network

    def rule(self):
        act, spec, norm = self.case.get("act", "default"), self.spec, self.case.get("snorm", {})
        oja = None
        if self.oja:
            oja = "weights" if self.oja.get("use_synapse_weights") else "activation"
        options = {
            "k": self.k,
            "single": self.single,
            "symmetric": bool(spec.get("symmetric_in_out_synapses")),
            "backward": {"multiplicative_second_state": "second"}.get(
                spec.get("backward_update"), spec.get("backward_update", "additive")
            ),
            "normalise": act == "interp_actnorm",
            "oja": oja,
            "rescale": bool(norm.get("rescale")),
            "saturation": torch.tanh if self.case.get("synapse_act") == "tanh" else None,
            "keep_states": spec.get("zero_out_neurons") is False,
            "early_pre": bool(spec.get("use_forward_activations_for_synapse_update")),
            "early": bool(spec.get("forward_synapse_update")),
            "layers": self.names[1:] if spec.get("per_layer_genome") else (),
        }
        if spec.get("synapse_saturation_type") == "exp_update":
            options["saturation"] = "exp"
        if norm:
            options["lengths"] = "stored" if norm.get("normalize_synapses") else "computing"
        if "with_grad" in act:
            options |= {"activation": "derivative", "backward_activation": None}
        if act in ("none", "tanh_fwd_only_linear_last"):
            options["backward_activation"] = None
        if self.case.get("feedback") == "ce_error":
            options["feedback"] = lambda s, z, t: softmax(s, z) - (t + 1.0) / 2.0
        rule = BLUR.published(**options, input_backward=True)
        if act == "sigmoid_with_grad_linear_last":
            rule.agents["output"] = PlainOutput(rule)
        return rule

    def genome(self, layer=None):
        """Genome tensors by our names, matrices with a leading axis of species."""
        k, single = self.k, self.single

        def field(name):
            value = self.tensor(f"genome/{name}")
            return value if layer is None else value[layer]

        transform = field("neuron/transform")
        found = {
            "f": field("neuron/keep"),
            "eta": field("neuron/update"),
            "nu": transform[:, :k, k:].mT,
            "mu": transform[:, k:, :k].mT,
            "rho": field("synapse/rescale_to"),
        }
        if "norm" in self.case:
            found |= dict(zip(("deviation", "mean"), torch.tensor(self.case["norm"], dtype=torch.float64), strict=True))
        for ours, theirs in (("", "synapse"), ("early.", "forward_synapse")):
            pre, post = field(f"{theirs}/transform/pre"), field(f"{theirs}/transform/post")
            gamma = field(f"{theirs}/transform/ojas_multiplier")
            if not (self.oja or {}).get("use_multiplier"):
                gamma = torch.ones_like(gamma)
            found |= {
                f"{ours}f_tilde": field(f"{theirs}/keep"),
                f"{ours}eta_tilde": field(f"{theirs}/update"),
                f"{ours}nu_tilde": pre[:, :, 0] if single else pre,
                f"{ours}mu_tilde": post[:, 0] if single else post,
                f"{ours}gamma": gamma * (self.oja or {}).get("extra_multiplier", 1.0),
                f"{ours}alpha": field(f"{theirs}/saturation").abs() + self.spec.get("synapse_saturation_eps", 0.0),
            }
        return found

    def genomes(self, rule, dtype):
        """Parameters for a step: matrices, one for each species, and numbers."""
        named, layered = {}, bool(self.spec.get("per_layer_genome"))
        for layer in range(len(self.sizes) - 1) if layered else [None]:
            prefix = "" if layer is None else f"{layer}."
            named |= {f"{prefix}{name}": value.to(dtype) for name, value in self.genome(layer).items()}
        known = [name for name, _ in rule.genome.named_parameters()]
        found = {f"genome.{name}": named[name] for name in known}
        matrices = {n: v for n, v in found.items() if n.rpartition(".")[2] in MATRICES}
        return matrices, {n: v for n, v in found.items() if n not in matrices}

    def start(self, program, dtype):
        """The state before the first step, of every species and replica."""
        state = program.init(batch_size=self.data["x"].shape[3])
        many = {n: {c: t.expand(self.species, self.replicas, *t.shape) for c, t in k.items()} for n, k in state.items()}
        for wire, above, w, v, bias in self.synapses("init"):
            many[above]["w"] = bias.to(dtype)
            given = {"w": w, "v": v, "d": v - w}
            many[wire] = {channel: given[channel].to(dtype) for channel in many[wire]}
        return many

    def synapses(self, key):
        """Of each connection its name, its bias's name, and the weights ``(species, replicas, post, pre, k)``."""
        for i, (below, above) in enumerate(zip(self.names, self.names[1:], strict=False)):
            square, n = self.tensor(f"{key}/synapse/{i}"), self.sizes[i]
            up, down = square[:, :, :n, n + 1 :].transpose(2, 3), square[:, :, n + 1 :, :n]
            parts = (up, down, square[:, :, n, n + 1 :])
            yield f"{below}->{above}", f"{above}.bias", *(p[..., 0] if self.single else p for p in parts)

    def lateral(self, key, i):
        """Sums of squares of the two blocks that carry no signal: up ``(post, k)``, down ``(pre, k)``."""
        square, n = self.tensor(f"{key}/synapse/{i}"), self.sizes[i]
        parts = (square[:, :, n + 1 :, n + 1 :] ** 2).sum(2), (square[:, :, : n + 1, :n] ** 2).sum(2)
        return tuple(p[..., 0] if self.single else p for p in parts)

    def with_lateral_blocks(self, state, t, numbers):
        """The state after step ``t`` with what the published term -w sum_r w_rj^2 gets from blocks we do not have."""
        if not (self.oja or {}).get("use_synapse_weights"):
            return state
        before = "init" if t == 0 else f"step{t - 1}"
        state = {name: dict(channels) for name, channels in state.items()}
        for i, (wire, above, w, v, bias) in enumerate(self.synapses(before)):
            prefix = f"genome.{i}." if self.spec.get("per_layer_genome") else "genome."
            scale = numbers[f"{prefix}eta_tilde"].abs() * numbers[f"{prefix}gamma"].abs()
            up, down = self.lateral(before, i)
            change = {"w": -scale * w * up[:, :, :, None], "v": -scale * v * down[:, :, None]}
            change["d"] = change["v"] - change["w"]
            own = state[wire]
            state[wire] = {channel: (tensor + change[channel]).to(tensor.dtype) for channel, tensor in own.items()}
            state[above]["w"] = (state[above]["w"] - scale * bias * up).to(own["w"].dtype)
        return state

    def close(self, found, key, of=None):
        """At the tolerance of the vectors' page."""
        wanted = self.tensor(key) if isinstance(key, str) else key[1]
        double = found.dtype == torch.float64
        rtol, atol = (0.0, 1e-10) if double else (1e-5, 5e-5 if "norm" in self.case else 2e-6)
        wanted = (wanted if of is None else wanted[..., of]).to(found.dtype)
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol, msg=lambda m: f"{key}: {m}")

    def close_synapses(self, state, key):
        for wire, above, w, v, bias in self.synapses(key):
            own = state[wire]
            self.close(own["w"], (f"{key} {wire} w", w))
            self.close(own["v"] if "v" in own else own["w"] + own.get("d", 0.0), (f"{key} {wire} v", v))
            self.close(state[above]["w"], (f"{key} {above}", bias))


class PlainOutput(Output):
    """Applies its function to every state where hidden units apply its derivative to the second."""

    def activated(self, s):
        return s.activate(s.z)


MATRICES = ("nu", "mu", "nu_tilde", "mu_tilde")


def softmax(s, z):
    e = torch.exp(z - s.population(z, "max"))
    return e / s.population(e)


@pytest.fixture(params=CASES or [None], ids=lambda p: p.stem if p else "absent")
def case(request):
    if request.param is None:
        pytest.skip("no vectors: set MPGRAPH_GOLDEN to a folder with blur_*.npz")
    return Case(request.param)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_three_steps_are_those_of_the_published_code(case, dtype):
    """States after both passes and synapses, of every species and replica by ``vmap``."""
    rule, forward = case.rule(), case.rule()
    forward.passes = forward.predict_passes
    program, half = (mg.compile(case.network(), r, dtype=dtype, checks="none") for r in (rule, forward))
    matrices, numbers = case.genomes(rule, dtype)
    state = case.start(program, dtype)
    record = {name: ["a"] for name in case.names}

    def steps(matrices, state, x, y):
        given = {"record": record, "parameters": {**matrices, **numbers}}
        return half.step(state, x, y, **given)[1], program.step(state, x, y, **given)

    for t in range(case.steps):
        x, y = (case.tensor(n)[t].to(dtype) for n in "xy")
        middle, (state, out) = torch.func.vmap(torch.func.vmap(steps, (None, 0, 0, 0)))(matrices, state, x, y)
        for i, name in enumerate(case.names):
            case.close(middle.recorded[name]["a"], f"step{t}/fwd/{i}")
            case.close(out.recorded[name]["a"], f"step{t}/bwd/{i}")
        case.close(out.prediction, f"step{t}/fwd/{len(case.names) - 1}", of=0)
        state = case.with_lateral_blocks(state, t, numbers)
        case.close_synapses(state, f"step{t}")
