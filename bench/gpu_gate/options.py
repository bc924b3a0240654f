"""Items about the flags that only say how a step is computed: the same losses, and what they cost."""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from bench.gpu_gate.rows import Row, Skipped, close, skipped
from bench.gpu_gate.training import SMALL, Training, first_known
from bench.plan import Plan, Size
from bench.works import in_turn

STEPS = 10
COMPILED, ATTENTION = 1e-3, 1e-4  # differences of losses in float32
MOST_GRAPHS = 8
MODES: dict[str, tuple[dict[str, Any], ...]] = {  # older main.py: --compile is a switch
    "block": ({"compile": "block"},), "step": ({"compile": "step"}, {"compile": True}),
}  # fmt: skip
FORMS = ("masked", "flash", "flex", "fast")


def _size(plan: Plan) -> Size:
    """4 blocks of the paper's width, so that compiling takes seconds."""
    paper = SMALL.but(n_embd=768, n_head=12, sequence_length=256, vocab_size=4096)
    return plan.pick(paper, paper, SMALL.but(n_layer=3, n_repeat=2, n_embd=32, sequence_length=16))


def _full(model: str, plan: Plan, **flags: Any) -> Training:
    return Training(model, _size(plan), plan.device, "float32", tf32=False, **flags)


def compiled(plan: Plan, model: str) -> Iterator[Row]:
    """Losses as without, number of graphs, seconds of compiling: the first steps over the later ones."""
    plain = _full(model, plan, **(first_known({"compile": "none"}) or {}))
    losses = plain.losses(STEPS)
    for mode, settings in MODES.items():
        flags = first_known(*settings)
        if flags is None:
            yield skipped(mode, f"main.py has no --compile {mode}")
            continue
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        training = _full(model, plan, **flags)
        started = time.perf_counter()
        found = training.losses(STEPS)
        usual = statistics.median(training.seconds[STEPS // 2 :])
        seconds = time.perf_counter() - started - STEPS * usual
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        one = close(
            mode, found, losses, COMPILED, graphs=graphs, compiling_s=seconds, ms=1e3 * usual,
            ms_without=1e3 * statistics.median(plain.seconds[STEPS // 2 :]),
        )  # fmt: skip
        yield one | {"ok": one["ok"] and 0 < graphs <= MOST_GRAPHS}


def cuda_graphs(plan: Plan) -> Iterator[Row]:
    """The same losses to rounding, bit for bit where nothing is compiled."""
    flags = first_known({"cuda_graphs": True})
    if flags is None:
        raise Skipped("main.py has no --cuda_graphs")
    none = first_known({"compile": "none"}) or {}
    for model in ("ln_cotformer", "adm", "pondernet"):
        without, graphed = _full(model, plan, **none), _full(model, plan, **none, **flags)
        losses, found = without.losses(STEPS), graphed.losses(STEPS)
        half = STEPS // 2
        yield close(
            model, found, losses, 1e-5, ms=1e3 * statistics.median(graphed.seconds[half:]),
            ms_without=1e3 * statistics.median(without.seconds[half:]),
        )  # fmt: skip


def attention(plan: Plan) -> Iterator[Row]:
    """The forms of attention: losses and gradient norms of `plain` in float32, and times in bfloat16."""
    none = first_known({"compile": "none"}) or {}
    forms = [form for form in FORMS if first_known({"attention": form})]
    for model in ("ln_cotformer", "adm"):
        reference = _full(model, plan, attention="plain", **none).steps(STEPS)
        numbers = [number for step in reference for number in step]
        timed = [
            Training(model, _size(plan), plan.device, attention=form, **none) for form in ("plain", *forms)
        ]
        seconds = in_turn([lambda one=one: one.steps(1) for one in timed], plan.pick(8, 4, 1), warm_up=3)
        plain_ms = 1e3 * statistics.median(seconds[0])
        for form, times in zip(forms, seconds[1:], strict=True):
            steps = _full(model, plan, attention=form, **none).steps(STEPS)
            ms = {"ms": 1e3 * statistics.median(times), "plain_ms": plain_ms}
            yield close(
                f"{model}, {form}", [n for step in steps for n in step], numbers, 10 * ATTENTION, **ms
            )
    for form in set(FORMS) - set(forms):
        yield skipped(form, f"main.py has no --attention {form}")


def rotary(plan: Plan) -> Iterator[Row]:
    """The kernel against its plain form."""
    raise Skipped("there is no rotary kernel yet")
    yield
