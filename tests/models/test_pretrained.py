"""Exported models: written, read again, and refused where they are not whole."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from errors import Failure, UsageError
from files import file_sha256
from models import ModelConfig, pretrained
from models.language_model import LanguageModel

SMALL = ModelConfig(vocab_size=50, sequence_length=16, n_layer=3, n_head=2, n_embd=16, n_repeat=3)
REPEATED = replace(SMALL, n_layer_begin=1, n_layer_end=1, depth_embedding="linear_learned")
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
CONFIGS = [
    replace(SMALL, model="base", bias=True),
    replace(REPEATED, model="ln_cotformer"),
    replace(REPEATED, model="adm", eval_length_factor=[0.8, 0.4]),
    replace(REPEATED, model="adaptive_but"),
    replace(REPEATED, model="stick_breaking"),
    replace(REPEATED, model="pondernet"),
    replace(REPEATED, model="mla_ln_cotformer", **LATENT),
    replace(SMALL, model="pause", n_pause=2),
]


def trained(config):
    """A model none of whose weights is what a fresh one begins with."""
    torch.manual_seed(1)
    model = LanguageModel(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


@pytest.fixture
def folder(tmp_path):
    pretrained.save(tmp_path / "model", trained(CONFIGS[1]), step=7)
    return tmp_path / "model"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model)
def test_bit_for_bit(config, tmp_path):
    model = trained(config).eval()
    pretrained.save(tmp_path / "model", model, step=7, args={"lr": 1e-3})
    read = models.from_pretrained(str(tmp_path / "model"))
    assert read.config == config and not read.training
    assert read.lm_head.weight is read.transformer.wte.weight
    before, after = model.state_dict(), read.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    idx = torch.randint(50, (2, 16))
    with torch.no_grad():
        logits = [m(idx, targets=idx, get_logits=True)["logits"] for m in (model, read)]
    assert torch.equal(*logits)


def test_files_and_names_of_an_export(folder):
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    weights = load_file(folder / "model.safetensors")
    assert "transformer.wte.weight" in weights and "lm_head.weight" not in weights
    about = json.loads((folder / "config.json").read_text())
    assert about["step"] == 7 and about["model"]["n_embd"] == 16
    assert about["parameters"] == sum(weight.numel() for weight in weights.values())


def test_nothing_is_overwritten_and_nothing_left_behind(folder, monkeypatch):
    with pytest.raises(UsageError, match="exists; give another name"):
        pretrained.save(folder, trained(CONFIGS[0]))
    monkeypatch.setattr(pretrained.os, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(Failure, match=r"cannot write .*: No space"):
        pretrained.save(folder.with_name("other"), trained(CONFIGS[0]))
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_damage_is_named(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-4] + bytes(4))
    with pytest.raises(Failure, match=r"model\.safetensors is damaged, or of another model: its checksum"):
        models.from_pretrained(folder)
    path.write_bytes(content[:100])
    with pytest.raises(Failure, match="its checksum"):
        models.from_pretrained(folder)
    path.unlink()
    with pytest.raises(Failure, match="missing or damaged"):
        models.from_pretrained(folder)
    (folder / "config.json").write_text('{"format"')
    with pytest.raises(Failure, match=r"config\.json is damaged"):
        models.from_pretrained(folder)


def rewrite(folder, weights=None, **changes):
    """As someone would who edits the files, checksum and all."""
    path = folder / "config.json"
    about = json.loads(path.read_text())
    if weights is not None:
        save_file(weights, folder / "model.safetensors")
        about["sha256"] = file_sha256(folder / "model.safetensors")
    about["model"] |= changes
    path.write_text(json.dumps(about))


def test_weights_of_another_network(folder):
    weights = load_file(folder / "model.safetensors")
    rewrite(folder, {**weights, "extra": torch.zeros(1)})
    with pytest.raises(Failure, match="holds, besides those of the network, extra"):
        models.from_pretrained(folder)
    del weights["transformer.ln_f.weight"]
    rewrite(folder, weights)
    with pytest.raises(Failure, match=r"model\.safetensors lacks transformer\.ln_f\.weight"):
        models.from_pretrained(folder)


def test_weights_that_are_no_floating_point_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    name = "transformer.ln_f.weight"
    rewrite(folder, {**weights, name: weights[name].long()})
    with pytest.raises(Failure, match=rf"{name} is torch.int64; weights are floating-point numbers"):
        models.from_pretrained(folder)


def test_sizes_and_fields_are_checked(folder):
    rewrite(folder, vocab_size=51)
    with pytest.raises(Failure, match=r"has the shape \[50, 16\], and \[51, 16\] in this network"):
        models.from_pretrained(folder)
    for change in ({"n_embd": 17}, {"n_embd": "16"}, {"colour": "red"}, {"model": "gpt"}):
        rewrite(folder, **{"vocab_size": 50, "n_embd": 16, **change})
        with pytest.raises(Failure, match=r"config.json describes no network of this version"):
            models.from_pretrained(folder)


def test_foreign_folders(folder, tmp_path):
    with pytest.raises(UsageError, match=r"is no exported model: it has no config.json"):
        models.from_pretrained(tmp_path)
    (folder / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(UsageError, match="is not of an exported model of this project"):
        models.from_pretrained(folder)
