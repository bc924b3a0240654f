"""The loop by itself: on a toy that is no language model, with hooks that write down when they are called."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from distributed.precision import choose_precision
from errors import Failure
from optim.progress import Progress
from optim.state import TrainState
from optim.train import train
from tests.optim.test_schedules import CONFIG


class Toy(nn.Module):
    """The mean of w * x, whose gradient is the mean of x: losses and norms can be foretold."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)

    def forward(self, inputs, targets):
        return {"loss": self.linear(inputs).mean()}


def run(values, step=0, **changes):
    """Train on micro-batches of one value each; returns the state and what the hooks were called with."""
    changes = {"acc_steps": 1, "opt": "sgd", "scheduler": "none", "weight_decay": 0.0, **changes}
    config = dataclasses.replace(CONFIG, **changes)
    precision = choose_precision("torch.float32", torch.device("cpu"))
    state = TrainState.fresh(Toy(), config, precision.gradient_scaler())
    state.step = step
    called = {"evaluate": [], "log": [], "save": []}
    progress = Progress(config, step)
    batches = [(torch.tensor([[value]]), torch.zeros(1)) for value in values]

    def evaluate(step):
        called["evaluate"].append(step)
        return {"val_loss": 0.0}

    try:
        train(
            state, state.model, batches, config, precision,
            evaluate=evaluate, log=called["log"].append, save=lambda: called["save"].append(state.step),
            progress=progress,
        )  # fmt: skip
    finally:
        progress.close()
    return state, called


def test_hooks_are_called_at_their_intervals():
    _, called = run([1.0] * 23, iterations=23, eval_freq=10, log_freq=4, save_checkpoint_freq=5)
    assert called["evaluate"] == [10, 20, 23]
    assert [line["step"] for line in called["log"]] == [4, 8, 10, 12, 16, 20, 23]
    assert called["save"] == [5, 10, 15, 20]


def test_nothing_happens_between_the_last_step_and_the_end():
    _, called = run([1.0] * 20, iterations=20, eval_freq=10, log_freq=10, save_checkpoint_freq=10)
    assert called["save"] == [10]  # the final checkpoint is the caller's


def test_norms_of_the_interval():
    _, called = run([1.0, 3.0, 2.0, 4.0], iterations=4, eval_freq=4, log_freq=2, save_checkpoint_freq=None)
    first, second = called["log"]
    assert (first["grad_norm"], first["max_grad_norm"], first["mean_grad_norm"]) == (3.0, 3.0, 2.0)
    assert (second["grad_norm"], second["max_grad_norm"], second["mean_grad_norm"]) == (4.0, 4.0, 3.0)


def test_accumulation_is_a_mean():
    _, called = run([1.0, 3.0], iterations=1, acc_steps=2, grad_clip=0.5, lr=0.1)
    assert called["log"][0]["grad_norm"] == 2.0


@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_the_update_uses_the_clipped_gradient(limit):
    torch.manual_seed(0)
    before = Toy().linear.weight.item()
    torch.manual_seed(0)
    state, _ = run([2.0], iterations=1, grad_clip=limit, lr=0.1)
    expected = before - 0.1 * (2.0 if limit == 0 else limit)
    assert state.model.linear.weight.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(bad):
    with pytest.raises(Failure, match=r"at step 3: training has stopped before this update"):
        run([1.0, 1.0, bad, 1.0], iterations=4)


def test_spikes_are_warned_of(capsys):
    run([1.0] * 19 + [20.0], iterations=20, eval_freq=20, log_freq=20)
    assert "warning: a gradient spike" in capsys.readouterr().out
    run([1.0] * 19 + [5.0], iterations=20, eval_freq=20, log_freq=20)
    assert "spike" not in capsys.readouterr().out
