"""Attention maps of the last token (Figure 6) against a plain softmax over all keys; the scripts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from analysis.attention_maps import (
    choose_heads,
    choose_layer,
    measure_last_token,
    read_attention,
    write_attention,
)
from analysis.command import require_possible, sees_all_passes
from analysis.hooks import Layer, layers_of, watch_attention
from errors import Failure, UsageError
from models import ModelConfig
from models.embeddings import rotate
from plots import figure6
from tests.analysis.test_kv_compression import make, text

REPEATS, LENGTH = 3, 12


@torch.no_grad()
def plain(model, layer, window=None, n_repeat=REPEATS):
    """(H, R, T), from what the layer's projection gave in every pass."""
    outputs, probabilities = [], []
    block = layers_of(model)[Layer("middle", layer)]
    handle = block.attn.c_attn.register_forward_hook(lambda module, args, output: outputs.append(output))
    rotation = model.positions(torch.arange(LENGTH))
    for inputs, _ in text():
        outputs.clear()
        model(inputs)
        heads = [[part.unflatten(-1, (2, -1)) for part in output.chunk(3, -1)] for output in outputs]
        assert len(heads) == n_repeat
        query = rotate(heads[-1][0], rotation)[:, -1]  # (B, H, D)
        keys = torch.stack([rotate(key, rotation) for _, key, _ in heads], 1)  # (B, R, T, H, D)
        scores = torch.einsum("bhd,brthd->bhrt", query, keys) / query.shape[-1] ** 0.5
        if window is not None:
            scores[..., : LENGTH - window] = -torch.inf
        probabilities.append(scores.flatten(-2).softmax(-1).unflatten(-1, (n_repeat, LENGTH)))
    handle.remove()
    return torch.cat(probabilities).mean(0)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("name", ["cotformer", "ln_cotformer", "adm"])
@pytest.mark.parametrize("layer", [0, 1])
def test_mean_over_windows(name, window, layer):
    model = make(name, window)
    found = measure_last_token(model, text(), None, layer)
    assert found.windows == 6
    torch.testing.assert_close(found.mean, plain(model, layer, window), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.mean.sum((1, 2)), torch.ones(2).double())


def test_a_single_repeat():
    model = make("cotformer", n_repeat=1)
    torch.testing.assert_close(measure_last_token(model, text(), None, 0).mean, plain(model, 0, n_repeat=1))


@pytest.mark.parametrize("name", ["cotformer", "adm"])
def test_only_one_layer_is_looked_at(name):
    model, seen = make(name), []
    with watch_attention(model, lambda call: seen.append((call.layer, call.repeat)), only=Layer("middle", 1)):
        model(text(1)[0][0])
    assert seen == [(Layer("middle", 1), repeat) for repeat in (1, 2, 3)]


@pytest.mark.parametrize("routing", [{"length_factors": [0.7, 0.4]}, {"thresholds": [0.0, 0.5]}])
def test_halting_tokens_are_refused(routing):
    with pytest.raises(UsageError, match="every token takes every pass"):
        measure_last_token(make("adm"), text(), None, 0, **routing)


def test_commands(trained, tmp_path):
    scripts = trained("--model ln_cotformer --n_layer 3 --n_layer_end 1 --n_repeat 2", into=tmp_path / "exps")
    folder = next((scripts.results / "shakespeare-char").glob("*/*"))
    said = scripts.run("get_attention.py", f"--checkpoint {folder} --heads 1 0 --device cpu").stdout
    assert "middle layer 1" in said and str(folder / "attention_ckpt.npz") in said
    attention, about = read_attention(folder / "attention_ckpt.json")
    assert (about["heads"], about["layer"], about["n_repeat"]) == ([1, 0], 1, 2)
    assert attention.shape == (2, 2, 16) and attention.sum((1, 2)) == pytest.approx([1.0, 1.0], abs=1e-6)
    assert about["by_repeat"]["1"] == pytest.approx(attention[0].sum(-1).tolist())
    assert about["windows"] == about["tokens"] // 16
    scripts.run("plot_fig6.py", f"{folder} --heads 0 --output {tmp_path / '6.pdf'}")
    assert (tmp_path / "6.pdf").read_bytes().startswith(b"%PDF")
    scripts.refuse(
        "plot_fig6.py", f"{tmp_path}", 2, "holds no attention_*.npz", "python get_attention.py --checkpoint"
    )
    flags = f"--checkpoint {folder}"
    scripts.refuse("get_attention.py", f"{flags} --layer 2", 2, "the middle has layers 0 to 1")
    scripts.refuse("-m analysis.router", flags, 2, "is for checkpoints of adm, adaptive_but")


def about(heads):
    return {"model": "adm", "heads": heads, "n_repeat": 3, "sequence_length": 8, "layer": 0, "windows": 2}


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_figures_are_written(tmp_path, heads):
    attention = np.random.default_rng(0).random((heads, 3, 8))
    attention[:, :, :2] = 0.0  # before the window of attention
    path = tmp_path / "attention_ckpt.npz"
    write_attention(path, about(list(range(heads))), attention)
    again, content = read_attention(path)
    assert np.array_equal(again, attention)
    figure6.draw(again, content, content["heads"], tmp_path / "6.png")
    assert (tmp_path / "6.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("damage", ["missing", "cut", "pickle", "shape", "no sidecar", "another"])
def test_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / "attention_ckpt.npz"
    write_attention(path, about([0]), np.ones((1, 3, 4 if damage == "shape" else 8)))
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "pickle":
        np.savez(path, attention=np.array([{"a": 1}], dtype=object))
    elif damage == "no sidecar":
        path.with_suffix(".json").unlink()
    elif damage == "another":
        path.with_suffix(".json").write_text("[]")
    with pytest.raises(Failure, match=r"is missing|is damaged"):
        read_attention(path)


def test_missing_layers_and_heads_are_refused():
    assert choose_heads([0, 2], None) == [0, 2]
    config = ModelConfig(model="but", n_layer=3, n_layer_end=1)
    assert (choose_layer(config, None), choose_layer(config, 0)) == (1, 0)
    with pytest.raises(UsageError, match="--layer -1: the middle has layers 0 to 1"):
        choose_layer(config, -1)
    with pytest.raises(UsageError, match="--heads 1: there are heads 0, 2"):
        choose_heads([0, 2], [1])
    with pytest.raises(UsageError, match="--heads 2 2: give each head once"):
        choose_heads([0, 2], [2, 2])


@pytest.mark.parametrize("model", ["base", "but", "adaptive_but", "stick_breaking", "pause", "mla"])
def test_models_without_attention_across_repeats_are_refused(model):
    run = SimpleNamespace(path="ckpt.pt", model=SimpleNamespace(config=ModelConfig(model=model)))
    sentence = "get_attention.py is for multi-head" if model == "mla" else "of cotformer, ln_cotformer, adm"
    with pytest.raises(UsageError, match=sentence):
        require_possible(run, "get_attention.py", sees_all_passes, ("mha",))
