"""Plants one-line faults in a copy of the project, one at a time, and runs the tests that should notice.

``python tests/mutants.py`` or ``make mutants``; ends with 1 if a fault survives or its line is no longer there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Fault(NamedTuple):
    """A line of a file, what takes its place, and the tests that should fail."""

    path: str
    line: str
    fault: str
    tests: str


FAULTS = (
    Fault(
        "mpgraph/lowering/terms.py",
        "term = term.scaled(axis, 1)",
        "term = term.scaled(axis, 0)",
        "meaning/test_algebra.py",
    ),
    Fault("mpgraph/lowering/value.py", "term.scaled(axis, -1)", "term.scaled(axis, 1)", "meaning/test_algebra.py"),
    Fault("mpgraph/network/incidence.py", "- self.padding[i]", "+ self.padding[i]", "autograd/test_connections.py"),
    Fault(
        "mpgraph/network/activations.py",
        "tanh_backward.default(e, y)",
        "tanh_backward.default(e, z)",
        "meaning/test_meaning.py",
    ),
    Fault(
        "mpgraph/network/losses.py", "torch.softmax(z, -1) - t", "torch.softmax(z, 0) - t", "meaning/test_meaning.py"
    ),
    Fault("mpgraph/agents/optimizers.py", "self.momentum * getattr", "0.9 * getattr", "autograd/test_optimizers.py"),
    Fault(
        "mpgraph/graph/unroll.py",
        "0 if self.sequences else tick - wire.delay",
        "0 if self.sequences else tick",
        "autograd/test_connections.py",
    ),
    Fault(
        "mpgraph/program/state.py", "_seed(seed, name, str(step))", '_seed(seed, name, "0")', "contract/test_program.py"
    ),
    Fault("mpgraph/serialization/tensors.py", "stored != digest(tensors, metadata)", "False", "contract/test_saved.py"),
    Fault("protocols/backprop.py", "s.examples(s.e * s.x)", "s.e * s.x", "autograd/test_connections.py"),
    Fault(
        "protocols/feedback_alignment.py", "return s.b * s.e", "return s.w * s.e", "autograd/test_feedback_alignment.py"
    ),
    Fault("protocols/hebbian.py", "s.cumsum(", "s.population(", "published/test_hebbian.py"),
    Fault(
        "mpgraph/lowering/emitter.py",
        "float(self.ranks.size) ** power if self.ranks",
        "1.0 if self.ranks",
        "contract/test_group.py",
    ),
    Fault(
        "mpgraph/program/state.py",
        "self._own(numbers, batch_size) if None in shape",
        "numbers[:batch_size] if None in shape",
        "contract/test_group.py",
    ),
    Fault(
        "mpgraph/lowering/value.py",
        "or (self.emitter.ranks is not None and collectives.spread(term))",
        "or False",
        "contract/test_group.py",
    ),
)


def copied(folder: Path) -> None:
    """The files that git knows, links included."""
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


def noticed(folder: Path, fault: Fault) -> bool:
    """Whether the tests fail with the fault, and only with it."""
    path = folder / fault.path
    before = path.read_text()
    if before.count(fault.line) < 1:
        raise SystemExit(f"{fault.path} no longer has the line {fault.line!r}: choose another fault")
    path.write_text(before.replace(fault.line, fault.fault, 1))
    command = [sys.executable, "-m", "pytest", "-q", "-x", f"tests/{fault.tests}", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    status = subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode
    path.write_text(before)
    if status not in (0, 1):
        raise SystemExit(f"{fault.path}: the tests could not be run (pytest ended with {status})")
    return status == 1


def main() -> int:
    """Plant every fault; say which were noticed."""
    survived = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copied(folder)
        for fault in FAULTS:
            found = noticed(folder, fault)
            survived += not found
            print(f"{'noticed ' if found else 'SURVIVED'}  {fault.path}: {fault.line} -> {fault.fault}", flush=True)
    print(f"{len(FAULTS) - survived} of {len(FAULTS)} faults noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
