"""What the importer of released checkpoints has to deal with."""

import types

import pytest
import torch

import models
from errors import UsageError

ARGS = types.SimpleNamespace(model="but_full_depth", vocab_size=40, n_layer=3, n_head=2, n_embd=16, bias=True)


def weights():
    return dict(models.make_model_from_args(ARGS).state_dict())


def equal(imported, expected):
    return imported.keys() == expected.keys() and all(torch.equal(imported[k], expected[k]) for k in expected)


def test_our_own_weights_pass_through():
    ours = weights()
    assert equal(models.import_original_state_dict(ours, ARGS), ours)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_are_removed(prefix):
    ours = weights()
    prefixed = {prefix + name: value for name, value in ours.items()}
    assert equal(models.import_original_state_dict(prefixed, ARGS), ours)


def test_buffers_go_but_biases_called_alike_stay():
    ours = weights()
    original = {
        **ours,
        "transformer.wpe.freqs": torch.ones(4),
        "transformer.h_mid.0.attn.bias": torch.ones(1, 1, 8, 8),
    }
    imported = models.import_original_state_dict(original, ARGS)
    assert equal(imported, ours)
    assert "transformer.h_mid.0.attn.c_attn.bias" in imported


def test_split_projections_are_joined():
    ours = weights()
    split = {}
    for name, value in ours.items():
        if ".c_attn." in name:
            split[name.replace(".c_attn.", ".q_attn.")], split[name] = value[:16], value[16:]
        else:
            split[name] = value
    assert any(".q_attn.bias" in name for name in split)
    assert equal(models.import_original_state_dict(split, ARGS), ours)


@pytest.mark.parametrize("missing", ["lm_head.weight", "transformer.wte.weight"])
def test_one_of_the_tied_tensors_is_enough(missing):
    ours = weights()
    original = {name: value for name, value in ours.items() if name != missing}
    assert equal(models.import_original_state_dict(original, ARGS), ours)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lm_head.weight": torch.zeros(40, 16)}, "differ in the checkpoint"),
        ({"itr": 7}, "itr in the checkpoint is a int, not a tensor"),
        ({"transformer.h_mid.0.attn.q_attn.weight": torch.zeros(16, 16)}, "with 32 rows"),
    ],
)
def test_contradictions_are_refused(change, sentence):
    with pytest.raises(UsageError, match=sentence):
        models.import_original_state_dict({**weights(), **change}, ARGS)
