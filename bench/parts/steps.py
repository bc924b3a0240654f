"""Training steps and evaluation of each model, size and number format; ours and the plain path in turn.

Times come from one process in which both take turns, memory from further ones, a process for each.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bench.builds import SIDES, TrainingStep, build, full_depth, precision_of, random_ids, waiter
from bench.isolated import apart
from bench.plan import SIZES, Case, Plan, Row, Size
from bench.rows import row
from bench.timing import in_turn, ratio, spread
from distributed import Precision
from optim.validation import evaluate

Options = Mapping[str, Any]


def training_step(
    model: str, size: Size, precision: Precision, options: Options, factors: list[float] | None = None
) -> TrainingStep:
    return TrainingStep(build(model, size, precision, **options), size, precision, length_factors=factors)


def evaluation_step(model: str, size: Size, precision: Precision, options: Options) -> Callable[[], object]:
    """Loss and accuracy of one batch, as eval.py and the evaluations of a run make them."""
    network = build(model, size, precision, **options).eval()
    ids = random_ids(size, precision)
    return partial(evaluate, network, [(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())], precision)


STEPS = {"train": training_step, "eval": evaluation_step}


def time_in_turn(kind: str, model: str, size: Size, device: str, dtype: str, repeats: int, warm_up: int):
    """Seconds of each side in each round."""
    precision = precision_of(device, dtype)
    works = [STEPS[kind](model, size, precision, options) for options in SIDES]
    return in_turn(works, repeats, warm_up, waiter(precision))


def run_some(
    kind: str, model: str, size: Size, device: str, dtype: str, options: Options, times: int = 2
) -> None:
    """A few steps, for their memory: the optimiser's state is there from the second on.

    Models that route take all passes, as memory must hold for any capacities that training draws.
    """
    precision = precision_of(device, dtype)
    factors = {"factors": full_depth(size)} if kind == "train" else {}
    step = STEPS[kind](model, size, precision, options, **factors)
    for _ in range(times):
        step()


def measure(kind: str, model: str, size_name: str, dtype: str, plan: Plan) -> list[Row]:
    size = SIZES[size_name]
    seconds = apart(
        time_in_turn, kind, model, size, plan.device, dtype, plan.repeats, plan.pick(2, 1, 1),
        threads=plan.threads,
    ).result  # fmt: skip
    memory = [
        apart(run_some, kind, model, size, plan.device, dtype, options, threads=plan.threads).memory_mib
        for options in SIDES
    ]
    tokens = size.batch * size.flags["sequence_length"]
    name = f"{model}, {size_name}, {dtype}"
    per_second = tokens / spread(seconds[0]).median
    return [
        row(kind, name, "s", spread(seconds[0]), plain=spread(seconds[1]), ratio=ratio(*seconds),
            memory_mib=memory[0], plain_memory_mib=memory[1], tokens_per_s=per_second)
    ]  # fmt: skip


def _cases(kind: str, plan: Plan) -> list[Case]:
    return [
        Case(f"{model}, {size}, {dtype}", partial(measure, kind, model, size, dtype, plan))
        for size in plan.sizes
        for model in plan.models
        for dtype in plan.dtypes
    ]


def training(plan: Plan) -> list[Case]:
    return _cases("train", plan)


def evaluation(plan: Plan) -> list[Case]:
    return _cases("eval", plan)
