"""The model's interface: what it returns, how it starts, what it refuses."""

import math
import types

import pytest
import torch

import models
from errors import UsageError
from models.config import MODEL_FLAGS, ModelConfig
from models.variants import VARIANTS

ONCE = ("base", "pause")  # without repeats


def fields_of(feature):
    return tuple(one.name for one in MODEL_FLAGS if one.read_by == feature)


ROUTING, STICK_BREAKING, PONDER, LATENT, PAUSE = map(
    fields_of, ("routing", "stick_breaking", "ponder", "latent", "pauses")
)
ADAPTIVE = ROUTING + STICK_BREAKING + PONDER

SMALL = {"vocab_size": 40, "sequence_length": 8, "n_layer": 4, "n_head": 2, "n_embd": 16, "n_repeat": 3}


def build(model, **fields):
    torch.manual_seed(1)
    return models.make_model_from_args(types.SimpleNamespace(model=model, **{**SMALL, **fields})).eval()


@pytest.fixture(params=[variant.name for variant in VARIANTS])
def name(request):
    return request.param


def test_every_alias_builds_the_same_network():
    for variant in VARIANTS:
        assert {variant.name, variant.alias} <= set(models.registered_models())
        full, short = build(variant.name), build(variant.alias)
        assert full.state_dict().keys() == short.state_dict().keys()
        assert all(map(torch.equal, full.state_dict().values(), short.state_dict().values()))


def test_output_without_and_with_targets(name):
    network = build(name)
    idx = torch.randint(0, 40, (2, 8))
    quiet = network(idx)
    assert quiet["logits"] is quiet["loss"] is quiet["cross_entropy_loss"] is None
    assert network(idx, get_logits=True)["logits"].shape == (2, 1, 40)
    scored = network(idx, idx)
    assert scored["logits"] is None and scored["loss"].shape == ()
    assert network(idx, idx, get_logits=True)["logits"].shape == (2, 8, 40)
    if name == "pondernet":  # an expectation over its halting steps
        assert 4 < scored["average_depth"] < 12
    else:
        assert scored["average_depth"] == (4 if name in ONCE else 12)
    assert scored["tokens_per_pass"] == [8.0] * (1 if name in ONCE else 3)
    routing = network(idx, get_routing=True)
    assert routing["passes"].shape == (2, 8) and (routing["passes"] == (1 if name in ONCE else 3)).all()
    assert routing["router_scores"].isnan().all() != network.config.variant.routed or name in ONCE


def test_last_position_is_that_of_the_full_logits(name):
    network = build(name)
    idx = torch.randint(0, 40, (2, 8))
    full = network(idx, idx, get_logits=True)["logits"]
    torch.testing.assert_close(network(idx, get_logits=True)["logits"], full[:, -1:])
    every = network(idx, get_logits=True, get_predictions=True, every_position=True)
    assert torch.equal(every["logits"], full) and every["loss"] is None
    assert torch.equal(every["predictions"], full.argmax(-1))


def test_ignored_targets_do_not_count():
    network = build("base")
    idx = torch.randint(0, 40, (1, 8))
    targets = idx.clone()
    targets[0, 3:] = -1
    losses = -network(idx, idx, get_logits=True)["logits"].log_softmax(-1)
    expected = losses[0, torch.arange(3), idx[0, :3]].mean()
    torch.testing.assert_close(network(idx, targets)["loss"], expected)


def test_initialisation():
    torch.manual_seed(0)
    network = models.make_model_from_args(
        types.SimpleNamespace(
            model="ln_cotformer",
            n_embd=256,
            n_head=4,
            n_layer=8,
            vocab_size=1000,
            bias=True,
            depth_embedding="learned",
        )
    )
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif ".ln_" in name:
            assert (parameter == 1).all(), name
        else:
            std = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.1), name
            assert abs(parameter.mean().item()) < std / 10, name


def test_head_and_embedding_are_one_tensor(name):
    network = build(name)
    assert network.lm_head.weight is network.transformer.wte.weight
    assert network.parameter_count() == sum(p.numel() for p in set(network.parameters()))


def test_dropout_is_off_in_evaluation_and_on_in_training(name):
    """The released code drops attention in evaluation too; here two evaluations are equal."""
    network = build(name, dropout=0.5)
    idx = torch.randint(0, 40, (2, 8))
    plain = build(name)
    network.eval()
    assert torch.equal(network(idx, idx)["loss"], plain(idx, idx)["loss"])
    network.train()
    assert not torch.equal(network(idx, idx)["loss"], network(idx, idx)["loss"])


def test_positions_of_evaluation_may_exceed_those_of_training(name):
    network = build(name)
    idx = torch.randint(0, 40, (1, 20))
    long = network(idx, idx, get_logits=True)["logits"][:, :8]
    torch.testing.assert_close(long, network(idx[:, :8], idx[:, :8], get_logits=True)["logits"])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"n_embd": 100, "n_head": 12}, "n_embd=100 is not divisible by n_head=12"),
        ({"n_embd": 6, "n_head": 2}, "n_embd / n_head = 3 must be even"),
        ({"n_layer": 0}, "n_layer=0 must be at least 1"),
        ({"n_layer_begin": -1}, "n_layer_begin=-1 must be at least 0"),
        ({"n_layer_begin": 2, "n_layer_end": 2}, "leave no layer to repeat out of n_layer=4"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"positional_encoder": "sine"}, "positional_encoder=sine is unknown; choose from rotary, none"),
        ({"depth_embedding": "deep"}, "depth_embedding=deep is unknown"),
        ({"attention_window_length": 0}, "attention_window_length=0 must be at least 1 or None"),
        ({"eval_length_factor": [0.5]}, "--eval_length_factor 0.5: n_repeat=3 needs 2 numbers, not 1"),
        ({"training_length_factor": [0.5, 0.6]}, "--training_length_factor 0.5 0.6: must not increase"),
        ({"eval_length_factor": [1.5, 0.6]}, "--eval_length_factor 1.5 0.6: each must be from 0 to 1"),
        ({"routing": "best"}, "routing=best is unknown; choose from topk, threshold"),
        ({"routing_threshold": [0.5]}, "--routing_threshold has 1 numbers; n_repeat=3 has 2 routers"),
        ({"halt_threshold": 1.0}, "halt_threshold=1.0 is a probability, above 0 and below 1"),
        ({"n_pause": 0}, "n_pause=0 must be at least 1"),
        ({"kv_lora_rank": 0}, "kv_lora_rank=0 must be at least 1"),
        ({"model": "mla", "qk_rope_head_dim": 7}, "qk_rope_head_dim = 7 must be even"),
        ({"model": "cotfromer"}, "unknown model; did you mean cotformer?"),
    ],
)
def test_impossible_configurations_are_refused_in_a_sentence(fields, sentence):
    with pytest.raises(UsageError) as refusal:
        ModelConfig(**{"model": "cotformer", **SMALL, **fields})
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_fields_that_a_variant_does_not_read_are_accepted():
    """One command line serves all variants, as in the released code."""
    config = ModelConfig(model="base", **{**SMALL, "n_layer_begin": 3, "n_layer_end": 3})
    assert config.layers == (0, 4, 0)
    assert config.unused_fields == (
        "n_repeat",
        "n_layer_begin",
        "n_layer_end",
        "depth_embedding",
        "disable_ln_mid",
        *ADAPTIVE,
        *LATENT,
        *PAUSE,
    )
    assert ModelConfig(model="ln_cotformer", **SMALL).unused_fields == ADAPTIVE + LATENT + PAUSE
    assert ModelConfig(model="mla", **SMALL).unused_fields == ADAPTIVE + PAUSE
    assert ModelConfig(model="adm", **SMALL).unused_fields == STICK_BREAKING + PONDER + LATENT + PAUSE
    assert ModelConfig(model="pondernet", **SMALL).unused_fields == (
        "depth_embedding",
        "disable_ln_mid",
        *ROUTING,
        *STICK_BREAKING,
        *LATENT,
        *PAUSE,
    )
