"""Number for number against outputs of the released code: tests/golden, and ../shared/golden where it is."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import models
from models.generation import generate
from optim.config import TrainConfig
from optim.optimizers import make_optimizer, parameter_groups
from optim.schedules import make_schedule

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden" / "public")
ATOL = 2e-5
RTOL_GRADIENT = 1e-4


def cases():
    """Every case of a model that is registered; the copies in tests/golden stand for those in shared/."""
    found = {}
    for path in (path for folder in FOLDERS for path in sorted(folder.glob("*/case.json"))):
        model = json.loads(path.read_text())["config"]["model"]
        if model in models.registered_models():
            found.setdefault(path.parent.name, path.parent)
    return found


CASES = cases()


class Case:
    def __init__(self, folder: Path) -> None:
        self.expected = json.loads((folder / "case.json").read_text())
        self.args = types.SimpleNamespace(**self.expected["config"])
        self.io = {name: torch.from_numpy(array) for name, array in np.load(folder / "io.npz").items()}
        self.idx, self.targets = self.io["idx"].long(), self.io["targets"].long()
        weights = models.import_original_state_dict(load_file(folder / "weights.safetensors"), self.args)
        self.model = models.make_model_from_args(self.args)
        self.model.load_state_dict(weights, strict=True)
        self.model.eval()


@pytest.fixture(params=sorted(CASES))
def case(request):
    return Case(CASES[request.param])


def test_every_copied_case_is_used():
    assert len(list(FOLDERS[0].glob("*/case.json"))) >= 12
    assert {path.parent.name for path in FOLDERS[0].glob("*/case.json")} <= set(CASES)


@pytest.mark.parametrize("tag", ["none", "short", "last_only", "ignore"])
def test_evaluation(case, tag):
    expected = case.expected["eval"][tag]
    length = expected["T"]
    targets = {"last_only": None, "ignore": case.io["targets_with_ignore"].long()}.get(tag, case.targets)
    targets = targets if targets is None else targets[:, :length]
    output = case.model(case.idx[:, :length], targets, get_logits=True)
    if tag == "last_only":
        assert output["loss"] is None
    else:
        assert output["loss"].item() == pytest.approx(expected["loss"], abs=ATOL)
    if f"eval.{tag}.logits" in case.io:
        assert output["logits"].shape == case.io[f"eval.{tag}.logits"].shape
        torch.testing.assert_close(output["logits"], case.io[f"eval.{tag}.logits"], atol=ATOL, rtol=0)
    assert output["average_depth"] == (expected["average_depth"] or case.args.n_layer)


def test_activations_of_every_block(case):
    """Each block's output at each call, in the released code's order of calls."""
    found = {}

    def record(name):
        def hook(module, inputs, output):
            found.setdefault(name, []).append(output)

        return hook

    prefix = "eval.none.act."
    names = {name.removeprefix(prefix).rsplit(".call", 1)[0] for name in case.io if name.startswith(prefix)}
    modules = dict(case.model.named_modules())
    handles = [modules[name].register_forward_hook(record(name)) for name in names]
    case.model(case.idx, case.targets)
    for handle in handles:
        handle.remove()
    compared = 0
    for key in (key for key in case.io if key.startswith(prefix)):
        name, call = key.removeprefix(prefix).rsplit(".call", 1)
        torch.testing.assert_close(found[name][int(call)], case.io[key], atol=ATOL, rtol=1e-5)
        compared += 1
    assert compared >= case.args.n_layer


def joined(expected, name, square):
    """Ours joins what some released models split: q_attn and c_attn."""
    split = name.replace(".c_attn.", ".q_attn.")
    if split == name or split not in expected:
        return expected[name]
    both = expected[name], expected[split]
    return (both[0] ** 2 + both[1] ** 2) ** 0.5 if square else sum(both)


def test_gradients(case):
    for expected in case.expected["train"].values():
        case.model.train()
        output = case.model(case.idx, case.targets)
        assert output["loss"].item() == pytest.approx(expected["loss"], abs=ATOL)
        case.model.zero_grad()
        output["loss"].backward()
        for name, parameter in case.model.named_parameters():
            norm = parameter.grad.norm().item()
            assert norm == pytest.approx(joined(expected["grad_l2"], name, True), rel=RTOL_GRADIENT), name
            along = (parameter.grad * parameter).sum().item()
            assert along == pytest.approx(
                joined(expected["grad_dot_param"], name, False), rel=RTOL_GRADIENT, abs=ATOL
            ), name


def test_weight_decay_groups(case):
    names = {parameter: name for name, parameter in case.model.named_parameters()}
    decaying, others = ({names[p] for p in group["params"]} for group in parameter_groups(case.model, 0.1))
    expected = {
        name.replace(".q_attn.", ".c_attn.") for name in case.expected["weight_decay_groups"]["decay"]
    }
    assert decaying == expected
    assert others == set(case.expected["weight_decay_groups"]["no_decay"])


def test_optimizer_walk(case):
    """Six steps of AdamW under the cosine schedule on one batch: losses, rates, norms, final weights."""
    args = types.SimpleNamespace(
        **{**vars(case.args), "iterations": 20, "warmup_percent": 0.2, "log_freq": None, "lr": 1e-3}
    )
    config = TrainConfig.from_args(args)
    optimizer = make_optimizer(case.model, config)
    schedule = make_schedule(optimizer, config)
    case.model.train()
    for expected in case.expected["optimizer_walk"]["steps"]:
        loss = case.model(case.idx, case.targets)["loss"]
        assert loss.item() == pytest.approx(expected["loss"], abs=ATOL)
        if "grad_norm" not in expected:
            break
        assert schedule.get_last_lr()[0] == pytest.approx(expected["lr"], rel=1e-9)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in case.model.parameters()]).item()
        assert norm == pytest.approx(expected["grad_norm"], rel=RTOL_GRADIENT)
        optimizer.step()
        schedule.step()
    for name, parameter in case.model.named_parameters():
        expected = joined(case.expected["optimizer_walk"]["param_l2_after"], name, True)
        assert parameter.norm().item() == pytest.approx(expected, rel=RTOL_GRADIENT), name


def test_greedy_generation(case):
    for expected in case.expected["generate"].values():
        prompt = torch.tensor([expected["prompt"]])
        drawn = generate(case.model, prompt, expected["max_new_tokens"], top_k=1)
        assert expected["prompt"] + [int(token) for token in drawn] == expected["output"]


def test_parameter_count(case):
    assert case.model.parameter_count() == case.expected["n_params"]
