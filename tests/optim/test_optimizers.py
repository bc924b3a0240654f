"""The learning rate in closed form."""

import dataclasses
import math

import pytest
import torch

from config.training import TrainConfig
from optim.optimizers import make_schedule

CONFIG = TrainConfig(
    iterations=200, batch_size=2, acc_steps=1, sequence_length=8, seed=1, data_seed=1, opt="adamw", lr=1e-3,
    beta1=0.9, beta2=0.95, weight_decay=0.1, grad_clip=0.0, scheduler="cos", warmup_percent=0.2,
    final_div_factor=0.05, eval_freq=10, log_freq=10, save_checkpoint_freq=None,
)  # fmt: skip


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=CONFIG.lr)


def rates(config):
    sgd = optimizer()
    schedule = make_schedule(sgd, config)
    seen = []
    for step in range(config.iterations):
        seen.append(schedule.get_last_lr()[0])
        sgd.step()
        if step + 1 < config.iterations:
            schedule.step()
    return seen


def closed_form(step, config):
    """From lr/100 to lr at step warmup * N - 1, to lr/100/final_div_factor at step N - 1; both legs alike."""
    peak, last = config.warmup_percent * config.iterations - 1, config.iterations - 1
    low, high, end = config.lr / 100, config.lr, config.lr / 100 / config.final_div_factor
    (start, stop), part = (
        ((low, high), step / peak) if step <= peak else ((high, end), (step - peak) / (last - peak))
    )
    if config.scheduler == "linear":
        return start + (stop - start) * part
    return stop + (start - stop) * (1 + math.cos(math.pi * part)) / 2


@pytest.mark.parametrize("scheduler", ["cos", "linear"])
def test_against_the_closed_form(scheduler):
    config = dataclasses.replace(CONFIG, scheduler=scheduler)
    expected = [closed_form(step, config) for step in range(200)]
    assert rates(config) == pytest.approx(expected, rel=1e-9)
    assert expected[0] == pytest.approx(1e-5) and max(expected) == expected[39] == pytest.approx(1e-3)
    assert expected[-1] == pytest.approx(0.2e-3)  # the published runs' end, at the default factor


def test_scheduler_none_is_constant():
    assert set(rates(dataclasses.replace(CONFIG, scheduler="none"))) == {1e-3}


def test_paper_numbers():
    """spec: 1.55e-4 at step 2000 of a warm-up of 8000; the peak at step 7999 of 40000."""
    config = dataclasses.replace(CONFIG, iterations=40000)
    sgd = optimizer()
    assert make_schedule(sgd, config, 2000).get_last_lr()[0] == pytest.approx(1.55e-4, rel=1e-2)
    assert make_schedule(sgd, config, 7999).get_last_lr()[0] == pytest.approx(1e-3)


@pytest.mark.parametrize("scheduler", ["cos", "linear", "none"])
def test_resuming_at_a_step_gives_the_same_rates(scheduler):
    config = dataclasses.replace(CONFIG, scheduler=scheduler)
    straight = rates(config)
    for step in (0, 1, 39, 40, 41, 150, 199):
        sgd = optimizer()
        schedule = make_schedule(sgd, config, step)
        for expected in straight[step : step + 3]:
            assert schedule.get_last_lr()[0] == sgd.param_groups[0]["lr"] == expected
            sgd.step()
            if expected is not straight[-1]:
                schedule.step()


@pytest.mark.parametrize("iterations", [1, 2, 7, 10, 20, 21, 40])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.1, 0.5, 1.0])
def test_short_runs_and_any_warmup_work(iterations, warmup):
    """PyTorch's OneCycleLR divides by zero where the warm-up is exactly one step (20 iterations at 0.05)."""
    seen = rates(dataclasses.replace(CONFIG, iterations=iterations, warmup_percent=warmup))
    assert len(seen) == iterations and all(0 < rate <= 1e-3 * (1 + 1e-6) for rate in seen)
    if warmup * iterations == 1 < iterations:
        assert seen[0] == pytest.approx(1e-3)
