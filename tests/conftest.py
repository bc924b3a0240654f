"""Fixtures and helpers of several packages' tests: small runs of the scripts, markers, groups for xdist."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import errors
from tests.forked import Forked
from tests.in_process import run_in_process

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

TINY = (
    "--dataset shakespeare-char --vocab_size 64 --n_layer 2 --n_head 2 --n_embd 16 --sequence_length 16 "
    "--batch_size 4 --acc_steps 2 --iterations 12 --eval_freq 4 --log_freq 2 --device cpu --dtype float32"
)

# Our own lines, long enough for a few epochs of windows, with 26 different characters.
TEXT = "".join(
    f"line {number}: the cat sat on mat {number % 7} and thought again.\n" for number in range(400)
)


VARYING = ("tokens_per_second", "seconds")  # in the lines of two runs that are the same


def comparable(lines):
    return [{name: value for name, value in line.items() if name not in VARYING} for line in lines]


def assert_same_state(first, second):
    """Two checkpoints: step, weights and optimiser states, bit for bit."""
    assert first["step"] == second["step"]
    assert first["model"].keys() == second["model"].keys()
    for name, weight in first["model"].items():
        assert torch.equal(weight, second["model"][name]), name
    for index, slots in first["optimizer"].items():
        for name, value in slots.items():
            assert torch.equal(value, second["optimizer"][index][name]), (index, name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by folder and fixture; tests that measure or share a service run on one worker of xdist."""
    for item in items:
        path = item.path.relative_to(ROOT / "tests").as_posix()
        if "slurm" in item.fixturenames:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.xdist_group("slurm"))
        elif path.startswith(MEASURING):
            item.add_marker(pytest.mark.xdist_group("measuring"))
        elif path.startswith(SHARING_FIXTURES):
            item.add_marker(pytest.mark.xdist_group(path))
        if "device" in item.fixturenames:
            item.add_marker(pytest.mark.cuda)
        if path.startswith(PROCESSES):
            item.add_marker(pytest.mark.process)


# Beginnings of paths in tests/.
MEASURING = ("bench/", "distributed/test_heap.py")  # time, memory and page faults: one at a time
PROCESSES = ("bench/test_suite.py", "bench/test_compare.py", "cluster/", "cuda/", "faults/")
SHARING_FIXTURES = (  # fixtures of a module that take seconds: made once
    "cuda/", "data/test_corpora.py", "data/test_prepare.py", "distributed/test_processes.py",
    "evaluation/test_lm_eval.py", "faults/test_signals.py",
)  # fmt: skip


_started: list[str] = []  # Python processes that the current test has started


def _note_process(event: str, args: tuple) -> None:
    if event == "subprocess.Popen" and str(args[0] or args[1][0]) == sys.executable:
        _started.append(str(args[1]))


sys.addaudithook(_note_process)


@pytest.fixture(autouse=True)
def only_marked_tests_start_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """So that `make test-fast`, which leaves out what is marked `process`, stays fast."""
    _started.clear()
    yield
    if not request.node.get_closest_marker("process"):
        assert not _started, f"starts a process and is not marked `process`: {_started[0]}"


@pytest.fixture(scope="session", autouse=True)
def processes():
    """Tests and the processes they start compute in one thread each: the same sums everywhere.

    SIGINT interrupts them, though a shell's background jobs, which tests may be, ignore it.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    errors.log_to_stdout()  # as every script does


@pytest.fixture
def device():
    """DEVICE, without TF32. Tests that take it have the marker `cuda`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield DEVICE
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    """The corpus pydoc is of a few modules, as it takes eight seconds to read the whole library."""
    library = tmp_path / "library"
    library.mkdir()
    for name in ("argparse.py", "bisect.py", "dataclasses.py", "functools.py", "heapq.py", "textwrap.py"):
        (library / name).symlink_to(Path(sysconfig.get_path("stdlib"), name))
    monkeypatch.setattr("data.pydoc.sysconfig", SimpleNamespace(get_path=lambda name: str(library)))


@pytest.fixture
def data_dir(tmp_path):
    """A folder with a small text for shakespeare-char."""
    folder = tmp_path / "data" / "shakespeare-char"
    folder.mkdir(parents=True)
    (folder / "input.txt").write_text(TEXT)
    return folder.parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Captured output may hold bytes that are no UTF-8, which workers cannot send."""
    report = yield
    sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    report.sections = sections
    return report


class Scripts:
    """Runs the root scripts as a user would, on the data and in the results folder of one test."""

    def __init__(self, data_dir: Path, results: Path) -> None:
        self.data_dir, self.results = data_dir, results

    def command(self, script: str, flags: str) -> list[str]:
        what = script.split() if script.startswith("-m ") else [str(ROOT / script)]
        return [sys.executable, *what, *flags.split()]

    def train_flags(self, flags: str = "") -> str:
        return f"{TINY} --data_dir {self.data_dir} --results_base_folder {self.results} {flags}"

    def run(
        self, script: str, flags: str, code: int = 0, *, process: bool = False, **env: str
    ) -> subprocess.CompletedProcess:
        """Run to the end and require the exit code; never a traceback.

        process: in a process of its own (seconds more), for tests of signals, exit codes or imports.
        """
        command = self.command(script, flags)
        if process:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **env},
                timeout=300,
            )
        else:
            done = run_in_process(command[1:], env)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def train(
        self, flags: str = "", code: int = 0, *, process: bool = False, **env: str
    ) -> subprocess.CompletedProcess:
        return self.run("main.py", self.train_flags(flags), code, process=process, **env)

    def start(self, script: str, flags: str) -> Forked:
        """Start in a forked process, for tests that signal or kill it."""
        return Forked(self.command(script, flags)[1:])

    def refuse(self, script: str, flags: str, code: int, *parts: str) -> str:
        """Run, and require one sentence on stderr that holds all the parts."""
        said = self.run(script, flags, code).stderr
        assert said.count("\n") == 1 and said.startswith("error: "), said
        for part in parts:
            assert part in said, said
        return said

    def folder(self, model: str = "base") -> Path:
        """The one run of that model."""
        (folder,) = (self.results / "shakespeare-char" / model).iterdir()
        return folder

    def lines(self, model: str = "base") -> list[dict]:
        text = (self.folder(model) / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.split("\n") if line]


@pytest.fixture
def scripts(data_dir, tmp_path):
    return Scripts(data_dir, tmp_path / "exps")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The Scripts of a finished training by its flags, made once for the tests of all workers: read only.

    A test that writes into the run's folder passes its own folder as `into` and gets a copy.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    return lambda flags="", into=None: _trained(root / "trained", flags, into)


def _trained(root: Path, flags: str, into: Path | None) -> Scripts:
    base = root / hashlib.sha256(flags.encode()).hexdigest()[:16]
    base.mkdir(parents=True, exist_ok=True)
    scripts = Scripts(base / "data", base / "exps")
    with open(base / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "finished").exists():
            shutil.rmtree(base / "exps", ignore_errors=True)  # of a training that failed
            (base / "data" / "shakespeare-char").mkdir(parents=True, exist_ok=True)
            (base / "data" / "shakespeare-char" / "input.txt").write_text(TEXT)
            scripts.train(flags)
            (base / "finished").touch()
    if into is None:
        return scripts
    shutil.copytree(base / "exps", into)
    return Scripts(scripts.data_dir, into)
