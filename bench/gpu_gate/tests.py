"""The item that runs the tests marked `cuda` on the GPU."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator

from bench.gpu_gate.rows import Row, Skipped, row
from bench.plan import Plan
from bench.results import ROOT

TAKES_DEVICE = re.compile(r"^def \w+\([^)]*\bdevice\b", re.MULTILINE)  # the fixture that marks a test
NOTHING_COLLECTED = 5  # pytest's exit code


def cuda_tests(plan: Plan) -> Iterator[Row]:
    """`pytest -m cuda`: passes if all do."""
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    if not plan.cuda:
        raise Skipped("on a CPU these tests run, or are skipped, with all the others")
    # Others may not even be imported where packages are missing.
    files = [str(path) for path in ROOT.glob("tests/**/test_*.py") if TAKES_DEVICE.search(path.read_text())]
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", "-rfE", "--tb=short"]
    command += files
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout[-8000:], done.stderr[-4000:], sep="\n")
    if done.returncode == NOTHING_COLLECTED:
        raise Skipped("no test has the marker cuda")
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    yield row("pytest -m cuda", done.returncode == 0, **counts, **({"failing": failed} if failed else {}))
