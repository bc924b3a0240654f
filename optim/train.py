"""The training loop.

Shapes: B batch, T tokens.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from distributed import Precision
from errors import Failure
from optim.config import TrainConfig
from optim.progress import Progress
from optim.randomness import seed_torch
from optim.state import Interval, TrainState

SPIKE = 5.0  # a gradient norm this many times the interval's mean is worth a warning

Batch = tuple[Tensor, Tensor]


def train(
    state: TrainState,
    forward: nn.Module,
    batches: Iterable[Batch],
    config: TrainConfig,
    precision: Precision,
    *,
    evaluate: Callable[[int], dict[str, Any]],
    log: Callable[[dict[str, Any]], None],
    save: Callable[[], None],
    progress: Progress,
) -> None:
    """Take `state` to `config.iterations`; evaluate, log and save at their intervals.

    forward: what runs the batches: state.model, or its compiled form. batches: those of all micro-batches
    still to come, (inputs, targets) of (B, T) each. evaluate: step -> what to add to that step's line. Raises
    Failure when a loss or gradient is not finite: before the update, so that weights stay good.
    """
    stream = iter(batches)
    forward.train()
    while state.step < config.iterations:
        started = time.perf_counter()
        rate = state.schedule.get_last_lr()[0]
        loss, norm = _update(state, forward, stream, config, precision)
        seconds = time.perf_counter() - started
        state.seconds += seconds
        state.interval.add(loss, norm, seconds)
        progress.step(loss, seconds)

        evaluates = _due(state.step, config.eval_freq, config)
        if evaluates or _due(state.step, config.log_freq, config):
            line = _line(state, rate, config)
            if evaluates:
                line |= evaluate(state.step)
            log(line)
            _warn_of_spike(line, progress)
            state.interval = Interval()
        if _due_to_save(state.step, config):
            save()


def _update(
    state: TrainState, forward: nn.Module, stream: Iterator[Batch], config: TrainConfig, precision: Precision
) -> tuple[float, float | None]:
    """One optimiser step over acc_steps micro-batches -> mean loss, gradient norm before clipping."""
    total = 0.0
    for micro_batch in range(config.acc_steps):
        inputs, targets = next(stream)
        inputs = inputs.to(precision.device, non_blocking=True)
        targets = targets.to(precision.device, non_blocking=True)
        seed_torch(config.seed, "forward", state.step, micro_batch)
        with precision.autocast():
            loss = forward(inputs, targets)["loss"] / config.acc_steps
        state.scaler.scale(loss).backward()
        total += loss.detach()
    state.scaler.unscale_(state.optimizer)
    norm = _clip(state.model, config.grad_clip)
    loss, norm = torch.stack((total.float(), norm.float())).tolist()
    _require_finite(state, loss, norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    if state.step < config.iterations:
        state.schedule.step()
    return loss, norm if math.isfinite(norm) else None


def _clip(model: nn.Module, limit: float) -> Tensor:
    """Clip the gradients to a joint L2 norm of `limit`, 0 for no limit; returns the norm before."""
    if limit > 0:
        return nn.utils.clip_grad_norm_(model.parameters(), limit)
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def _require_finite(state: TrainState, loss: float, norm: float) -> None:
    # Under the float16 scaler an infinite gradient is part of the method: it skips the step and scales down.
    if math.isfinite(loss) and (math.isfinite(norm) or state.scaler.is_enabled()):
        return
    what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
    raise Failure(
        f"the {what} at step {state.step + 1}: training has stopped before this update, and the checkpoints "
        "are intact; lower --lr or set --grad_clip 1.0"
    )


def _due(step: int, frequency: int, config: TrainConfig) -> bool:
    return step % frequency == 0 or step == config.iterations


def _due_to_save(step: int, config: TrainConfig) -> bool:
    """At its interval, but not at the end: the final checkpoint follows at once."""
    frequency = config.save_checkpoint_freq
    return frequency is not None and step % frequency == 0 and step < config.iterations


def _line(state: TrainState, rate: float, config: TrainConfig) -> dict[str, Any]:
    """What metrics.jsonl keeps of the interval that ends here. lr: the one the last update used."""
    interval = state.interval
    return {
        "step": state.step,
        "tokens": state.step * config.tokens_per_step,
        "train_loss": interval.loss_sum / interval.steps,
        "lr": rate,
        "grad_norm": interval.norm_last,
        "max_grad_norm": interval.norm_max,
        "mean_grad_norm": interval.norm_mean,
        "tokens_per_second": round(interval.steps * config.tokens_per_step / interval.seconds, 1),
        "seconds": round(state.seconds, 3),
    }


def _warn_of_spike(line: dict[str, Any], progress: Progress) -> None:
    mean, largest = line["mean_grad_norm"], line["max_grad_norm"]
    if mean and largest > SPIKE * mean:
        progress.say(
            f"warning: a gradient spike: the largest norm since the last line was {largest:.2f}, "
            f"{largest / mean:.1f} times the mean"
        )
