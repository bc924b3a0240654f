"""What all figures share: looks, ticks, legends, formats and numbers."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from plots.style import (
    COLOURS,
    add_legend,
    looks,
    mac_unit,
    new_figure,
    ordered_looks,
    save,
    save_both_formats,
    save_with_numbers,
)
from tests.conftest import ROOT
from tests.plots.legibility import texts, unreadable


@pytest.mark.process
def test_the_backend_of_the_environment_does_not_matter():
    code = "from plots.style import new_figure; new_figure(1, 1)"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MPLBACKEND": "nonsense"}, cwd=ROOT, check=True
    )


def lightness(colour):
    from matplotlib.colors import to_rgb

    return sum(part * weight for part, weight in zip(to_rgb(colour), (0.3, 0.59, 0.11), strict=True))


def test_series_differ_in_colour_and_without_it():
    found = looks(56)
    assert len({(look["color"], look["marker"]) for look in found}) == 56
    assert len({look["marker"] for look in found[:8]}) == 8
    grey = [lightness(colour) for colour in COLOURS]
    assert max(grey) < 0.75  # on white paper
    assert min(abs(one - other) for one, other in itertools.combinations(grey[:4], 2)) > 0.1
    ordered = [lightness(look["color"]) for look in ordered_looks(5)]
    assert ordered == sorted(ordered)
    assert ordered_looks(1)[0]["linewidth"] > ordered_looks(2)[1]["linewidth"]


def test_mac_units_are_of_the_largest():
    assert mac_unit(iter([1e3, 2e9])) == (1e9, "GMACs")
    assert [mac_unit([number])[1] for number in (3e13, 9e8, 5.0)] == ["TMACs", "MMACs", "MMACs"]


RANGES = (
    (4.74, 4.81),
    (4.5, 16),
    (0.9, 120),
    (3, 3),
    (1e-7, 1),
    (240, 242),
    (1e-4, 1.5),
    (99, 1e12),
    (1, 10),
)


def test_logarithmic_axes_have_a_few_readable_ticks(tmp_path, drawn):
    figure, grid = new_figure(3, 3, figsize=(7, 7))
    for axes, span in zip(grid.flat, RANGES, strict=True):
        axes.loglog(span, span, marker="o")
    save(figure, tmp_path / "a.svg")
    assert unreadable(drawn[0]) == []
    for axis in (axis for axes in grid.flat for axis in (axes.xaxis, axes.yaxis)):
        lowest, highest = axis.get_view_interval()
        ticks = [tick for tick in axis.get_majorticklocs() if lowest <= tick <= highest]
        assert 2 <= len(ticks) <= 8
        assert not len(axis.get_minorticklocs())


def test_numbers_of_narrow_axes_do_not_overlap(tmp_path, drawn):
    figure, panels = new_figure(1, 3, figsize=(5, 2))
    for axes, top in zip(panels, (0.01, 12_345_678, 1.0), strict=True):
        axes.plot([-top, top], [0.12345, 0.12346])
    save(figure, tmp_path / "a.png")
    assert unreadable(drawn[0]) == []


def test_legends_are_above_the_panels_and_list_each_label_once(tmp_path, drawn):
    figure, panels = new_figure(1, 2, figsize=(5, 4))
    for axes in panels:
        for number in range(9):
            axes.plot([1], label=f"a model with a name of some length, seed {number}")
    panels[0].plot([1], label="a run for $5 with \\x and $ in its name, and many more words than fit " * 3)
    add_legend(figure, *panels, note="bars: 95 % interval over evaluation batches " * 5)
    save(figure, tmp_path / "a.svg")
    assert unreadable(drawn[0]) == []
    assert texts(figure).count("seed 3") == 1


def test_figures_are_written_in_every_format(tmp_path):
    figure, axes = new_figure(1, 1)
    axes.plot([1, 2])
    said = save_with_numbers(figure, tmp_path / "a.svg", {"x": 1})
    assert said == f"written: {tmp_path / 'a.svg'}, and .png, .pdf, .json next to it"
    assert {path.name for path in tmp_path.iterdir()} == {"a.svg", "a.png", "a.pdf", "a.json"}
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    figure, _ = new_figure(1, 1)
    assert save_both_formats(figure, tmp_path / "b.c") == ["b.c.png", "b.c.pdf"]
    assert (tmp_path / "b.c.pdf").read_bytes().startswith(b"%PDF")
