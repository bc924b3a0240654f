"""Learning-rate schedules as functions of the step, so that checkpoints need not store them."""

import torch
from torch.optim import lr_scheduler

from config.training import TrainConfig


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
