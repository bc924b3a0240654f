"""What figures are drawn from: labels, input files, formats."""

import json
from pathlib import Path

import pytest

import config
from errors import UsageError
from plots.inputs import check_labels, check_numbers, find_result, find_results

PNG = Path("x.png")


def finished(folder, *flags):
    folder.mkdir(parents=True)
    args = config.parse_args(["--dataset", "pydoc", "--vocab_size", "320", *flags])
    (folder / "summary.json").write_text(json.dumps({"args": vars(args)}))
    return folder


def test_labels_are_given_or_one_for_each_run():
    runs = [Path("exps/pydoc/but_full_depth/a"), Path("exps/pydoc/base/b")]
    assert check_labels(runs, None, PNG) == ["Block Universal Transformer", "Standard"]
    assert check_labels(runs, ["one", "two"], Path("x.svg")) == ["one", "two"]
    for labels in (["one"], ["one", "one"]):
        with pytest.raises(UsageError, match="2 runs need as many different labels"):
            check_labels(runs, labels, Path("x.pdf"))
    with pytest.raises(UsageError, match="2 runs need as many different labels"):
        check_labels([runs[0], runs[0]], None, PNG)
    with pytest.raises(UsageError, match=r"the suffix must be one of .png, .pdf, .svg"):
        check_labels(runs, None, Path("x.bmp"))


def test_labels_of_finished_runs_name_the_flags_that_differ(tmp_path):
    runs = [
        finished(tmp_path / "a", "--model", "adm", "--seed", "0"),
        finished(tmp_path / "b", "--model", "adm", "--seed", "1", "--lr", "0.5"),
        finished(tmp_path / "c", "--model", "standard", "--n_layer", "3"),
    ]
    one, two, three = check_labels(runs, None, PNG)
    assert one.startswith("Adaptive LN-CoTFormer, ") and {"seed 0", "lr 0.001"} == set(one.split(", ")[1:])
    assert {"seed 1", "lr 0.5"} == set(two.split(", ")[1:])
    assert three == "Standard"
    same = [finished(tmp_path / "d", "--model", "adm", "--seed", "0"), runs[0]]
    assert check_labels(same, None, PNG) == ["Adaptive LN-CoTFormer, d", "Adaptive LN-CoTFormer, a"]


def test_labels_of_runs_in_progress_are_parts_of_their_folders_names(tmp_path):
    runs = [tmp_path / "base" / f"12_c64_t64_lr0.1_bs8x1_seed{seed}_{seed}2345678" for seed in (0, 1)]
    for run in runs:
        run.mkdir(parents=True)
    assert check_labels(runs, None, PNG) == ["Standard, seed0", "Standard, seed1"]


def test_labels_of_results_name_model_and_step_but_no_file(tmp_path):
    for step in (100, 200):
        about = {"model": "adm", "step": step, "split": "val"}
        (tmp_path / f"router_weights_{step}.json").write_text(json.dumps(about))
        (tmp_path / f"ppl_per_mac_{step}.json").write_text(json.dumps({"about": about, "points": []}))
    for form in ("router_weights_{}.npz", "ppl_per_mac_{}.json"):
        files = [tmp_path / form.format(step) for step in (100, 200)]
        expected = ["Adaptive LN-CoTFormer, step 100", "Adaptive LN-CoTFormer, step 200"]
        assert check_labels(files, None, PNG) == expected
        assert check_labels(files[:1], None, PNG) == ["Adaptive LN-CoTFormer"]


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
    for name in found:
        name.unlink()
    for name in ("sweep_ckpt_eval_sample_size=10.json", "sweep_ckpt.json"):
        (tmp_path / name).touch()
        assert find_result(tmp_path, "sweep_*.json", "sweep.py").name == name  # the full evaluation's, if any
