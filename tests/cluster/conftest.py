"""The real scripts in a copy of the repository, with a scratch folder of their own; and a real Slurm."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm, why_not
from tests.conftest import ROOT, TEXT

LEFT_OUT = shutil.ignore_patterns(
    ".git",
    ".venv",
    ".*_cache",
    "exps",
    "datasets",
    "demo",
    "run_[0-9]*",
    "env.local.sh",
    "wandb",
)
TINY = (
    "--dataset shakespeare-char --vocab_size 64 --n_layer 4 --n_head 2 --n_embd 16 --sequence_length 16 "
    "--eval_freq 20 --log_freq 5 --dtype float32"
)


class Cluster:
    """A user of the cluster: a copy of the repository in `repo`, next to scratch."""

    def __init__(self, folder: Path, slurm: Slurm | None) -> None:
        self.repo, self.scratch, self.slurm = folder / "CoTFormer", folder / "scratch", slurm
        shutil.copytree(ROOT, self.repo, ignore=LEFT_OUT)
        text = self.scratch / "datasets" / "shakespeare-char" / "input.txt"
        text.parent.mkdir(parents=True)
        text.write_text(TEXT)
        kept = {
            name: value for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_", "COTFORMER_", "WANDB_")) or name == "SLURM_CONF"
        }  # fmt: skip
        self.env = kept | {
            "CLUSTER": "iridis-x", "SCRATCH_DIR": str(self.scratch), "COTFORMER_ENV": "venv",
            "VENV_DIR": sys.prefix, "NOTIFY_EMAIL": "someone@example.org", "OMP_NUM_THREADS": "1",
            "TRAINING_FLAGS": TINY, "N_LAYER": "4", "N_REPEAT": "3", "ITERATIONS": "20", "BATCH_SIZE": "4",
            "ACC_STEPS": "2", "CKPT_FREQ": "10", "WANDB_PROJECT": "", "EVAL_BATCH": "16", "DEVICE": "cpu",
        }  # fmt: skip

    def run(self, command: str, code: int | tuple[int, ...] = 0, **env: str) -> str:
        """What a command line prints, both streams. Requires its exit code; never a traceback."""
        done = subprocess.run(
            command.split(), cwd=self.repo, env=self.env | env, text=True, timeout=300,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode in (code if isinstance(code, tuple) else (code,)), done.stdout
        assert "Traceback" not in done.stdout, done.stdout
        return done.stdout

    def refuse(self, command: str, code: int, *parts: str, **env: str) -> None:
        """Run, and require one sentence, at the end, that holds all the parts."""
        said = self.run(command, code, **env).strip().split("\n")[-1]
        assert said.startswith("error: "), said
        for part in parts:
            assert part in said, said

    def package(self, name: str, flags: str = "", **env: str) -> str:
        """Submit by the documented command; returns the number of the (last) job."""
        said = self.run(f"bash iridis/{name}/job.sh {flags}", **env)
        return re.findall(r"^job (\d+): ", said, re.MULTILINE)[-1]

    def run_dir(self, name: str, number: int = 1) -> Path:
        return self.repo / "iridis" / name / f"run_{number}"

    def folder(self, name: str, **env: str) -> Path:
        """Where a training package's run is."""
        return Path(self.run(f"bash iridis/{name}/job.sh --folder", **env).strip())

    def log(self, name: str, number: int = 1) -> str:
        """What the jobs of one run_N have written."""
        return "".join(path.read_text() for path in sorted(self.run_dir(name, number).glob("slurm_*")))

    def wait(self, job: str, state: str = "COMPLETED", seconds: float = 120.0) -> dict[str, str]:
        """Until a job has ended, and in that state. (torchrun adds a traceback to a failure.)"""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        found = self.slurm.wait_for(job, ends, seconds)
        logs = "\n".join(path.read_text() for path in self.repo.glob(f"iridis/*/run_*/slurm_{job}.*"))
        assert found["JobState"] == state, f"{found}\n{logs}"
        assert state == "FAILED" or "Traceback" not in logs, logs
        return found

    def wait_until(self, holds, what: str, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, what
            time.sleep(0.2)


@pytest.fixture
def cluster(tmp_path):
    """Without Slurm."""
    return Cluster(tmp_path, None)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with Slurm(tmp_path_factory.mktemp("slurm") / "slurm") as running:
        yield running


@pytest.fixture
def on_slurm(tmp_path, slurm):
    yield Cluster(tmp_path, slurm)
    slurm.cancel_all()
