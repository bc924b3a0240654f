"""The table of README.md is what the generator makes from the newest committed result."""

import json

import pytest

from bench.readme import BEGIN, END, NOT_YET, README, block, replaced
from bench.results import newest
from errors import Failure, UsageError
from tests.bench.results import OTHERS, result


def test_the_readme_holds_the_table_of_the_newest_result():
    text = README.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert replaced(text, newest()) == text
    assert block(newest()) in text


def test_before_anything_was_measured(tmp_path):
    (tmp_path / "faults.json").write_text('{"runs": 200}')  # of another kind
    cut_off = {**result([1.0], [1.0], 50.0), "complete": False}
    (tmp_path / "cut.json").write_text(json.dumps(cut_off))
    assert newest(tmp_path) == []
    assert block([]) == NOT_YET


def test_the_newest_result_becomes_the_table(tmp_path):
    old, new = result([1.0], [5.0], 50.0), result([2.0], [5.0], 50.0, date="2026-02-03T00:00:00+00:00")
    new["rows"] += OTHERS
    (tmp_path / "z.json").write_text(json.dumps(old))
    (tmp_path / "a.json").write_text(json.dumps(new))
    made = replaced(f"before\n{BEGIN}\nold\n{END}\nafter\n", newest(tmp_path))
    assert made.startswith(f"before\n{BEGIN}\nExample CPU, 2 cores") and made.endswith(f"{END}\nafter\n")
    assert "| adm, nano | 2 | 2.00 | 50.0 (100) |  |  |  |" in made  # nothing in bfloat16
    assert "| adm, nano | 4.00 | 1.60 | 2.50 |  |  |  |" in made
    assert "| prefill, adm, nano, bfloat16, 256 tokens | 900 | 1.10 |  |" in made
    assert "| decode, adm, nano, bfloat16, 64 tokens | 90.0 | 0.90 | 7.0 |" in made
    assert "| adm, eval, nano, float32 | +0 % at 1, -13 % at 0 |" in made
    assert "| startup | main.py --help | 0.1 s |  |  |" in made and "only at" not in made
    assert "plain float32 over bfloat16 3" in made and "matrix product" not in made
    assert "| loader | batches | 5 batches/s |  | dataloader over ours 29.0 |" in made
    assert "old" not in made and "2026-02-03" in made
    assert replaced(made, newest(tmp_path)) == made


def test_a_gpu_stands_beside_the_cpu(tmp_path):
    for date, gpu in (("2026-02-01", None), ("2026-02-02", None), ("2026-02-03", "Example GPU")):
        made = result([1.0], [5.0], 50.0, date=date, gpu=gpu)
        (tmp_path / f"{date}.json").write_text(json.dumps(made))
    found = newest(tmp_path)
    assert [(one["machine"]["date"], one["machine"]["gpu"]) for one in found] == [
        ("2026-02-02", None), ("2026-02-03", "Example GPU"),
    ]  # fmt: skip
    assert block(found).count("| part |") == 2 and "Example GPU, torch" in block(found)


def test_files_that_are_no_results(tmp_path):
    made = result([1.0], [5.0], 50.0)
    del made["machine"]["date"]
    (tmp_path / "dateless.json").write_text(json.dumps(made))
    assert newest(tmp_path) == []
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UsageError, match=r"broken\.json is not JSON"):
        newest(tmp_path)


def test_a_readme_without_the_comments_is_refused():
    with pytest.raises(Failure, match="lacks the lines"):
        replaced("nothing", [])
