"""What all figures share: labels, input files, formats and numbers."""

import json
from pathlib import Path

import pytest

from errors import UsageError
from plots.style import (
    COLOURS,
    check_labels,
    check_numbers,
    colours,
    find_result,
    find_results,
    new_figure,
    save_both_formats,
    save_with_numbers,
)


def test_labels_are_model_and_folder_unless_given():
    runs = [Path("exps/pydoc/but_full_depth/a"), Path("exps/pydoc/base/b")]
    assert check_labels(runs, None, Path("x.png")) == ["but/a", "standard/b"]
    assert check_labels(runs, ["one", "two"], Path("x.svg")) == ["one", "two"]
    for labels in (["one"], ["one", "one"]):
        with pytest.raises(UsageError, match="2 runs need as many different labels"):
            check_labels(runs, labels, Path("x.pdf"))
    with pytest.raises(UsageError, match=r"the suffix must be one of .png, .pdf, .svg"):
        check_labels(runs, None, Path("x.bmp"))


def test_numbers_never_replace_an_input():
    check_numbers(Path("run/figure4.png"), [Path("run/sweep.json")])
    with pytest.raises(UsageError, match=r"would replace sweep.json, which it is drawn from"):
        check_numbers(Path("run/../run/sweep.png"), [Path("run/sweep.json")])


def test_results_are_a_file_or_those_of_a_folder(tmp_path):
    with pytest.raises(UsageError, match=r"holds no sweep_\*.json; python sweep.py --checkpoint"):
        find_result(tmp_path, "sweep_*.json", "sweep.py")
    for name in ("sweep_a.json", "sweep_b.json", "other.json"):
        (tmp_path / name).write_text("{}")
    found = find_results(tmp_path, "sweep_*.json", "sweep.py")
    assert [path.name for path in found] == ["sweep_a.json", "sweep_b.json"]
    with pytest.raises(UsageError, match="holds 2 files sweep_"):
        find_result(tmp_path, "sweep_*.json", "sweep.py")
    assert find_result(tmp_path / "other.json", "sweep_*.json", "sweep.py") == tmp_path / "other.json"


def test_colours_repeat_after_the_palette():
    assert colours(len(COLOURS) + 1) == [*COLOURS, COLOURS[0]]


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
