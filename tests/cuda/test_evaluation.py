"""Evaluation and generation of every model on the imitated device, against the CPU."""

import pytest

from bench.plan import MODELS

# Of a token after the prompt: the host draws it from its probabilities. Where thresholds drop tokens, it
# must also know how many are left, before each pass but the first.
WAITS_PER_TOKEN = {"standard": 1, "ln_cotformer": 1, "mla": 1, "pause": 1, "adm": 3, "adaptive_but": 3}


@pytest.mark.parametrize("model", MODELS)
def test_evaluation_is_that_of_the_cpu(on_cuda, model):
    on_gpu, on_cpu = (on_cuda("evaluation", model=model, device=device) for device in ("cuda", "cpu"))
    assert on_gpu.keys() == {"full", "capacities", "thresholds"}
    for way, (loss, correct, depth) in on_gpu.items():
        assert [loss, correct, depth] == pytest.approx(on_cpu[way], abs=1e-5), way
    half = on_cuda("evaluation", model=model, device="cuda", dtype="bfloat16")
    assert half["full"][0] == pytest.approx(on_gpu["full"][0], rel=0.02)


@pytest.mark.parametrize("model", MODELS)
def test_texts_are_those_of_the_cpu(on_cuda, model):
    """With a seed the same text is drawn everywhere, with and without a cache."""
    for prompts, settings, cached in (
        ("even", "drawn", False),
        ("uneven", "drawn", True),
        ("even", "greedy", True),
    ):
        ways = {"prompts": prompts, "settings": settings, "model": model, "cached": cached}
        on_gpu, on_cpu = (on_cuda("generation", device=device, **ways) for device in ("cuda", "cpu"))
        assert on_gpu["texts"] == on_cpu["texts"], ways
        assert on_gpu["passes"] == on_cpu["passes"], ways


@pytest.mark.parametrize("prompts", ["even", "uneven"])
@pytest.mark.parametrize(("model", "most"), WAITS_PER_TOKEN.items())
def test_waits_for_a_token(on_cuda, model, most, prompts):
    ways = {"prompts": prompts, "settings": "drawn", "model": model, "cached": True}
    waits = on_cuda("generation", device="cuda", **ways)["waits_per_token"]
    assert 0 < sum(waits.values()) <= most, waits


def test_sums_of_eigenvalues_are_those_of_the_cpu(on_cuda):
    """In deterministic mode CUDA refuses cumsum."""
    (ranks, kept), (expected, as_kept) = (on_cuda("energies", device=device) for device in ("cuda", "cpu"))
    assert ranks == expected and kept[0] == pytest.approx(as_kept[0])


@pytest.mark.parametrize("model", ["standard", "ln_cotformer", "adm", "mla", "pause", "pondernet"])
def test_a_captured_step_waits_for_nothing(on_cuda, model):
    """A graph cannot: capturing it would fail."""
    step = on_cuda("graphed_step", model=model)
    assert step["waits"] == {} and step["error"] < 0.01
