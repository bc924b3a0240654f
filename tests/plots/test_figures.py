"""Figures 4 and 5: the files written and the input refused."""

import json

import numpy as np
import pytest

from errors import UsageError
from evaluation.compute_sweep import SERIES
from plots import figure4, figure5


def sweep(length=256):
    points = [
        {
            "series": series, "setting": 1.0, "length_factors": [1.0], "perplexity": value,
            "macs_per_sequence": {"paper": value * 1e9}, "seconds_per_token": value / 1e6,
        }
        for series in SERIES
        for value in (20.0, 21.0)
    ]  # fmt: skip
    return {"about": {"sequence_length": length}, "points": points}


def test_every_series_of_the_sweep_has_a_style():
    assert tuple(figure4.STYLES) == SERIES


def test_figure_4_is_written_with_its_numbers(tmp_path):
    path = tmp_path / "4.pdf"
    said = figure4.draw({"one": sweep(), "two": sweep()}, path, published=[("ADM", 5e9, 23.0)])
    assert said == f"written: {path}, and .png, .json next to it"
    assert path.read_bytes().startswith(b"%PDF")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads(path.with_suffix(".json").read_text())
    assert len(numbers["runs"]["two"]) == 6 and numbers["sequence_length"] == 256
    assert numbers["paper"] == [{"label": "ADM", "macs_per_sequence": 5e9, "perplexity": 23.0}]


def test_figure_4_refuses_macs_of_different_sequence_lengths(tmp_path):
    with pytest.raises(UsageError, match="sequences of 128 and 256 tokens"):
        figure4.draw({"one": sweep(), "two": sweep(128)}, tmp_path / "4.png")
    with pytest.raises(UsageError, match="the published values are of 256 tokens"):
        figure4.draw({"one": sweep(128)}, tmp_path / "4.png", published=[("ADM", 5e9, 23.0)])


def test_figure_5_is_written_with_its_numbers(tmp_path):
    path = tmp_path / "5.png"
    figure5.draw({"a": np.linspace(0, 1, 100)}, path, "score")
    assert path.read_bytes().startswith(b"\x89PNG")
    run = json.loads(path.with_suffix(".json").read_text())["runs"]["a"]
    assert run["tokens"] == 100 and sum(run["fractions"]) == pytest.approx(1) and run["mean"] == 0.5
