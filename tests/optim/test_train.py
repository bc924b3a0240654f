"""The loop by itself: on a toy that is no language model, with hooks that write down when they are called.

And single steps of real models: how their gradients are accumulated.
"""

import contextlib
import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from data.batches import Batches, MicroBatch
from distributed import choose_precision
from distributed.parallel import RankSlice, SingleProcess
from errors import Failure
from optim.progress import Progress
from optim.state import TrainState
from optim.train import train, training_step
from tests.models.reference import RESERVED, make
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
    batches = [MicroBatch(torch.tensor([[value]]), torch.zeros(1), 1) for value in values]

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


@pytest.mark.parametrize(
    ("norms", "spikes"),
    [
        ([1.0] * 40, []),
        ([1.0] * 19 + [20.0], [20]),
        ([1.0] * 19 + [4.9], []),
        ([1.0] * 9 + [20.0] + [1.0] * 9, []),  # too early to tell
        ([20.0 * 0.8**i for i in range(40)], []),  # a young run
        ([1.0, 9.0] * 20 + [17.0], []),  # they scatter
        ([1.0] * 20 + [20.0, 50.0, 120.0, 30.0] + [1.0] * 20, [21]),  # once for each of them
        ([1.0] * 20 + [20.0] + [1.0] * 5 + [60.0], [21, 27]),
        ([1.0] * 20 + [20.0] * 200, [21]),  # the norm to be expected from now on
    ],
)
def test_spikes_are_warned_of_once(capsys, norms, spikes):
    freq = len(norms)
    run(norms, iterations=freq, eval_freq=freq, log_freq=freq)
    said = re.findall(r"warning: a gradient spike: the norm at step (\d+)", capsys.readouterr().out)
    assert [int(step) for step in said] == spikes


@pytest.mark.parametrize(("log_freq", "said"), [(1000, True), (4, False), (6, True)])
def test_the_time_left_is_said_after_a_few_steps(scripts, log_freq, said):
    done = scripts.train(f"--iterations 12 --log_freq {log_freq} --eval_freq 12")
    lines = [line for line in done.stdout.splitlines() if line.startswith("step 5/12  about ")]
    assert len(lines) == said and all("left" in line for line in lines)


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


MODELS = {
    "base": {},
    "ln_cotformer": {**RESERVED, "depth_embedding": "linear_learned", "loss": "plain"},
    "adm": {**RESERVED, "training_length_factor": [0.6, 0.3]},
    "stick_breaking": {"depth_predictor_loss_coef": 0.5},
    "pondernet": {"ponder_kl_div_loss_weight": 0.5},
    "pause": {"n_pause": 2},
}
COUNTED = [9, 1, 0, 4, 9, 2]  # of the 9 targets of each sequence


class Sequences:
    """Given sequences as `data.batches.Windows`, always in the same order."""

    def __init__(self, ids, targets):
        self.ids, self.targets = ids, targets
        self.count = self.epoch_size = len(ids)
        self.length = ids.shape[1]

    def gather(self, indices):
        return self.ids[indices].clone(), self.targets[indices].clone()

    def epoch(self, generator):
        return np.arange(self.count)


def sequences(counted=COUNTED):
    generator = torch.Generator().manual_seed(5)
    ids, targets = torch.randint(0, 31, (2, len(counted), 9), generator=generator)
    for row, count in zip(targets, counted, strict=True):
        row[count:] = -1
    return ids, targets


def one_step(network, ids, targets, batch_size, rank_slice=None):
    """One step of rate 1 over micro-batches of batch_size sequences: (loss, norm, gradients)."""
    acc_steps = len(ids) // batch_size
    config = dataclasses.replace(
        CONFIG, batch_size=batch_size, acc_steps=acc_steps, opt="sgd", lr=1.0, scheduler="none",
        weight_decay=0.0,
    )  # fmt: skip
    state = TrainState.fresh(network.train(), config, torch.amp.GradScaler("cpu", enabled=False))
    rank_slice = rank_slice or RankSlice.of(batch_size, acc_steps, 0, 1)
    windows = Sequences(ids, targets)
    batches = Batches(windows, batch_size, acc_steps, seed=0).prefetched(
        range(1), range(acc_steps), slice(None), pin=False
    )
    before = [weight.detach().clone() for weight in network.parameters()]
    never = lambda step: False  # noqa: E731
    loss, norm = training_step(
        state, network, batches, rank_slice, config, contextlib.nullcontext(), SingleProcess(), never
    )
    return loss, norm, [old - new for old, new in zip(before, network.parameters(), strict=True)]


@pytest.mark.parametrize("model", MODELS)
def test_a_step_is_the_same_however_its_sequences_are_cut(model):
    """Its loss and gradients are those of one forward pass over all its sequences."""
    ids, targets = sequences()
    network = make(model, **MODELS[model]).train()
    expected = network(ids, targets)["loss"]
    gradients = torch.autograd.grad(expected, list(network.parameters()), allow_unused=True)
    for batch_size in (6, 3, 2, 1):
        loss, _, found = one_step(make(model, **MODELS[model]), ids, targets, batch_size)
        assert loss == pytest.approx(expected.item(), rel=1e-6)  # it is logged in float32
        for mine, reference in zip(found, gradients, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


def test_where_every_target_counts_a_step_is_a_mean_over_micro_batches():
    """To the last bit, whatever is done for targets that do not count."""
    ids, targets = sequences([9] * 6)
    network = make("stick_breaking").float()
    weights = list(network.train().parameters())
    for part in range(3):
        (network(ids[2 * part : 2 * part + 2], targets[2 * part : 2 * part + 2])["loss"] / 3).backward()
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights])
    expected = [weight.detach() - (weight.detach() - weight.grad) for weight in weights]
    _, found_norm, found = one_step(make("stick_breaking").float(), ids, targets, 2)
    assert found_norm == norm.item() and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("model", ["base", "ln_cotformer", "pondernet"])
def test_a_step_without_any_target_changes_nothing(model):
    ids, targets = sequences([0, 0])
    fields = {**MODELS[model], "ponder_kl_div_loss_weight": 0.0}
    loss, norm, found = one_step(make(model, **fields), ids, targets, 1)
    assert loss == norm == 0.0 and not any(map(torch.any, found))


def test_ranks_that_split_a_micro_batch_share_capacities_but_not_dropout():
    ids, targets = sequences([9, 9])
    seen = {}
    for dropout in (0.0, 0.5):
        for part in (0, 1):
            network = make("adm", **RESERVED, dropout=dropout)
            outputs = []
            network.register_forward_hook(lambda *args, outputs=outputs: outputs.append(args[-1]))
            loss, _, _ = one_step(network, ids, targets, 2, RankSlice(0, 1, slice(2 * part, 2 * part + 2)))
            seen[dropout, part] = outputs[0]["tokens_per_pass"], loss
    assert len({tuple(counts) for counts, _ in seen.values()}) == 1
    assert seen[0.0, 0] == seen[0.0, 1] and seen[0.5, 0] != seen[0.5, 1]
