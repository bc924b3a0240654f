"""The parts that time models: `train`, `eval`, `prefill`, `decode`, `capacities` and `scaling`.

Times come from one process, in which all that is compared takes turns; memory comes from a process for each.
The plain path computes the same without the exact shortcuts that flags can switch off.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from bench.plan import SIZES, Case, Plan, Result, Size, model_config, model_flags
from bench.processes import DoesNotFit
from bench.results import failed, rate, ratio, result, spread
from bench.works import PROMPT, WORKS, Decode, DecodeByThresholds, Train, in_turn
from models.macs import count_macs, macs_of_passes

SIDES: tuple[Mapping[str, Any], ...] = ({}, {"loss": "plain", "attention": "plain"})  # ours, the plain path
LONG_MODELS = ("standard", "ln_cotformer", "adm")  # decode long texts too, minutes without a cache
ROUTED = ("adm", "adaptive_but")
FACTORS = (1.0, 0.75, 0.5, 0.25, 0.0)
SCALED = ("standard", "but", "cotformer")
RECOMPUTING = ("none", "repeat", "block")  # --activation_checkpointing
RECOMPUTED = "cotformer"  # the model that `scaling` measures with all of them


def time_sides(
    kind: str, model: str, size: Size, device: str, dtypes: Sequence[str], repeats: int, warm_up: int
) -> list[list[float]]:
    """Seconds of each round: of our path and the plain one in each number format; then, for decode, of our
    path without a KV cache."""
    flags = model_flags(model, size)
    works = [WORKS[kind]({**flags, **side}, size.batch, device, dtype) for dtype in dtypes for side in SIDES]
    if kind == "decode":
        works.append(Decode(flags, size.batch, device, dtypes[0]))
        works[-1].cached = False
    return in_turn(works, repeats, warm_up)


def work_twice(kind: str, flags: Mapping[str, Any], size: Size, device: str, dtype: str) -> None:
    """For the memory: AdamW's state exists from the second step on. Routed models take all passes, for memory
    must suffice for any capacities that training draws."""
    work = WORKS[kind](flags, size.batch, device, dtype, size.full_depth)
    work()
    work()


def measure(
    kind: str, model: str, size_name: str, length: int | None, dtypes: Sequence[str], plan: Plan
) -> list[Result]:
    """length: of the text that prefill and decode compute; None: the size's own."""
    size, minutes = SIZES[size_name], False
    if length is not None:
        size = size.but(sequence_length=length + (PROMPT if kind == "decode" else 0))._replace(batch=1)
        minutes = kind == "decode" and length >= 1024  # without a cache
    repeats, warm_up = (1, 0) if minutes else (plan.repeats, plan.pick(2, 1, 1))
    seconds = plan.isolated(time_sides, kind, model, size, plan.device, dtypes, repeats, warm_up).result
    plain_float32 = seconds[1 + 2 * dtypes.index("float32")] if "float32" in dtypes else None
    tokens = length or size.batch * size.length
    results = []
    for dtype, ours, plain in zip(dtypes, seconds[::2], seconds[1::2], strict=False):
        memory, plain_memory = (
            plan.isolated(work_twice, kind, flags, size, plan.device, dtype).memory_mib
            for flags in ({**model_flags(model, size), **side} for side in SIDES)
        )
        name, unit, value = f"{model}, {size_name}, {dtype}", "s", spread(ours)
        details = {"plain_mib": plain_memory}
        if length is None:
            details["tokens_per_s"] = tokens / value.median
        else:
            name, unit, value = f"{name}, {length} tokens", "tokens/s", rate(tokens, ours)
        if plain_float32 and dtype != "float32":  # code with neither shortcuts nor bfloat16
            details["plain_float32_over_ours"] = ratio(ours, plain_float32).median
        if kind == "decode":
            details["recomputed_over_cached"] = ratio(ours, seconds[-1]).median
        results.append(result(kind, name, unit, value, ratio(ours, plain), memory, **details))
    return results


def cases(kind: str, plan: Plan) -> list[Case]:
    """Of train and eval: all number formats in one case."""
    return [
        Case(f"{model}, {size}", partial(measure, kind, model, size, None, plan.dtypes, plan))
        for size in plan.sizes or plan.pick(("baseline", "nano"), ("nano",), ("tiny",))
        for model in plan.models
    ]


def text_cases(kind: str, lengths: Sequence[int], plan: Plan) -> list[Case]:
    dtypes = (plan.default_dtype,)
    return [
        Case(f"{model}, {size}, {n} tokens", partial(measure, kind, model, size, n, dtypes, plan))
        for size in plan.sizes or (plan.main_size,)
        for model in plan.models
        for n in lengths
        if kind == "prefill" or n <= 64 or model in LONG_MODELS
    ]


training, evaluation = partial(cases, "train"), partial(cases, "eval")


def prefill(plan: Plan) -> list[Case]:
    return text_cases("prefill", plan.pick((256, 1024), (256,), (8,)), plan)


def decode(plan: Plan) -> list[Case]:
    return text_cases("decode", plan.pick((64, 256, 1024), (32,), (4,)), plan)


def time_over_factors(
    kind: str, model: str, size: Size, device: str, dtype: str, repeats: int
) -> tuple[list[list[float]], list[int]]:
    """Seconds of each round, and MACs (convention `true`), at each of FACTORS, which all routers are given.

    Those of training are of forward and backward: the optimiser's work, always the same, is not in the MACs.
    """
    config, routers = model_config(model, size), len(size.full_depth)
    make = {**WORKS, "decode": DecodeByThresholds}[kind]
    works = [make(model_flags(model, size), size.batch, device, dtype, [f] * routers) for f in FACTORS]
    if kind != "decode":
        macs = [int(count_macs(config, size.length, work.factors, "true")) for work in works]
    else:
        passes = [work() for work in works]
        taken = [[float((one > r).sum()) for r in range(config.n_repeat)] for one in passes]
        macs = [int(macs_of_passes(config, one, "true")) for one in taken]
    for work in works:
        work.phases = True
    seconds = in_turn(works, repeats)
    if kind == "train":
        seconds = [[forward + backward for forward, backward, _ in work.seconds[1:]] for work in works]
    return seconds, macs


def measure_capacities(kind: str, model: str, dtype: str, plan: Plan) -> list[Result]:
    """Does time follow the MACs? deviation: relative time over relative MACs, less 1."""
    size = SIZES[plan.main_size]
    arguments = (kind, model, size, plan.device, dtype, plan.repeats)
    seconds, macs = plan.isolated(time_over_factors, *arguments).result
    results = []
    for factor, taken, count in zip(FACTORS, seconds, macs, strict=True):
        name = f"{model}, {kind}, {plan.main_size}, {dtype}, factor {factor:g}"
        relative, arithmetic = ratio(seconds[0], taken).median, count / macs[0]
        details = {"time_over_full": relative, "macs_over_full": arithmetic}
        deviation = relative / arithmetic - 1
        results.append(result("capacities", name, "s", spread(taken), **details, deviation=deviation))
    return results


def capacities(plan: Plan) -> list[Case]:
    return [
        Case(f"{model}, {kind}, {dtype}", partial(measure_capacities, kind, model, dtype, plan))
        for model in plan.chosen(ROUTED)
        for kind in ("eval", "train", "decode")
        for dtype in plan.dtypes
    ]


def time_steps(
    flags: Mapping[str, Any], batch: int, device: str, dtype: str, repeats: int,
    factors: Sequence[float] | None = None,
) -> list[float]:  # fmt: skip
    return in_turn([Train(flags, batch, device, dtype, factors)], repeats)[0]


def measure_scaling(model: str, axis: str, points: Sequence[int], way: str, plan: Plan) -> list[Result]:
    """Time and memory of a step along an axis; over length the batch is one sequence."""
    results = []
    for point in points:
        size = SIZES[plan.main_size]
        size = size._replace(batch=point) if axis == "batch" else size.but(**{axis: point})
        batch = 1 if axis == "sequence_length" else size.batch
        name = f"{model}, {plan.main_size}, {plan.default_dtype}, {axis} {point}, recompute {way}"
        flags = {**model_flags(model, size), "activation_checkpointing": way}
        arguments = (flags, batch, plan.device, plan.default_dtype, plan.pick(3, 2, 1))
        try:
            seconds, memory = plan.isolated(time_steps, *arguments)
        except DoesNotFit as error:
            return [*results, failed("scaling", name, str(error))]  # larger ones will not fit either
        at = {"model": model, "axis": axis, "point": point, "recompute": way}
        tokens_per_s = batch * size.length / spread(seconds).median
        details = {"at": at, "tokens_per_s": tokens_per_s}
        results.append(result("scaling", name, "s", spread(seconds), memory_mib=memory, **details))
    return results


def scaling(plan: Plan) -> list[Case]:
    axes = {
        "sequence_length": plan.pick((256, 512, 1024, 2048, 4096), (64, 128), (8, 16)),
        "n_repeat": plan.pick((1, 2, 3, 4, 6, 8), (1, 4), (1, 2)),
        "batch": plan.pick((1, 2, 4, 8, 16), (4, 16), (1, 2)),
    }
    return [
        Case(f"{model} over {axis}, {way}", partial(measure_scaling, model, axis, points, way, plan))
        for model in plan.chosen(SCALED)
        for axis, points in axes.items()
        for way in (RECOMPUTING if model == RECOMPUTED else RECOMPUTING[:1])
        if not (axis == "n_repeat" and model == "standard")  # it repeats nothing
    ]
