"""Router scores: the two running minima, and damaged files."""

import numpy as np
import pytest
import torch

from errors import Failure, UsageError
from evaluation.router_weights import KINDS, position_cascade, read_weights


def test_the_position_cascade_mixes_tokens_and_the_token_cascade_does_not():
    """Row by row with torch's own unsorted top-k, as the released script went; NOTES.md section 5."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2, 64, 3, generator=generator).numpy()
    by_row = position_cascade(scores)
    for sequence, expected in zip(scores, by_row, strict=True):
        order = list(range(64))
        lowest = sequence[:, 0].copy()
        assert np.array_equal(expected[:, 0], lowest)
        for router in (1, 2):
            present = torch.from_numpy(sequence[order, router - 1])
            chosen = present.topk(64, sorted=False).indices.tolist()
            order = [order[place] for place in chosen]
            lowest = np.minimum(lowest, sequence[order, router])
            assert np.array_equal(expected[:, router], lowest)
    assert not np.array_equal(by_row, np.minimum.accumulate(scores, axis=2))


@pytest.mark.parametrize("damage", ["missing", "cut", "pickle", "no sidecar"])
def test_damaged_files_of_weights_are_named(tmp_path, damage):
    path = tmp_path / "router_weights_ckpt.npz"
    np.savez_compressed(path, **{name: np.zeros((4, 2), dtype=np.float32) for name in KINDS})
    path.with_suffix(".json").write_text('{"n_repeat": 3}')
    assert read_weights(path)[1] == {"n_repeat": 3}
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "pickle":
        np.savez(path, **{name: np.array([{"a": 1}], dtype=object) for name in KINDS})
    else:
        path.with_suffix(".json").unlink()
    with pytest.raises((UsageError, Failure), match=r"is missing|is damaged"):
        read_weights(path)
