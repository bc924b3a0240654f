"""Models, batches and steps to measure, on the plain path and on ours.

`plain` switches every exact shortcut off that ModelConfig can switch off.
"""

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bench.plan import Size, model_config
from distributed import Precision, choose_device, choose_precision
from models.language_model import LanguageModel
from optim.config import TrainConfig
from optim.optimizers import make_optimizer

SEED = 1000  # of the first step; with it the capacities drawn are those of the released code's measurement
PLAIN = {"loss": "plain", "attention": "plain"}
SIDES: tuple[dict[str, str], ...] = ({}, PLAIN)  # options of our path, and of the plain one


def precision_of(device: str, dtype: str) -> Precision:
    """dtype: `float32` or `bfloat16`, which is used as asked for, even where the processor emulates it."""
    chosen = choose_device(device)
    if chosen.type == "cuda" and dtype == "float32":
        return choose_precision(dtype, chosen)
    return Precision(chosen, getattr(torch, dtype), dtype)


def run_dtype(device: torch.device) -> str:
    """The number format that a run on this device has where its flags do not say."""
    return str(choose_precision("bfloat16", device).dtype).removeprefix("torch.")


def full_depth(size: Size) -> list[float]:
    """Capacities at which every token takes every pass, whatever training would draw."""
    return [1.0] * (size.flags["n_repeat"] - 1)


def waiter(precision: Precision):
    """What waits until the device has done its work."""
    return torch.cuda.synchronize if precision.device.type == "cuda" else lambda: None


def build(model: str, size: Size, precision: Precision, **options: Any) -> LanguageModel:
    """With the same random weights each time; options: more fields of ModelConfig."""
    torch.manual_seed(0)
    made = LanguageModel(model_config(model, size.flags, **options))
    return made.to(precision.device)


def random_ids(size: Size, precision: Precision, batch: int | None = None, seed: int = 1) -> Tensor:
    """(batch, T + 1): inputs are all but the last, targets all but the first."""
    shape = (batch or size.batch, size.flags["sequence_length"] + 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, size.flags["vocab_size"], shape, generator=generator).to(precision.device)


def train_config(size: Size, batch: int) -> TrainConfig:
    """The released code's settings of the optimiser; steps without end."""
    return TrainConfig(
        iterations=10**9, batch_size=batch, acc_steps=1, sequence_length=size.flags["sequence_length"],
        seed=0, data_seed=0, opt="adamw", lr=1e-3, beta1=0.9, beta2=0.95, weight_decay=0.1, grad_clip=0.0,
        scheduler="none", warmup_percent=0.0, final_div_factor=1.0, eval_freq=10**9, log_freq=10**9,
        save_checkpoint_freq=None,
    )  # fmt: skip


class TrainingStep:
    """Forward, backward, optimiser: one call is a step on the same batch.

    Each step's random draws (capacities) depend on its number alone, so two models that take turns get the
    same. length_factors: capacities in place of those drawn. phases: keep in `seconds` how long forward,
    backward and optimiser took, for which each waits until the device has done the one before.
    """

    def __init__(
        self,
        model: LanguageModel,
        size: Size,
        precision: Precision,
        batch: int | None = None,
        length_factors: Sequence[float] | None = None,
        phases: bool = False,
    ) -> None:
        self.model, self._precision, self._factors = model.train(), precision, length_factors
        ids = random_ids(size, precision, batch)
        self.inputs, self.targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        self.optimizer = make_optimizer(model, train_config(size, len(ids)))
        self._wait = waiter(precision) if phases else None
        self._steps = 0
        self.seconds: list[tuple[float, float, float]] = []
        self.last_loss = 0.0

    @property
    def tokens(self) -> int:
        return self.inputs.numel()

    def __call__(self) -> None:
        torch.manual_seed(SEED + self._steps)
        self._steps += 1
        times = [time.perf_counter()]
        with self._precision.autocast():
            loss = self.model(self.inputs, self.targets, length_factors=self._factors)["loss"]
        self._note(times)
        loss.backward()
        self._note(times)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._note(times)
        if self._wait:
            forward, backward, optimiser = (after - before for before, after in pairwise(times))
            self.seconds.append((forward, backward, optimiser))
        self.last_loss = loss.detach()

    def _note(self, times: list[float]) -> None:
        if self._wait:
            self._wait()
            times.append(time.perf_counter())
