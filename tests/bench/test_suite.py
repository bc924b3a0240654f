"""The suite: its command line, its result files, and what it refuses."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from bench import suite
from bench.plan import Case
from bench.results import failed, result, spread
from errors import Failure, UsageError
from tests.bench.examples import MACHINE
from tests.bench.test_works import PLAN
from tests.conftest import ROOT


def bench(*arguments):
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_training_and_evaluation_by_the_command(tmp_path):
    path = tmp_path / "result.json"
    flags = "--tiny --only train eval --models adm --repeats 2 --device cpu --threads 1"
    done = bench(*flags.split(), "--json", path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    content = json.loads(path.read_text())
    assert content["complete"] and content["machine"]["threads"] == 1
    assert "--only train eval" in content["machine"]["command"]
    assert [(one["part"], one["case"], one["name"]) for one in content["results"]] == [
        ("train", "adm, tiny", "adm, tiny, float32"), ("eval", "adm, tiny", "adm, tiny, float32"),
    ]  # fmt: skip
    for one in content["results"]:
        assert one["value"]["repeats"] == 2 and 0 < one["value"]["low"] <= one["value"]["high"]
        assert one["ratio"]["repeats"] == 2 and 0 < one["memory_mib"] < 2000
        assert one["name"] in done.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--only trian", "did you mean train?"),
        ("--models adn", "did you mean adm?"),
        ("--sizes huge", "choose from baseline"),
        ("--dtypes float", "did you mean float32?"),
        ("--repeats 0", "must be at least 1"),
        ("--device gpu", "must be auto, cpu"),
        ("--tiny --only eval --json /dev/null/result.json", "cannot write /dev/null/result.json"),
    ],
)
def test_refusals(flags, said, capsys):
    from bench.__main__ import main

    with pytest.raises(UsageError, match=said.replace("?", r"\?")) as refused:
        main(flags.split())
    assert "\n" not in str(refused.value)


def test_every_part_makes_cases_or_none():
    for part in suite.PARTS:
        names = [case.name for case in suite.cases_of(part, replace(PLAN, models=("adm", "cotformer")))]
        assert names and len(set(names)) == len(names), part
    with pytest.raises(UsageError, match="no such part"):
        suite.cases_of("none", PLAN)


def good(name):
    return {**result("eval", name, "s", spread([1.0])), "case": "good"}


def test_a_case_that_fails_is_a_result_and_the_others_are_measured(monkeypatch, capsys):
    """Whatever it failed with; the results are kept after each case."""

    def bad():
        raise ZeroDivisionError("as asked")

    cases = [Case("bad", bad), Case("good", lambda: [good("good")])]
    monkeypatch.setattr(suite, "cases_of", lambda part, plan: cases)
    kept = []
    results = suite.measure_all(["eval"], PLAN, lambda so_far: kept.append(len(so_far)))
    assert kept == [1, 2]
    assert results[0]["details"]["why"] == "ZeroDivisionError: as asked" and results[1]["value"]
    assert "failed, ZeroDivisionError" in capsys.readouterr().out
    cases.pop()
    with pytest.raises(Failure, match="nothing could be measured"):
        suite.measure_all(["eval"], PLAN, kept.append)


def interrupted(path, **machine):
    bad = {**failed("eval", "bad", "as asked"), "case": "bad"}
    results = [good("one"), good("two"), bad]
    content = {"machine": {**MACHINE, **machine}, "complete": False, "results": results}
    path.write_text(json.dumps(content))
    return content


def test_an_interrupted_suite_resumes(tmp_path, monkeypatch):
    """Without the cases that are measured; with those that failed."""
    path = tmp_path / "cut.json"
    interrupted(path)
    before = suite.measured_before(path, {**MACHINE, "date": "later"})
    assert before == {("eval", "good"): [good("one"), good("two")]}
    called = []
    cases = [Case(name, lambda name=name: called.append(name) or [good(name)]) for name in ("bad", "good")]
    monkeypatch.setattr(suite, "cases_of", lambda part, plan: cases)
    results = suite.measure_all(["eval"], PLAN, lambda so_far: None, before)
    assert called == ["bad"] and [one["name"] for one in results] == ["bad", "one", "two"]


@pytest.mark.parametrize("change", [{"commit": "b" * 40}, {"cpu": "Y"}, {"command": "other"}])
def test_results_of_another_machine_commit_or_command_are_measured_again(tmp_path, change):
    path = tmp_path / "cut.json"
    content = interrupted(path, **change)
    assert suite.measured_before(path, MACHINE) == {} == suite.measured_before(None, MACHINE)
    path.write_text(json.dumps({**content, "machine": MACHINE, "complete": True}))
    assert suite.measured_before(path, MACHINE) == {} == suite.measured_before(tmp_path / "none", MACHINE)
    dirty = {**MACHINE, "commit": f"{'a' * 40}-dirty"}
    interrupted(path, commit=dirty["commit"])
    assert suite.measured_before(path, dirty) == {}


def test_names_of_result_files():
    machine = {"cpu": "Intel(R) Xeon(R) Processor @ 2.00GHz", "gpu": None, "cores": 2, "commit": "a" * 40}
    assert suite.file_name(machine) == f"intel-xeon-2cores-{'a' * 8}.json"
    machine = {**machine, "gpu": "NVIDIA H200", "commit": f"{'b' * 40}-dirty"}
    assert suite.file_name(machine) == f"nvidia-h200-{'b' * 8}-dirty.json"
