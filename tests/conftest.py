"""What the tests of several packages share: small runs of the real scripts, in real processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

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


@pytest.fixture(scope="session", autouse=True)
def processes():
    """Those that tests start share two cores: one thread each, and sums in one order everywhere.

    And they can be interrupted, though a shell's background jobs, which tests may be, ignore that.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def data_dir(tmp_path):
    """A folder with a small text for shakespeare-char."""
    folder = tmp_path / "data" / "shakespeare-char"
    folder.mkdir(parents=True)
    (folder / "input.txt").write_text(TEXT)
    return folder.parent


class Scripts:
    """Runs the root scripts as a user would, on the data and in the results folder of one test."""

    def __init__(self, data_dir: Path, results: Path) -> None:
        self.data_dir, self.results = data_dir, results

    def command(self, script: str, flags: str) -> list[str]:
        what = script.split() if script.startswith("-m ") else [str(ROOT / script)]
        return [sys.executable, *what, *flags.split()]

    def train_flags(self, flags: str = "") -> str:
        return f"{TINY} --data_dir {self.data_dir} --results_base_folder {self.results} {flags}"

    def run(self, script: str, flags: str, code: int = 0, **env: str) -> subprocess.CompletedProcess:
        """Run to the end and require the exit code; never a traceback."""
        done = subprocess.run(
            self.command(script, flags),
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            timeout=300,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def train(self, flags: str = "", code: int = 0, **env: str) -> subprocess.CompletedProcess:
        return self.run("main.py", self.train_flags(flags), code, **env)

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
