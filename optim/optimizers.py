"""Optimisers with their parameter groups, and learning-rate schedules.

Schedules are functions of the step, so that checkpoints need not store them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from config.training import TrainConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: Linear weights decay; norms, biases and embeddings (and so the tied head) do not."""
    weights = {kind: _weights_of(model, kind) for kind in (nn.Linear, nn.Embedding)}
    decaying = weights[nn.Linear] - weights[nn.Embedding]
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p in decaying], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p not in decaying], "weight_decay": 0.0},
    ]


def _weights_of(model: nn.Module, kind: type[nn.Module]) -> set[Any]:
    return {module.weight for module in model.modules() if isinstance(module, kind)}


def _adamw(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    # The fused kernel updates all weights in one call; CPU and CUDA have it, other devices may not.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=1e-8, fused=fused)


def _sgd(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)


def _adafactor(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, lr=config.lr)


OPTIMIZERS: dict[str, Callable[[list[dict], TrainConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
}


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that --opt names, over the two parameter groups."""
    return OPTIMIZERS[config.opt](parameter_groups(model, config.weight_decay), config)


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, step: int = 0
) -> lr_scheduler.LRScheduler:
    """The schedule that --scheduler names, at `step` (0: before the first update).

    `cos` and `linear` are PyTorch's OneCycleLR, as the published runs used it: from lr/100 up to lr at the
    fraction `warmup_percent` of the iterations, down to (lr/100) / final_div_factor at the last; both legs
    have the named shape. `none` is constant. Call `.step()` after each update before
    `schedule_iterations`; the rate stays constant afterwards.
    """
    if config.scheduler == "none":
        return lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
    schedule = lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config.lr,
        total_steps=config.schedule_iterations,
        pct_start=_peak_fraction(config),
        anneal_strategy=config.scheduler,
        cycle_momentum=False,
        div_factor=100.0,
        final_div_factor=config.final_div_factor,
    )
    step = min(step, config.schedule_iterations - 1)
    if step > 0:
        # OneCycleLR's rate depends on the number of steps alone: restore the step before, then take one.
        schedule.load_state_dict({"last_epoch": step - 1, "_step_count": step + 1})
        schedule.step()
    return schedule


def _peak_fraction(config: TrainConfig) -> float:
    # A warm-up of exactly one step ends where it begins, and OneCycleLR divides by its length. A hair less
    # gives what is meant: the peak at the first step.
    if config.warmup_percent * config.schedule_iterations == 1.0:
        return config.warmup_percent * (1.0 - 1e-9)
    return config.warmup_percent
