"""Spectra, ranks and entropies against a plain computation that keeps all tokens; the command line."""

import json

import numpy as np
import pytest
import torch

import models
from analysis import kv_statistics, statistics
from analysis.attention_maps import log_probabilities
from analysis.hooks import layers_of, watch_attention
from analysis.kv_statistics import KVStatistics, measure
from analysis.statistics import GroupedMeans, Moments
from models import ModelConfig

SIZES = {"n_layer": 4, "n_embd": 16, "n_head": 2, "vocab_size": 32, "sequence_length": 12}
REPEATED = {"n_layer_begin": 1, "n_layer_end": 1, "n_repeat": 3}
MODELS = {
    "base": {},
    "but": REPEATED,
    "cotformer": REPEATED,
    "ln_cotformer": REPEATED | {"depth_embedding": "linear_learned"},
    "adm": REPEATED | {"depth_embedding": "linear_learned"},
    "adaptive_but": REPEATED,
}
ROUTED = {"length_factors": [0.7, 0.4]}


def make(name, window=None, **changes):
    torch.manual_seed(0)
    fields = SIZES | MODELS[name] | changes
    config = ModelConfig(model=name, attention_window_length=window, **fields)
    model = models.language_model.LanguageModel(config).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def text(count=3):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(32, (2, 12), generator=generator), None) for _ in range(count)]


@torch.no_grad()
def everything(model, batches, **routing):
    """By (layer, call of a forward pass): all keys and values, (N, 2C), as the projections gave them."""
    found, calls = {}, {}

    def keep(layer):
        def hook(module, args, output):
            calls[layer] = calls.get(layer, 0) + 1
            found.setdefault((layer, calls[layer]), []).append(output.flatten(0, -2)[:, 16:])

        return hook

    handles = [
        block.attn.c_attn.register_forward_hook(keep(layer)) for layer, block in layers_of(model).items()
    ]
    for inputs, _ in batches:
        calls.clear()
        model(inputs, **routing)
    for handle in handles:
        handle.remove()
    return {place: torch.cat(parts) for place, parts in found.items()}


@pytest.mark.parametrize("name", ["base", "but", "ln_cotformer", "adm"])
def test_moments_equal_those_of_all_keys_and_values(name):
    model, routing = make(name), ROUTED if name == "adm" else {}
    found = measure(model, text(), None, stacked=False, **routing)
    plain = everything(model, text(), **routing)
    assert set(found.places) == set(plain)
    for place, z in plain.items():
        moments = found.moments(*place)
        assert moments.count == len(z)
        torch.testing.assert_close(moments.second_moment, z.T @ z / len(z), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(moments.covariance, torch.cov(z.T, correction=0), rtol=1e-9, atol=1e-12)
    entries, values = kv_statistics.data_spectra(found)
    layer, repeat = list(plain)[-1]
    singular = torch.linalg.svdvals(plain[layer, repeat][:, :16]) / len(plain[layer, repeat]) ** 0.5
    np.testing.assert_allclose(values[f"data/{layer.name}/{repeat}/keys"], singular, rtol=1e-6, atol=1e-6)
    assert len(entries) >= len(plain)


def test_the_passes_of_a_token_side_by_side():
    model = make("ln_cotformer")
    found, plain = measure(model, text(), None, stacked=True), everything(model, text())
    for layer, moments in found.stacked.items():
        z = torch.cat([plain[layer, repeat] for repeat in (1, 2, 3)], -1)
        torch.testing.assert_close(moments.second_moment, z.T @ z / len(z), rtol=1e-10, atol=1e-12)
        part = found.moments(layer, 2).second_moment
        torch.testing.assert_close(part, plain[layer, 2].T @ plain[layer, 2] / len(z), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 100, 10**6])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("window", [None, 5])
def test_probabilities_are_those_that_attention_used(name, window, chunk):
    """Multiplied with the values they give attention's output, whatever the chunk."""
    model, seen = make(name, window), []
    blocks = layers_of(model)

    def check(call):
        value = call.seen.concatenated()[1]
        parts = [logs.exp() @ value for _, logs, _ in log_probabilities(call.queries, call.seen, chunk)]
        y = call.tokens.unpad(torch.cat(parts, 2)).flatten(-2)
        torch.testing.assert_close(blocks[call.layer].attn.c_proj(y), call.output, rtol=1e-9, atol=1e-11)
        seen.append((call.layer, call.repeat))

    with watch_attention(model, check), torch.no_grad():
        model(text(1)[0][0], **(ROUTED if name.startswith("ad") else {}))
    assert len(set(seen)) == len(seen) == (4 if name == "base" else 8)


def test_entropy_of_attention():
    """Of the first token it is zero and not normalised; the mean is over all queries and heads."""
    model, by_call = make("ln_cotformer"), {}

    def keep(call):
        found = torch.cat([logs.exp() for _, logs, _ in log_probabilities(call.queries, call.seen)], 2)
        entropies = -torch.special.xlogy(found, found).sum(-1)  # (B, H, n)
        visible = (found > 0).sum(-1).double()
        by_call.setdefault((call.layer, call.repeat), []).append((entropies, visible))

    with watch_attention(model, keep), torch.no_grad():
        for inputs, _ in text():
            model(inputs)
    found = measure(model, text(), None, stacked=False)
    for entry in kv_statistics.attention_entropies(found):
        place = next(p for p in by_call if (p[0].name, p[1]) == (entry["layer"], entry["repeat"]))
        values = torch.cat([part for part, _ in by_call[place]])
        visible = torch.cat([part for _, part in by_call[place]])
        several = visible > 1
        assert entry["entropy"] == pytest.approx(values.mean().item(), rel=1e-9)
        assert entry["normalised"] == pytest.approx((values / visible.log())[several].mean().item(), rel=1e-9)
        assert len(entry["entropy_by_head"]) == 2


def test_effective_rank_and_what_is_kept():
    energies = torch.tensor([6.0, 3.0, 0.9, 0.1, 0.0], dtype=torch.float64)
    assert statistics.effective_ranks(energies) == {"90": 2, "95": 3, "99": 3}
    assert statistics.effective_rank(torch.zeros(3), 0.9) == 0
    assert statistics.energy_kept(energies, 2) == pytest.approx(0.9)
    torch.manual_seed(0)
    z = torch.randn(50, 6).double() @ torch.randn(6, 6).double()
    moment = z.T @ z / len(z)
    _, _, vectors = torch.linalg.svd(z)
    for rank, kept in zip(
        (1, 3, 6), statistics.energy_kept_of_parts(moment, (1, 3, 6), (slice(0, 6), slice(0, 3))), strict=True
    ):
        read = z @ vectors[:rank].T @ vectors[:rank]
        for part, of_part in zip((slice(0, 6), slice(0, 3)), kept, strict=True):
            lost = (z - read)[:, part].square().sum() / z[:, part].square().sum()
            assert of_part == pytest.approx(1 - lost.item(), abs=1e-9)


def test_statistics_do_not_grow_with_the_text():
    model = make("ln_cotformer")
    sizes = {count: measure(model, text(count), None).numbers_held() for count in (1, 2, 7)}
    assert len(set(sizes.values())) == 1
    empty = KVStatistics(model.config, False)
    assert empty.numbers_held() == 0


def test_streams():
    torch.manual_seed(0)
    parts, whole = [Moments(3), Moments(3)], torch.randn(10, 3).double()
    parts[0].add(whole[:4])
    parts[1].add(whole[4:])
    torch.testing.assert_close(Moments.pooled(parts).covariance, torch.cov(whole.T, correction=0))
    means = GroupedMeans(2, 1)
    means.add(torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0], [3.0], [5.0], [torch.nan]]))
    assert means.means.flatten().tolist() == [2.0, 5.0]


@pytest.mark.parametrize("model", ["ln_cotformer --n_repeat 2", "adm --n_repeat 2", "base"])
def test_command(scripts, model):
    scripts.train(f"--model {model} --n_layer 3" + ("" if model == "base" else " --n_layer_begin 1"))
    folder = next((scripts.results / "shakespeare-char").glob("*/*"))
    out = scripts.results / "out"
    said = scripts.run(
        "-m analysis.kv_compression", f"--checkpoint {folder} --output_dir {out} --ranks 2 8 --device cpu"
    )
    assert "full cache" in said.stdout
    content = json.loads((out / "kv_compression_ckpt.json").read_text())
    assert [entry["rank"] for entry in content["latents"]["ranks"]] == [2, 8]
    kept = content["latents"]["ranks"][1]["energy_kept"]
    assert all(0 < of_layer["shared"] <= 1 + 1e-9 for of_layer in kept.values())
    layers = 3 if model == "base" else 5  # calls: one that runs once, two that run twice
    assert len(content["attention"]) == layers
    assert content["latents"]["cache_entries_per_token"] == layers
    for figure in ("spectra", "ranks", "energy_kept", "entropy"):
        for suffix in ("png", "pdf"):
            assert (out / f"kv_compression_ckpt_{figure}.{suffix}").stat().st_size > 1000
    with np.load(out / "kv_compression_ckpt.npz", allow_pickle=False) as arrays:
        assert len(arrays.files) >= 3 * 3


def test_wrong_input(scripts):
    scripts.train("--model stick_breaking --iterations 2")
    folder = next((scripts.results / "shakespeare-char").glob("*/*"))
    refuse = scripts.refuse
    command = "-m analysis.kv_compression"
    refuse(command, f"--checkpoint {folder}", 2, "Stick breaking", "is for checkpoints of base, but")
    refuse(command, f"--checkpoint {folder} --ranks 0", 2, "--ranks 0")
    refuse(command, f"--checkpoint {folder}/gone", 2, "there is no such file")
    refuse(command, f"--checkpoint {folder} --output_dir {folder}/summary.json", 2, "is a file")
    refuse(command, f"--checkpoint {folder} --rank 3", 2, "did you mean --ranks?")
