"""Every import points down, lazy and type-checking ones too; and no files import each other in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

# From the ground up. A module may import its own folder, and whatever is listed before it.
LAYERS = [
    *("errors", "registry", "arguments", "environment", "threads", "budget"),
    *("data", "network"),
    "agents",
    *("serialization", "graph"),
    "lowering",
    "program",
    *("interpreter", "draw", "convert", "probes", "experiments", "meta"),
    *("cli", "__main__"),
]
HEIGHT = {name: height for height, name in enumerate(LAYERS)}

# Methods that people look for on the object at hand. They reach up when they are called, never on import.
FACADES = {
    "network.network": {"convert", "draw"},  # Network.from_networkx, from_torch, from_pyg, to_networkx, draw
    "graph.wiring": {"draw"},  # AgentGraph.draw, to_networkx
    "agents.protocol": {"serialization"},  # Protocol.save
    "program.program": {"convert"},  # Program.to_torch, to_pyg
}

PACKAGE = ROOT / "mpgraph"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))  # the links to rules and architectures are not followed
}


def resolved(name, tree):
    """Modules of the package that a file imports, and whether each import runs with the file."""
    own = name.split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ["mpgraph", *own[: len(own) - node.level]] if node.level else []
            base = [*start, *(node.module.split(".") if node.module else [])]
            targets = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for target in targets:
            if target[0] == "mpgraph":
                rest = target[1:]
                while rest and ".".join(rest) not in MODULES and ".".join([*rest, "__init__"]) not in MODULES:
                    rest = rest[:-1]
                yield ".".join(rest), node in tree.body


IMPORTS = {name: list(resolved(name, ast.parse(path.read_text()))) for name, path in MODULES.items()}


@pytest.mark.parametrize("name", [n for n in MODULES if n != "__init__"])
def test_imports_point_down(name):
    own = name.split(".")[0]
    assert own in HEIGHT, f"{own} has no place in LAYERS"
    for target, eager in IMPORTS[name]:
        top = target.split(".")[0]
        if top == own or (top == "" and own in ("cli", "experiments", "meta")):  # the version number
            continue
        if not eager and top in FACADES.get(name, ()):
            continue
        assert top in HEIGHT, f"{name} imports {target or 'the whole package'}"
        assert HEIGHT[top] < HEIGHT[own], f"{name} imports {target}, which lies above it"


def test_facades_are_used():
    for name, tops in FACADES.items():
        found = {target.split(".")[0] for target, eager in IMPORTS[name] if not eager}
        assert tops <= found, f"{name} no longer reaches {tops - found}: take it off the list"


def test_no_circle_of_files():
    before = {}
    for name, targets in IMPORTS.items():
        if name == "__init__":
            continue
        known = {t if t in MODULES else f"{t}.__init__" for t, _ in targets if t}
        facades = FACADES.get(name, set())
        before[name] = {t for t in known if t in MODULES and t != name and t.split(".")[0] not in facades}
    try:
        TopologicalSorter(before).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_table_names_what_is_there():
    here = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert here - {"__init__", "protocols", "architectures"} <= set(HEIGHT)


def test_a_climbing_import_is_found():
    tree = ast.parse("def f():\n    from mpgraph.program.program import compile\n")
    assert list(resolved("network.network", tree)) == [("program.program", False)]
    tree = ast.parse("from ..lowering import gather")
    assert list(resolved("network.network", tree)) == [("lowering.gather", True)]
    assert Path(MODULES["network.network"]).is_file()
