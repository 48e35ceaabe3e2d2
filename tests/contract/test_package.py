"""The house: public names, imports, folders, one-way dependencies, loops in rules."""

import ast
import fractions
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint

import pytest
from conftest import ROOT

import mpgraph as mg
from mpgraph import registry

PUBLIC = {
    "Activation", "Adam", "Agent", "AgentNode", "AvgPool", "Backend", "BackendError", "BatchNorm", "BatchNormAgent",
    "Bernoulli", "Dropout", "GroupNorm", "Noisy", "Stochastic", "fed",
    "Conv1d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Dense", "Embedding", "OneHot",
    "Channel", "Connection", "GroupError",
    "Conv2d", "Each", "FileError", "FlatUnitWarning", "Function", "InputError", "Kind", "LayerNorm", "Loss",
    "LossAgent", "MPGraphError", "MaxPool", "Network", "NetworkError", "Number", "OneToOne", "Operation",
    "OperationAgent", "Optimizer",
    "Output", "Program", "Protocol", "ProtocolError", "Quantizer", "Regions", "Reshape", "SGD", "Softplus",
    "Sparse", "StateError", "UnitAgent", "View", "carry", "cite", "common", "compile", "fast", "learnable",
    "list_protocols", "load_protocol", "make_protocol", "option", "repeat", "slow", "stack", "xavier_uniform",
}  # fmt: skip


def test_public_names():
    modules = {p.stem for p in (ROOT / "mpgraph").iterdir()}
    names = {n for n in vars(mg) if not n.startswith("_")}
    assert {n for n in names if n in PUBLIC or n not in modules} == PUBLIC
    assert mg.__version__


def test_import_stays_light():
    heavy = ("torchvision", "matplotlib", "torch_geometric", "networkx", "cma", "sklearn", "scipy")
    code = (
        "import sys, torch; before = set(sys.modules); import mpgraph, mpgraph.protocols, mpgraph.architectures; "
        f"print([m for m in {heavy} if m in set(sys.modules) - before])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_folder_with_code_is_a_listed_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    tops = {"mpgraph": "mpgraph", "protocols": "mpgraph.protocols", "architectures": "mpgraph.architectures"}
    found = set()
    for top, package in tops.items():
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / top).parts
            if not (top == "mpgraph" and parts[:1] in (("protocols",), ("architectures",))):
                found.add(".".join((package, *parts)))
    assert found == listed


def test_links_lead_to_the_two_folders():
    for name in ("protocols", "architectures"):
        assert (ROOT / "mpgraph" / name).resolve() == ROOT / name


ENGINE = sorted((ROOT / "mpgraph").rglob("*.py"))  # links, to rules and architectures, are not followed


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ("." * node.level) + (node.module or "")


@pytest.mark.parametrize("path", ENGINE, ids=lambda p: p.name)
def test_the_engine_knows_no_rule(path):
    assert not [n for n in imported(path) if "protocols" in n or "architectures" in n]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # names in code; docstrings and defaults of the command line may mention rules
        names = [getattr(node, "name", None), getattr(node, "id", None), getattr(node, "attr", None)]
        for name in filter(None, names):
            assert not any(
                rule in str(name).lower() for rule in ("backprop", "feedback", "hebb", "blur", "vsml", "mplp")
            )


EVERYTHING = {"network", "graph", "nodes", "agents", "units", "wires", "layers", "population", "examples", "batch"}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def loops(source):
    """Loops over layers, agents or examples in the methods of passes: what the graph and the compiler are for.

    A comprehension may run over the terms or memories of the rule itself.
    """
    found = []
    for method in ast.walk(ast.parse(source)):
        if not isinstance(method, ast.FunctionDef) or not method.name.endswith(("_update", "_message")):
            continue
        for node in ast.walk(method):
            if isinstance(node, (ast.For, ast.AsyncFor, ast.While)):
                found.append(f"{method.name}, line {node.lineno}")
            if isinstance(node, COMPREHENSIONS):
                inside = [n for part in node.generators for n in ast.walk(part.iter)]
                names = {getattr(n, "id", None) or getattr(n, "attr", None) for n in inside}
                if names & EVERYTHING:
                    found.append(f"{method.name}, line {node.lineno}")
    return found


def test_a_loop_over_layers_in_a_pass_is_found():
    head = "class Bad(Agent):\n    def "
    for body in (
        "learn_update(self, s):\n        for w in s.layers:\n            s = s.set(w=w)\n        return s",
        "forward_message(self, s):\n        while s.more:\n            s = s.next\n        return s.x",
        "learn_update(self, s):\n        return s.set(w=sum(w * 2 for w in self.network.wires.values()))",
        "learn_update(self, s):\n        return s.set(w=[e * x for e, x in zip(s.examples(s.e), s.x)])",
    ):
        assert loops(head + body), body
    for body in (
        "learn_update(self, s):\n        return s.descend(w=sum(c * TERMS[n](s) for n, c in self.theta.items()))",
        "rewrite(self, network):\n        for name in network.units:\n            network.connect(name, 'loss')",
        "mix(self, layers):\n        for layer in layers:\n            layer.mix()",
    ):
        assert not loops(head + body), body


def test_rules_have_no_layer_agent_or_example_loop():
    for path in (ROOT / "protocols").rglob("*.py"):
        assert not loops(path.read_text()), path


@pytest.fixture
def metadata(monkeypatch):
    """What importlib.metadata is to find in the place of the installed entry points, by group."""
    found = {}
    monkeypatch.setattr(registry, "entry_points", lambda group: found.get(group, []))
    registry.registered.cache_clear()
    yield found
    monkeypatch.undo()
    registry.registered.cache_clear()


def test_what_ships_is_found_under_the_metadata_of_an_older_installation(metadata):
    metadata["mpgraph.protocols"] = [EntryPoint("hebb", "gone:Hebb", "mpgraph.protocols")]
    for group, names in registry.SHIPPED.items():
        assert list(registry.registered(group)) == sorted(names)
        assert all(callable(registry.lookup(group, name)) for name in names)


def test_other_packages_add_names(metadata):
    metadata["mpgraph.task_families"] = [EntryPoint("fractions", "fractions:Fraction", "mpgraph.task_families")]
    assert registry.lookup("mpgraph.task_families", "fractions") is fractions.Fraction
    assert "sinusoids" in registry.registered("mpgraph.task_families")
