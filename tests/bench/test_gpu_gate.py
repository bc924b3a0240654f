"""The GPU gate: its items rehearsed on a CPU, and a runner that survives whatever an item does."""

import importlib
import json
import subprocess
import sys

import pytest
import torch

from bench.gpu_gate import __main__ as gate
from bench.gpu_gate.items import ITEMS, Item
from bench.gpu_gate.rows import close
from bench.gpu_gate.runner import done_before, run_item, run_items
from bench.plan import Plan
from errors import Failure, UsageError
from tests.bench.examples import MACHINE
from tests.bench.test_processes import all_ended
from tests.conftest import ROOT

PLAN = Plan(("ln_cotformer", "adm"), None, ("float32",), "cpu", 1, 1, "tiny", "bfloat16")
# The others compile, or start several ranks: `python -m bench.gpu_gate --device cpu` rehearses them too.
QUICK = (
    "machine", "formats", "kernels", "waits", "stable", "paper-adm", "largest", "repeats", "checkpoint",
    "parallel", "generation", "decoding", "attention", "rotary", "tests",
)  # fmt: skip
BY_NAME = {item.name: item for item in ITEMS}


def example(function, limit_s=60.0, arguments=()):
    return Item(function, "", f"tests.bench.gate_examples:{function}", limit_s, arguments)


def test_items_have_names_limits_and_functions():
    assert len(BY_NAME) == len(ITEMS) and set(QUICK) <= set(BY_NAME)
    for item in ITEMS:
        module, _, name = item.function.partition(":")
        assert callable(getattr(importlib.import_module(f"bench.gpu_gate.{module}"), name)), item
        assert 0 < item.limit_s <= 200


@pytest.mark.parametrize("name", QUICK)
def test_items_run_on_a_cpu(name):
    result = run_item(BY_NAME[name], PLAN, 120)
    assert result["status"] in ("passed", "skipped"), result
    assert result["rows"] or result["status"] == "skipped"
    names = [one["name"] for one in result["rows"]]
    assert len(set(names)) == len(names), names
    if name in ("formats", "repeats", "checkpoint", "parallel", "generation"):
        assert any(one["ok"] for one in result["rows"])


def test_numbers_are_close_or_not():
    assert close("a", [1.0, 2.0], [1.0, 2.05], 0.1)["ok"] and not close("a", [1.0], [1.2], 0.1)["ok"]
    assert not close("a", [float("nan")], [1.0], 0.1)["ok"] and not close("a", [None], [1.0], 0.1)["ok"]
    assert not close("a", [], [], 0.1)["ok"]


@pytest.mark.parametrize(
    ("function", "status", "reason"),
    [
        ("good", "passed", None), ("skips", "skipped", "it needs a reason"), ("bad", "failed", "wrong"),
        ("fails", "failed", "as asked"), ("raises", "failed", "ZeroDivisionError: as asked"),
        ("crashes", "failed", "ended without an answer (exit code -11); its last line: last words"),
    ],
)  # fmt: skip
def test_whatever_an_item_does_its_rows_and_the_reason_are_kept(function, status, reason):
    result = run_item(example(function), PLAN, 60)
    assert (result["status"], result["reason"]) == (status, reason), result
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert len(result["rows"]) == {"good": 2, "bad": 2, "skips": 0}.get(function, 1)
    assert bool(result["tail"]) == (function in ("raises", "crashes")), result["tail"]


def test_an_item_that_hangs_is_killed_with_its_children(tmp_path):
    result = run_item(example("hangs", arguments=(str(tmp_path / "pids"),)), PLAN, 4)
    assert result["status"] == "late"
    assert result["reason"] == "not done within 4 s; its last line: it hangs"
    assert [one["name"] for one in result["rows"]] == ["before"]
    assert all_ended(tmp_path / "pids")


def test_results_are_kept_after_each_item_and_not_made_again(capsys):
    kept = []
    before = {"skips": {"item": "skips", "status": "passed"}}
    items = [example(name) for name in ("skips", "bad", "good")]
    done = run_items(items, PLAN, lambda results: kept.append(len(results)), 60, before)
    assert kept == [2, 3] and list(done) == ["skips", "bad", "good"]
    assert "wrong" in capsys.readouterr().out


def test_an_item_that_the_gate_has_no_time_for_has_no_result(tmp_path):
    items = [example("hangs", arguments=(str(tmp_path / "pids"),)), example("good")]
    assert run_items(items, PLAN, lambda results: None, 7) == {}


def test_a_gate_that_was_cut_off_resumes(tmp_path):
    path = tmp_path / "gate.json"
    results = [{"item": "one", "status": "passed"}, {"item": "two", "status": "failed"}]

    def before(again=None, complete=False, **machine):
        path.write_text(
            json.dumps({"machine": {**MACHINE, **machine}, "complete": complete, "items": results})
        )
        return list(done_before(path, {**MACHINE, "command": "another"}, again))

    assert before() == ["one", "two"] and before(["two"]) == ["one"] == before(["two"], complete=True)
    assert before(complete=True) == [] == before(commit="b" * 40) == before(gpu="another")
    assert done_before(tmp_path / "none", MACHINE, None) == {} == done_before(None, MACHINE, None)
    path.write_text("[]")
    assert done_before(path, MACHINE, None) == {}


def test_the_command(tmp_path, monkeypatch, capsys):
    """A failing item makes it fail, and the file has all of them."""
    path = tmp_path / "gate.json"
    monkeypatch.setattr(gate, "ITEMS", [example("good"), example("bad"), example("skips")])
    flags = ["--device", "cpu", "--output", str(path)]
    with pytest.raises(Failure, match=r"1 of 3 items failed: bad$"):
        gate.main(flags)
    content = json.loads(path.read_text())
    assert content["complete"] and [one["item"] for one in content["items"]] == ["good", "bad", "skips"]
    assert content["machine"]["torch"] == torch.__version__
    gate.main([*flags, "--only", "good", "skips"])
    assert "all 2 items passed" in capsys.readouterr().out
    gate.main(["--list"])
    assert capsys.readouterr().out.split()[0] == "good"


@pytest.mark.parametrize(
    ("flags", "said"),
    [("--only wait", "did you mean waits?"), ("--minutes 0", "must be above 0"),
     ("--device cpu --only machine --output /dev/null/gate.json", "cannot write /dev/null/gate.json")],
)  # fmt: skip
def test_refusals(flags, said):
    with pytest.raises(Failure, match=said.replace("?", r"\?")) as refused:
        gate.main(flags.split())
    assert isinstance(refused.value, UsageError) == ("/dev/null" not in flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(Failure, match="torch sees no GPU here") as refused:
        gate.main([])
    assert refused.value.exit_code == 1


@pytest.mark.process
def test_it_needs_torch_and_numpy_alone():
    """As on a machine where nothing else is installed."""
    missing = (
        "tqdm", "tiktoken", "datasets", "huggingface_hub", "tokenizers", "wandb", "zstandard", "matplotlib",
        "safetensors", "pytest",
    )  # fmt: skip
    modules = sorted({f"bench.gpu_gate.{item.function.partition(':')[0]}" for item in ITEMS})
    code = f"import sys\nsys.modules.update(dict.fromkeys({missing}))\nimport {', '.join(modules)}, optim.run"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
