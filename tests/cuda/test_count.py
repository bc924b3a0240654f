"""Kernels and bytes of a micro-batch at the paper's size: a ceiling for each model, and the counting itself.

A change that launches more, or moves more bytes, has to raise a ceiling here and say why; one that saves
some lowers it. The figures: `python -m tests.cuda.count`. Without stick breaking, whose kernels depend on
the data.
"""

import pytest

# (model, --compile): launches and GB of 8 sequences in bfloat16, rounded up by about a hundredth.
CEILINGS = {
    ("ln_cotformer", "none"): (5_010, 76.9), ("ln_cotformer", "block"): (3_460, 67.4),
    ("adm", "none"): (5_210, 50.7), ("adm", "block"): (3_660, 45.8),
    ("standard", "none"): (1_270, 20.0), ("standard", "block"): (1_030, 18.3),
    ("but", "none"): (4_830, 67.2), ("but", "block"): (3_780, 60.0),
    ("cotformer", "none"): (5_040, 76.7), ("cotformer", "block"): (3_460, 67.4),
    ("adaptive_but", "none"): (7_320, 64.6), ("adaptive_but", "block"): (5_940, 55.2),
    ("mla", "none"): (15_170, 119.7), ("mla", "block"): (9_500, 92.8),
    ("pause", "none"): (1_270, 65.9), ("pause", "block"): (1_100, 57.2),
    ("pondernet", "none"): (5_210, 77.7), ("pondernet", "block"): (4_650, 72.1),
}  # fmt: skip
QUICK = ("ln_cotformer", "adm", "standard")


@pytest.mark.parametrize(
    ("model", "compiled"),
    [pytest.param(*key, marks=() if key[0] in QUICK else pytest.mark.slow) for key in CEILINGS],
)
def test_launches_and_bytes_stay_below_their_ceilings(on_cuda, model, compiled):
    launches, gigabytes = on_cuda("micro_batch", model=model, compiled=compiled)
    most_launches, most_gigabytes = CEILINGS[model, compiled]
    assert 0 < launches <= most_launches
    assert 0 < gigabytes <= most_gigabytes


@pytest.mark.parametrize(
    ("what", "launches", "moved"),
    [
        ("view", 0, 0),
        ("add", 1, 3 * 4096),
        ("add_row", 1, 2 * 4096 + 128),  # a broadcast row is read once
        ("copy_in_place", 1, 2 * 4096),
        ("fill", 1, 4096),
        ("cast", 1, 4096 + 2048),
        ("pick_rows", 1, 2 * 256),
        ("product", 1, 3 * 4096),
    ],
)
def test_operations_are_counted_as_their_kernels(on_cuda, what, launches, moved):
    """Of float32 tensors of 32 x 32 numbers."""
    assert on_cuda("counted", what=what) == [[launches, moved]] * bool(launches)


def test_a_compiled_region_has_the_kernels_of_its_fusions(on_cuda):
    """LayerNorm with its cast to bfloat16, GELU, residual: one kernel each, between the products.

    Bytes by hand: 2,048 rows of 768 numbers are 3.1 MB in bfloat16, of 3,072 numbers 12.6 MB.
    """
    rows, wide, weight = 2048 * 768 * 2, 2048 * 3072 * 2, 768 * 3072 * 2
    forward = on_cuda("region")["forward"]
    assert [name for name, _ in forward] == [
        "compiled fused reduction", "compiled mm", "compiled fused pointwise", "compiled mm",
        "compiled fused pointwise",
    ]  # fmt: skip
    statistics, weights = 2 * 2048 * 4, 768 * 4
    assert [moved for _, moved in forward] == [
        2 * rows + rows + statistics + weights,  # float32 in, bfloat16 out
        rows + weight + wide, 2 * wide, wide + weight + rows,
        rows + 2 * 2 * rows,
    ]  # fmt: skip


def test_a_regions_backward_pass_is_counted_by_itself(on_cuda):
    counted = on_cuda("region")
    products = [name for name, _ in counted["backward"] if name == "compiled mm"]
    assert len(products) == 4 and len(counted["backward"]) < 10
    assert counted["shapes"] == [[2048, 768], "torch.float32", "cuda"]
    assert counted["copies"] == ["clone"]  # of a gradient in another memory format
    assert counted["gradients"] == [[2048, 768], [3072, 768], [768], [768, 3072]]
