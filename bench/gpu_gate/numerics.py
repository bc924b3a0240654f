"""Items that compare numbers: with the CPU, between formats, between two trainings, across checkpoints."""

import contextlib
import hashlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.gpu_gate.rows import Row, close, row, skipped
from bench.gpu_gate.training import Training, same_weights, size_of
from bench.plan import Plan, Size
from bench.processes import DoesNotFit, in_own_process
from errors import UsageError
from optim import checkpoint as checkpoints
from optim.saver import Saver

STEPS, SAVED_AFTER = 5, 2
FLOAT32, HALF = 1e-4, 2e-2  # differences of losses: float32 on both, and of the formats of 16 bits from it
REPEATED = ("ln_cotformer", "adm")


def formats(plan: Plan) -> Iterator[Row]:
    """The losses of each model's first steps: on the CPU in float32, and on the GPU in each format."""
    size = size_of(plan)
    for model in plan.models:
        cpu = Training(model, size, "cpu", "float32").losses(STEPS)
        own = Training(model, size, plan.device, "float32", tf32=False).losses(STEPS)
        yield close(f"{model}, float32", own, cpu, FLOAT32)
        for dtype in ("bfloat16", "float16"):
            try:
                training = Training(model, size, plan.device, dtype)
            except UsageError as error:  # float16 on a CPU
                yield skipped(f"{model}, {dtype}", str(error))
                continue
            scale = training.state.scaler.get_scale()
            losses = training.losses(STEPS)
            yield close(f"{model}, {dtype}", losses, cpu, HALF)
            if dtype == "float16":
                after = training.state.scaler.get_scale()
                yield row(f"{model}, scaler", after == scale, before=scale, after=after)


def digest_of_steps(
    model: str, size: Size, device: str, flags: dict[str, Any], first: Path | None, steps: int,
    save: Path | None,
) -> tuple[str, list[float]]:  # fmt: skip
    """A hash of all weights after some steps, and their losses. Run in a process of its own.

    Args:
        first: a checkpoint to resume from.
        save: write a checkpoint after the steps, and be killed.
    """
    training = Training(model, size, device, **flags)
    if first is not None:
        training.restore(checkpoints.load(first))
    losses = training.losses(steps)
    if save is not None:
        checkpoints.write(save, training.checkpoint())
        os.kill(os.getpid(), signal.SIGKILL)
    digest = hashlib.sha256()
    for name, weight in training.weights().items():
        digest.update(name.encode() + weight.numpy().tobytes())
    return digest.hexdigest(), losses


def repeats(plan: Plan) -> Iterator[Row]:
    """In processes of their own: the same steps twice, and interrupted. Their equal bits are required where
    --deterministic promises them; elsewhere their equal losses to rounding."""
    size = size_of(plan)
    size = size.but(sequence_length=4 * size.length)  # attention sums over several blocks of keys
    choices: list[dict[str, Any]] = [{"deterministic": on} for on in ("true", "false")]
    for model in REPEATED:
        for flags in choices:
            must = flags["deterministic"] == "true"
            arguments = (model, size, plan.device, flags)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, checkpoints.name_of(SAVED_AFTER))
                with contextlib.suppress(DoesNotFit):  # killed, as asked for
                    in_own_process(digest_of_steps, *arguments, None, SAVED_AFTER, path)
                once, again, resumed = (
                    in_own_process(digest_of_steps, *arguments, first, steps, None).result
                    for first, steps in ((None, STEPS), (None, STEPS), (path, STEPS - SAVED_AFTER))
                )
            name = f"{model}, deterministic {flags['deterministic']}"
            for what, other, losses in (
                ("twice", again, once[1]), ("killed and resumed", resumed, once[1][SAVED_AFTER:])
            ):  # fmt: skip
                equal = once[0] == other[0]
                one = close(
                    f"{name}, {what}", other[1], losses, HALF, bits="equal" if equal else "to rounding"
                )
                yield one | {"ok": bool(one["ok"]) and (equal or not must)}


def checkpoint(plan: Plan) -> Iterator[Row]:
    """A checkpoint of the GPU on the CPU and back; and one whose weights change while it is written."""
    size = size_of(plan)
    training = Training("ln_cotformer", size, plan.device)
    training.steps(SAVED_AFTER)
    weights = training.weights()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        saver = Saver(
            folder,
            sharded=False,
            group=None,
            staging=None,
            keep_last=None,
            keep_every=None,
            on_cuda=plan.cuda,
        )
        saver.save(training.checkpoint(), SAVED_AFTER)
        with torch.no_grad():  # at once: what is written must be a copy
            for weight in training.model.parameters():
                weight.zero_()
        saver.wait(must=True)
        saver.close()
        path = folder / checkpoints.name_of(SAVED_AFTER)
        on_cpu = Training("ln_cotformer", size, "cpu", "float32")
        on_cpu.restore(checkpoints.load(path))
        yield row("weights changed during a save", same_weights(weights, on_cpu.weights()))
        second = folder / checkpoints.name_of(SAVED_AFTER + 1)
        checkpoints.write(second, on_cpu.checkpoint())
        back = Training("ln_cotformer", size, plan.device)
        back.restore(checkpoints.load(second))
        yield row("GPU to CPU to GPU", same_weights(weights, back.weights()))
        training.restore(checkpoints.load(path))
        yield close("losses after both", back.losses(2), training.losses(2), HALF)
        full = Training("ln_cotformer", size, plan.device, "float32", tf32=False)
        full.restore(checkpoints.load(path))
        yield close("losses on both, float32", full.losses(2), on_cpu.losses(2), FLOAT32)
