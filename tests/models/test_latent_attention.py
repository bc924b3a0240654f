"""Latent attention against loops over tokens, passes and keys, and absorbed against plain."""

import dataclasses
import math

import pytest
import torch

import models
from models import variants
from models.attention import LatentAttention
from models.generation import generate
from models.variants import find_variant
from tests.models.reference import RESERVED, make, rotated

SIZES = {"kv_lora_rank": 7, "q_lora_rank": 5, "qk_rope_head_dim": 4, "qk_nope_head_dim": 3, "v_head_dim": 6}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5]]


def mla(**fields):
    return make("mla", **{**SIZES, **RESERVED, "depth_embedding": "linear_learned", **fields})


def affine(layer, x):
    return layer.weight @ x if layer.bias is None else layer.weight @ x + layer.bias


def normed(layer, x):
    return x / torch.sqrt((x * x).mean() + 1e-5) * layer.weight


def reference_block(block, x, config, history):
    """x: list of (C,). history: (latent, shared key, position) of earlier passes; this pass is added."""
    attn, sizes = block.attn, (config.qk_nope_head_dim, config.qk_rope_head_dim)
    turn = rotated if config.positional_encoder == "rotary" else (lambda vector, position: vector)
    per_head = config.qk_nope_head_dim + config.v_head_dim
    for t, part in enumerate(x):
        latent, key = affine(attn.kv_down, block.ln_1(part)).split((config.kv_lora_rank, sizes[1]))
        history.append((normed(attn.kv_norm, latent), turn(key, t), t))
    result = []
    for t, part in enumerate(x):
        queries = attn.q_up.weight @ normed(attn.q_norm, affine(attn.q_down, block.ln_1(part)))
        window = config.attention_window_length or len(x)
        seen = [(latent, key) for latent, key, s in history if t - window < s <= t]
        heads = []
        for head in range(config.n_head):
            still, turning = queries[head * sum(sizes) : (head + 1) * sum(sizes)].split(sizes)
            scores, values = [], []
            for latent, key in seen:
                made = attn.kv_up.weight[head * per_head : (head + 1) * per_head] @ latent
                scores.append((still @ made[: sizes[0]] + turn(turning, t) @ key) / math.sqrt(sum(sizes)))
                values.append(made[sizes[0] :])
            weights = torch.stack(scores).softmax(0)
            heads.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
        part = part + affine(attn.c_proj, torch.cat(heads))
        result.append(part + block.mlp(block.ln_2(part)))
    return result


def reference_logits(network, ids):
    config, body = network.config, network.transformer
    x = list(body.wte.weight[ids])
    for block in body.h_begin:
        x = reference_block(block, x, config, [])
    kept = [[] for _ in body.h_mid]
    for r in range(1, config.n_repeat + 1):
        x = [part + network.depth_emb.embs.weight[0] * (config.n_repeat - r) for part in x]
        for block, history in zip(body.h_mid, kept, strict=True):
            x = reference_block(block, x, config, history)
        x = [body.ln_mid(part) for part in x]
    for block in body.h_end:
        x = reference_block(block, x, config, [])
    return body.ln_f(torch.stack(x)) @ body.wte.weight.T


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"bias": True, "positional_encoder": "none"}, {"attention_window_length": 4},
        {"v_head_dim": 9, "n_head": 5},  # a value longer than a key; heads that do not divide n_embd
    ],
    ids=str,
)  # fmt: skip
def test_forward_and_backward_equal_the_reference(fields):
    network = mla(**fields)
    ids = torch.randint(0, 31, (9,))
    ours, theirs = network(ids[None], ids[None], get_logits=True)["logits"][0], reference_logits(network, ids)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    weights, direction = list(network.parameters()), torch.randn_like(theirs)
    gradients = [torch.autograd.grad((logits * direction).sum(), weights) for logits in (ours, theirs)]
    for mine, reference in zip(*gradients, strict=True):
        assert reference.any()
        torch.testing.assert_close(mine, reference, atol=1e-8, rtol=1e-8)


def without_keys_and_values(monkeypatch):
    def refuse(*args):
        raise AssertionError("keys and values were made")

    monkeypatch.setattr(LatentAttention, "_keys_values", refuse)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize(
    "fields", [{}, {"attention_window_length": 4}, {"n_repeat": 5, "bias": True}], ids=str
)
def test_absorbed_decoding_equals_one_plain_forward_pass(dtype, tolerance, fields, monkeypatch):
    """Behind prompts of several lengths, over all repeats; and it makes no keys and values."""
    network = mla(**fields).to(dtype)
    for name, weight in network.named_parameters():
        if "ln_" in name or "norm" in name:
            torch.nn.init.ones_(weight)  # else float32 loses more by itself
    ids = torch.randint(0, 31, (3, 9))
    with torch.no_grad():
        full = network(ids, ids, get_logits=True)["logits"]
        cache, lengths = network.new_cache(3), [len(prompt) for prompt in PROMPTS]
        first = network(ids[:, :7], get_logits=True, cache=cache, lengths=lengths)["logits"][:, 0]
        last = torch.tensor(lengths) - 1
        torch.testing.assert_close(first, full[range(3), last], atol=tolerance, rtol=tolerance)
        without_keys_and_values(monkeypatch)
        for step in (1, 2):
            at = last + step
            logits = network(ids[range(3), at][:, None], get_logits=True, cache=cache)["logits"][:, 0]
            torch.testing.assert_close(logits, full[range(3), at], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast(dtype, recwarn):
    """The cache keeps the format of the products, the two forms agree to its rounding, and nobody warns."""
    network = mla().float()
    network._initialise()  # smaller weights
    ids = torch.randint(0, 31, (2, 9))
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        full = network(ids, ids, get_logits=True)["logits"]
        cache = network.new_cache(2)
        network(ids[:, :8], cache=cache)
        last = network(ids[:, 8:], get_logits=True, cache=cache)["logits"]
    torch.testing.assert_close(last[:, 0].float(), full[:, -1].float(), atol=2e-2, rtol=0)
    assert cache.bytes_per_token == models.cache_bytes_per_token(network.config, dtype)
    assert not [str(warning.message) for warning in recwarn]


def test_cache_bytes_per_token():
    """The published sizes: (192 + 32) numbers where 2 * 768 were."""
    sizes = {"n_layer": 24, "n_layer_begin": 2, "n_layer_end": 1, "n_repeat": 5}
    ours, theirs = (models.ModelConfig(model=name, **sizes) for name in ("mla", "ln_cotformer"))
    assert models.cache_bytes_per_token(ours) == 108 * 224 * 2
    assert models.cache_bytes_per_token(theirs) == 108 * 2 * 768 * 2
    assert models.cache_bytes_per_token(ours, attention="mha") == models.cache_bytes_per_token(theirs)
    assert models.cache_bytes_per_token(ours, torch.float32) == 108 * 224 * 4


@pytest.mark.parametrize("model", ["base", "but", "adm", "adaptive_but", "stick_breaking"])
def test_every_repeater_takes_latent_attention(model, monkeypatch):
    """A row of the table is all it takes: the cached text is that of full recomputation."""
    row = find_variant(model)
    row = dataclasses.replace(
        row, name="new", alias="new", features=(*row.features, "latent"), attention="mla"
    )
    monkeypatch.setattr(variants, "VARIANTS", (*variants.VARIANTS, row))
    network = make("new", **SIZES, **RESERVED, depth_embedding="linear_learned", halt_threshold=0.6)
    for thresholds in [None, [0.5, 0.5]] if row.routed else [None]:
        cached, plain = (
            [
                step.tokens.tolist()
                for step in generate(
                    network, PROMPTS, 20, cached=on, thresholds=thresholds,
                    generator=torch.Generator().manual_seed(0),
                )
            ]
            for on in (True, False)
        )  # fmt: skip
        assert cached == plain
