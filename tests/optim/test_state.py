"""Sums, seeds, optimisers, metrics: the small parts of the loop."""

import copy
import dataclasses
import json

import pytest
import torch

from errors import Failure
from models.config import ModelConfig
from models.language_model import LanguageModel
from optim.metrics import MetricsFile, curves, read_metrics
from optim.optimizers import OPTIMIZERS, make_optimizer
from optim.state import TrainState
from optim.train import PURPOSES, Interval, derive_seed, seed_torch
from tests.optim.test_optimizers import CONFIG


def network():
    torch.manual_seed(0)
    return LanguageModel(
        ModelConfig(model="ln_cotformer", vocab_size=20, n_layer=2, n_head=2, n_embd=8, bias=True)
    )


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizers_are_pytorchs(name):
    model = network()
    optimizer = make_optimizer(model, dataclasses.replace(CONFIG, opt=name))
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "adafactor": torch.optim.Adafactor}[name]
    assert type(optimizer) is kind
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert all(group["lr"] == CONFIG.lr for group in optimizer.param_groups)
    if name == "adamw":
        assert optimizer.defaults["betas"] == (0.9, 0.95) and optimizer.defaults["eps"] == 1e-8


def test_only_linear_weights_decay():
    model = network()
    optimizer = make_optimizer(model, CONFIG)
    decaying = {id(p) for p in optimizer.param_groups[0]["params"]}
    for name, parameter in model.named_parameters():
        linear = ".attn.c_" in name or ".mlp.c_" in name
        assert (id(parameter) in decaying) == (linear and name.endswith("weight")), name


def test_seeds_differ_by_each_argument():
    seeds = {
        derive_seed(seed, purpose, step, micro, part)
        for seed in (1, 2)
        for purpose in PURPOSES
        for step in (0, 1, 2)
        for micro in (0, 1, 2)
        for part in (0, 1)
    }
    assert len(seeds) == 2 * len(PURPOSES) * 18
    seed_torch(3, "forward", 4, 5)
    first = torch.rand(3)
    seed_torch(3, "forward", 4, 5)
    assert torch.equal(first, torch.rand(3))


def test_interval():
    interval = Interval()
    for loss, norm in ((4.0, 1.0), (2.0, 5.0), (3.0, None), (1.0, 3.0)):
        interval.add(loss, norm, seconds=0.5, lr=0.1)
    assert (interval.steps, interval.loss_sum, interval.seconds) == (4, 10.0, 2.0)
    assert (interval.norm_last, interval.norm_max, interval.norm_mean) == (3.0, 5.0, 3.0)
    assert Interval().norm_mean is None


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_state_goes_through_a_checkpoint_unchanged(name, tmp_path):
    """Two steps, save, two more; or load and two more: the same bits."""
    config = dataclasses.replace(CONFIG, opt=name, iterations=10)
    ids = torch.randint(0, 20, (2, 8))

    def walk(state, steps):
        for _ in range(steps):
            state.model(ids, ids)["loss"].backward()
            state.optimizer.step()
            state.optimizer.zero_grad()
            state.schedule.step()
            state.step += 1
            state.interval.add(1.0 / 3.0, 0.1, 0.7, lr=0.1)

    scaler = torch.amp.GradScaler("cpu", enabled=False)
    straight = TrainState.fresh(network(), config, scaler)
    walk(straight, 2)
    torch.save(straight.to_checkpoint(), tmp_path / "state.pt")
    walk(straight, 2)

    resumed = TrainState.fresh(network(), config, scaler)
    resumed.restore(torch.load(tmp_path / "state.pt", weights_only=True), config)
    assert resumed.step == 2 and resumed.optimizer.param_groups[0]["weight_decay"] == 0.1
    walk(resumed, 2)
    assert all(map(torch.equal, straight.model.state_dict().values(), resumed.model.state_dict().values()))
    assert straight.interval == resumed.interval
    assert straight.schedule.get_last_lr() == resumed.schedule.get_last_lr()


def test_a_checkpoint_of_another_network_is_refused():
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState.fresh(network(), CONFIG, scaler)
    content = state.to_checkpoint()
    del content["model"]["lm_head.weight"]
    with pytest.raises(Failure, match="does not fit the flags"):
        state.restore(content, CONFIG)
    with pytest.raises(Failure, match="no training checkpoint of this project"):
        state.restore({"model": {}}, CONFIG)


def trained(opt="adamw"):
    """A state after one step, its checkpoint, and its configuration."""
    config = dataclasses.replace(CONFIG, opt=opt, iterations=10)
    state = TrainState.fresh(network(), config, torch.amp.GradScaler("cpu", enabled=False))
    ids = torch.randint(0, 20, (2, 8))
    state.model(ids, ids)["loss"].backward()
    state.optimizer.step()
    state.step = 1
    return state, copy.deepcopy(state.to_checkpoint()), config


# A slot of the optimiser's state or a weight that the kernels of the next step would trust.
UNFIT = {
    "shape": lambda t: t.new_zeros(1),
    "larger": lambda t: t.new_zeros(2 * t.shape[0], t.shape[1]),
    "dtype": lambda t: t.double(),
    "integers": lambda t: t.long(),
    "strides": lambda t: t.t().contiguous().t(),
    "expanded": lambda t: t[:, :1].expand(t.shape),
    "not a tensor": lambda t: t.tolist(),
}


@pytest.mark.parametrize("place", ["model", "optimizer"])
@pytest.mark.parametrize("unfit", UNFIT)
def test_a_tensor_that_does_not_fit_its_weight_is_refused(place, unfit):
    state, content, config = trained()
    slots = content["model"] if place == "model" else content["optimizer"][0]
    name = "transformer.h_mid.0.attn.c_attn.weight" if place == "model" else "exp_avg"
    slots[name] = UNFIT[unfit](slots[name])
    with pytest.raises(Failure, match=f"does not fit the flags of this run: {name}"):
        state.restore(content, config)


def test_tensors_in_the_same_memory_are_refused():
    state, content, config = trained()
    slots = content["optimizer"]
    slots[1]["exp_avg"] = slots[1]["exp_avg_sq"]
    with pytest.raises(Failure, match="exp_avg of weight 1 and exp_avg_sq of weight 1 share their memory"):
        state.restore(content, config)
    state, content, config = trained()
    content["model"]["lm_head.weight"] = content["model"]["lm_head.weight"] + 1
    with pytest.raises(Failure, match="tied, and differ"):
        state.restore(content, config)


@pytest.mark.parametrize("one", sorted(OPTIMIZERS))
@pytest.mark.parametrize("other", sorted(OPTIMIZERS))
def test_the_state_of_another_optimiser_is_refused(one, other):
    (state, _, config), (_, content, _) = trained(one), trained(other)
    if one == other:
        state.restore(content, config)
    else:
        with pytest.raises(Failure, match=f"and --opt {one} has"):
            state.restore(content, config)


@pytest.mark.parametrize("lost", ["a weight's", "all"])
def test_missing_state_of_the_optimiser_is_noticed(lost):
    state, content, config = trained()
    if lost == "all":
        content["optimizer"] = {}
    else:
        del content["optimizer"][1]
    with pytest.raises(Failure, match=r"has no state of the optimiser|has the state of"):
        state.restore(content, config)


@pytest.mark.parametrize(
    "damage",
    [{"scale": float("nan")}, {"scale": "1"}, {"scale": -1.0}, {"_growth_tracker": torch.ones(1)}],
    ids=str,
)
def test_a_gradient_scaler_that_does_not_fit_is_refused(damage):
    state, content, config = trained()
    state.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(Failure, match=f"its gradient scaler has the {next(iter(damage))}"):
        state.restore(content | {"scaler": state.scaler.state_dict() | damage}, config)


def test_a_run_changes_to_float16_and_back():
    """Its scaler starts afresh, as no other format has one; and is left alone afterwards."""
    state, content, config = trained()
    assert content["scaler"] == {}
    state.scaler = torch.amp.GradScaler("cpu")
    fresh = state.scaler.state_dict()
    state.restore(content, config)
    assert state.scaler.state_dict() == fresh
    content["scaler"] = fresh | {"scale": 512.0}
    state.restore(content, config)
    assert state.scaler.get_scale() == 512.0
    state.scaler = torch.amp.GradScaler("cpu", enabled=False)
    state.restore(content, config)


@pytest.mark.parametrize(
    "damage", [{"interval": {"loss_sum": "1"}}, {"seconds": None}, {"step": None}], ids=str
)
def test_counters_that_are_missing_or_no_numbers_are_refused(damage):
    state, content, config = trained()
    content |= damage
    for name in [name for name, value in damage.items() if value is None]:
        del content[name]
    with pytest.raises(Failure, match="does not fit the flags"):
        state.restore(content, config)


def lines(*steps):
    return [{"step": step, "train_loss": 1.0 / step, "lr": 0.1} for step in steps]


def test_metrics_are_cut_back_to_the_resumed_step(tmp_path):
    first = MetricsFile(tmp_path, 0)
    for line in lines(10, 20, 30):
        first.append(line)
    second = MetricsFile(tmp_path, 20)
    second.append({"step": 30, "train_loss": 7.0, "lr": 0.1, "val_loss": 2.0})
    assert read_metrics(tmp_path) == [
        *lines(10, 20),
        {"step": 30, "train_loss": 7.0, "lr": 0.1, "val_loss": 2.0},
    ]
    summary = curves(read_metrics(tmp_path))
    assert summary["train_loss"] == [0.1, 0.05, 7.0] and summary["steps"] == [10, 20, 30]
    assert summary["val_loss"] == [2.0] and summary["val_steps"] == [30]


def test_a_line_cut_by_a_power_failure_is_left_out(tmp_path):
    text = json.dumps(lines(10)[0]) + '\n{"step": 20, "trai'
    (tmp_path / "metrics.jsonl").write_text(text)
    MetricsFile(tmp_path, 100)
    assert read_metrics(tmp_path) == lines(10)


def test_a_sample_may_hold_any_character(tmp_path):
    """Some characters end a line for Python's splitlines, but not in JSON."""
    sample = "one\u2028two\u0085three\nfour"
    metrics = MetricsFile(tmp_path, 0)
    metrics.append({"step": 1, "sample": sample})
    MetricsFile(tmp_path, 1)
    assert read_metrics(tmp_path) == [{"step": 1, "sample": sample}]


def test_missing_metrics_are_said(tmp_path):
    with pytest.raises(Failure, match="is missing or holds no line yet"):
        read_metrics(tmp_path)
