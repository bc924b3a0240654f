"""How many tokens take each pass."""

import json
from pathlib import Path

import pytest
import torch

import models
from errors import UsageError
from models.capacities import DRAWS, check_factors, draw_factors, ratios, tokens_per_pass
from models.variants import find_variant

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "capacity_samplers.json").read_text())
# Ours takes all methods for both models; the released adaptive BUT takes these for uniform.
LACKING = {
    "at_least_10percent",
    "pick_mid_and_recurse_more_chance_for_one",
    "pick_mid_and_recurse_more_chance_for_one_even_more",
}


@pytest.mark.parametrize("case", GOLDEN)
def test_draws_and_counts_of_the_released_code(case):
    variant = find_variant(case["model"])
    method = case["depth_random_method"]
    if variant.alias == "adaptive_but" and method in LACKING:
        method = "uniform"
    torch.manual_seed(case["seed"])
    factors = draw_factors(method, torch.rand(case["n_repeat"] - 1).tolist())
    assert factors == pytest.approx(case["length_factors"], abs=1e-6)
    assert ratios(case["length_factors"]) == pytest.approx(case["capacity_ratios"], rel=1e-6)
    counts = tokens_per_pass(case["T"], case["n_repeat"], factors, variant.single_precision_capacities)
    assert counts == [case["T"], *case["topk_counts"]]


@pytest.mark.parametrize("method", [*DRAWS, "uniform_random_range"])
def test_draws_are_factors(method):
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 4, 7):
        for _ in range(50):
            factors = draw_factors(method, torch.rand(n, generator=generator).tolist())
            check_factors("drawn", factors, n + 1)


def test_an_unlisted_method_is_the_uniform_one():
    assert draw_factors("uniform_random_range", [0.3, 0.9]) == draw_factors("uniform", [0.3, 0.9])


@pytest.mark.parametrize(
    ("factors", "double", "single"),
    [
        ([0.8, 0.6], [16, 12, 8], [16, 12, 9]),  # 0.6 / 0.8 * 12 is 8.99... in double
        ([0.55, 0.5], [16, 8, 7], [16, 8, 7]),  # not int(0.5 * 16)
        ([1.0, 0.0], [16, 16, 0], [16, 16, 0]),
        ([0.0, 0.0], [16, 0, 0], [16, 0, 0]),
        (None, [16, 16, 16], [16, 16, 16]),
    ],
)
def test_truncation_is_compounded(factors, double, single):
    assert tokens_per_pass(16, 3, factors, False) == double
    assert tokens_per_pass(16, 3, factors, True) == single


@pytest.mark.parametrize("factors", [[0.5], [0.5, 0.6], [1.1, 0.5], [0.5, -0.1], [0.5, 0.5, 0.5], [None, 1]])
def test_impossible_factors_are_refused(factors):
    with pytest.raises(UsageError, match="--length_factors"):
        check_factors("length_factors", factors, 3)


@pytest.mark.parametrize("name", ["adm", "adaptive_but"])
def test_training_draws_follow_the_seed_of_the_forward_pass(name):
    """The capacities of a forward pass are a function of the seed that the training loop sets before it."""
    args = {"vocab_size": 40, "n_layer": 3, "n_head": 2, "n_embd": 16, "n_repeat": 4, "sequence_length": 64}
    network = models.make_model_from_args(type("Args", (), {"model": name, **args})).train()
    idx = torch.randint(0, 40, (2, 64))

    def counts(seed):
        torch.manual_seed(seed)
        return network(idx, idx)["tokens_per_pass"]

    assert counts(5) == counts(5)
    assert len({tuple(counts(seed)) for seed in range(20)}) > 15
    torch.manual_seed(7)
    factors = draw_factors("uniform", torch.rand(3).tolist())
    single = network.config.variant.single_precision_capacities
    assert counts(7) == tokens_per_pass(64, 4, factors, single)
