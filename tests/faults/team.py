"""Small runs in one or several processes, and comparisons of two of them."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from optim import checkpoint
from tests.conftest import ROOT, TEXT, assert_same_state, comparable
from tests.forked import Forked

LAUNCH = ROOT / "tests" / "faults" / "launch.py"
TINY = (
    "--dataset shakespeare-char --vocab_size 64 --n_layer 3 --n_layer_begin 1 --n_layer_end 1 --n_head 2 "
    "--n_embd 16 --sequence_length 16 --batch_size 4 --acc_steps 4 --iterations 24 --eval_freq 6 "
    "--log_freq 3 --save_checkpoint_freq 2 --device cpu --dtype float32"
)
MODELS = {
    "base": "--model base --n_layer_begin 0 --n_layer_end 0",
    "ln_cotformer": "--model ln_cotformer --n_repeat 3 --depth_embedding learned --dropout 0.1",
    "adm": "--model adm --n_repeat 3 --depth_embedding linear_learned",
    "but": "--model but --n_repeat 2",
    "mla": "--model mla --n_repeat 3 --depth_embedding learned --kv_lora_rank 8 --q_lora_rank 8",
}


@dataclass
class Team:
    """Runs of one kind in one folder.

    size: number of processes. backend: of --distributed_backend. torchrun: they are started by torchrun, each
    in a new Python, instead of forked.
    """

    folder: Path
    model: str = "base"
    size: int = 1
    backend: str | None = None
    torchrun: bool = False

    def flags(self, flags: str = "") -> list[str]:
        """Flags of main.py."""
        data = self.folder.parent / "data"
        if not (data / "shakespeare-char").exists():
            (data / "shakespeare-char").mkdir(parents=True)
            (data / "shakespeare-char" / "input.txt").write_text(TEXT)
        where = f"--data_dir {data} --results_base_folder {self.folder} --distributed_backend {self.backend}"
        return f"{TINY} {MODELS[self.model]} {where} {flags}".split()

    def start(self, flags: str = "", *, script: Path = LAUNCH, **env: str) -> Forked | subprocess.Popen:
        """A process group of its own, so that all of it can be killed at once."""
        command = [str(script), *self.flags(flags)]
        if not self.torchrun:
            return Forked(command, env, self.size)
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        return subprocess.Popen(
            [*start, "--nproc_per_node", str(self.size), *command], cwd=ROOT, env={**os.environ, **env},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, flags: str = "", code: int = 0, **env: str) -> str:
        """Run to the end; returns the output."""
        process = self.start(flags, **env)
        try:
            said, _ = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            kill(process)
            raise
        assert process.returncode == code, said
        return said

    def run_folder(self) -> Path:
        (model,) = (self.folder / "shakespeare-char").iterdir()
        (folder,) = model.iterdir()
        return folder

    def lines(self) -> list[dict]:
        text = (self.run_folder() / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def final(self) -> dict:
        return checkpoint.load(checkpoint.in_folder(self.run_folder())[0])


def kill(process: Forked | subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process group, and wait for its end."""
    os.killpg(process.pid, number)
    process.communicate()


def assert_same(one: Team, other: Team) -> None:
    """Weights, optimiser states and lines of metrics: bit for bit."""
    assert_same_state(one.final(), other.final())
    assert comparable(one.lines()) == comparable(other.lines())
    assert [line["step"] for line in one.lines()] == list(range(3, 25, 3))


def assert_close(one: Team, other: Team) -> None:
    """Losses and norms of all lines, to rounding."""
    pairs = list(zip(one.lines(), other.lines(), strict=True))
    assert len(pairs) == 8
    for line, like in pairs:
        for name in ("train_loss", "grad_norm", "max_grad_norm", "val_loss", "val_accuracy", "lr"):
            assert abs((line.get(name) or 0) - (like.get(name) or 0)) < 2e-5, (line["step"], name, line, like)
