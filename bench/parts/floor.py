"""Time over floor by part of a training step, at full capacity; see bench/floor.py for what the floor is."""

from functools import partial

from bench.builds import TrainingStep, build, full_depth, precision_of, waiter
from bench.floor import PARTS, floors, part_flops
from bench.isolated import apart
from bench.kernels import kernels_alone
from bench.machine_rates import copy, matrix_rate, memory_rate, product, product_flops
from bench.part_times import Marks, timed_parts
from bench.plan import SIZES, Case, Plan, Row, Size, model_config
from bench.rows import row
from bench.timing import in_turn, ratio, spread

ORDER = (*PARTS, "optimiser", "whole step")
WARM_UP = 1


def time_parts(
    model: str, size: Size, device: str, dtype: str, shape: tuple[int, int, int], effort: str, repeats: int
) -> dict:
    """The step, one with marks, its kernels alone, a product of `shape`, a copy of memory: in turn.

    seconds: of each part in each round. kernels: their seconds, flops_per_s, bytes_per_s: in each round.
    parameters: their number.
    """
    precision = precision_of(device, dtype)
    factors = full_depth(size)
    plain, marked = (
        TrainingStep(build(model, size, precision), size, precision, length_factors=factors, phases=phases)
        for phases in (False, True)
    )
    marks, found = Marks(marked.model), []
    copying, traffic = copy(precision, effort)
    works = [
        plain,
        lambda: found.append(timed_parts(marked, marks)),
        kernels_alone(model, size, precision),
        product(shape, precision, dtype),
        copying,
    ]  # fmt: skip
    whole, _, kernels, products, copies = in_turn(works, repeats, WARM_UP, waiter(precision))
    parts = {name: [one.get(name, 0.0) for one in found[WARM_UP:]] for name in ORDER[:-1]}
    return {
        "seconds": {**parts, "whole step": whole},
        "kernels": kernels,
        "flops_per_s": [product_flops(shape) / taken for taken in products],
        "bytes_per_s": [traffic / taken for taken in copies],
        "parameters": plain.model.parameter_count(),
    }


def measure(model: str, size_name: str, dtype: str, rates: "Rates", plan: Plan) -> list[Row]:
    size = SIZES[size_name]
    shape = rates.matrix(size_name, dtype)["shape"]
    arguments = (model, size, plan.device, dtype, shape, plan.effort, plan.repeats)
    found = apart(time_parts, *arguments, threads=plan.threads).result
    config, length = model_config(model, size.flags), size.flags["sequence_length"]
    flops = part_flops(config, length, size.batch)
    flops["whole step"] = sum(flops.values())
    by_round = [
        floors(config, length, size.batch, found["parameters"], *each)
        for each in zip(found["flops_per_s"], found["bytes_per_s"], strict=True)
    ]
    used = {
        "gflop_per_s": spread(found["flops_per_s"]).median / 1e9,
        "gb_per_s": spread(found["bytes_per_s"]).median / 1e9,
    }
    rows = []
    for part in ORDER:
        seconds, floor = found["seconds"][part], [one[part] for one in by_round]
        details = {"floor_s": spread(floor).median, "flops": flops.get(part, 0), **used}
        if all(floor):
            over = ratio(floor, seconds)
            details |= {"over_floor": over.median, "over_low": over.low, "over_high": over.high}
        if part == "whole step":
            details["kernels_alone_s"] = spread(found["kernels"]).median
            details["over_kernels"] = ratio(found["kernels"], seconds).median
            details["kernels_over_floor"] = ratio(floor, found["kernels"]).median
        rows.append(row("floor", f"{model}, {size_name}, {dtype}, {part}", "s", spread(seconds), **details))
    return rows


class Rates:
    """Of the machine's products by shape; each is measured when it is first asked for."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._matrix = plan, {}

    def matrix(self, size_name: str, dtype: str) -> dict:
        """That of `matrix_rate`."""
        key = size_name, dtype
        if key not in self._matrix:
            arguments = (self._plan.device, dtype, SIZES[size_name], self._plan.effort)
            self._matrix[key] = apart(matrix_rate, *arguments, threads=self._plan.threads).result
        return self._matrix[key]


def measure_rates(size_name: str, dtype: str, rates: Rates) -> list[Row]:
    found = rates.matrix(size_name, dtype)
    shapes = {name: per_s / 1e9 for name, per_s in found["by_shape"].items()}
    name = f"matrix products, {size_name}, {dtype}"
    return [row("floor", name, "GFLOP/s", spread([found["best"] / 1e9]), **shapes)]


def measure_memory(plan: Plan) -> list[Row]:
    found = apart(memory_rate, plan.device, plan.effort, threads=plan.threads).result
    rates = {name: found[name] / 1e9 for name in ("copy", "triad")}
    return [row("floor", "memory bandwidth", "GB/s", spread([found["best"] / 1e9]), **rates)]


def cases(plan: Plan) -> list[Case]:
    rates = Rates(plan)
    made = [Case("memory bandwidth", partial(measure_memory, plan))]
    for size in plan.main_sizes:
        for dtype in plan.dtypes:
            name = f"matrix products, {size}, {dtype}"
            made.append(Case(name, partial(measure_rates, size, dtype, rates)))
            made += [
                Case(f"{model}, {size}, {dtype}", partial(measure, model, size, dtype, rates, plan))
                for model in plan.models
            ]
    return made
