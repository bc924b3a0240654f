"""Two results side by side, and two commits."""

import json
import os
import re
import subprocess
import sys

import pytest

from bench.compare import changes, compared
from tests.bench.examples import result_file
from tests.conftest import ROOT


def marks(before, after):
    return {f"{part} {name}": mark for part, name, *_, mark in changes(before, after)}


def test_changes_larger_than_the_spreads_are_marked():
    before = result_file([1.0, 1.1, 1.1, 1.2], [100.0, 101.0] * 2, 50.0)
    after = result_file([0.5, 0.6, 0.6, 0.7], [90.0, 91.0] * 2, 51.0, commit="fedcba")
    assert marks(before, after) == {
        "train adm, nano, float32": "better",
        "train adm, nano, float32, memory": "",  # 2 % more
        "tokeniser 1 worker": "worse",  # of a rate, less is worse
    }
    (step, *_), text = changes(before, after), compared(before, after)
    assert step[2:] == ["1.1 (1.08 to 1.12) s", "0.6 (0.575 to 0.625) s", "0.55", "better"]
    assert f"commit: {'a' * 40} -> fedcba" in text and "1 better and 1 worse" in text


def test_overlapping_spreads_and_few_repeats_are_not():
    before = result_file([1.0, 1.1, 1.1, 1.2], [1.0] * 3, 50.0)
    after = result_file([1.1, 1.11, 1.3, 1.4], [2.0] * 4, 70.0, commit="fedcba")
    assert marks(before, after) == {
        "train adm, nano, float32": "", "train adm, nano, float32, memory": "worse", "tokeniser 1 worker": "",
    }  # fmt: skip


def compare(*arguments, **environment):
    command = [sys.executable, "-m", "bench.compare", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_the_command(tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps(result_file([1.0] * 4, [1.0], 50.0)))
    b.write_text(json.dumps(result_file([2.0] * 4, [1.0], 50.0, torch="2.11.0", effort="quick")))
    done = compare(a, b)
    assert done.returncode == 0, done.stderr
    assert "effort: full -> quick" in done.stdout and "torch: 2.13.0 -> 2.11.0" in done.stdout
    assert any(line.startswith("train") and line.endswith("worse") for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("flags", "said"),
    [("one.json", "give two result files"), ("--against no-such-commit", "invalid reference")],
)
def test_refusals(flags, said):
    done = compare(*flags.split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and said in done.stderr


def test_two_commits_take_turns(tmp_path):
    """Here twice the same commit, so losses are equal. Its files are gone afterwards."""
    git = ["git", "-C", str(ROOT), "worktree", "list"]
    if subprocess.run(git, capture_output=True).returncode:
        pytest.skip("not a git repository")
    flags = "--against HEAD --sizes tiny --models adm --dtypes float32 --rounds 1".split()
    done = compare(*flags, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    head, *lines = (re.split("  +", line) for line in done.stdout.splitlines())
    assert head == ["work", "before, s", "after, s", "after / before", "loss differs by"]
    assert [line[0].partition(",")[0] for line in lines] == ["train", "eval", "decode"]
    assert [line[4:5] for line in lines] == [["0"], ["0"], []]
    assert not list(tmp_path.rglob("before"))
    assert str(tmp_path) not in subprocess.run(git, capture_output=True, text=True).stdout
