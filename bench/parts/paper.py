"""The paper's size on a GPU: the largest micro-batch, its speed, utilisation, and the time of 40k steps.

Utilisation is that of model FLOPs (PaLM's definition: forward and backward once, nothing for recomputation)
over the machine's matrix rate in bfloat16, as the suite itself measures it; the optimiser, which works once a
step, is not in it. A published step sees 128
sequences of 256 tokens. Models that route take all passes for the micro-batch and the utilisation; the hours
are those of the capacities that training draws.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from bench.builds import TrainingStep, build, full_depth, precision_of, waiter
from bench.floor import step_flops
from bench.isolated import DoesNotFit, Measured, apart
from bench.machine_rates import matrix_rate
from bench.plan import PAPER, SIZES, Case, Plan, Row, Size, model_config
from bench.rows import missing, row
from bench.timing import in_turn, spread

SEQUENCES = 128  # of a step
DTYPE = "bfloat16"


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest power of two up to `limit` that fits, or 0: a step's sequences are parted in such."""
    batch = 0
    while (batch * 2 or 1) <= limit and fits(batch * 2 or 1):
        batch = batch * 2 or 1
    return batch


def time_phases(model: str, size: Size, device: str, full: bool, repeats: int) -> list[tuple[float, ...]]:
    """Forward, backward and optimiser of each step; full: at full depth, else as training draws."""
    precision = precision_of(device, DTYPE)
    factors = full_depth(size) if full else None
    network = build(model, size, precision)
    step = TrainingStep(network, size, precision, length_factors=factors, phases=True)
    in_turn([step], repeats, 1, waiter(precision))
    return step.seconds[1:]


def at_largest(measure: Callable[[int, int], Any], limit: int, repeats: int) -> tuple[int, Any]:
    """The largest batch and `measure(batch, repeats)` there, or 0 and None where not even one sequence fits.

    measure raises DoesNotFit; where it does so only after a while, the batch is halved.
    """

    def fits(batch: int) -> bool:
        try:
            measure(batch, 1)
        except DoesNotFit:
            return False
        return True

    batch = largest(fits, limit)
    while batch:
        try:
            return batch, measure(batch, repeats)
        except DoesNotFit:
            batch //= 2
    return 0, None


def hours(phases: list[tuple[float, ...]], batch: int) -> float:
    """Of 40k steps: each accumulates micro-batches of `batch` sequences before its optimiser works once."""
    micro_batch = spread([forward + backward for forward, backward, _ in phases]).median
    optimiser = spread([one[-1] for one in phases]).median
    return PAPER["iterations"] * (SEQUENCES / batch * micro_batch + optimiser) / 3600


def measure(model: str, plan: Plan) -> list[Row]:
    size_name = plan.pick("paper", "paper", "tiny")
    whole: Size = SIZES[size_name]

    def attempt(batch: int, repeats: int, full: bool = True) -> Measured:
        size = whole._replace(batch=batch)
        return apart(time_phases, model, size, plan.device, full, repeats, threads=plan.threads)

    repeats = plan.pick(10, 3, 1)
    batch, measured = at_largest(attempt, plan.pick(SEQUENCES, SEQUENCES, 4), repeats)
    name = f"{model}, {size_name}, {DTYPE}"
    if not batch:
        return [missing("paper", name, "not even one sequence fits into memory")]
    config, length = model_config(model, whole.flags), whole.flags["sequence_length"]
    as_trained = measured.result
    if config.variant.routed:
        as_trained = attempt(batch, 2 * repeats, full=False).result
    rate = apart(matrix_rate, plan.device, DTYPE, whole, plan.effort, threads=plan.threads).result["best"]
    seconds = spread([sum(phases) for phases in measured.result])
    products = spread([forward + backward for forward, backward, _ in measured.result]).median
    flops = step_flops(config, length, batch)
    return [
        row("paper", name, "s", seconds, memory_mib=measured.memory_mib, largest_micro_batch=batch,
            tokens_per_s=batch * length / seconds.median,
            model_flop_utilisation=flops / products / rate, hours_of_40k_steps=hours(as_trained, batch))
    ]  # fmt: skip


def cases(plan: Plan) -> list[Case]:
    if not plan.cuda and plan.effort != "tiny":
        return []  # hours on a CPU
    models = plan.models if plan.effort == "full" else plan.models[-1:]
    return [Case(model, partial(measure, model, plan)) for model in models]
