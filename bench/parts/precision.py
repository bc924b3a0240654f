"""Is bfloat16 worth it on this machine? Products, training steps and evaluation in both formats, in turn.

`distributed.precision` decides by the processor's features; this shows whether it decides well. Beside them
stands float32 on the plain path, which is how code without any of ours would compute.
"""

from functools import partial

import torch

from bench.builds import PLAIN, precision_of, waiter
from bench.isolated import apart
from bench.parts.steps import STEPS
from bench.plan import DTYPES, Case, Plan, Row, Size
from bench.rows import row
from bench.timing import in_turn, ratio, spread

MODELS = ("standard", "cotformer", "ln_cotformer", "adm")


def time_product(device: str, width: int, repeats: int):
    """Seconds of width x width products in each format."""
    precision = precision_of(device, "float32")
    works = []
    for dtype in DTYPES:
        a, b = (
            torch.randn(width, width, device=precision.device).to(getattr(torch, dtype)) for _ in range(2)
        )
        works.append(partial(torch.matmul, a, b))
    return in_turn(works, repeats, 1, waiter(precision))


def time_in_turn(kind: str, model: str, size: Size, device: str, repeats: int):
    """Seconds of float32 and bfloat16 as runs have them, and of float32 on the plain path."""
    sides = [("float32", {}), ("bfloat16", {}), ("float32", PLAIN)]
    works = [STEPS[kind](model, size, precision_of(device, dtype), options) for dtype, options in sides]
    return in_turn(works, repeats, 1, waiter(precision_of(device, "float32")))


def measure(name: str, function, arguments: tuple, plan: Plan) -> list[Row]:
    slow, fast, *plain = apart(function, *arguments, plan.repeats, threads=plan.threads).result
    faster = {"float32_over_bfloat16": ratio(fast, slow).median}
    if plain:
        faster["plain_float32_over_bfloat16"] = ratio(fast, plain[0]).median
    return [
        row("precision", f"{name}, bfloat16", "s", spread(fast), **faster),
        row("precision", f"{name}, float32", "s", spread(slow)),
    ]


def cases(plan: Plan) -> list[Case]:
    width = plan.pick(8192 if plan.cuda else 2048, 2048 if plan.cuda else 1024, 64)
    product = f"matrix product, {width} x {width}"
    made = [Case(product, partial(measure, product, time_product, (plan.device, width), plan))]
    for kind in STEPS:
        for model in plan.chosen(MODELS) or plan.models[:1]:
            arguments = (kind, model, plan.main_size, plan.device)
            name = f"{kind}, {model}, {plan.main_size_name}"
            made.append(Case(name, partial(measure, name, time_in_turn, arguments, plan)))
    return made
