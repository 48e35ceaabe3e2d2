"""Every protocol on every architecture: `python tests/matrix.py` runs them and writes docs/matrix.md.

Each cell compiles a small network of the architecture with the rule at its defaults and takes steps through all of its
phases, two at least. tests/contract/test_matrix.py does the same and holds the page to it.
"""

import warnings

import torch
from conftest import ROOT

import mpgraph as mg
from mpgraph.registry import lookup, registered

PAGE = ROOT / "docs" / "matrix.md"
SIZES = {  # arguments that make each architecture small; every one has an output y of three units, but for the last
    "convnet": {"image": (1, 8, 8), "channels": (2, 3), "hidden": (4,), "classes": 3, "kernel": 3},
    "layered_sparse": {"sizes": (6, 5, 3), "fan_in": 3},
    "mlp": {"sizes": (6, 5, 4, 3)},
    "random_graph": {"neurons": 12, "inputs": 4, "outputs": 3, "degree": 4},
    "recurrent": {"sizes": (4, 5, 3), "ticks": 3},
    "resnet": {"depth": 8, "image": (1, 8, 8), "classes": 3, "width": 2},
    "autoencoder": {"sizes": (6, 3)},
}
BATCH = 4
ROUNDING = 1e-12  # in double precision; single would make the page another one on another processor
INTRODUCTION = """# Every rule on every architecture

Written by `make matrix`; a test runs the same and fails when this page is out of date. Each rule runs at its defaults
on a small network of each architecture of `mpgraph.architectures`, two steps at least and every phase of its schedule:
the state stays finite and keeps its shapes, the loss is a number, and `predict` leaves the state alone. **yes** means
that the weights of every trained connection and bias changed, by more than rounding does; 4 of 6 that those of four
did, and a note names the others. An impossible cell says why.
"""


def own(group):
    """Names that this project registers, whatever other packages add."""
    return [name for name, point in registered(group).items() if point.value.startswith("mpgraph.")]


def problem(network):
    """A batch that fits: labels, or targets like the input."""
    generator = torch.Generator().manual_seed(0)
    ticks = (network.ticks,) if network.ticks > 1 else ()
    (name,) = network.inputs
    x = torch.rand(BATCH, *ticks, *network.shape(name), generator=generator, dtype=torch.float64)
    return (x, torch.arange(BATCH) % 3) if network.shape("y") == (3,) else (x, x)


def run(rule, architecture):
    """What stands in a cell, and a note or nothing.

    Raises:
        AssertionError: for numbers that are not finite, shapes that change, a predict that does not predict.
    """
    network = lookup("mpgraph.architectures", architecture)(**SIZES[architecture])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            program = mg.compile(network, lookup("mpgraph.protocols", rule)(), dtype=torch.float64)
        except (mg.MPGraphError, mg.FlatUnitWarning) as refusal:
            return "no", str(refusal)
    x, y = problem(network)
    before = state = program.init(seed=1, batch_size=BATCH)
    phases = [*program.protocol.phases]
    for phase in phases + [None] * (2 - len(phases)):
        state, out = program.step(state, x, y, phase=phase)
        assert out.loss is not None, f"{rule} on {architecture}: no loss"
        assert torch.isfinite(out.loss), f"{rule} on {architecture}: the loss is not finite"
        ticks = (network.ticks,) if program.online and network.ticks > 1 else ()  # of a sequence, one step for each
        wanted = (BATCH, *ticks, *network.shape("y"))
        assert out.prediction.shape == wanted, f"{rule} on {architecture}: {out.prediction.shape}"
    for node, channels in before.items():
        for channel, tensor in channels.items():
            after, where = state[node][channel], f"{rule} on {architecture}: {node}.{channel}"
            assert after.shape == tensor.shape, where
            assert torch.isfinite(after).all(), f"{where} is not finite"
    kept = {n: {c: t.clone() for c, t in k.items()} for n, k in state.items()}
    assert torch.isfinite(program.predict(state, x)).all(), f"{rule} on {architecture}: predict"
    assert all(torch.equal(t, state[n][c]) for n, k in kept.items() for c, t in k.items()), f"{rule}: predict writes"
    return changes(program, before, state)


def changes(program, before, after):
    """How much of what could learn did."""
    drawn = program.graph.nodes
    nodes = [n for n in before if n in drawn and drawn[n].trained and drawn[n].type in ("weight", "bias")]
    still = [
        n for n in nodes if all(torch.allclose(after[n][c], before[n][c], 0, ROUNDING) for c in kept_by(before[n]))
    ]
    if not still:
        return "yes", None
    return f"{len(nodes) - len(still)} of {len(nodes)}", f"unchanged: {', '.join(still)}"


def kept_by(channels):
    """The weight of a node; of a rule without one, all that it keeps."""
    return ["w"] if "w" in channels else list(channels)


def page():
    """The whole page."""
    rules, architectures = own("mpgraph.protocols"), own("mpgraph.architectures")
    notes = []
    rows = [["", *architectures], ["---"] * (1 + len(architectures))]
    for rule in rules:
        row = [f"`{rule}`"]
        for architecture in architectures:
            text, note = run(rule, architecture)
            if note is not None:
                if note not in notes:
                    notes.append(note)
                text += f" ({notes.index(note) + 1})"
            row.append(text)
        rows.append(row)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    told = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1))
    return f"{INTRODUCTION}\n{table}\n" + (f"\n{told}\n" if told else "")


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")
