"""Counts of arithmetic: against the published counts, against real dispatches, against enumeration."""

import json
import re
import types
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import models
from errors import UsageError
from models.macs import PARTS, count_parameters, macs_of_passes
from models.variants import VARIANTS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "macs.json").read_text())
SMALL = {"vocab_size": 40, "n_layer": 5, "n_head": 2, "n_embd": 16, "n_repeat": 3}
RESERVED = {"n_layer_begin": 1, "n_layer_end": 2}
LATENT = {"kv_lora_rank": 10, "q_lora_rank": 7, "qk_rope_head_dim": 4, "qk_nope_head_dim": 5, "v_head_dim": 9}
NAMES = [variant.name for variant in VARIANTS]
T = 12


def args(model, **fields):
    """With the plain attention: the fast one leaves out keys that nobody sees, which the counts have."""
    return types.SimpleNamespace(
        model=model, attention="plain", **{**SMALL, **RESERVED, **LATENT, "sequence_length": T, **fields}
    )


@pytest.mark.parametrize("row", GOLDEN)
def test_every_count_of_ptflops(row):
    given = types.SimpleNamespace(model=row["model"], sequence_length=row["seq_len"], **row["config"])
    macs = models.count_macs(given, row["seq_len"], row["eval_length_factor"])
    assert macs == row["macs"]
    assert sum(macs.parts.values()) == macs and set(macs.parts) == set(PARTS)
    routers = row["config"]["n_embd"] if "mod" in row["model"] else 0  # the one that is never used
    assert count_parameters(given)["unique"] == row["n_params"] - routers


def attention_flops(query, key, value, *rest, out_val=None, **settings):
    """What the counter does not know: the kernel that attention takes on a CPU, counted dense."""
    batch, heads, queries, size = query
    return 2 * batch * heads * queries * key[2] * (size + value[3])


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}


def dispatched(network, **routing):
    """MACs that torch really dispatches in one forward pass without targets."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter, torch.no_grad():
        network(torch.randint(0, 40, (1, T)), get_logits=True, **routing)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("layers", [RESERVED, {"n_layer_begin": 0, "n_layer_end": 0}], ids=str)
@pytest.mark.parametrize("model", NAMES)
def test_the_formula_counts_the_products_that_are_dispatched(model, layers):
    """At full depth the paper's convention is exactly what runs, for every model."""
    given = args(model, **layers, halt_threshold=0.999)
    network = models.make_model_from_args(given).eval()
    expected = models.count_macs(given, T)
    if model.startswith("but_mod"):
        assert dispatched(network) == expected
    assert dispatched(network) == expected


@pytest.mark.parametrize(("key", "value"), [(9, 9), (9, 5), (9, 14)])
def test_zeros_that_fill_up_keys_or_values_are_not_counted(key, value):
    """The kernel multiplies them too: it sees the longer of the two sizes twice."""
    given = args("mla", v_head_dim=value)
    expected = models.count_macs(given, T)
    pairs = expected.parts["attention"] // (2 * (key + value))
    more = 2 * (2 * max(key, value) - key - value) * pairs
    assert dispatched(models.make_model_from_args(given).eval()) == expected + more


@pytest.mark.parametrize("factors", [[1.0, 0.5], [0.6, 0.3], [0.8, 0.6], [0.5, 0.0], [0.0, 0.0]])
def test_routed_tokens_are_really_not_computed(factors):
    given = args("adm")
    network = models.make_model_from_args(given).eval()
    assert dispatched(network, length_factors=factors) == models.count_macs(given, T, factors)


@pytest.mark.parametrize("factors", [[1.0, 0.5], [0.6, 0.3], [0.0, 0.0]])
def test_the_fast_attention_computes_no_more(factors):
    given = args("adm")
    given.attention = "fast"
    network = models.make_model_from_args(given).eval()
    assert dispatched(network, length_factors=factors) <= models.count_macs(given, T, factors)


@pytest.mark.parametrize("factors", [[1.0, 0.5], [0.6, 0.3], [0.5, 0.0], [0.0, 0.0]])
def test_adaptive_but_computes_keys_and_values_of_halted_tokens_and_nothing_else(factors):
    """What runs is the true convention, but for the mask and the head's other positions."""
    given = args("adaptive_but")
    network = models.make_model_from_args(given).eval()
    true, paper = (models.count_macs(given, T, factors, name) for name in ("true", "paper"))
    expected = sum(true.parts[part] for part in ("projections", "mlp", "router"))
    expected += sum(paper.parts[part] for part in ("attention", "head"))
    assert dispatched(network, length_factors=factors) == expected


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("window", [None, 1, 5, 99])
def test_true_counts_of_the_dense_case_by_enumeration(model, window):
    """Visible pairs one by one, and the head at every position."""
    given = args(model, attention_window_length=window)
    config = models.ModelConfig.from_args(given)
    counts = models.count_macs(given, T, convention="true")
    length = T * config.positions_per_token
    seen = sum(1 for t in range(length) for s in range(t + 1) if window is None or t - s < window)
    begin, middle, end = config.layers
    exits = 3 if model == "pondernet" else 1
    attended = begin + end * exits
    for r in range(1, config.repeats + 1):
        attended += middle * (r if "cotformer" in model else 1)
    per_pair, per_row = 2 * 16, 4 * 16**2
    if "mla" in model:
        per_pair = 2 * (9 + 9)
        per_row = 16 * 7 + 7 * 2 * 9 + 16 * (10 + 4) + 10 * 2 * (5 + 9) + 2 * 9 * 16
    assert counts.parts["attention"] == attended * per_pair * seen
    assert counts.parts["head"] == exits * T * 40 * 16
    blocks = begin + end * exits + middle * config.repeats
    assert counts.parts["projections"] == blocks * length * per_row
    assert counts.parts["mlp"] == blocks * length * 8 * 16**2


def test_true_counts_of_routed_tokens_are_the_expectation_over_where_they_stand():
    given = args("adm", n_layer_begin=0, n_layer_end=0, n_layer=1)
    tokens = [T, 6, 3]
    generator = torch.Generator().manual_seed(0)
    total = 0
    for _ in range(3000):
        second = torch.randperm(T, generator=generator)[:6]
        sets = [torch.arange(T), second, second[:3]]
        for r, asking in enumerate(sets):
            total += sum((keys <= asking[:, None]).sum().item() for keys in sets[: r + 1])
    counts = macs_of_passes(models.ModelConfig.from_args(given), tokens, "true")
    assert counts.parts["attention"] / (2 * 16) == pytest.approx(total / 3000, rel=0.01)


@pytest.mark.parametrize("model", NAMES)
def test_parameters(model):
    given = args(model, depth_embedding="learned")
    counts = count_parameters(given)
    network = models.make_model_from_args(given)
    assert counts["unique"] == network.parameter_count()
    assert counts["total"] == sum(weight.numel() for weight in network.state_dict().values())
    assert counts["without_embeddings"] == counts["unique"] - 40 * 16
    assert counts["effective_layers"] == (5 if model in ("base", "pause") else 1 + 2 * 3 + 2)


@pytest.mark.parametrize(
    ("factors", "convention", "sentence"),
    [
        ([0.5], "paper", "n_repeat=3 needs 2 numbers"),
        ([0.5, 0.6], "paper", "must not increase"),
        (None, "papr", "did you mean paper"),
    ],
)
def test_wrong_arguments(factors, convention, sentence):
    with pytest.raises(UsageError, match=sentence):
        models.count_macs(args("adm"), T, factors, convention)


@pytest.mark.parametrize("command", ["count_macs.py", "-m models.macs"])
def test_table_from_the_command_line(scripts, command):
    flags = "--model adm --n_layer 24 --n_repeat 5 --n_layer_begin 2 --n_layer_end 1 --sequence_length 256"
    said = scripts.run(command, f"{flags} --eval_length_factor 1 0.5 0.25 0.1").stdout
    rows = [row for row in GOLDEN if row["eval_length_factor"] == [1, 0.5, 0.25, 0.1]]
    (expected,) = [row["macs"] for row in rows if row["model"].startswith("adaptive")]
    assert f"{expected:,}" in said and "effective layers" in said
    said = scripts.run(command, f"{flags.replace('adm', 'mla')} --dtype float32").stdout
    assert "96,768" in said and "663,552" in said and "cache, float32" in said
    assert "note: the cache keeps" not in said
    scripts.refuse(command, "--model amd", 2, "did you mean adm?")


def test_table_of_a_checkpoint(trained):
    made = trained("--model mla --n_repeat 3")
    run = made.folder("mla_ln_cotformer")
    said = made.run("count_macs.py", f"--checkpoint {run}").stdout
    assert "2x3 -> 0 layers, n_embd 16, one sequence of 16 tokens" in said
    parameters = json.loads((run / "summary.json").read_text())["parameters"]
    assert re.search(rf"unique +{parameters:,}\n", said)
    assert "note: the cache keeps 224 numbers of a token and layer" in said
    assert (
        "one sequence of 8 tokens"
        in made.run("count_macs.py", f"--checkpoint {run} --sequence_length 8").stdout
    )
    made.refuse("count_macs.py", "--checkpoint nowhere", 2, "nowhere: there is no such file or folder")
