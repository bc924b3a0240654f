"""Router scores and the points of the compute sweep."""

import numpy as np
import pytest
import torch

from errors import Failure, UsageError
from evaluation.compute_sweep import SWEEP, SweepFile, read_sweep, sweep_capacities, sweep_points
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


def test_the_sweep_is_that_of_the_published_figure():
    """Capacities: fractions of tokens with a cascaded score of at least 1 - threshold, up to 1/256."""
    lowest = np.array([[0.95, 0.5], [0.7, 0.7], [0.15, 0.1]])
    assert sweep_capacities(lowest, 0.1) == (86 / 256, 0.0)  # one in three, rounded up
    assert sweep_capacities(lowest, 0.4) == (171 / 256, 86 / 256)
    assert sweep_capacities(lowest, 1.0) == (1.0, 1.0)
    found = sweep_points(lowest, 3)
    assert len(found) == 2 * len(SWEEP) + 3
    assert [point.length_factors for point in found[-3:]] == [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)]
    assert [point.setting for point in found[: len(SWEEP)]] == list(SWEEP)
    assert [point.setting for point in sweep_points(lowest, 3, [0.3])][3] == 0.3


def test_points_that_are_the_same_work_are_known_to_be():
    found = {point.name: point for point in sweep_points(np.array([[0.95, 0.5], [0.15, 0.1]]), 3)}
    assert found["router, top-k, 1"].work == found["fixed depth, 3"].work
    assert found["router, top-k, 0.4"].work != found["router, threshold, 0.4"].work


def entry(series, value, macs=1e9):
    return {
        "series": series, "setting": 1.0, "length_factors": [1.0], "perplexity": value,
        "macs_per_sequence": {"paper": macs, "true": macs}, "seconds_per_token": macs / 1e15,
    }  # fmt: skip


def sweep(path, length=256):
    file = SweepFile(path, {"sequence_length": length})
    for series in ("router, top-k", "router, threshold", "fixed depth"):
        for value in (20.0, 21.0):
            file.add(entry(series, value, value * 1e9))
    return read_sweep(path)


def test_a_file_of_another_run_is_refused_and_kept(tmp_path):
    path = tmp_path / "ppl.json"
    sweep(path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="holds points with sequence_length 256, and 128 is asked for now"):
        SweepFile(path, {"sequence_length": 128})
    assert path.read_bytes() == before
    assert len(SweepFile(path, {"sequence_length": 256}).entries) == 6


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
