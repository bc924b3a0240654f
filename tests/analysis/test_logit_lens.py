"""The logit lens against models that stop at a depth; the command line."""

import json

import pytest
import torch

from analysis.lens import MEASURES, logit_lens, measure
from tests.analysis.test_kv_compression import MODELS, ROUTED, make

SHALLOWER = ("but", "cotformer")  # whose weights do not depend on the number of repeats


def batches(count=3):
    generator = torch.Generator().manual_seed(1)
    made = [torch.randint(32, (2, 13), generator=generator) for _ in range(count)]
    return [(tokens[:, :-1], tokens[:, 1:]) for tokens in made]


@torch.no_grad()
def loss_of(model, **routing):
    losses = [
        model(inputs, targets=targets, **routing)["cross_entropy_loss"] for inputs, targets in batches()
    ]
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("name", SHALLOWER)
def test_each_repeat_predicts_as_a_model_with_that_many_repeats(name):
    deep = make(name)
    depths = logit_lens(deep, batches(), None, layers=True)
    for repeat in (1, 2, 3):
        shallow = make(name, n_repeat=repeat)
        shallow.load_state_dict(deep.state_dict())
        assert depths[f"repeat {repeat}"]["loss"] == pytest.approx(loss_of(shallow), rel=1e-10)
    assert len({round(measured["loss"], 6) for measured in depths.values()}) >= 9


@pytest.mark.parametrize("name", MODELS)
def test_the_last_repeat_is_the_model(name):
    model, routing = make(name), ROUTED if name.startswith("ad") else {}
    last = logit_lens(model, batches(), None, **routing)["repeat 1" if name == "base" else "repeat 3"]
    assert last["loss"] == pytest.approx(loss_of(model, **routing), rel=1e-10)
    assert last["agreement"] == 1.0 and last["divergence"] == pytest.approx(0.0, abs=1e-10)


def test_without_the_end_blocks():
    model = make("ln_cotformer")
    through, without = (
        logit_lens(model, batches(), None, through_end_blocks=value) for value in (True, False)
    )
    assert through.keys() == without.keys() and through != without
    layers = logit_lens(model, batches(), None, layers=True, through_end_blocks=False)
    assert layers["end 0"]["loss"] == pytest.approx(loss_of(model), rel=1e-10)
    assert list(layers)[:3] == ["begin 0", "middle 0, repeat 1", "middle 1, repeat 1"]


def test_loss_accuracy_and_divergence_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()
    final = torch.tensor([[2.0, 0.0], [1.0, 0.0]]).double()
    found = measure(logits, final, torch.tensor([0, -1]))
    p = torch.tensor(1.0).double().sigmoid().item()
    assert found[0].tolist() == pytest.approx([-torch.tensor(2.0).sigmoid().log().item(), 1.0, 1.0, 0.0])
    assert found[1, :2].isnan().all() and found[1, 2] == 0.0
    assert found[1, 3].item() == pytest.approx(2 * p - 1)  # p log(p / q) + q log(q / p), with log(p / q) = 1


def test_command(trained, tmp_path):
    scripts = trained("--model ln_cotformer --n_layer 3 --n_layer_end 1 --n_repeat 2", into=tmp_path / "exps")
    folder = scripts.folder("cotformer_full_depth_lnmid_depthemb")
    said = scripts.run("-m analysis.logit_lens", f"--checkpoint {folder} --layers --device cpu").stdout
    content = json.loads((folder / "logit_lens_ckpt.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    assert content["depths"]["repeat 2"]["loss"] == pytest.approx(summary["val_loss"][-1], rel=1e-5)
    assert all(set(measured) == set(MEASURES) for measured in content["depths"].values())
    assert "middle 1, repeat 2" in said
    assert (folder / "logit_lens_ckpt.png").stat().st_size > 1000
    scripts.refuse("-m analysis.logit_lens", f"--checkpoint {folder} --layer", 2, "did you mean --layers?")
