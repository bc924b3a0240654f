"""Variants that are added from outside the package."""

import pytest
import torch

import config
import models
from errors import UsageError
from models.language_model import REPEATERS
from models.repeaters import Universal
from models.variants import VARIANTS, Variant, find_variant

FLAGS = "--model mine --n_layer 2 --n_repeat 2 --n_embd 16 --n_head 2 --vocab_size 8 --sequence_length 4"


@pytest.fixture
def restored():
    """Leaves both tables as they were."""
    variants, repeaters = list(VARIANTS), dict(REPEATERS)
    yield
    VARIANTS[:] = variants
    REPEATERS.clear()
    REPEATERS.update(repeaters)


class Twice(Universal):
    """Universal under another name."""


def test_a_registered_variant_is_a_model_like_any_other(restored):
    models.register_variant(Variant("my_model", "mine", "Mine", "twice"), Twice)
    assert find_variant("mine").name == "my_model" and "my_model" in models.registered_models()
    args = config.parse_args(FLAGS.split())
    assert config.experiment_dir(args).parent.name == "my_model"
    tokens = torch.zeros(1, 4, dtype=torch.long)
    model = models.make_model_from_args(args)
    assert isinstance(model.repeater, Twice) and model(tokens, targets=tokens)["loss"].isfinite()
    assert int(models.count_macs(args, 4)) == int(
        models.count_macs(config.parse_args(FLAGS.replace("mine", "but").split()), 4)
    )


def test_an_existing_repeater_can_be_used(restored):
    models.register_variant(Variant("my_model", "mine", "Mine", "cross_repeat"))
    assert find_variant("my_model").repeater == "cross_repeat"


@pytest.mark.parametrize(
    ("variant", "repeater", "sentence"),
    [
        (Variant("but_full_depth", "mine", "Mine", "twice"), Twice, "already a variant but_full_depth"),
        (Variant("my_model", "adm", "Mine", "twice"), Twice, "already a variant adm"),
        (Variant("my_model", "mine", "Mine", "universal"), Twice, "universal of my_model is taken"),
        (Variant("my_model", "mine", "Mine", "twice"), None, "twice of my_model is unknown; give its class"),
    ],
)
def test_names_that_are_refused(restored, variant, repeater, sentence):
    before = list(VARIANTS), dict(REPEATERS)
    with pytest.raises(UsageError, match=sentence):
        models.register_variant(variant, repeater)
    assert before == (VARIANTS, REPEATERS)
