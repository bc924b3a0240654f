"""Router statistics against a plain computation that keeps all tokens; the command line."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from analysis.command import is_routed, require_possible
from analysis.depth import DepthStatistics, frequency_bins, measure, measures, summarise, unigram_counts
from analysis.router import add_flags, check
from config import parse_with_run
from data.batches import TokenWindows, spread_batches
from errors import UsageError
from models import ModelConfig
from tests.analysis.test_kv_compression import make

ROUTES = {
    "top-k": {"length_factors": [0.7, 0.4]},
    "threshold": {"thresholds": [0.4, 0.5]},
    "full": {"length_factors": [1.0, 1.0]},
    "first pass only": {"length_factors": [0.0, 0.0]},
}


def batches(count=4):
    """Of the last one, some tokens have no target."""
    generator = torch.Generator().manual_seed(1)
    made = [torch.randint(32, (2, 13), generator=generator) for _ in range(count)]
    made = [(tokens[:, :-1], tokens[:, 1:].clone()) for tokens in made]
    made[-1][1][:, 3:6] = -1
    return made


@torch.no_grad()
def everything(model, **routing):
    """All tokens at once: ids, places, whether there is a target, and the measures (N, K), by plain loops."""
    ids, places, rows = [], [], []
    for inputs, targets in batches():
        output = model(inputs, targets, get_logits=True, get_routing=True, **routing)
        for b, t in np.ndindex(*inputs.shape):
            target = targets[b, t].item()
            logits = output["logits"][b, t]
            loss = F.cross_entropy(logits, targets[b, t]).item() if target >= 0 else math.nan
            scores = output["router_scores"][b, :, t].tolist()
            lowest = min(score for score in scores if score == score)
            rows.append([output["passes"][b, t].item(), loss, lowest, *scores])
            ids.append(inputs[b, t].item())
            places.append(t)
    return np.array(ids), np.array(places), np.array(rows)


def assert_group(entry, rows):
    assert entry["tokens"] == len(rows)
    for name, column in zip(measures(3), rows.T, strict=True):
        known = column[~np.isnan(column)]
        if len(known):
            assert entry[name] == pytest.approx(known.mean(), rel=1e-9), name
        else:
            assert entry[name] is None


@pytest.mark.parametrize("loss_sample", [10, 10**4])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", ["adm", "adaptive_but"])
def test_means_are_those_of_all_tokens(name, route, loss_sample):
    model, bins = make(name), 3
    found = measure(model, batches(), None, 12, bins, loss_sample, **ROUTES[route])
    ids, places, rows = everything(model, **ROUTES[route])
    assert found.tokens == len(rows) == 96
    assert found.passes.tolist() == [(rows[:, 0] == taken).sum() for taken in (1, 2, 3)]
    assert found.same_depth == (route in ("full", "first pass only"))
    counts = torch.arange(32) % 5 * 10
    content = summarise(found, counts, bins, 4, 2, lambda token: bytes([token]))
    assert_group(content["mean"], rows)

    bin_of = frequency_bins(counts, bins).numpy()[ids]
    assert len(content["by_frequency"]) == len(set(bin_of))
    for index, entry in zip(sorted(set(bin_of)), content["by_frequency"], strict=True):
        assert_group(entry, rows[bin_of == index])
        here = counts.numpy()[np.unique(ids[bin_of == index])]
        assert (entry["counts"], entry["types"]) == ([here.min(), here.max()], len(here))

    assert [entry["positions"] for entry in content["by_position"]] == [[0, 3], [4, 7], [8, 11]]
    for entry in content["by_position"]:
        first, last = entry["positions"]
        assert_group(entry, rows[(places >= first) & (places <= last)])

    known = rows[~np.isnan(rows[:, 1])]
    edges = np.quantile(known[:loss_sample, 1], [1 / 3, 2 / 3])
    assert content["by_loss"][1]["losses"] == pytest.approx(edges.tolist(), rel=1e-9)
    assert sum(entry["tokens"] for entry in content["by_loss"]) == len(known) == 90
    for index, entry in enumerate(content["by_loss"]):
        assert_group(entry, known[np.searchsorted(edges, known[:, 1], side="right") == index])


@pytest.mark.parametrize("route", ["top-k", "full"])
def test_the_deepest_types(route):
    """By mean depth, or where that tells nothing by the mean of the lowest scores."""
    model = make("adm")
    found = measure(model, batches(), None, 12, **ROUTES[route])
    content = summarise(found, torch.ones(32, dtype=torch.long), 2, 5, 3, lambda token: bytes([token]))
    ids, _, rows = everything(model, **ROUTES[route])
    column = 2 if route == "full" else 0
    assert content["types_ranked_by"] == measures(3)[column]
    ranks = {token: rows[ids == token, column].mean() for token in set(ids) if (ids == token).sum() >= 3}
    assert content["types_ranked"] == len(ranks) > 10
    values = sorted(ranks.values())
    name = content["types_ranked_by"]
    assert [entry[name] for entry in content["deepest"]] == pytest.approx(values[::-1][:5], rel=1e-9)
    assert [entry[name] for entry in content["least_deep"]] == pytest.approx(values[:5], rel=1e-9)
    for entry in content["deepest"] + content["least_deep"]:
        assert_group(entry, rows[ids == entry["token"]])
        assert entry["text"] == chr(entry["token"])
    few = summarise(found, torch.ones(32, dtype=torch.long), 2, 5, 1000, lambda token: b"")
    assert few["deepest"] == few["least_deep"] == [] and few["types_ranked"] == 0


def test_types_are_shown_in_ascii():
    found = DepthStatistics(3, 3, 4)
    ones = torch.ones(1, 3)
    found.add(torch.tensor([[0, 1, 2]]), ones, ones.long(), torch.rand(1, 2, 3))
    found.finish()
    texts = (b"\xe2\n", "\u00e9".encode(), b"")
    content = summarise(found, torch.ones(3, dtype=torch.long), 2, 1, 1, texts.__getitem__)
    labels = {0: "'\\xe2\\n'", 1: "'\\xe9'", 2: "''"}
    for entry in content["deepest"] + content["least_deep"]:
        assert entry["label"] == labels[entry["token"]]


def test_frequency_bins():
    """Ten tokens counted: five of one type, so that its middle is at 3/4, and so on."""
    counts = torch.tensor([5, 0, 1, 1, 3])
    assert frequency_bins(counts, 4).tolist() == [3, 0, 0, 0, 1]  # middles: 0.75, 0, 0.1, 0.1, 0.35
    assert frequency_bins(torch.tensor([0, 7]), 2).tolist() == [0, 1]
    assert frequency_bins(torch.zeros(3, dtype=torch.long), 2).tolist() == [0, 0, 0]


def test_types_are_counted_all_over_the_text():
    windows = TokenWindows([np.arange(101, dtype=np.uint16) // 10], 10, 12)
    assert unigram_counts(spread_batches(windows, 3, 10**9), 12).tolist() == [10] * 10 + [0, 0]
    few = spread_batches(windows, 3, 39)
    assert few.windows == 3 and unigram_counts(few, 12).nonzero().flatten().tolist() == [0, 3, 6]
    assert spread_batches(windows, 3, 1).windows == 1


def test_statistics_do_not_grow_with_the_text():
    model = make("adm")
    held = {n: measure(model, batches(n), None, 12, 3, 20).numbers_held() for n in (2, 3, 8)}
    assert len(set(held.values())) == 1
    waiting = DepthStatistics(3, 32, 12, loss_sample=50)
    most = waiting.numbers_held() + 50 * 5
    for inputs, targets in batches(9):
        waiting.add(inputs, targets.double(), torch.ones_like(inputs), torch.rand(2, 2, 12))
        assert waiting.numbers_held() <= most


def test_command(scripts):
    scripts.train("--model adm --n_layer 2 --n_layer_end 1 --n_repeat 3")
    folder = next((scripts.results / "shakespeare-char").glob("*/*"))
    command, flags = "-m analysis.router", f"--checkpoint {folder} --device cpu --types 4"
    said = scripts.run(command, flags).stdout
    assert "passes taken: 3: 100.0 %" in said and "only scores differ" in said
    assert "by mean lowest score" in said and "top-k routing (not causal), capacities 1 1" in said
    content = json.loads((folder / "router_ckpt.json").read_text())
    assert content["mean"]["depth"] == 3.0 and len(content["deepest"]) == 4
    summary = json.loads((folder / "summary.json").read_text())
    assert content["mean"]["loss"] == pytest.approx(summary["val_loss"][-1], rel=1e-5)
    assert sum(entry["tokens"] for entry in content["by_frequency"]) == content["tokens"]

    out = scripts.results / "out"
    said = scripts.run(command, f"{flags} --budget 0.7 --count_millions 0.001 --output_dir {out}").stdout
    assert "threshold routing (causal)" in said and "only scores" not in said
    content = json.loads((out / "router_ckpt.json").read_text())
    assert content["routing"] == "threshold" and 1 < content["mean"]["depth"] < 3
    assert content["training_tokens_counted"] == 992  # complete windows
    assert content["types_ranked_by"] == "depth"
    for name in ("router_ckpt", "router_ckpt_types"):
        for suffix in ("png", "pdf"):
            assert (out / f"{name}.{suffix}").stat().st_size > 1000
    flags = f"--checkpoint {folder} --eval_length_factor 0.5 0.2"
    scripts.refuse("get_attention.py", flags, 2, "not every token has keys of all repeats")
    scripts.refuse(command, f"--checkpoint {folder} --bins 1", 2, "--bins 1 must be at least 2")


def test_wrong_input():
    for flags, part in {
        "--loss_sample 0": "--loss_sample 0 must be at least 1",
        "--count_millions 0": "--count_millions 0 must be above 0",
        "--budgets 0.5": "did you mean --budget?",
    }.items():
        with pytest.raises(UsageError, match=re.escape(part)):
            check(parse_with_run(["--checkpoint", "run", *flags.split()], add_flags, None)[0])


@pytest.mark.parametrize("model", ["base", "ln_cotformer", "mla", "stick_breaking", "adm --n_repeat 1"])
def test_models_without_routers_are_refused(model):
    name, _, single = model.partition(" ")
    config = ModelConfig(model=name, n_repeat=1 if single else 2)
    run = SimpleNamespace(path="ckpt.pt", model=SimpleNamespace(config=config))
    sentence = "takes a single pass" if single else "is for checkpoints of adm, adaptive_but"
    with pytest.raises(UsageError, match=sentence):
        require_possible(run, "analysis.router", is_routed, ("mha", "mla"))
