"""Is bfloat16 worth it on this machine? Matrix products and training steps in both formats, in turn.

`distributed.precision` decides by the processor's features; this shows whether it decides well.
"""

from functools import partial

import torch

from bench.builds import precision_of, waiter
from bench.isolated import apart
from bench.parts.steps import training_step
from bench.plan import Case, Plan, Row, Size
from bench.rows import row
from bench.timing import in_turn, ratio, spread

DTYPES = ("float32", "bfloat16")


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


def time_steps(model: str, size: Size, device: str, repeats: int):
    precisions = [precision_of(device, dtype) for dtype in DTYPES]
    works = [training_step(model, size, precision, {}) for precision in precisions]
    return in_turn(works, repeats, 1, waiter(precisions[0]))


def measure(name: str, function, arguments: tuple, plan: Plan) -> list[Row]:
    slow, fast = apart(function, *arguments, plan.repeats, threads=plan.threads).result
    faster = ratio(fast, slow).median
    return [
        row("precision", f"{name}, bfloat16", "s", spread(fast), float32_over_bfloat16=faster),
        row("precision", f"{name}, float32", "s", spread(slow)),
    ]


def cases(plan: Plan) -> list[Case]:
    width = plan.pick(8192 if plan.cuda else 2048, 2048 if plan.cuda else 1024, 64)
    product = f"matrix product, {width} x {width}"
    made = [Case(product, partial(measure, product, time_product, (plan.device, width), plan))]
    for model in plan.models:
        arguments = (model, plan.main_size, plan.device)
        name = f"step, {model}, {plan.main_size_name}"
        made.append(Case(name, partial(measure, name, time_steps, arguments, plan)))
    return made
