"""Names and places of the files of evaluations."""

import re
from types import SimpleNamespace

import pytest

from evaluation import reports
from evaluation.reports import result_path

ADM = "adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final"
SIZES = "--n_layer 3 --n_layer_begin 1 --n_layer_end 1 --n_repeat 3 --depth_embedding linear_learned"


@pytest.fixture
def adm(trained, tmp_path):
    return trained(f"--model adm {SIZES}", into=tmp_path / "exps")


def test_names_of_results(tmp_path):
    run = SimpleNamespace(path=tmp_path / "ckpt_4.pt", replaced={"dataset": "files:/a/b [1].jsonl"})
    name = result_path("eval_summary", run, None, limit=3, budget=None).name
    assert re.fullmatch(r"eval_summary_ckpt_4_dataset=files-b-1-jsonl-[0-9a-f]{8}_limit=3\.json", name)
    run.replaced = {"routing_threshold": [0.1234567] * 50}
    one = result_path("router_weights", run, tmp_path / "x", ".npz")
    run.replaced["routing_threshold"][49] = 0.5
    other = result_path("router_weights", run, tmp_path / "x", ".npz")
    assert one.parent.name == "x" and len(one.name) < 180 and one != other


@pytest.mark.parametrize(("script", "prints"), [
    ("eval.py", True), ("get_router_weights.py", False), ("get_ppl_per_mac.py", False),
    ("-m analysis.logit_lens", False),
])  # fmt: skip
def test_a_place_that_cannot_be_written_is_known_before_the_work(adm, tmp_path, script, prints, monkeypatch):
    """A folder that was asked for is refused; next to the checkpoint, what prints its result does so."""
    file = tmp_path / "file"
    file.touch()
    flags = f"--checkpoint {adm.folder(ADM)}"
    said = adm.run(script, f"{flags} --output_dir {file}", 2)
    assert "give a" in said.stderr and "perplexity" not in said.stdout
    monkeypatch.setattr(reports, "why_unwritable", lambda folder: "Read-only file system")
    before = list(adm.folder(ADM).iterdir())
    said = adm.run(script, flags, 0 if prints else 2)
    if prints:
        assert "cannot be written (Read-only file system): the result is only printed" in said.stdout
        assert "perplexity " in said.stdout and "written: " not in said.stdout
    else:
        assert "cannot be written (Read-only file system); give another --output_dir" in said.stderr
    assert list(adm.folder(ADM).iterdir()) == before
