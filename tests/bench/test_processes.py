"""Measurements in processes of their own: memory, failures, and their end."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from bench.plan import SIZES, model_flags
from bench.processes import DoesNotFit, in_own_process
from bench.works import Train
from errors import Failure
from tests.conftest import ROOT


def take(megabytes):
    return len(bytearray(megabytes * 1_000_000))


def multiply():
    """Makes torch touch libraries that it has not touched before."""
    Train(model_flags("ln_cotformer", SIZES["tiny"]), 1, "cpu", "float32")()
    torch.linalg.svd(torch.randn(8, 8))


def fail():
    raise Failure("as asked")


def ask_for_too_much():
    torch.empty(10**15)


def leave(code):
    os._exit(code)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang(path):
    child = subprocess.Popen(["sleep", "100"])
    path.write_text(f"{os.getpid()} {child.pid}")
    time.sleep(100)


def all_ended(path, limit_s=10):
    """Whether the processes whose numbers stand in a file end soon."""
    pids = [int(word) for word in path.read_text().split()]
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if not any(is_running(pid) for pid in pids):
            return bool(pids)
        time.sleep(0.05)
    return False


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_memory_is_that_of_the_measurement():
    small, large = in_own_process(take, 1, threads=1), in_own_process(take, 200, threads=1)
    assert large.result == 200_000_000
    assert 180 < large.memory_mib - small.memory_mib < 210
    if sys.platform == "linux":  # libraries that are used for the first time are not in it
        assert small.memory_mib < 5 and in_own_process(multiply, threads=1).memory_mib < 15


def test_failures_are_told_apart(capfd):
    with pytest.raises(Failure, match=r"fail failed: as asked"):
        in_own_process(fail)
    with pytest.raises(DoesNotFit, match="allocate memory"):
        in_own_process(ask_for_too_much)
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(DoesNotFit, match="exit code -9"):
        in_own_process(die)
    with pytest.raises(Failure, match="exit code 7") as failure:
        in_own_process(leave, 7)
    assert not isinstance(failure.value, DoesNotFit)


def test_one_that_hangs_is_ended_with_its_children(tmp_path):
    with pytest.raises(Failure, match="hang took more than 1 s"):
        in_own_process(hang, tmp_path / "pids", limit_s=1)
    assert all_ended(tmp_path / "pids")


@pytest.mark.process
def test_an_interrupted_suite_leaves_no_process(tmp_path):
    """Ctrl-C in a terminal reaches all processes of the group."""
    code = (
        "import sys, pathlib; from bench.processes import in_own_process; from errors import run_script\n"
        "from tests.bench.test_processes import hang\n"
        "if __name__ == '__main__': run_script(lambda: in_own_process(hang, pathlib.Path(sys.argv[1])))"
    )
    script, pids = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, script, pids], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    while not pids.exists() or not pids.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and said == "interrupted\n"
    assert all_ended(pids)
