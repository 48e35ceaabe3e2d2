"""Copy a trained rule into the package, its record completed by how it is meant to be used.

python examples/pretrained/ship.py vsml_clone runs/vsml_alone/rule
python examples/pretrained/ship.py mplp_mnist runs/alone/rule
python examples/pretrained/ship.py mplp_mnist runs/tuned/rule --between runs/alone/rule --share 0.15
python examples/pretrained/ship.py mplp_sinusoid runs/sinusoid/rule
python examples/pretrained/ship.py mplp_sinusoid_prior runs/prior/rule

The records of the stages before it, whose rules it went on with, are kept in `stages`, the first one first.
"""

import argparse
import shutil
from pathlib import Path

import torch

import mpgraph as mg
from mpgraph.architectures import mlp
from mpgraph.protocols.mplp import imitation
from mpgraph.protocols.vsml.imitation import RATE
from mpgraph.serialization.protocol import PRETRAINED
from mpgraph.serialization.state import PRIOR_FILE

TEACHER = ("GAIN", "BOUND", "MANY", "KEPT", "SHARP", "FALL", "LAST", "TOP", "RATE_INPUT", "RATE", "RATE_BIAS")
USES = {
    "mplp_mnist": {
        "teacher": {
            "rule": "mpgraph/protocols/mplp/imitation.py",
            "chosen": "by examples/mplp/search.py and by hand, on images held out from the training sets of MNIST, "
            "Fashion-MNIST and digits",
            **{name: getattr(imitation, name) for name in TEACHER},
        },
        "network": [144, 50, 10],
        "activation": "sigmoid",
        "loss": "cross_entropy",
        "batch": 8,
        "updates": 20,
        "images": {
            "data": "mnist",
            "side": 12,
            "resize": "bilinear, without smoothing: mpgraph.data.load(name, standardise=False).resized(12)",
            "standardise": "afterwards, by one mean and one deviation of all training pixels: .standardised().flat()",
            "mean": 0.13001,
            "deviation": 0.29033,
        },
    },
    "mplp_sinusoid": {
        "teacher": "imitated before it was tuned: examples/mplp/sine_teacher.safetensors, see sine_imitation.py there",
        "network": [1, 20, 20, 1],
        "activation": "relu",
        "loss": "l2",
        "batch": 10,
        "updates": 5,
        "tasks": "y = a sin(x + p), a in 0.1..0.5, p in 0..pi, x in -5..5, fresh points in every step",
        "priors": "weights N(0, 0.05), biases of zero, as program.init() makes them",
    },
    "mplp_sinusoid_prior": {
        "network": [1, 20, 20, 1],
        "activation": "relu",
        "loss": "l2",
        "batch": 10,
        "updates": 2,
        "tasks": "y = a sin(x + p), a in 0.1..0.5, p in 0..pi, x in -5..5, fresh points in every step",
        "weights": 'learned with the rule, which serves no others: program.load("mplp_sinusoid_prior")',
    },
    "vsml_clone": {
        "network": [784, 32, 10],
        "activation": "tanh",
        "loss": "cross_entropy",
        "batch": 64,
        "updates": 300,
        "rate": RATE,
        "images": {
            "data": "mnist",
            "side": 28,
            "standardise": "by one mean and one deviation of all training pixels of each data set: "
            "mpgraph.data.load(name).flat()",
        },
    },
    "vsml_online": {
        "network": [49, 10],
        "bias": False,
        "loss": "cross_entropy",
        "batch": 1,
        "updates": 200,
        "images": {
            "data": "mnist",
            "side": 7,
            "resize": "bilinear, without smoothing: mpgraph.data.load(name, standardise=False).resized(7)",
            "standardise": "afterwards, by one mean and one deviation of all training pixels: .standardised().flat()",
        },
    },
}


def stages(record):
    """Records of the rules that a training went on with, or from whose prior, the first one first."""
    given = record.get("settings", {})
    before = given.get("protocol", {}).get("from") or given.get("network", {}).get("start")
    if before is None:
        return []
    earlier = dict(mg.load_protocol(before).record)
    known = earlier.pop("stages", None)  # of one that ships
    return [*(stages(earlier) if known is None else known), earlier]


def between(early, late, share, use):
    """The late rule with its trained numbers moved towards those of an early one."""
    for rule in (early, late):
        mg.compile(mlp(use["network"], use["activation"], use["loss"]), rule)
    with torch.no_grad():
        for one, other in zip(early.parameters(), late.parameters(), strict=True):
            other.lerp_(one, 1.0 - share)
    return late


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=USES)
    parser.add_argument("rule", type=Path)
    parser.add_argument("--between", type=Path, metavar="RULE", help="an earlier stage, of which the rest is")
    parser.add_argument("--share", type=float, default=1.0, help="of this rule, with --between (default: 1)")
    given = parser.parse_args()
    rule, use = mg.load_protocol(given.rule), USES[given.name]
    record = dict(rule.record)
    if given.between:
        rule = between(mg.load_protocol(given.between), rule, given.share, use)
        record["mixed"] = {"share": given.share, "rest": "the first stage"}
    trained = {"trained_on": record.pop("network", None), "stages": stages(record)}
    rule.save(PRETRAINED / given.name, {**use, **record, **trained})
    if (given.rule / PRIOR_FILE).is_file():
        shutil.copyfile(given.rule / PRIOR_FILE, PRETRAINED / given.name / PRIOR_FILE)
    print(f"wrote {PRETRAINED.name}/{given.name}")
