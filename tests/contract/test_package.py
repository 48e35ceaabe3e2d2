"""The house: public names, imports, folders, one-way dependencies, size of files."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

import mpgraph as mg

PUBLIC = {
    "Activation", "Adam", "Agent", "AgentNode", "AvgPool", "BatchNorm", "BatchNormAgent", "Channel", "Connection",
    "Conv2d", "Each", "FileError", "FlatUnitWarning", "Function", "InputError", "Kind", "LayerNorm", "Loss",
    "LossAgent", "MPGraphError", "MaxPool", "Network", "NetworkError", "OneToOne", "Operation", "OperationAgent",
    "Optimizer",
    "Output", "Program", "Protocol", "ProtocolError", "Quantizer", "Regions", "Reshape", "SGD", "Softplus",
    "Sparse", "StateError", "UnitAgent", "View", "carry", "cite", "common", "compile", "fast", "learnable",
    "list_protocols", "load_protocol", "make_protocol", "slow", "stack", "xavier_uniform",
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


@pytest.mark.parametrize("folder", ["protocols", "architectures"])
def test_rules_have_no_index_batch_or_layer_loop(folder):
    for path in (ROOT / folder).rglob("*.py"):
        if folder == "protocols":
            tree = ast.parse(path.read_text())
            drawing = [n for f in ast.walk(tree) if getattr(f, "name", "") == "rewrite" for n in ast.walk(f)]
            loops = [n for n in ast.walk(tree) if isinstance(n, (ast.For, ast.While)) and n not in drawing]
            assert not loops, path  # a rule may walk over the network that it draws into, never over layers
        assert len(path.read_text().splitlines()) <= 200, path


def test_files_stay_small():
    long = {}
    for folder in ("mpgraph", "protocols", "architectures", "examples", "benchmarks"):
        for path in Path(ROOT / folder).rglob("*.py"):
            lines = len(path.read_text().splitlines())
            if lines > 450:
                long[path.name] = lines
    assert not long
