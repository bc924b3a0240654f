"""Time over floor by part of a training step, at full capacity; see bench/floor.py for what the floor is."""

from functools import partial

from bench.builds import TrainingStep, build, precision_of, waiter
from bench.floor import PARTS, floors
from bench.isolated import apart
from bench.machine_rates import matrix_rate, memory_rate
from bench.part_times import Marks, timed_parts
from bench.plan import SIZES, Case, Plan, Row, Size, model_config
from bench.rows import row
from bench.timing import in_turn, spread

ORDER = (*PARTS, "optimiser", "whole step")


def time_parts(model: str, size: Size, device: str, dtype: str, repeats: int):
    """Seconds by part, of the marked and the unmarked step in turn; and the number of weights."""
    precision = precision_of(device, dtype)
    factors = [1.0] * (size.flags["n_repeat"] - 1)  # full depth, whatever training would draw
    plain, marked = (
        TrainingStep(build(model, size, precision), size, precision, length_factors=factors) for _ in range(2)
    )
    marks, found = Marks(marked.model), []
    works = [plain, lambda: found.append(timed_parts(marked, marks))]
    whole, _ = in_turn(works, repeats, 2, waiter(precision))
    parts = {name: [one.get(name, 0.0) for one in found[2:]] for name in ORDER[:-1]}
    return {**parts, "whole step": whole}, plain.model.parameter_count()


def measure(model: str, size_name: str, dtype: str, rates: "Rates", plan: Plan) -> list[Row]:
    size = SIZES[size_name]
    arguments = (model, size, plan.device, dtype, plan.repeats)
    seconds, parameters = apart(time_parts, *arguments, threads=plan.threads).result
    config, length = model_config(model, size.flags), size.flags["sequence_length"]
    floor = floors(config, length, size.batch, parameters, rates.matrix(size_name, dtype), rates.memory())
    rows = []
    for part in ORDER:
        taken = spread(seconds[part])
        over = {"over_floor": taken.median / floor[part]} if floor[part] else {}
        name = f"{model}, {size_name}, {dtype}, {part}"
        rows.append(row("floor", name, "s", taken, floor_s=floor[part], **over))
    return rows


class Rates:
    """Of the machine; each is measured when it is first asked for."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._matrix, self._memory = plan, {}, None

    def matrix(self, size_name: str, dtype: str) -> float:
        """FLOP/s."""
        return self.matrix_by_shape(size_name, dtype)["best"]

    def matrix_by_shape(self, size_name: str, dtype: str) -> dict:
        key = size_name, dtype
        if key not in self._matrix:
            arguments = (self._plan.device, dtype, SIZES[size_name], self._plan.effort)
            self._matrix[key] = apart(matrix_rate, *arguments, threads=self._plan.threads).result
        return self._matrix[key]

    def memory(self) -> float:
        """Bytes/s."""
        if self._memory is None:
            arguments = (self._plan.device, self._plan.effort)
            self._memory = apart(memory_rate, *arguments, threads=self._plan.threads).result["best"]
        return self._memory


def measure_rates(size_name: str, dtype: str, rates: Rates) -> list[Row]:
    found = rates.matrix_by_shape(size_name, dtype)
    shapes = {name: rate / 1e9 for name, rate in found["by_shape"].items()}
    name = f"matrix products, {size_name}, {dtype}"
    return [row("floor", name, "GFLOP/s", spread([found["best"] / 1e9]), **shapes)]


def measure_memory(rates: Rates) -> list[Row]:
    return [row("floor", "memory bandwidth", "GB/s", spread([rates.memory() / 1e9]))]


def cases(plan: Plan) -> list[Case]:
    rates = Rates(plan)
    made = [Case("memory bandwidth", partial(measure_memory, rates))]
    for size in plan.sizes:
        for dtype in plan.dtypes:
            name = f"matrix products, {size}, {dtype}"
            made.append(Case(name, partial(measure_rates, size, dtype, rates)))
            made += [
                Case(f"{model}, {size}, {dtype}", partial(measure, model, size, dtype, rates, plan))
                for model in plan.models
            ]
    return made
