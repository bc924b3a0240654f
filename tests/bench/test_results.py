"""Statistics, tables and files of results."""

import json

import pytest

from bench.report import PAGES, page, result_files
from bench.results import RESULTS, cells, failed, line, number, rate, ratio, read, result, spread
from errors import UsageError
from tests.bench.examples import result_file


def test_medians_have_quartiles_or_the_extremes_of_fewer_than_four():
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, 2.0, 4.0, 5)
    assert spread([1.0, 3.0, 2.0]) == (2.0, 1.0, 3.0, 3)
    assert rate(10, [2.0, 5.0]) == (3.5, 2.0, 5.0, 2)
    with pytest.raises(ValueError, match="no measurements"):
        spread([])


def test_a_ratio_is_taken_round_by_round():
    """A slow minute of the machine, here the second round, leaves it as it is."""
    assert ratio([1.0, 10.0], [2.0, 20.0]) == (2.0, 2.0, 2.0, 2)
    with pytest.raises(ValueError, match="argument"):
        ratio([1.0], [1.0, 2.0])


def test_numbers_have_three_digits():
    assert [number(x) for x in (0.0, 0.012345, 1.2345, 12.345, 1234.5, 7)] == [
        "0", "0.0123", "1.23", "12.3", "1,234", "7",
    ]  # fmt: skip


def test_a_result_on_the_screen():
    slow = result("train", "adm", "s", spread([2.0] * 3), ratio([2.0], [4.0]), 10.04, tokens_per_s=5, at={})
    assert cells(slow) == ["adm", "2 (extremes 2 to 2) s", "2 (once)", "10.0", "tokens per s 5"]
    assert line(slow).split(maxsplit=1)[1] == (
        "2 (extremes 2 to 2) s, plain / ours 2 (once), 10.0 MiB, tokens per s 5"
    )
    assert "failed, no GPU" in line(failed("train", "adm", "no GPU"))


def test_files_of_older_commits_are_read(tmp_path):
    """They name results `rows` and repeats `runs`, and have the floor of each part of a step."""
    value = {"median": 1.0, "low": 1.0, "high": 1.0, "runs": 5}
    row = {"part": "train", "name": "adm", "unit": "s", "value": value, "plain": value, "ratio": None,
           "memory_mib": 5.0, "plain_memory_mib": 9.0, "details": {}}  # fmt: skip
    part_of_step = {**row, "part": "floor", "name": "adm, head and loss", "value": None}
    machine = result_file([1.0], [1.0], 5.0)["machine"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"machine": machine, "rows": [row, part_of_step]}))
    (one,) = read(path)["results"]
    assert one["value"]["repeats"] == 5 and one["details"] == {"plain_mib": 9.0}
    assert cells(one) == ["adm", "1 (1 to 1) s", "", "5", "plain mib 9"]


@pytest.mark.parametrize(
    ("text", "part"),
    [("{", "is not JSON"), ("[]", "no machine and results"), (None, "No such file")],
)
def test_other_files_are_refused(tmp_path, text, part):
    path = tmp_path / "other.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=part):
        read(path)
    path.write_text(json.dumps({**result_file([1.0], [1.0], 5.0), "results": [1]}))
    with pytest.raises(UsageError, match="is not a result"):
        read(path)


def test_pages_are_made_of_complete_results_only(tmp_path):
    content = result_file([1.0], [2.0], 50.0)
    (tmp_path / "faults.json").write_text('{"kills": 200}')  # of another kind
    (tmp_path / "interrupted.json").write_text(json.dumps({**content, "complete": False}))
    (tmp_path / "whole.json").write_text(json.dumps(content))
    assert result_files(tmp_path) == [tmp_path / "whole.json"]
    text = page(tmp_path / "whole.json")
    assert text.startswith("# Example CPU, 2 cores\n") and "commit `aaaaaaaa`" in text
    assert "| adm, nano, float32 | 1 (once) s" in text and "99.0" in text


def test_the_committed_pages_are_those_of_the_committed_results():
    paths = result_files(RESULTS)
    assert {path.stem for path in paths} == {path.stem for path in PAGES.glob("*.md")}
    for path in paths:
        assert (PAGES / f"{path.stem}.md").read_text() == page(path), "run python -m bench.report"
