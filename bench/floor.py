"""The parts `floor` and `paper`: the time of a training step over its floor, and the paper's size on a GPU.

The floor is the least time that a step can take: its arithmetic over the machine's matrix rate, plus AdamW's
memory traffic over the memory bandwidth. Arithmetic is `models.macs.training_flops`: only visible keys count,
and the head at every position. Norms, activations, softmax, rotation and recomputation count as nothing, so
the floor can only be approached.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product
from typing import Any

import torch

from bench.plan import PAPER, SIZES, Case, Plan, Result, Size, model_config, model_flags
from bench.processes import DoesNotFit, Measured
from bench.results import failed, ratio, result, spread
from bench.steps import time_steps
from bench.works import Train, in_turn, seconds_of
from hardware import peak_bf16_flops
from models.macs import training_flops

Shape = tuple[int, int, int]  # of a product of matrices: rows, inner, columns
ADAMW_TRAFFIC = 7 * 4  # bytes a weight: reads weight, gradient, two moments, writes all but the gradient
SEQUENCES = 128  # of one of the paper's steps


def step_flops(model: str, size: Size, factors: Sequence[float] | None = None) -> int:
    """Operations of a step's forward and backward passes; factors: capacities of routed models."""
    return size.batch * training_flops(model_config(model, size), size.length, factors)


def matrix_product(shape: Shape, device: str, dtype: str) -> Callable[[], object]:
    """A work: a product of matrices."""
    rows, inner, columns = shape
    form = {"device": device, "dtype": getattr(torch, dtype)}
    a, b = torch.randn(rows, inner, **form), torch.randn(inner, columns, **form)
    return partial(torch.mm, a, b, out=torch.empty(rows, columns, **form))


def array_copy(elements: int, device: str) -> Callable[[], object]:
    """A work: a copy of an array of float32, which moves 8 bytes an element."""
    a, b = (torch.ones(elements, device=device) for _ in range(2))
    return partial(b.copy_, a)


def matrix_rates(size: Size, device: str, dtype: str, square: int, at_least_s: float) -> dict[Shape, float]:
    """Operations a second of a step's products, and of a large square one.

    The floor takes the highest: a shape that the library computes slowly is a distance that can be closed.
    """
    rows, width = size.batch * size.length, size.flags["n_embd"]
    shapes = [(rows, width, 3 * width), (rows, width, 4 * width), (rows, 4 * width, width)]
    shapes += [(rows, width, size.flags["vocab_size"]), (square, square, square)]
    works = {shape: matrix_product(shape, device, dtype) for shape in shapes}
    return {(a, b, c): 2 * a * b * c / seconds_of(work, at_least_s) for (a, b, c), work in works.items()}


@cache
def rates_of(size_name: str, dtype: str, plan: Plan) -> dict[Shape, float]:
    """`matrix_rates`, measured once."""
    square = plan.pick(8192, 8192, 64) if plan.cuda else plan.pick(4096, 2048, 64)
    arguments = (SIZES[size_name], plan.device, dtype, square, plan.pick(1.0, 0.3, 0.001))
    return plan.isolated(matrix_rates, *arguments).result


def time_step(
    model: str, size: Size, device: str, dtype: str, shape: Shape, elements: int, repeats: int
) -> tuple[int, list[list[float]]]:
    """The number of parameters; seconds of each round of a step at full depth, a product and a copy."""
    step = Train(model_flags(model, size), size.batch, device, dtype, size.full_depth)
    works = [step, matrix_product(shape, device, dtype), array_copy(elements, device)]
    return step.model.parameter_count(), in_turn(works, repeats)


def measure_rates(size_name: str, dtype: str, plan: Plan) -> list[Result]:
    rates = {" x ".join(map(str, shape)): r / 1e9 for shape, r in rates_of(size_name, dtype, plan).items()}
    name = f"matrix products, {size_name}, {dtype}"
    return [result("floor", name, "GFLOP/s", spread([max(rates.values())]), **rates)]


def measure_floor(model: str, size_name: str, dtype: str, plan: Plan) -> list[Result]:
    """The step in turn with the machine's fastest product and a copy of memory, so that time over floor is a
    ratio of one round."""
    size, elements = SIZES[size_name], plan.pick(128, 64, 1) * 10**6
    rates = rates_of(size_name, dtype, plan)
    rows, inner, columns = shape = max(rates, key=rates.__getitem__)
    arguments = (model, size, plan.device, dtype, shape, elements, plan.repeats)
    parameters, (seconds, products, copies) = plan.isolated(time_step, *arguments).result
    flops, traffic = step_flops(model, size, size.full_depth), parameters * ADAMW_TRAFFIC
    floors = [
        flops / (2 * rows * inner * columns) * product_s + traffic / (8 * elements) * copy_s
        for product_s, copy_s in zip(products, copies, strict=True)
    ]
    over = ratio(floors, seconds)
    details = {"floor_s": spread(floors).median, "gflop": flops / 1e9, "over_floor": over.median}
    details |= {"over_low": over.low, "over_high": over.high}
    return [result("floor", f"{model}, {size_name}, {dtype}, whole step", "s", spread(seconds), **details)]


def floor(plan: Plan) -> list[Case]:
    cases = []
    for size, dtype in product(plan.sizes or (plan.main_size,), plan.dtypes):
        name = f"{size}, {dtype}"
        cases.append(Case(f"matrix products, {name}", partial(measure_rates, size, dtype, plan)))
        measures = {model: partial(measure_floor, model, size, dtype, plan) for model in plan.models}
        cases += [Case(f"{model}, {name}", measure) for model, measure in measures.items()]
    return cases


def largest(measure: Callable[[int], Any], limit: int) -> tuple[int, Any]:
    """The largest power of two up to `limit` that fits, and `measure` of it; 0 and None where none does.

    measure: raises DoesNotFit.
    """
    batch, found = 0, None
    while (batch * 2 or 1) <= limit:
        try:
            found = measure(batch * 2 or 1)
        except DoesNotFit:
            break
        batch = batch * 2 or 1
    return batch, found


def measure_paper(model: str, plan: Plan) -> list[Result]:
    """Model FLOP utilisation (MFU) is PaLM's: forward and backward once, nothing for recomputation, over the
    card's peak where it is known, and over the matrix rate measured here. Routed models take all passes, but
    for the hours of 40k steps.

    The optimiser is in the time of each micro-batch, so accumulation does slightly better.
    """
    size_name, dtype = plan.pick("paper", "paper", "tiny"), "bfloat16"
    size, flags, repeats = SIZES[size_name], model_flags(model, SIZES[size_name]), plan.pick(10, 3, 1)

    def attempt(batch: int, factors: Sequence[float] | None = size.full_depth) -> Measured:
        return plan.isolated(time_steps, flags, batch, plan.device, dtype, repeats, factors)

    batch, found = largest(attempt, plan.pick(SEQUENCES, SEQUENCES, 4))
    name = f"{model}, {size_name}, {dtype}"
    if not batch:
        return [failed("paper", name, "not even one sequence fits into memory")]
    seconds, rate = spread(found.result), max(rates_of(size_name, dtype, plan).values())
    as_trained = spread(attempt(batch, None).result).median
    flops_per_s = step_flops(model, size._replace(batch=batch)) / seconds.median
    peak = peak_bf16_flops(torch.cuda.get_device_name(torch.device(plan.device))) if plan.cuda else None
    details = {
        "largest_micro_batch": batch,
        "tokens_per_s": batch * size.length / seconds.median,
        **({"mfu_percent": 100 * flops_per_s / peak} if peak else {}),
        "model_flop_utilisation": flops_per_s / rate,
        "hours_of_40k_steps": PAPER["iterations"] * SEQUENCES / batch * as_trained / 3600,
    }
    return [result("paper", name, "s", seconds, memory_mib=found.memory_mib, **details)]


def paper(plan: Plan) -> list[Case]:
    if not plan.cuda and plan.effort != "tiny":
        return []  # hours on a CPU
    models = plan.models if plan.effort == "full" else plan.models[-1:]
    return [Case(model, partial(measure_paper, model, plan)) for model in models]
