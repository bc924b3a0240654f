"""The training loop: micro-batches, one optimiser step, and what happens between steps.

Shapes: B sequences, T tokens.
"""

import itertools
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from config.training import TrainConfig
from data.batches import Batches, MicroBatch, Windows
from distributed import Precision
from distributed.parallel import RankSlice, SingleProcess
from errors import Failure
from optim.metrics import interval_line
from optim.progress import Progress

if TYPE_CHECKING:
    from optim.state import TrainState

logger = logging.getLogger(__name__)

# Random draws are functions of the training's position: there is no random state to save.
PURPOSES = ("initialisation", "forward", "validation", "sample")


def derive_seed(seed: int, purpose: str, step: int = 0, micro_batch: int = 0, part: int = 0) -> int:
    """A 63-bit seed for each (seed, purpose, step, micro-batch, part of the micro-batch)."""
    # Part 0 has the seeds of whole micro-batches.
    parts = [part] if part else []
    sequence = np.random.SeedSequence([seed, PURPOSES.index(purpose), step, micro_batch, *parts])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_torch(seed: int, purpose: str, step: int = 0, micro_batch: int = 0, part: int = 0) -> None:
    """Seed torch's generators on all devices with `derive_seed`."""
    torch.manual_seed(derive_seed(seed, purpose, step, micro_batch, part))


@dataclass
class Interval:
    """Sums over the steps since the last logged line. seconds: time spent in training steps."""

    steps: int = 0
    loss_sum: float = 0.0
    norms: int = 0
    norm_sum: float = 0.0
    norm_max: float = 0.0
    norm_last: float | None = None
    seconds: float = 0.0
    lr: float | None = None  # of the last update

    def add(self, loss: float, norm: float | None, seconds: float, lr: float) -> None:
        """Add one step. norm: None if float16's scaler skipped it. lr: the rate of its update."""
        self.steps += 1
        self.lr = lr
        self.loss_sum += loss
        self.seconds += seconds
        if norm is not None:
            self.norms += 1
            self.norm_sum += norm
            self.norm_max = max(self.norm_max, norm)
            self.norm_last = norm

    @property
    def norm_mean(self) -> float | None:
        return self.norm_sum / self.norms if self.norms else None


class SpikeWatch:
    """Warns once of each spike in gradient norms.

    It begins above 5 times the median and twice the maximum of the 16 to 100 steps before, and ends below 5
    times the median: norms fall fast in a young run, and scatter where batches are small.
    """

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=100)
        self._in_spike = False

    def add(self, step: int, norm: float) -> None:
        if len(self._norms) >= 16:
            median = statistics.median(self._norms)
            begins = not self._in_spike and norm > max(5.0 * median, 2.0 * max(self._norms))
            self._in_spike = begins or (self._in_spike and norm > 5.0 * median)
            if begins:
                logger.warning(
                    f"a gradient spike: the norm at step {step} is {norm:.2f}, {norm / median:.0f} times the "
                    f"median of the {len(self._norms)} steps before"
                )
        self._norms.append(norm)


def load_micro_batches(
    windows: Windows, config: TrainConfig, rank_slice: RankSlice, step: int, device: torch.device
) -> Iterator[MicroBatch]:
    """Yields this rank's micro-batches from `step` onwards, prefetched by a thread."""
    source = Batches(windows, config.batch_size, config.acc_steps, config.data_seed)
    steps, pin = range(step, config.iterations), device.type == "cuda"
    return source.prefetched(steps, rank_slice.micro_batches, rank_slice.rows, pin)


def train(
    state: "TrainState",
    forward: nn.Module,
    batches: Iterable[MicroBatch],
    config: TrainConfig,
    precision: Precision,
    parallel: SingleProcess,
    *,
    evaluate: Callable[[int], dict[str, Any] | None],
    log: Callable[[dict[str, Any]], None],
    save: Callable[[], None],
    stop: Callable[[int], bool],
    progress: Progress,
    micro_batch: Callable[..., Tensor] | None = None,
) -> bool:
    """Train `state` up to `config.iterations`; evaluate, log and save at their intervals.

    Args:
        forward: the module that runs the batches: state.model, or DDP around it.
        batches: this rank's micro-batches from state.step onwards.
        evaluate: step -> entries for the step's metrics; None if it was stopped.
        log: takes the metrics of an interval.
        save: writes a checkpoint of `state`.
        stop: step -> whether to stop, asked after each micro-batch. `state` is left after the last full step.
        progress: shows each step, and after a few of them the time left.
        micro_batch: runs each of them in place of `run_micro_batch`.

    Returns whether the last iteration was reached. Raises Failure for a loss or gradient that is not finite,
    before the update, so that the weights stay good.
    """
    micro_batches = iter(batches)
    processes = parallel.processes
    rank_slice = RankSlice.of(config.batch_size, config.acc_steps, processes.rank, processes.size)
    autocast = precision.autocast()
    tokens_per_step, first_step = config.tokens_per_step, state.step
    save_freq, spikes, bar = config.save_checkpoint_freq, SpikeWatch(), progress.bar
    forward.train()
    while True:
        is_eval_step = _is_due(state.step, config.eval_freq, config)
        # An interval without steps has been logged already, by the run that this one resumes.
        if state.interval.steps and (is_eval_step or _is_due(state.step, config.log_freq, config)):
            metrics = interval_line(state, config)
            if is_eval_step:
                validation = evaluate(state.step)
                if validation is None:
                    return False
                metrics |= validation
            log(metrics)
            state.interval = Interval()
        if state.step == first_step + 1:
            progress.warmed_up(state.step)
        elif state.step == first_step + 5:
            progress.estimate(state.step)
        # Not at the end, where the final checkpoint follows at once.
        if save_freq and state.step % save_freq == 0 and first_step < state.step < config.iterations:
            save()
        if state.step == config.iterations:
            return True
        if stop(state.step):
            return False

        started = time.perf_counter()
        rate = state.schedule.get_last_lr()[0]
        done = training_step(
            state, forward, micro_batches, rank_slice, config, autocast, parallel, stop, micro_batch
        )
        if done is None:
            return False
        loss, norm = done
        seconds = time.perf_counter() - started
        state.seconds += seconds
        state.interval.add(loss, norm, seconds, rate)
        if norm is not None:
            spikes.add(state.step, norm)
        if bar is not None:
            bar.set_postfix_str(f"loss {loss:.4f}, {tokens_per_step / seconds:,.0f} tok/s", refresh=False)
            bar.update()


def training_step(
    state: "TrainState", forward: nn.Module, micro_batches: Iterator[MicroBatch], rank_slice: RankSlice,
    config: TrainConfig, autocast: AbstractContextManager, parallel: SingleProcess,
    stop: Callable[[int], bool], micro_batch: Callable[..., Tensor] | None = None,
) -> tuple[float, float | None] | None:  # fmt: skip
    """One optimiser step over the rank's micro-batches.

    micro_batch: runs each of them in place of `run_micro_batch`.

    The cross entropy is a mean over the targets of the whole step that count, however its sequences are cut
    into micro-batches and split across ranks. Depth penalties are means over all tokens, whether their
    targets count or not: they price computation, which every token takes.

    Returns (loss, gradient norm before clipping), the norm None where float16's scaler skipped the step; or
    None where `stop` asked to stop before the last micro-batch.
    """
    device, loss_sum = next(state.model.parameters()).device, 0.0
    micro_batch = micro_batch or run_micro_batch
    batches = list(itertools.islice(micro_batches, rank_slice.acc_steps))
    counted = parallel.processes.sum(sum(batch.counted for batch in batches))
    even = counted / (rank_slice.acc_steps * parallel.processes.size)  # targets of a micro-batch on average
    for number, batch in enumerate(batches):
        if number and stop(state.step):
            state.optimizer.zero_grad(set_to_none=True)
            return None
        inputs = batch.inputs.to(device, non_blocking=True)
        targets = batch.targets.to(device, non_blocking=True)
        capacities = _seed_forward(state, config, rank_slice, number)
        # The model's cross entropy is a mean over this micro-batch.
        extra = (batch.counted / even if even else 0.0) - 1.0
        with parallel.accumulate(forward, last=number + 1 == rank_slice.acc_steps):
            loss_sum += micro_batch(
                state, forward, inputs, targets, extra, rank_slice.acc_steps, autocast, **capacities
            )

    state.scaler.unscale_(state.optimizer)
    norm = parallel.full_tensor(_clip(state.model, config.grad_clip))
    with parallel.processes.waiting():
        # One transfer from the device for both numbers.
        loss, norm = torch.stack((parallel.processes.mean(loss_sum.float()), norm.float())).tolist()
    _require_finite(state, loss, norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    if state.step < state.schedule_iterations:
        state.schedule.step()
    return loss, norm if math.isfinite(norm) else None


def run_micro_batch(
    state: "TrainState", forward: nn.Module, inputs: Tensor, targets: Tensor, extra: float | Tensor,
    parts: int, autocast: AbstractContextManager, **capacities: Sequence[float],
) -> Tensor:  # fmt: skip
    """Forward and backward of a micro-batch, inputs and targets (B, T); its loss as one of `parts`.

    extra: the weight of its cross entropy, less 1. capacities: arguments of the forward pass.
    """
    with autocast:
        output = forward(inputs, targets, **capacities)
        loss = output["loss"]
        if isinstance(extra, Tensor) or extra != 0.0:
            loss = loss + extra * output["cross_entropy_loss"]
        loss = loss / parts
    state.scaler.scale(loss).backward()
    return loss.detach()


def _seed_forward(
    state: "TrainState", config: TrainConfig, rank_slice: RankSlice, number: int
) -> dict[str, Sequence[float]]:
    """Seed the random draws of the rank's micro-batch `number`; arguments of its forward pass.

    Ranks that split a micro-batch route with the same capacities, but draw their own dropout masks: the same
    ones would correlate their sequences.
    """
    key = config.seed, "forward", state.step, rank_slice.first_micro_batch + number
    seed_torch(*key)
    if rank_slice.part == 0:
        return {}
    capacities = state.model.draw_length_factors()
    seed_torch(*key, rank_slice.part)
    return {"length_factors": capacities}


def _clip(model: nn.Module, limit: float) -> Tensor:
    """Clip the gradients to a joint L2 norm of `limit`, 0 for no limit; returns the norm before."""
    if limit > 0:
        return nn.utils.clip_grad_norm_(model.parameters(), limit)
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def _require_finite(state: "TrainState", loss: float, norm: float) -> None:
    # float16's loss scaler expects infinite gradients: it skips the step and lowers the scale.
    if math.isfinite(loss) and (math.isfinite(norm) or state.scaler.is_enabled()):
        return
    what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
    raise Failure(
        f"the {what} at step {state.step + 1}: training has stopped before this update, and the checkpoints "
        "are intact; lower --lr or set --grad_clip 1.0"
    )


def _is_due(step: int, frequency: int, config: TrainConfig) -> bool:
    return step % frequency == 0 or step == config.iterations
