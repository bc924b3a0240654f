"""Items about the flags that only say how a step is computed: the same losses, and what they cost."""

import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from bench.gpu_gate.rows import Row, Skipped, close, row
from bench.gpu_gate.training import SMALL, Training
from bench.plan import Plan, Size
from bench.works import in_turn, seconds_of
from distributed import choose_device
from models.embeddings import Rotary, rotate, rotate_parts

STEPS = 10
COMPILED, ATTENTION = 1e-3, 1e-4  # differences of losses in float32
MOST_GRAPHS = 8
FORMS = ("masked", "flash", "flex", "fast")


def _size(plan: Plan) -> Size:
    """4 blocks of the paper's width, so that compiling takes seconds."""
    paper = SMALL.but(n_embd=768, n_head=12, sequence_length=256, vocab_size=4096)
    return plan.pick(paper, paper, SMALL.but(n_layer=3, n_repeat=2, n_embd=32, sequence_length=16))


def _full(model: str, plan: Plan, **flags: Any) -> Training:
    return Training(model, _size(plan), plan.device, "float32", tf32=False, **flags)


def compiled(plan: Plan, model: str) -> Iterator[Row]:
    """Losses as without, number of graphs, seconds of compiling: all but those of steps."""
    plain = _full(model, plan)
    losses = plain.losses(STEPS)
    for mode in ("block", "step"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        started = time.perf_counter()
        training = _full(model, plan, compile=mode)
        found = training.losses(STEPS)
        usual = _usual(training)
        seconds = time.perf_counter() - started - STEPS * usual
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        one = close(
            mode, found, losses, COMPILED, graphs=graphs, compiling_s=seconds, ms=1e3 * usual,
            ms_without=1e3 * _usual(plain),
        )  # fmt: skip
        yield one | {"ok": one["ok"] and 0 < graphs <= MOST_GRAPHS}


def cuda_graphs(plan: Plan) -> Iterator[Row]:
    """The same losses to rounding; pondernet has several exits."""
    if not plan.cuda:
        raise Skipped("CUDA graphs need a GPU")
    for model in ("ln_cotformer", "pondernet"):
        without, graphed = _full(model, plan), _full(model, plan, cuda_graphs=True)
        losses, found = without.losses(STEPS), graphed.losses(STEPS)
        yield close(model, found, losses, 1e-5, ms=1e3 * _usual(graphed), ms_without=1e3 * _usual(without))


def attention(plan: Plan) -> Iterator[Row]:
    """The forms of attention: losses and gradient norms of `plain` in float32, and times in bfloat16."""
    for model in ("ln_cotformer", "adm"):
        numbers = _numbers(_full(model, plan, attention="plain"))
        timed = [Training(model, _size(plan), plan.device, attention=form) for form in ("plain", *FORMS)]
        seconds = in_turn([partial(one.steps, 1) for one in timed], plan.pick(8, 4, 1), warm_up=3)
        plain_ms = 1e3 * statistics.median(seconds[0])
        for form, times in zip(FORMS, seconds[1:], strict=True):
            found = _numbers(_full(model, plan, attention=form))
            ms = {"ms": 1e3 * statistics.median(times), "plain_ms": plain_ms}
            yield close(f"{model}, {form}", found, numbers, 10 * ATTENTION, **ms)


def rotary(plan: Plan) -> Iterator[Row]:
    """Rotation as one operation, by the kernel and by a complex product, against the formula: forward and
    backward of queries and keys next to values, as attention has them."""
    from models.fused_rotation import FusedRotation, has_kernel, turn_by_kernel, turn_by_product

    device, size = choose_device(plan.device), _size(plan)
    heads, head = size.flags["n_head"], size.flags["n_embd"] // size.flags["n_head"]
    cos, sin = (one.float() for one in Rotary(head)(torch.arange(size.length, device=device)))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2**-5)):  # a step of numbers around 4
        torch.manual_seed(0)
        x = torch.randn(8, size.length, 3 * heads, head, device=device, dtype=dtype)
        parts = x.chunk(3, dim=-2)
        name = str(dtype).removeprefix("torch.")
        reference = [rotate(part, (cos, sin)) for part in parts[:2]]
        forms = {"product": turn_by_product}
        if has_kernel(x):
            forms["kernel"] = turn_by_kernel
        elif plan.cuda:
            yield row(f"kernel, {name}", False, why="Triton is missing, or does not compile here")
        for form, turn in forms.items():
            made = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in reference]
            work = partial(turn, parts[:2], made, cos, sin, 2, False)
            work()
            error = _error(made, reference)
            us = 1e6 * seconds_of(work, plan.pick(0.2, 0.1, 0.001))
            yield row(f"{form}, {name}", error <= tolerance, error=error, us=us)
        gradients = []
        for rotated in (
            lambda x: FusedRotation.apply(x, cos, sin, 3, 2),
            lambda x: rotate_parts(x, (cos, sin), 3, 2, fused=False),
        ):
            leaf = x.clone().requires_grad_()
            results = rotated(leaf)
            torch.autograd.backward(results, [part.detach().square() for part in results])
            gradients.append(leaf.grad)
        error = _error(gradients[:1], gradients[1:])
        yield row(f"backward, {name}", error <= 8 * tolerance, error=error)


def loss(plan: Plan) -> Iterator[Row]:
    """Cross entropy and its gradient by the kernel, of a micro-batch's logits at the paper's size, against
    PyTorch's."""
    from models import triton_kernels

    device = choose_device(plan.device)
    if not triton_kernels.has_kernel(torch.zeros(1, device=device)):
        if plan.cuda:
            yield row("kernel", False, why="Triton is missing, or does not compile here")
            return
        raise Skipped("the kernel runs on CUDA only")
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2**-7)):  # of probabilities
        torch.manual_seed(0)
        logits = 4 * torch.randn(plan.pick(2048, 512, 8), 50_304, device=device)
        logits, target = logits.to(dtype), torch.randint(0, 50_304, (len(logits),), device=device)
        each = torch.empty(len(logits), device=device)
        leaf = logits.float().requires_grad_()
        expected = F.cross_entropy(leaf, target, reduction="none")
        (slope,) = torch.autograd.grad(expected.sum(), leaf)
        made = logits.clone()
        triton_kernels.score(made, target, each, True)
        errors = _error([each], [expected.detach()]), _error([made], [slope])
        work = partial(triton_kernels.score, made, target, each, True)
        us = 1e6 * seconds_of(work, plan.pick(0.2, 0.1, 0.001))
        passed = errors[0] <= 1e-4 and errors[1] <= tolerance
        name = str(dtype).removeprefix("torch.")
        yield row(name, passed, loss_error=errors[0], gradient_error=errors[1], us=us)


def _error(found: Sequence[torch.Tensor | None], reference: Sequence[torch.Tensor | None]) -> float:
    """The largest absolute difference."""
    pairs = zip(found, reference, strict=True)
    return max(
        (a.float() - b.float()).abs().max().item() for a, b in pairs if a is not None and b is not None
    )


def _usual(training: Training) -> float:
    """Seconds of a step, after the first half."""
    return statistics.median(training.seconds[STEPS // 2 :])


def _numbers(training: Training) -> list[float | None]:
    """Losses and norms of steps."""
    return [number for step in training.steps(STEPS) for number in step]
