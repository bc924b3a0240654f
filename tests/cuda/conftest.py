"""A process in which CUDA is imitated, shared by the tests of this folder."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="session")
def on_cuda() -> Iterator[Callable[..., Any]]:
    """on_cuda(name, **arguments): the result of that function of checks.py or counts.py, where CUDA is
    imitated.

    Asked for again, a result is the one of before.
    """
    command = [sys.executable, "-m", "tests.cuda.worker"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT, env=env
    )

    def read() -> dict[str, Any]:
        line = worker.stdout.readline()
        assert line, f"the process in which CUDA is imitated has ended with {worker.wait()}"
        return json.loads(line)

    @functools.cache
    def answer_to(line: str) -> Any:
        worker.stdin.write(line + "\n")
        answer = read()
        assert "error" not in answer, answer["error"]
        return answer["result"]

    with worker:
        started = read()
        if "unavailable" in started:
            pytest.skip(started["unavailable"])
        yield lambda check, **arguments: answer_to(json.dumps({"check": check, "arguments": arguments}))
        worker.stdin.close()
