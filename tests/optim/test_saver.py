"""The copy of a training's state from which a checkpoint is written while training goes on."""

import io
import itertools

import pytest
import torch

from optim.saver import HostCopy, layout

MIB = 2**20


def content():
    """A tied weight, a transposed one, a number, an empty tensor, several formats, and plain data."""
    weight = torch.randn(5, 4)
    return {
        "step": 3,
        "model": {"wte": weight, "head": weight, "turned": torch.randn(3, 7).t(), "none": torch.empty(0, 2)},
        "optimizer": {0: {"step": torch.tensor(3.0), "half": torch.randn(9).bfloat16()}, 10: {}},
        "args": {"betas": [0.9, 0.95], "name": None},
    }


def written(copy):
    file = io.BytesIO()
    torch.save(copy, file)
    return file.getvalue()


def test_a_copy_is_equal_keeps_ties_and_strides_and_shares_nothing():
    original = content()
    expected = written(original)
    copy = HostCopy(on_cuda=False)(original)
    assert copy["model"]["head"] is copy["model"]["wte"]
    assert copy["model"]["turned"].stride() == original["model"]["turned"].stride()
    for part in (original["model"], original["optimizer"][0]):
        for tensor in part.values():
            tensor.zero_()
    assert len(written(copy)) == len(expected)  # each tensor is written once, and no memory around it
    torch.testing.assert_close(copy, torch.load(io.BytesIO(expected), weights_only=True), rtol=0, atol=0)


def test_memory_is_reused_until_it_is_too_small():
    make, first = HostCopy(on_cuda=False), content()
    before = make(first)["model"]["wte"]
    first["model"]["wte"].fill_(2.0)
    after = make(first)
    assert after["model"]["wte"].data_ptr() == before.data_ptr() and bool((before == 2.0).all())
    first["optimizer"][10] = {"exp_avg": torch.randn(1000, 1000)}
    grown = make(first)
    assert torch.equal(grown["optimizer"][10]["exp_avg"], first["optimizer"][10]["exp_avg"])
    assert torch.equal(grown["model"]["wte"], first["model"]["wte"])


@pytest.mark.parametrize(
    "sizes",
    [[], [0], [1], [3, 0, 600, 4], [300 * MIB] * 3 + [5] * 100, [9 * MIB + 1] * 100, [2**28, 1], [40] * 1000],
)
def test_tensors_lie_apart_and_aligned_in_slabs_that_pinning_does_not_enlarge(sizes):
    slabs, places = layout(sizes)
    spans = sorted((slab, offset, offset + size) for size, (slab, offset) in zip(sizes, places, strict=True))
    for (slab, _, end), (other, start, _) in itertools.pairwise(spans):
        assert slab != other or end <= start
    assert all(offset % 512 == 0 and end <= slabs[slab] for slab, offset, end in spans)
    assert all(size & (size - 1) == 0 for size in slabs)


def test_slabs_take_little_more_than_the_tensors():
    """The paper's size: three of each weight. A pinned buffer for each would take 1.65 times as much."""
    sizes = 3 * [50304 * 768 * 4, *[768 * width * 4 for width in (2304, 768, 3072, 3072)] * 24, *[3072] * 50]
    assert sum(layout(sizes)[0]) < 1.05 * sum(sizes)
