"""The imitation itself: what CUDA refuses, what makes the host wait, and which formats autocast chooses."""

import pytest


@pytest.mark.parametrize(
    "mistake",
    [
        "add_cpu_tensor",
        "cpu_indices_of_a_gather",
        "cpu_generator",
        "linear_with_cpu_weight",
        "numpy",
        "cumsum",
    ],
)
def test_what_cuda_refuses_is_refused(on_cuda, mistake):
    assert on_cuda("refused", what=mistake) is not None


@pytest.mark.parametrize(
    "fine", ["add_number_on_the_cpu", "copy_to_the_cpu", "cpu_indices", "cumsum_of_counts"]
)
def test_what_cuda_takes_is_taken(on_cuda, fine):
    assert on_cuda("refused", what=fine) is None


@pytest.mark.parametrize(
    ("what", "count"),
    [("item", 1), ("tolist", 1), ("by_mask", 1), ("nonzero", 1), ("to_cpu", 1), ("from_list", 1),
     ("repeat_interleave", 1), ("sized_repeat_interleave", 0), ("non_blocking", 0), ("add", 0)],
)  # fmt: skip
def test_waits_are_counted(on_cuda, what, count):
    waits = on_cuda("waits", what=what)
    assert sum(waits.values()) == count, waits


@pytest.mark.parametrize("kernel", ["flash", "flash_causal", "efficient", "efficient_with_bias"])
def test_attention_kernels_are_exact(on_cuda, kernel):
    """Output, log-sum-exp and gradients of the fused kernels, against softmax written out."""
    assert max(on_cuda("attention_errors", kernel=kernel).values()) < 1e-5


def test_formats_of_autocast(on_cuda):
    """CUDA's lists differ from the CPU's: LayerNorm gives float32 there."""
    formats = on_cuda("formats", model="ln_cotformer")
    assert formats["mm"] == ["bfloat16"]
    assert formats["native_layer_norm"] == ["float32"]
    assert formats["_softmax"] == ["float32"]
    assert set(formats["attention"]) == {"bfloat16"}
    plain = on_cuda("formats", model="ln_cotformer", flags={"loss": "plain"})
    assert plain["nll_loss_forward"] == plain["_log_softmax"] == ["float32"]
