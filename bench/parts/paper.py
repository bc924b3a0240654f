"""The paper's size on a GPU: the largest micro-batch, its speed, utilisation, and the time of 40k steps.

Utilisation is that of model FLOPs (PaLM's definition: forward and backward once, nothing for recomputation)
over the machine's matrix rate in bfloat16, as the suite itself measures it. A published step sees 128
sequences of 256 tokens.
"""

from collections.abc import Callable
from functools import partial

from bench.floor import step_flops
from bench.isolated import Died, Measured, apart
from bench.machine_rates import matrix_rate
from bench.parts.scaling import time_steps
from bench.plan import PAPER, SIZES, Case, Plan, Row, Size, model_config
from bench.rows import missing, row
from bench.timing import spread
from errors import Failure

SEQUENCES = 128  # of a step
DTYPE = "bfloat16"


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest power of two up to `limit` that fits, or 0: a step's sequences are parted in such."""
    batch = 0
    while (batch * 2 or 1) <= limit and fits(batch * 2 or 1):
        batch = batch * 2 or 1
    return batch


def measure(model: str, plan: Plan) -> list[Row]:
    whole: Size = SIZES[plan.pick("paper", "paper", "tiny")]
    tried: dict[int, Measured] = {}

    def attempt(batch: int, repeats: int) -> Measured:
        size = whole._replace(batch=batch)
        return apart(time_steps, model, size, plan.device, DTYPE, {}, repeats, threads=plan.threads)

    def fits(batch: int) -> bool:
        try:
            tried[batch] = attempt(batch, 1)
        except Died:
            return False
        except Failure as error:
            if "memory" not in str(error):
                raise
            return False
        return True

    batch = largest(fits, plan.pick(SEQUENCES, SEQUENCES, 4))
    name = f"{model}, {DTYPE}"
    if not batch:
        return [missing("paper", name, "not even one sequence fits into memory")]
    measured = attempt(batch, plan.pick(10, 3, 1))
    seconds = spread(measured.result[0])
    rate = apart(matrix_rate, plan.device, DTYPE, whole, plan.effort, threads=plan.threads).result["best"]
    flops = step_flops(model_config(model, whole.flags), whole.flags["sequence_length"], batch)
    accumulated = SEQUENCES / batch
    return [
        row("paper", name, "s", seconds, memory_mib=measured.memory_mib, largest_micro_batch=batch,
            tokens_per_s=batch * whole.flags["sequence_length"] / seconds.median,
            model_flop_utilisation=flops / seconds.median / rate,
            hours_of_40k_steps=PAPER["iterations"] * accumulated * seconds.median / 3600)
    ]  # fmt: skip


def cases(plan: Plan) -> list[Case]:
    if not plan.cuda and plan.effort != "tiny":
        return []  # hours on a CPU
    return [Case(model, partial(measure, model, plan)) for model in plan.models]
