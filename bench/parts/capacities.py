"""Adaptive models over capacities: does the time follow the multiply-accumulates?

All capacities take turns in one process. Time and MACs (convention `true`) are relative to full capacity; the
deviation is their quotient less one. Time of training is that of forward and backward: the optimiser, whose
work is always the same, is not in the MACs. Memory is that of full capacity, in a further process.
"""

from functools import partial

import torch

from bench.builds import TrainingStep, build, precision_of, random_ids, waiter
from bench.isolated import apart
from bench.parts.steps import run_some
from bench.plan import Case, Plan, Row, Size, model_config
from bench.rows import row
from bench.timing import in_turn, ratio, spread
from models.macs import count_macs

FACTORS = (1.0, 0.75, 0.5, 0.25, 0.0)
MODELS = ("adm", "adaptive_but")


def time_over_factors(kind: str, model: str, size: Size, device: str, dtype: str, repeats: int):
    """Seconds at each of FACTORS, given to all routers, in each round."""
    precision = precision_of(device, dtype)
    routers = size.flags["n_repeat"] - 1
    network = build(model, size, precision)
    if kind == "train":
        steps = [
            TrainingStep(network, size, precision, length_factors=[f] * routers, phases=True) for f in FACTORS
        ]
        in_turn(steps, repeats, 1, waiter(precision))
        return [[forward + backward for forward, backward, _ in step.seconds[1:]] for step in steps]
    network.eval()
    ids = random_ids(size, precision)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def evaluate(factor: float) -> None:
        with torch.no_grad(), precision.autocast():
            network(inputs, targets, length_factors=[factor] * routers)

    return in_turn([partial(evaluate, f) for f in FACTORS], repeats, 1, waiter(precision))


def measure(kind: str, model: str, dtype: str, plan: Plan) -> list[Row]:
    size = plan.main_size
    arguments = (kind, model, size, plan.device, dtype, plan.repeats)
    seconds = apart(time_over_factors, *arguments, threads=plan.threads).result
    memory = apart(run_some, kind, model, size, plan.device, dtype, {}, threads=plan.threads).memory_mib
    config, length = model_config(model, size.flags), size.flags["sequence_length"]
    counts = [count_macs(config, length, [f] * (config.n_repeat - 1), "true") for f in FACTORS]
    rows = []
    for factor, taken, macs in zip(FACTORS, seconds, counts, strict=True):
        relative, arithmetic = ratio(seconds[0], taken), macs / counts[0]
        rows.append(
            row(
                "capacities", f"{model}, {kind}, {plan.main_size_name}, {dtype}, factor {factor:g}", "s",
                spread(taken), memory_mib=memory if factor == 1.0 else None,
                time_over_full=relative.median, macs_over_full=arithmetic,
                deviation=relative.median / arithmetic - 1,
            )
        )  # fmt: skip
    return rows


def cases(plan: Plan) -> list[Case]:
    return [
        Case(f"{model}, {kind}, {dtype}", partial(measure, kind, model, dtype, plan))
        for model in plan.chosen(MODELS)
        for kind in ("eval", "train")
        for dtype in plan.dtypes
    ]
