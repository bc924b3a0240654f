"""The training loop.

Shapes: B batch, T tokens.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from config.training import TrainConfig
from distributed import Precision
from distributed.parallel import RankSlice, SingleProcess
from errors import Failure
from optim.progress import Progress
from optim.randomness import seed_torch
from optim.state import Interval, TrainState

logger = logging.getLogger(__name__)

SPIKE = 5.0  # a gradient norm this many times the interval's mean is worth a warning


class MicroBatch(NamedTuple):
    """inputs, targets (B, T). weight: of its cross entropy, where processes part the sequences and some hold
    more of the targets that count than others; 1 for all else."""

    inputs: Tensor
    targets: Tensor
    weight: float = 1.0


def train(
    state: TrainState,
    forward: nn.Module,
    batches: Iterable[MicroBatch],
    config: TrainConfig,
    precision: Precision,
    parallel: SingleProcess,
    *,
    evaluate: Callable[[int], dict[str, Any] | None],
    log: Callable[[dict[str, Any]], None],
    save: Callable[[], None],
    stop: Callable[[], bool],
    progress: Progress,
) -> bool:
    """Take `state` to `config.iterations`; evaluate, log and save at their intervals. Whether it got there.

    forward: what runs the batches: state.model, or a form of it. batches: those of all micro-batches of this
    process still to come. evaluate: step -> what to add to that step's line; None where it was stopped. stop:
    asked after each micro-batch; where it says so, `state` is left behind the last whole step. Raises Failure
    when a loss or gradient is not finite: before the update, so that weights stay good.
    """
    stream = iter(batches)
    rank_slice = RankSlice.of(
        config.batch_size, config.acc_steps, parallel.processes.rank, parallel.processes.size
    )
    first = state.step
    forward.train()
    while True:
        evaluates = _due(state.step, config.eval_freq, config)
        # Not empty: a stop in the middle of an evaluation left its line to be written.
        if state.interval.steps and (evaluates or _due(state.step, config.log_freq, config)):
            line = _line(state, config)
            if evaluates:
                found = evaluate(state.step)
                if found is None:
                    return False
                line |= found
            log(line)
            _warn_of_spike(line)
            state.interval = Interval()
        if state.step > first and _due_to_save(state.step, config):
            save()
        if state.step == config.iterations:
            return True
        if stop():
            return False
        started = time.perf_counter()
        rate = state.schedule.get_last_lr()[0]
        made = _update(state, forward, stream, rank_slice, config, precision, parallel, stop)
        if made is None:
            return False
        loss, norm = made
        seconds = time.perf_counter() - started
        state.seconds += seconds
        state.interval.add(loss, norm, seconds, rate)
        progress.step(loss, seconds)


def _update(
    state: TrainState,
    forward: nn.Module,
    stream: Iterator[MicroBatch],
    rank_slice: RankSlice,
    config: TrainConfig,
    precision: Precision,
    parallel: SingleProcess,
    stop: Callable[[], bool],
) -> tuple[float, float | None] | None:
    """One optimiser step over acc_steps micro-batches -> mean loss, gradient norm before clipping; None where
    it was stopped in its middle."""
    total = 0.0
    for number in range(rank_slice.acc_steps):
        if number and stop():
            state.optimizer.zero_grad(set_to_none=True)
            return None
        batch = next(stream)
        inputs = batch.inputs.to(precision.device, non_blocking=True)
        targets = batch.targets.to(precision.device, non_blocking=True)
        seed_torch(config.seed, "forward", state.step, rank_slice.first_micro_batch + number)
        with parallel.accumulate(forward, last=number + 1 == rank_slice.acc_steps):
            with precision.autocast():
                output = forward(inputs, targets)
                loss = output["loss"]
                if batch.weight != 1.0:  # penalties for depth are means over all tokens, and have none
                    loss = loss + (batch.weight - 1.0) * output["cross_entropy_loss"]
                loss = loss / rank_slice.acc_steps
            state.scaler.scale(loss).backward()
        total += loss.detach()
    state.scaler.unscale_(state.optimizer)
    norm = parallel.full_tensor(_clip(state.model, config.grad_clip))
    loss, norm = torch.stack((parallel.processes.mean(total.float()), norm.float())).tolist()
    _require_finite(state, loss, norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    if state.step < config.schedule_iterations:
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


def _line(state: TrainState, config: TrainConfig) -> dict[str, Any]:
    """What metrics.jsonl keeps of the interval that ends here."""
    interval = state.interval
    return {
        "step": state.step,
        "tokens": state.step * config.tokens_per_step,
        "train_loss": interval.loss_sum / interval.steps,
        "lr": interval.lr,
        "grad_norm": interval.norm_last,
        "max_grad_norm": interval.norm_max,
        "mean_grad_norm": interval.norm_mean,
        "tokens_per_second": round(interval.steps * config.tokens_per_step / interval.seconds, 1),
        "seconds": round(state.seconds, 3),
    }


def _warn_of_spike(line: dict[str, Any]) -> None:
    mean, largest = line["mean_grad_norm"], line["max_grad_norm"]
    if mean and largest > SPIKE * mean:
        logger.warning(
            f"a gradient spike: the largest norm since the last line was {largest:.2f}, "
            f"{largest / mean:.1f} times the mean"
        )
