"""Figures: readable, with intervals that say where they come from, and refused where they would mislead."""

import json
import math

import numpy as np
import pytest

from bench.results import RESULTS, read
from errors import UsageError
from evaluation.compute_sweep import SERIES
from plots import curves, figure2, figure3, figure4, figure5, figure6, report, scaling
from reproduction.claims import Finding
from reproduction.figures import figure_3, published_anchors
from reproduction.report import Row
from reproduction.statistics import Comparison, Mean
from tests.plots.legibility import bars, texts, unreadable

NANO = RESULTS / "nano"


def metrics(steps, perplexity=20.0):
    return [
        {
            "step": step, "lr": 1e-3, "train_loss": 3.0, "mean_grad_norm": 1.0, "max_grad_norm": 2.0,
            "val_loss": math.log(perplexity), "val_perplexity": perplexity,
            "val_perplexity_interval": [perplexity / 1.1, perplexity * 1.1],
        }
        for step in steps
    ]  # fmt: skip


def test_curves_show_intervals_over_batches(tmp_path, drawn):
    runs = {"Standard, seed 0": metrics(range(100, 5100, 100)), "Standard, seed 1": metrics([7])}
    curves.draw(runs, tmp_path / "c.png")
    (figure,) = drawn
    assert unreadable(figure) == []
    loss, perplexity, rate, norm = figure.axes
    assert any(pytest.approx(bar) == [20 / 1.1, 20 * 1.1] for bar in bars(perplexity))
    assert any([math.log(20 / 1.1), math.log(20 * 1.1)] == pytest.approx(bar) for bar in bars(loss))
    assert not bars(rate) and not bars(norm)
    assert "95 % interval over the batches" in texts(figure) and "Standard, seed 1" in texts(figure)


def test_curves_of_equal_values_have_markers_of_their_own(tmp_path, drawn):
    lines = metrics(range(1, 200))
    curves.draw({str(seed): lines for seed in range(3)}, tmp_path / "c.png")
    marked = [line.get_markevery() for line in drawn[0].axes[2].lines]
    assert len(marked) == 3 and len({str(part) for part in marked}) == 3


def test_curves_of_a_run_without_evaluations_or_with_an_infinite_perplexity(tmp_path, drawn):
    curves.draw({"a": [{"step": 1, "lr": 0.1, "train_loss": 3.0}]}, tmp_path / "c.png")
    endless = metrics([1], math.inf) + metrics([2])
    curves.draw({"a": endless}, tmp_path / "d.svg")
    assert "95 %" not in texts(drawn[0]) and "95 %" in texts(drawn[1])


def figure2_points(**changes):
    return [point | changes for point in json.loads((NANO / "figure2.json").read_text())]


@pytest.mark.parametrize("published, panels", [(False, 2), (True, 4)])
def test_figure_2_gives_the_papers_values_panels_of_their_own(tmp_path, drawn, published, panels):
    figure2.draw(figure2_points(), tmp_path / "2.png", published=published)
    (figure,) = drawn
    assert unreadable(figure) == [] and len(figure.axes) == panels
    places = {tuple(np.round(axes.get_position().bounds, 3)) for axes in figure.axes}
    assert len(places) == panels  # no two scales in one panel
    assert "MMACs" in figure.axes[0].get_xlabel() and bars(figure.axes[0])
    assert "standard error of the mean, ours over 3 seeds" in texts(figure)
    assert ("the paper's as published" in texts(figure)) == published


def test_figure_2_of_one_seed_has_no_intervals_and_says_so(tmp_path, drawn):
    points = figure2_points(seeds=1, error=None)
    for point in points[1:]:
        point["perplexity"] = None
    figure2.draw(points, tmp_path / "2.png", published=False)
    assert "ours of one seed, without bars" in texts(drawn[0])
    assert [text.get_text() for text in drawn[0].axes[1].texts] == ["none trained"]


def test_figure_3_names_models(tmp_path, drawn):
    figure3.draw(figure_3(), tmp_path / "3.png")
    assert unreadable(drawn[0]) == []
    assert "CoTFormer, 12 layers x 3\nBlock Universal Transformer, 12 layers x 5" in texts(drawn[0])


def sweep(length=256, batches=4):
    points = [
        {
            "series": series, "setting": 1.0, "length_factors": [1.0], "perplexity": value,
            "macs_per_sequence": {"paper": (1 + step) * 1e9}, "seconds_per_token": (1 + step) / 1e6,
            "perplexity_interval_95": [value - 1, value + 1],
            "batch_losses": [math.log(value) + 0.1 * batch + 0.01 * step * (-1) ** batch
                             for batch in range(batches)],
        }
        for series in SERIES
        for step, value in enumerate((21.0, 20.0))
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
    assert numbers["runs"]["two"][0]["change_percent"] == pytest.approx(5)
    assert numbers["paper"] == [{"label": "ADM", "macs_per_sequence": 5e9, "perplexity": 23.0}]


@pytest.mark.parametrize("count", [1, 3])
def test_figure_4_shows_intervals_of_perplexity_and_of_its_change(tmp_path, drawn, count):
    sweeps = {f"Adaptive LN-CoTFormer, seed {seed}": sweep() for seed in range(count)}
    figure4.draw(sweeps, tmp_path / "4.png", published_anchors() if count > 1 else ())
    (figure,) = drawn
    assert unreadable(figure) == []
    level, _, change, _ = figure.axes
    assert sorted({tuple(bar) for bar in bars(level)}) == [(19, 21), (20, 22)]
    # Full batches are compared: the differences of three are 0.01, -0.01, 0.01 around their mean.
    margin = 1.96 * np.std([0.01, -0.01, 0.01], ddof=1) / math.sqrt(3)
    expected = [100 * (1.05 * math.exp(by) - 1) for by in (-margin, margin)]
    assert any(expected == pytest.approx(bar) for bar in bars(change))
    assert any(pytest.approx(bar) == [0, 0] for bar in bars(change))  # full compute, with itself
    assert "95 % intervals over 4 evaluation batches" in texts(figure) and "paired by batch" in texts(figure)
    assert "Adaptive LN-CoTFormer" in texts(figure)


def test_figure_4_of_a_sweep_without_batches_says_less(tmp_path, drawn):
    content = sweep()
    for point in content["points"]:
        del point["batch_losses"]
    figure4.draw({"a": content}, tmp_path / "4.png")
    level, _, change, _ = drawn[0].axes
    assert bars(level) and not bars(change) and "paired" not in texts(drawn[0])


def test_figure_4_refuses_macs_of_different_sequence_lengths(tmp_path):
    with pytest.raises(UsageError, match="sequences of 128 and 256 tokens"):
        figure4.draw({"one": sweep(), "two": sweep(128)}, tmp_path / "4.png")
    with pytest.raises(UsageError, match="the published values are of 256 tokens"):
        figure4.draw({"one": sweep(128)}, tmp_path / "4.png", published=[("ADM", 5e9, 23.0)])


def test_figure_5_is_written_with_its_numbers(tmp_path, drawn):
    path = tmp_path / "5.png"
    figure5.draw({"a": np.linspace(0, 1, 100), "b": np.full(7, 0.001)}, path, "score")
    assert path.read_bytes().startswith(b"\x89PNG")
    run = json.loads(path.with_suffix(".json").read_text())["runs"]["a"]
    assert run["tokens"] == 100 and sum(run["fractions"]) == pytest.approx(1) and run["mean"] == 0.5
    assert unreadable(drawn[0]) == [] and "b: mean 0.0010 of 7 tokens" in texts(drawn[0])


@pytest.mark.parametrize("heads", [[0], [0, 1, 2, 3], list(range(5))])
def test_figure_6_has_a_panel_for_each_head(tmp_path, drawn, heads):
    attention = np.random.default_rng(0).dirichlet(np.full(5 * 64, 0.1), 5).reshape(5, 5, 64)
    about = {"model": "adm", "heads": list(range(5)), "n_repeat": 5, "layer": 0, "windows": 1234}
    figure6.draw(attention, about, heads, tmp_path / "6.png")
    assert unreadable(drawn[0]) == []
    assert sum(axes.get_visible() for axes in drawn[0].axes) == len(heads)
    assert "Adaptive LN-CoTFormer, means over 1,234 windows" in texts(drawn[0])


def test_figures_of_the_report(tmp_path, drawn):
    def mean(content):
        return content and Mean(**content)

    rows = [
        Row(**{**one, "ours": mean(one["ours"])})
        for one in json.loads((NANO / "perplexity.json").read_text())
    ]
    report.draw_perplexity(rows, tmp_path / "perplexity.png")
    findings = [
        Finding(**{**one, "compared": Comparison(**{name: mean(of) for name, of in one["compared"].items()})})
        for one in json.loads((NANO / "claims.json").read_text())
    ]
    report.draw_claims(findings, tmp_path / "claims.png")
    report.draw_claims(findings[:1], tmp_path / "claim.png")
    assert [unreadable(figure) for figure in drawn] == [[], [], []]
    assert "95 % over seeds" in texts(drawn[0]) and "95 % over evaluation batches" in texts(drawn[0])
    assert "paired over seeds" in texts(drawn[1]) and "95 % interval" in drawn[1].axes[0].get_xlabel()


def test_scaling_of_the_benchmarks(tmp_path, drawn):
    (path,) = RESULTS.glob("amd-*.json")
    scaling.draw(read(path)["results"], tmp_path / "scaling.png")
    assert unreadable(drawn[0]) == []
    assert "quartiles" in texts(drawn[0]) and "CoTFormer, recomputing each block" in texts(drawn[0])
