"""The command line of the suite, on tiny sizes, and what it refuses."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from bench import machine, suite
from bench.baseline import difference
from bench.builds import SEED, run_dtype
from bench.isolated import DoesNotFit
from bench.parts import PARTS, maker
from bench.parts.paper import at_largest, hours, largest
from bench.parts.released import read
from bench.plan import MODELS, Case, Plan
from bench.results import begun
from bench.rows import missing, row
from bench.timing import spread
from errors import Failure, UsageError
from models.capacities import draw_factors
from tests.conftest import ROOT

PLAN = Plan(MODELS, ("tiny",), ("float32",), "cpu", 1, 1, "tiny", "float32")


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def test_training_and_evaluation_through_the_command_line(tmp_path):
    path = tmp_path / "result.json"
    flags = "--tiny --only train eval --models adm --dtypes float32 --repeats 2 --device cpu --threads 1"
    done = run(*flags.split(), "--json", path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "[2 of 2, " in done.stderr
    result = json.loads(path.read_text())
    assert result["machine"]["threads"] == 1 and "--only train eval" in result["machine"]["command"]
    assert [(row["part"], row["name"]) for row in result["rows"]] == [
        ("train", "adm, tiny, float32"), ("eval", "adm, tiny, float32"),
    ]  # fmt: skip
    assert result["complete"]
    assert result["cases"] == [["train", "adm, tiny, float32", 1], ["eval", "adm, tiny, float32", 1]]
    for one in result["rows"]:
        assert one["value"]["runs"] == 2 and 0 < one["value"]["low"] <= one["value"]["high"]
        assert 0 < one["memory_mib"] < 2000
        assert one["ratio"]["runs"] == 2 and one["ratio"]["low"] > 0 and one["plain_memory_mib"] > 0
        assert one["name"] in done.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--only trian", "did you mean train?"),
        ("--models adn", "did you mean adm?"),
        ("--sizes huge", "choose from baseline"),
        ("--dtypes float", "did you mean float32?"),
        ("--repeats 0", "must be at least 1"),
        ("--device gpu", "is none of auto, cpu"),
        ("--tiny --only eval --figure curve.pdf", "--only leaves out"),
        ("--tiny --only eval --json /dev/null/result.json", "cannot write /dev/null/result.json"),
        ("--tiny --only baseline --baseline typo.json", "cannot read --baseline typo.json"),
        ("--tiny --only scaling --figure curve.txt", "the suffix must be one of"),
        (f"--tiny --only baseline --baseline {ROOT / 'README.md'}", "is not a baseline's JSON"),
    ],
)
def test_what_is_refused(flags, said):
    done = run(*flags.split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and said in done.stderr


def test_every_part_makes_cases_of_a_plan_or_none():
    for part in PARTS:
        names = [case.name for case in maker(part)(PLAN)]
        assert names and len(set(names)) == len(names), part
    assert not maker("paper")(replace(PLAN, effort="full"))  # needs a GPU
    with pytest.raises(UsageError, match="no such part"):
        maker("none")


def test_a_case_that_fails_is_a_row_and_what_was_measured_is_kept(monkeypatch, capsys):
    """Whatever it failed with; the result is written after each case."""

    def good():
        return [row("eval", "good", "s", spread([1.0]))]

    def bad():
        raise ZeroDivisionError("as asked")

    made = [Case("bad", bad), Case("good", good)]
    monkeypatch.setattr("bench.suite.maker", lambda part: lambda plan: made)
    kept = []
    done = suite.run(["eval"], PLAN, lambda so_far: kept.append(len(so_far)))
    assert kept == [1, 2]
    assert done["eval", "bad"][0]["details"]["why"] == "ZeroDivisionError: as asked"
    assert "not measured: ZeroDivisionError" in capsys.readouterr().out
    made.pop()
    with pytest.raises(Failure, match="nothing could be measured"):
        suite.run(["eval"], PLAN, kept.append)


OF_ADM = (
    "floor", "capacities", "precision", "prefill", "decode", "budgets", "checkpoint", "baseline", "paper",
)  # fmt: skip
WITH_MEMORY = ("prefill", "decode", "scaling", "budgets", "checkpoint", "baseline", "paper")


def test_parts_that_take_seconds():
    """Not those that start commands, nor the loader, which prepares a corpus."""
    done = suite.run(OF_ADM, replace(PLAN, models=("adm",)), lambda done: None)
    rows = suite.flat(done | suite.run(["scaling"], replace(PLAN, models=("but",)), lambda done: None))
    assert {one["part"] for one in rows} == {*OF_ADM, "scaling"}
    assert all(one["value"] and one["value"]["median"] > 0 for one in rows), rows
    names = [(one["part"], one["name"]) for one in rows]
    assert len(set(names)) == len(names)
    for one in rows:
        if "adm" in one["name"] or "but" in one["name"]:
            assert "tiny" in one["name"]  # so that compare sets like beside like
        if one["part"] in ("prefill", "decode"):
            assert one["ratio"]["median"] > 0 and one["plain_memory_mib"] is not None
        if one["part"] in WITH_MEMORY:
            assert one["memory_mib"] is not None
        if one["part"] == "floor" and one["name"].endswith("whole step"):
            found = one["details"]
            assert found["flops"] > 0 and found["gflop_per_s"] > 0
            assert 0 < found["over_low"] <= found["over_floor"] <= found["over_high"]
            assert found["kernels_alone_s"] > 0 and found["over_kernels"] > 0


MACHINE = {
    "cpu": "X", "gpu": None, "cores": 2, "threads": 2, "torch": "2.13.0", "python": "3.11.7", "date": "",
    "commit": "a" * 40, "effort": "full", "command": "python -m bench",
}  # fmt: skip


def test_what_was_cut_off_goes_on(tmp_path, monkeypatch):
    """Without the cases that are measured; with those that failed."""
    path = tmp_path / "cut.json"
    good = [row("eval", name, "s", spread([1.0])) for name in ("one", "two")]
    rows = [*good, missing("eval", "bad", "as asked")]
    cut = {"machine": MACHINE, "complete": False, "rows": rows}
    path.write_text(json.dumps({**cut, "cases": [["eval", "good", 2], ["eval", "bad", 1]]}))
    before = begun(path, {**MACHINE, "date": "later"})
    assert before == {("eval", "good"): good}
    called = []
    made = [Case(name, lambda name=name: called.append(name) or [good[0]]) for name in ("bad", "good")]
    monkeypatch.setattr("bench.suite.maker", lambda part: lambda plan: made)
    done = suite.run(["eval"], PLAN, lambda done: None, before)
    assert called == ["bad"] and list(done) == [("eval", "bad"), ("eval", "good")]
    assert suite.flat(done) == [good[0], *good]


@pytest.mark.parametrize("change", [{"commit": "b" * 40}, {"cpu": "Y"}, {"command": "other"}])
def test_what_another_run_measured_is_measured_anew(tmp_path, change):
    path = tmp_path / "cut.json"
    rows = [row("eval", "one", "s", spread([1.0]))]
    machine = {**MACHINE, **change}
    content = {"machine": machine, "complete": False, "cases": [["eval", "good", 1]], "rows": rows}
    path.write_text(json.dumps(content))
    assert begun(path, MACHINE) == {} == begun(None, MACHINE) == begun(tmp_path / "none.json", MACHINE)
    path.write_text(json.dumps({**content, "machine": MACHINE, "complete": True}))
    assert begun(path, MACHINE) == {}


def test_code_that_is_not_committed_is_measured_anew(tmp_path):
    path = tmp_path / "cut.json"
    machine = {**MACHINE, "commit": f"{'a' * 40}-dirty"}
    rows = [row("eval", "one", "s", spread([1.0]))]
    content = {"machine": machine, "complete": False, "cases": [["eval", "good", 1]], "rows": rows}
    path.write_text(json.dumps(content))
    assert begun(path, machine) == {}


def test_the_number_format_of_a_run(monkeypatch):
    monkeypatch.setattr("distributed.precision.cpu_multiplies_bfloat16", lambda: False)
    assert run_dtype(torch.device("cpu")) == "float32"
    monkeypatch.setattr("distributed.precision.cpu_multiplies_bfloat16", lambda: True)
    assert run_dtype(torch.device("cpu")) == "bfloat16"


def test_sizes_that_are_asked_for_are_measured_by_all():
    chosen = replace(PLAN, effort="full", sizes=("baseline", "nano"), models=("adm",))
    for part in ("floor", "prefill", "decode"):
        for given in (False, True):
            names = [case.name for case in maker(part)(replace(chosen, sizes_chosen=given))]
            assert any("baseline" in name for name in names)
            assert any("nano" in name for name in names) == given


def test_quick_measures_the_released_protocol_at_a_small_size():
    plan = replace(PLAN, effort="quick", dtypes=("float32", "bfloat16"), models=("adm",))
    assert plan.main_size_name == "nano"
    assert [case.name for case in maker("baseline")(plan)] == ["adm, float32"]
    assert len(maker("paper")(replace(plan, device="cuda", models=MODELS))) == 1


def test_the_largest_batch():
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= 5

    assert largest(fits, 128) == 4 and tried == [1, 2, 4, 8]
    assert largest(lambda batch: True, 8) == 8
    assert largest(lambda batch: False, 8) == 0


def test_a_batch_that_stops_fitting_is_halved():
    """The first steps may fit and a later one not."""

    def measure(batch, repeats):
        if batch > 16 or (batch > 4 and repeats > 1):
            raise DoesNotFit("too large")
        return f"{batch} for {repeats}"

    assert at_largest(measure, 128, 10) == (4, "4 for 10")

    def never(batch, repeats):
        raise DoesNotFit("too large")

    assert at_largest(never, 128, 10) == (0, None)


def test_hours_count_one_optimiser_step_for_all_micro_batches():
    assert hours([(1.0, 2.0, 9.0)] * 3, batch=64) == 40_000 * (2 * 3.0 + 9.0) / 3600


def test_capacities_are_those_that_the_released_code_drew():
    """Of its 15 steps behind 3 of warm-up, the first two."""
    drawn = []
    for step in (3, 4):
        torch.manual_seed(SEED + step)
        drawn.append([round(f, 4) for f in draw_factors("uniform", torch.rand(2).tolist())])
    assert drawn == [[0.2571, 0.0402], [1.0, 0.4088]]


def test_another_machine_is_named(tmp_path):
    released = {"cpu": "X", "cores": 2, "settings": {"threads": 2}, "results": {}}
    ours = {"cpu": "X", "cores": 2, "threads": 2, "gpu": None}
    assert difference(released, ours) is None
    assert "ran on X, 2 cores, 2 threads; this is Y, 4 cores" in difference(
        released, {**ours, "cpu": "Y", "cores": 4}
    )
    assert read(None) is None
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({"settings": {}, "results": {}}))
    assert read(str(path)) == {"settings": {}, "results": {}}
    path.write_text(json.dumps({"settings": {}}))
    with pytest.raises(UsageError, match="it has no results"):
        read(str(path))


def test_names_of_result_files():
    where = {"cpu": "Intel(R) Xeon(R) Processor @ 2.00GHz", "gpu": None, "cores": 2, "commit": "a" * 40}
    assert machine.file_name(where) == f"intel-xeon-2cores-{'a' * 8}.json"
    where = {**where, "gpu": "NVIDIA H200", "commit": f"{'b' * 40}-dirty"}
    assert machine.file_name(where) == f"nvidia-h200-{'b' * 8}-dirty.json"
