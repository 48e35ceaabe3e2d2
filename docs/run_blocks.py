"""Run every code block of the documents named on the command line.

The Python blocks of a file run in order as one script; each ``sh`` block runs as its own. Blocks marked ``console``
set the project up: their lines must stand in the Makefile or in .ci/run, which run them. ``text`` and ``mermaid``
are shown, not run.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHOWN = {"text", "mermaid"}


def check(path: Path) -> int:
    """Run the blocks of one file in an empty folder; returns how many."""
    blocks = BLOCK.findall(path.read_text())
    script = "\n".join(code for language, code in blocks if language == "python")
    covered = (ROOT / "Makefile").read_text() + (ROOT / ".ci" / "run").read_text()
    with tempfile.TemporaryDirectory() as folder:
        bin_path = f"{Path(sys.executable).parent}"
        if script:
            subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=folder, check=True)
        for language, code in blocks:
            if language == "sh":
                subprocess.run(["bash", "-euc", f'PATH="{bin_path}:$PATH"\n{code}'], cwd=folder, check=True)
            elif language == "console":
                for line in filter(None, code.splitlines()):
                    command = line.partition("#")[0].strip()
                    words = command.replace(".venv/bin/", "").replace("python3 ", "").split()
                    assert " ".join(words) in covered or all(word in covered for word in words), f"{path}: {line}"
            elif language != "python" and language not in SHOWN:
                raise SystemExit(
                    f"{path}: a block of language {language!r} cannot be run; mark it text to show it only"
                )
    return len(blocks)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {check(Path(name))} blocks")
