"""How long the root scripts take to answer: --help of each, and the whole of one step of main.py."""

import sys
import tempfile
from functools import partial

from bench.plan import Case, Plan, Row
from bench.processes import ROOT, run
from bench.rows import row
from bench.timing import in_turn, spread

LIMIT_S = 600.0  # of a script, which takes seconds
TRAINING = (
    "--dataset counting --n_layer 1 --n_head 1 --n_embd 16 --sequence_length 64 --vocab_size 320 "
    "--batch_size 2 --acc_steps 1 --iterations 1 --eval_freq 1 --eval_seq_prefix none"
).split()


def scripts() -> list[str]:
    """All at the root that have a command line."""
    return sorted(path.name for path in ROOT.glob("*.py") if '__name__ == "__main__"' in path.read_text())


def answer(command: list[str]) -> None:
    run([sys.executable, *command], LIMIT_S, {"WANDB_MODE": "disabled"})


def train_a_step(device: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--data_dir", folder, "--results_base_folder", f"{folder}/exps", "--device", device]
        answer(["main.py", *TRAINING, *flags])


def measure(repeats: int, warm_up: int, device: str) -> list[Row]:
    names = scripts()
    works = [partial(answer, [name, "--help"]) for name in names]
    rows = [
        row("startup", f"{name} --help", "s", spread(taken))
        for name, taken in zip(names, in_turn(works, repeats, warm_up), strict=True)
    ]
    (taken,) = in_turn([partial(train_a_step, device)], repeats, warm_up)
    return [*rows, row("startup", "main.py, data, one step and its evaluation", "s", spread(taken))]


def cases(plan: Plan) -> list[Case]:
    repeats, warm_up = plan.pick(5, 1, 1), plan.pick(1, 0, 0)
    return [Case("root scripts", partial(measure, repeats, warm_up, plan.device))]
