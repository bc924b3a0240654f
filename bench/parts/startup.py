"""How long the root scripts take to answer: --help of each, and the whole of one step of main.py."""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from bench.plan import Case, Plan, Row
from bench.rows import row
from bench.timing import in_turn, spread
from errors import Failure

ROOT = Path(__file__).parents[2]
TRAINING = (
    "--dataset counting --n_layer 1 --n_head 1 --n_embd 16 --sequence_length 64 --vocab_size 320 "
    "--batch_size 2 --acc_steps 1 --iterations 1 --eval_freq 1 --eval_seq_prefix none"
).split()


def scripts() -> list[str]:
    """All at the root that have a command line."""
    return sorted(path.name for path in ROOT.glob("*.py") if '__name__ == "__main__"' in path.read_text())


def run(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "WANDB_MODE": "disabled"},
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise Failure(f"{' '.join(command)}: exit code {done.returncode}: {said}")


def train_a_step(device: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--data_dir", folder, "--results_base_folder", f"{folder}/exps", "--device", device]
        run(["main.py", *TRAINING, *flags])


def measure(repeats: int, device: str) -> list[Row]:
    names = scripts()
    works = [partial(run, [name, "--help"]) for name in names]
    rows = [
        row("startup", f"{name} --help", "s", spread(taken))
        for name, taken in zip(names, in_turn(works, repeats), strict=True)
    ]
    (taken,) = in_turn([partial(train_a_step, device)], repeats)
    return [*rows, row("startup", "main.py, data, one step and its evaluation", "s", spread(taken))]


def cases(plan: Plan) -> list[Case]:
    repeats = plan.pick(5, 1, 1)
    return [Case("root scripts", partial(measure, repeats, plan.device))]
