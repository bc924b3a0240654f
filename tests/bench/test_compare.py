"""Two results side by side."""

import json
import subprocess
import sys

from bench.compare import changes, machines, table
from tests.bench.results import result
from tests.conftest import ROOT


def test_what_changed_by_more_than_the_spreads_is_marked():
    before = result([1.0, 1.1, 1.1, 1.2], [100.0, 101.0] * 2, 50.0)
    after = result([0.5, 0.6, 0.6, 0.7], [90.0, 91.0] * 2, 51.0, commit="fedcba")
    found = {(change.part, change.name): change for change in changes(before, after)}
    step = found["train", "adm, nano, float32"]
    assert (step.first, step.second, step.mark) == (1.1, 0.6, "better")
    assert found["loader", "batches"].mark == "worse"  # of a rate, less is worse
    assert found["train", "adm, nano, float32, memory"].mark == ""  # 2 % more
    assert ("eval", "only at fedcba") not in found
    assert machines(before, after) == ["commit: 0123456789abcdef -> fedcba"]


def test_fewer_runs_than_quartiles_need_say_nothing():
    before, after = result([1.0] * 3, [1.0], 50.0), result([5.0] * 4, [2.0], 50.0)
    assert {change.mark for change in changes(before, after)} == {""}


def test_overlapping_spreads_are_not():
    before, after = result([1.0, 1.1, 1.1, 1.2], [1.0], 50.0), result([1.1, 1.11, 1.3, 1.4], [1.0], 70.0)
    found = {change.name: change.mark for change in changes(before, after)}
    assert found == {
        "adm, nano, float32": "", "adm, nano, float32, memory": "worse", "batches": "",
        "only at 0123456789abcdef": "", "adm, nano, float32, whole step": "",
    }  # fmt: skip
    assert "5 compared: 0 better and 1 worse" in table(before, after)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bench.compare", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_the_command(tmp_path):
    a, b, broken, other = (tmp_path / name for name in ("a.json", "b.json", "broken.json", "other.json"))
    a.write_text(json.dumps(result([1.0] * 4, [1.0], 50.0, effort="full", command="python -m bench")))
    b.write_text(json.dumps(result([2.0] * 4, [1.0], 50.0, torch="2.11.0", effort="quick")))
    broken.write_text("{")
    other.write_text("[]")
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps({**result([1.0], [1.0], 50.0), "rows": [1]}))
    done = run(a, b)
    assert done.returncode == 0, done.stderr
    assert "effort: full -> quick" in done.stdout and "command: python -m bench -> None" in done.stdout
    assert "torch: 2.13.0 -> 2.11.0" in done.stdout and "worse" in done.stdout
    for wrong, part in (
        (broken, "is not JSON"), (tmp_path / "none", "No such file"), (other, "no machine"),
        (rows, "is not a result"),
    ):  # fmt: skip
        done = run(a, wrong)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and part in done.stderr
