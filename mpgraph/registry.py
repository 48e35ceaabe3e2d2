"""Names to classes: those that ship, and by entry point those of other packages.

Groups: ``mpgraph.protocols``, ``mpgraph.activations``, ``mpgraph.connections``, ``mpgraph.losses``,
``mpgraph.architectures``, ``mpgraph.task_families`` and those below. In a ``pyproject.toml``::

    [project.entry-points."mpgraph.protocols"]
    my_rule = "my_package:MyRule"

What ships is named here and not in the metadata of the installation, which may be older than the code.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

SHIPPED: dict[str, dict[str, str]] = {
    "mpgraph.protocols": {
        "activation_alignment": "mpgraph.protocols:ActivationAlignment",
        "backprop": "mpgraph.protocols:Backprop",
        "blur": "mpgraph.protocols:BLUR",
        "difference_target_propagation": "mpgraph.protocols:DifferenceTargetPropagation",
        "direct_feedback_alignment": "mpgraph.protocols:DirectFeedbackAlignment",
        "direct_random_target_projection": "mpgraph.protocols:DirectRandomTargetProjection",
        "eprop": "mpgraph.protocols:EProp",
        "equilibrium_propagation": "mpgraph.protocols:EquilibriumPropagation",
        "feedback_alignment": "mpgraph.protocols:FeedbackAlignment",
        "forward_forward": "mpgraph.protocols:ForwardForward",
        "hebb": "mpgraph.protocols:Hebb",
        "information_alignment": "mpgraph.protocols:InformationAlignment",
        "kolen_pollack": "mpgraph.protocols:KolenPollack",
        "local_losses": "mpgraph.protocols:LocalLosses",
        "mplp": "mpgraph.protocols:MPLP",
        "node_perturbation": "mpgraph.protocols:NodePerturbation",
        "oja": "mpgraph.protocols:Oja",
        "pepita": "mpgraph.protocols:PEPITA",
        "plasticity": "mpgraph.protocols:Plasticity",
        "predictive_coding": "mpgraph.protocols:PredictiveCoding",
        "rflo": "mpgraph.protocols:RFLO",
        "sanger": "mpgraph.protocols:Sanger",
        "sign_symmetry": "mpgraph.protocols:SignSymmetry",
        "symmetric_alignment": "mpgraph.protocols:SymmetricAlignment",
        "three_factor": "mpgraph.protocols:ThreeFactor",
        "vsml": "mpgraph.protocols:VSML",
        "weight_mirror": "mpgraph.protocols:WeightMirror",
    },
    "mpgraph.architectures": {
        "autoencoder": "mpgraph.architectures:autoencoder",
        "convnet": "mpgraph.architectures:convnet",
        "layered_sparse": "mpgraph.architectures:layered_sparse",
        "mlp": "mpgraph.architectures:mlp",
        "random_graph": "mpgraph.architectures:random_graph",
        "recurrent": "mpgraph.architectures:recurrent",
        "resnet": "mpgraph.architectures:resnet",
    },
    # Rules and parts that need arguments: files name them, the command line does not.
    "mpgraph.combinations": {
        "alignment": "mpgraph.protocols:Alignment",
        "noisy_updates": "mpgraph.protocols:NoisyUpdates",
        "regions": "mpgraph.agents.regions:Regions",
    },
    "mpgraph.optimizers": {
        "adam": "mpgraph.agents.optimizers:Adam",
        "sgd": "mpgraph.agents.optimizers:SGD",
    },
    "mpgraph.schedules": {
        "cycle": "mpgraph.agents.schedules:Cycle",
        "exponential": "mpgraph.agents.schedules:Exponential",
        "linear": "mpgraph.agents.schedules:Linear",
    },
    "mpgraph.task_families": {
        "boolean": "mpgraph.meta.families:Boolean",
        "few_shot": "mpgraph.meta.families:FewShot",
        "mixture": "mpgraph.meta.families:Mixture",
        "minibatches": "mpgraph.meta.families:Minibatches",
        "online_stream": "mpgraph.meta.families:OnlineStream",
        "plane": "mpgraph.meta.families:Plane",
        "sinusoids": "mpgraph.meta.families:Sinusoids",
    },
}


@cache
def registered(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name, sorted; nothing is imported. A name that ships cannot be taken by another."""
    points = {point.name: point for point in entry_points(group=group)}
    points |= {name: EntryPoint(name, value, group) for name, value in SHIPPED.get(group, {}).items()}
    return dict(sorted(points.items()))


def lookup(group: str, name: str) -> Any:
    """The registered object, imported now, or ``None``."""
    point = registered(group).get(name)
    return None if point is None else point.load()
