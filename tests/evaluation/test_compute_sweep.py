"""The compute sweep (Figure 4): its points and its file."""

import numpy as np
import pytest

from errors import Failure, UsageError
from evaluation.compute_sweep import SERIES, SWEEP, SweepFile, read_sweep, sweep_capacities, sweep_points


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


def write_sweep(path):
    """A file of two points in each series."""
    file = SweepFile(path, {"sequence_length": 256})
    for series in SERIES:
        for value in (20.0, 21.0):
            file.add({
                "series": series, "setting": 1.0, "length_factors": [1.0], "perplexity": value,
                "macs_per_sequence": {"paper": value * 1e9},
            })  # fmt: skip


def test_a_file_of_another_run_is_refused_and_kept(tmp_path):
    path = tmp_path / "ppl.json"
    write_sweep(path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="holds points with sequence_length 256, and 128 is asked for now"):
        SweepFile(path, {"sequence_length": 128})
    assert path.read_bytes() == before
    assert len(SweepFile(path, {"sequence_length": 256}).entries) == 6


def test_points_are_missing_until_they_are_added(tmp_path):
    wanted = sweep_points(np.array([[0.95, 0.5], [0.15, 0.1]]), 3)
    file = SweepFile(tmp_path / "ppl.json", {})
    for point in wanted[:5]:
        file.add({"series": point.series, "setting": point.setting, "length_factors": point.length_factors})
    assert list(file.missing(wanted)) == wanted[5:]


@pytest.mark.parametrize("content", ["{", "[]", '{"about": {}, "points": [{"series": "fixed depth"}]}'])
def test_other_files_are_named(tmp_path, content):
    path = tmp_path / "ppl.json"
    path.write_text(content)
    with pytest.raises(Failure, match=r"ppl.json is not a file of get_ppl_per_mac.py; move it away"):
        read_sweep(path)
    with pytest.raises(UsageError, match="is missing"):
        read_sweep(tmp_path / "gone.json")
