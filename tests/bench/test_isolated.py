"""Processes of one measurement: their memory, their failures, their end; and those of commands."""

import mmap
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from bench import processes
from bench.builds import PLAIN, build, precision_of
from bench.isolated import Died, DoesNotFit, apart
from bench.memory import proportional_mib
from bench.parts.steps import run_some
from bench.plan import SIZES
from errors import Failure
from tests.conftest import ROOT


def take(megabytes):
    return len(bytearray(megabytes * 1_000_000))


def multiply():
    """Makes torch touch libraries that it has not touched before."""
    precision = precision_of("cpu", "float32")
    ids = torch.zeros(1, 8, dtype=torch.long)
    build("ln_cotformer", SIZES["tiny"], precision)(ids, ids)["loss"].backward()
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


def all_gone(path, limit_s=10):
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


def test_memory_is_that_of_the_work():
    small, large = apart(take, 1, threads=1), apart(take, 200, threads=1)
    assert large.result == 200_000_000
    assert 180 < large.memory_mib - small.memory_mib < 210
    if sys.platform == "linux":  # and libraries that are used for the first time are not in it
        assert small.memory_mib < 5 and apart(multiply, threads=1).memory_mib < 15


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_shares_of_memory_are_in_mib():
    before = proportional_mib(os.getpid())
    with mmap.mmap(-1, 100 * 2**20) as held:  # not of the heap, which may have kept as much from another test
        for _ in range(100):
            held.write(b"1" * 2**20)
        assert 98 < proportional_mib(os.getpid()) - before < 104
    assert proportional_mib(2**30) == 0


def test_training_memory_is_that_of_full_depth(monkeypatch):
    """Whatever capacities the first steps draw."""
    seen = []

    def spy(step, *arguments, length_factors=None, **named):
        seen.append(length_factors)
        return forward(step, *arguments, length_factors=length_factors, **named)

    from models.language_model import LanguageModel

    forward = LanguageModel.forward
    monkeypatch.setattr(LanguageModel, "forward", spy)
    run_some("train", "adm", SIZES["tiny"], "cpu", "float32", PLAIN)
    assert seen == [[1.0]] * 2


def test_failures_are_told_apart(capfd):
    with pytest.raises(Failure, match=r"fail failed: as asked"):
        apart(fail)
    with pytest.raises(DoesNotFit, match="allocate memory"):
        apart(ask_for_too_much)
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(DoesNotFit, match="exit code -9"):
        apart(die)
    with pytest.raises(Died, match="exit code 7") as died:
        apart(leave, 7)
    assert not isinstance(died.value, DoesNotFit)


def test_one_that_hangs_is_ended_with_its_children(tmp_path):
    with pytest.raises(Failure, match="hang took more than 1 s"):
        apart(hang, tmp_path / "pids", limit_s=1)
    assert all_gone(tmp_path / "pids")


def test_a_signal_to_end_interrupts():
    with pytest.raises(KeyboardInterrupt), processes.terminated_like_interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_interrupted_suite_leaves_nothing_and_says_little(tmp_path):
    """Ctrl-C in a terminal reaches all processes of the group."""
    code = (
        "import sys, pathlib; from bench.isolated import apart; from errors import run_script\n"
        "from tests.bench.test_isolated import hang\n"
        "if __name__ == '__main__': run_script(lambda: apart(hang, pathlib.Path(sys.argv[1])))"
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
    assert all_gone(pids)


def test_commands_end_in_time_with_all_their_children(tmp_path):
    """Those too that are in a session of their own, as torchrun's workers are."""
    code = (
        "import os, subprocess, sys, time; c = subprocess.Popen(['sleep', '100'], start_new_session=True)\n"
        "open(sys.argv[1], 'w').write(f'{os.getpid()} {c.pid}'); time.sleep(100)"
    )
    with pytest.raises(Failure, match="took more than 1 s"):
        processes.run([sys.executable, "-c", code, str(tmp_path / "pids")], 1)
    assert all_gone(tmp_path / "pids")
    with pytest.raises(Failure, match="exit code 3: no word of why"):
        processes.run([sys.executable, "-c", "raise SystemExit(3)"], 20)
    assert processes.run([sys.executable, "-c", "print(5)"], 20) == "5\n"
