"""The item that runs the tests marked `cuda` on the GPU."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.gpu_gate.rows import Row, Skipped, row, skipped
from bench.plan import Plan
from bench.results import ROOT

# The fixture that marks a test.
TAKES_DEVICE = re.compile(r"^def \w+\([^)]*\bdevice\b|usefixtures\(\"device\"\)", re.MULTILINE)
NOTHING_COLLECTED = 5  # pytest's exit code


def cuda_tests(plan: Plan) -> Iterator[Row]:
    """`pytest -m cuda`: passes if all do."""
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    if not plan.cuda:
        raise Skipped("on a CPU these tests run, or are skipped, with all the others")
    files = [
        path for path in sorted(ROOT.glob("tests/**/test_*.py")) if TAKES_DEVICE.search(path.read_text())
    ]
    missing = {path: _missing(path) for path in files}
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", "-rfE", "--tb=short"]
    command += [str(path) for path in files if not missing[path]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout[-8000:], done.stderr[-4000:], sep="\n")
    if done.returncode == NOTHING_COLLECTED:
        raise Skipped("no test has the marker cuda")
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    yield row("pytest -m cuda", done.returncode == 0, **counts, **({"failing": failed} if failed else {}))
    for path, packages in missing.items():
        if packages:
            yield skipped(path.name, f"{', '.join(packages)} not installed")


def _missing(path: Path) -> list[str]:
    """Packages that a test file imports and that are not installed."""
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    packages = {name.partition(".")[0] for name in names} - {""}
    return sorted(name for name in packages if importlib.util.find_spec(name) is None)
