"""The loop by itself: on a toy that is no language model, with hooks that write down when they are called."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from distributed import choose_precision
from distributed.parallel import SingleProcess
from errors import Failure
from optim.progress import Progress
from optim.state import TrainState
from optim.train import MicroBatch, train
from tests.optim.test_optimizers import CONFIG


class Toy(nn.Module):
    """The mean of w * x, whose gradient is the mean of x: losses and norms can be foretold."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)

    def forward(self, inputs, targets):
        return {"loss": self.linear(inputs).mean()}


def run(values, step=0, stop_at=None, evaluate=lambda step: {"val_loss": 0.0}, state=None, **changes):
    """Train on micro-batches of one value each; returns the state and what the hooks were called with.

    stop_at: the question, counted from 1, to which the answer is to stop.
    """
    changes = {"acc_steps": 1, "opt": "sgd", "scheduler": "none", "weight_decay": 0.0, **changes}
    config = dataclasses.replace(CONFIG, **changes)
    precision = choose_precision("torch.float32", torch.device("cpu"))
    if state is None:
        state = TrainState.fresh(Toy(), config, precision.gradient_scaler())
        state.step = step
    called = {"evaluate": [], "log": [], "save": [], "stop": []}
    progress = Progress(config.iterations, step)
    batches = [MicroBatch(torch.tensor([[value]]), torch.zeros(1)) for value in values]

    def evaluated(step):
        called["evaluate"].append(step)
        return evaluate(step)

    def stop(step):
        called["stop"].append(state.step)
        return len(called["stop"]) == stop_at

    try:
        called["finished"] = train(
            state, state.model, batches, config, precision, SingleProcess(),
            evaluate=evaluated, stop=stop, log=called["log"].append,
            save=lambda: called["save"].append(state.step),
            bar=progress.bar,
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


def test_a_stop_leaves_the_state_after_the_last_full_step():
    """`stop` is asked after each micro-batch; the interrupted step is repeated."""
    state, called = run([2.0] * 6, iterations=3, acc_steps=2, stop_at=4)
    assert called["stop"] == [0, 0, 1, 1] and not called["finished"]
    assert state.step == 1 and state.interval.steps == 1
    assert state.model.linear.weight.grad is None
    rest, _ = run([2.0] * 4, iterations=3, acc_steps=2, state=state)
    torch.manual_seed(0)
    straight, _ = run([2.0] * 6, iterations=3, acc_steps=2)
    assert rest.step == straight.step == 3


def test_a_stop_in_an_evaluation_leaves_its_line_to_be_written():
    state, called = run([1.0] * 6, iterations=6, eval_freq=3, log_freq=3, evaluate=lambda step: None)
    assert state.step == 3 and called["log"] == [] and not called["finished"]
    _, later = run([1.0] * 3, iterations=6, eval_freq=3, log_freq=3, state=state)
    assert [line["step"] for line in later["log"]] == [3, 6] and later["finished"]
    assert later["evaluate"] == [3, 6]


def test_the_rate_is_constant_after_a_schedule():
    lines = run([1.0] * 12, iterations=12, scheduled=8, scheduler="cos", log_freq=1, eval_freq=12)[1]["log"]
    rates = [line["lr"] for line in lines]
    alone = [line["lr"] for line in run([1.0] * 8, iterations=8, scheduler="cos", log_freq=1)[1]["log"]]
    assert rates[:8] == alone and rates[8:] == [alone[-1]] * 4
