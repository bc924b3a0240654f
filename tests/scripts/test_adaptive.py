"""Adaptive models through the command line: train, resume, evaluate, calibrate, sweep, generate."""

import json
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from evaluation.restore import restore
from models.generation import generate as model_generate
from optim import checkpoint
from tests.conftest import Scripts

SIZES = "--n_layer 3 --n_layer_end 1 --n_repeat 3 --depth_embedding linear_learned --lr 3e-3 --iterations 30"
ADM = "adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final"


@pytest.fixture(scope="module")
def adm(trained, tmp_path_factory):
    """A trained ADM; the tests only add files next to its checkpoint."""
    return trained(f"--model adm {SIZES}", into=tmp_path_factory.mktemp("adm") / "exps")


def at(scripts, model=ADM):
    return f"--checkpoint {scripts.folder(model)}"


def summary(scripts, about=""):
    return json.loads((scripts.folder(ADM) / f"eval_summary_ckpt{about}.json").read_text())


@pytest.mark.parametrize("model", ["adaptive_but", "stick_breaking", "pondernet"])
def test_every_adaptive_model_trains_evaluates_and_generates(scripts, model):
    scripts.train(f"--model {model} {SIZES}")
    (folder,) = (scripts.results / "shakespeare-char").iterdir()
    lines = scripts.lines(folder.name)
    assert lines[-1]["val_loss"] < next(line["val_loss"] for line in lines if "val_loss" in line)
    assert 0 < lines[-1]["val_average_depth"] <= 7
    done = scripts.run("eval.py", at(scripts, folder.name))
    assert "perplexity" in done.stdout
    done = scripts.run("generate.py", f"{at(scripts, folder.name)} --prompt line --max_new_tokens 30")
    assert done.stdout.startswith("line") and "passes and" in done.stderr


@pytest.mark.process
@pytest.mark.parametrize("model", [ADM, "mla_ln_cotformer", "pause"])
def test_a_killed_run_resumes_exactly(scripts, tmp_path, model):
    """Random capacities are functions of the step: a run that was killed ends with the same weights."""
    flags = f"--model {model} {SIZES} --save_checkpoint_freq 5 --log_freq 5"
    scripts.train(flags)
    other = Scripts(scripts.data_dir, tmp_path / "other")
    running = other.start("main.py", other.train_flags(flags))
    folder = tmp_path / "other" / "shakespeare-char" / model
    while not list(folder.glob("*/ckpt_10.pt")):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert "resuming from" in other.train(flags).stdout
    first, second = (checkpoint.load(one.folder(model) / "ckpt.pt")["model"] for one in (scripts, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_evaluation_reports_how_it_routed(adm):
    done = adm.run("eval.py", at(adm))
    assert "top-k routing (not causal), capacities 1 1" in done.stdout
    full = summary(adm)
    assert full["routing"] == "topk" and full["average_depth"] == 7 and full["tokens_per_pass"] == [16.0] * 3
    done = adm.run("eval.py", f"{at(adm)} --eval_length_factor 0.5 0.25")
    half = "_eval_length_factor=0.5,0.25"
    assert summary(adm) == full  # the name says how another one was routed
    assert summary(adm, half)["tokens_per_pass"] == [16.0, 8.0, 4.0]
    assert summary(adm, half)["macs_per_sequence"]["paper"] < full["macs_per_sequence"]["paper"]

    done = adm.run("eval.py", f"{at(adm)} --eval_length_factor 0.5 0.25 --routing threshold")
    assert "threshold routing (causal)" in done.stdout and "finding thresholds" in done.stdout
    half += "_routing=threshold"
    causal = summary(adm, half)
    assert causal["routing"] == "threshold" and len(causal["thresholds"]) == 2
    assert causal["calibration"]["reached"] == pytest.approx([0.5, 0.25], abs=0.01)
    assert causal["tokens_per_pass"][1] == pytest.approx(8, abs=1.5)
    # The second time the thresholds are known.
    done = adm.run("eval.py", f"{at(adm)} --eval_length_factor 0.5 0.25 --routing threshold")
    assert "finding thresholds" not in done.stdout and summary(adm, half)["loss"] == causal["loss"]
    # They may also be given.
    given = " ".join(map(str, causal["thresholds"]))
    adm.run("eval.py", f"{at(adm)} --routing threshold --routing_threshold {given}")
    numbers = ",".join(given.split())
    about = f"_routing=threshold_routing_threshold={numbers}"
    assert summary(adm, about)["loss"] == causal["loss"]


def test_calibrate(adm):
    said = adm.run("calibrate.py", f"{at(adm)} --budget 0.6 0.8").stdout
    fractions = [float(match) for match in re.findall(r"compute: ([\d.]+) of full depth", said)]
    assert fractions == pytest.approx([0.6, 0.8], abs=0.02)
    said = adm.run("calibrate.py", f"{at(adm)} --eval_length_factor 0.7 0.2").stdout
    assert re.search(r"reached: 0\.\d+ 0\.\d+", said)
    content = json.loads((adm.folder(ADM) / "thresholds_ckpt.json").read_text())
    assert {entry["budget"] for entry in content["calibrations"]} >= {0.6, 0.8, None}


def test_generate_within_a_budget(adm, tmp_path):
    page = tmp_path / "depth.html"
    flags = f"{at(adm)} --prompt line --max_new_tokens 40"
    full = adm.run("generate.py", flags)
    assert "3.00 of 3 passes and 7.0 blocks per token" in full.stderr
    assert "outgrew sequence_length=16: from then on, the last 8 tokens were kept" in full.stderr
    less = adm.run("generate.py", f"{flags} --budget 0.6 --show_depth {page}")
    passes = float(re.search(r"([\d.]+) of 3 passes", less.stderr)[1])
    assert 1 <= passes < 3
    text = page.read_text()
    assert text.startswith("<!doctype html>") and 'class="p1"' in text and "line" in text
    coloured = adm.run("generate.py", f"{flags} --budget 0.6 --show_depth", FORCE_COLOR="1").stdout
    assert "\x1b[30;48;2;" in coloured
    shown = re.sub(r"\x1b\[[\d;]*m", "", coloured).split("\n", 1)[1]
    assert shown == less.stdout
    for environment in ({}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}):  # no terminal; not wanted
        plain = adm.run("generate.py", f"{flags} --budget 0.6 --show_depth", **environment)
        assert plain.stdout == less.stdout and "note: no colours" in plain.stderr
    thresholds = adm.run("generate.py", f"{flags} --budget 2 2").stderr
    assert "1.00 of 3 passes and 3.0 blocks" in thresholds


def test_the_cache_does_not_change_the_text(adm):
    flags = f"{at(adm)} --prompt line cat the --max_new_tokens 30 --temperature 0"
    cached, plain = (adm.run("generate.py", flags + extra).stdout for extra in ("", " --no_cache"))
    assert cached == plain and cached.count("\n\n") >= 2


def test_figure_5(adm, tmp_path):
    said = adm.run("get_router_weights.py", f"{at(adm)} --split val --output-dir {tmp_path}").stdout
    assert "position_cascade" in said
    about = json.loads((tmp_path / "router_weights_ckpt.json").read_text())
    with np.load(tmp_path / "router_weights_ckpt.npz", allow_pickle=False) as content:
        raw, lowest, rows = content["raw"], content["cascade"], content["position_cascade"]
    assert about["n_repeat"] == 3 and raw.shape == lowest.shape == (about["tokens"], 2)
    # Token by token, the scores of the model on the same text.
    run = restore(adm.folder(ADM), {"device": "cpu"})
    windows = torch.cat([inputs for inputs, _ in run.batches("val")])
    scores = run.model(windows, length_factors=[1.0, 1.0], get_routing=True)["router_scores"]
    expected = scores.transpose(1, 2).flatten(0, 1).numpy()
    np.testing.assert_allclose(raw, expected, atol=1e-6)
    np.testing.assert_array_equal(lowest, np.minimum.accumulate(raw, axis=1))
    assert np.sort(rows[:, 0]).tolist() == np.sort(raw[:, 0]).tolist()
    statistics = about["statistics"]["cascade"][1]
    assert statistics["mean"] == pytest.approx(lowest[:, 1].mean(), rel=1e-5)
    assert statistics["quantiles"]["0.5"] == pytest.approx(np.median(lowest[:, 1]), rel=1e-5)
    assert statistics["fraction_under_0.01"] == pytest.approx((lowest[:, 1] < 0.01).mean())
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    figure = tmp_path / "5.png"
    adm.run("plot_fig5.py", f"{tmp_path} --output {figure} --kind cascade --router 1")
    assert figure.stat().st_size > 10_000
    adm.refuse("plot_fig5.py", f"{tmp_path} --router 3", 2, "has routers 1 to 2")


@pytest.mark.process
def test_the_sweep_of_figure_4_resumes_after_a_kill(adm, tmp_path):
    flags = f"{at(adm)} --output-dir {tmp_path} --eval_sample_size 1600 --budget 0.7"
    path = tmp_path / "ppl_per_mac_ckpt.json"
    running = adm.start("get_ppl_per_mac.py", flags)
    while not path.exists() or len(json.loads(path.read_text())["points"]) < 4:
        assert running.poll() is None
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = json.loads(path.read_text())["points"]
    said = adm.run("get_ppl_per_mac.py", flags).stdout
    assert f"{len(before)} of 25 points are in" in said or len(before) == 25
    content = json.loads(path.read_text())
    assert content["points"][: len(before)] == before
    series = [point["series"] for point in content["points"]]
    assert [series.count(name) for name in ("router, top-k", "router, threshold", "fixed depth")] == [
        11,
        11,
        3,
    ]
    fixed = [point for point in content["points"] if point["series"] == "fixed depth"]
    assert [point["average_depth"] for point in fixed] == [3, 5, 7]
    for point in content["points"]:
        assert point["routing"] in ("topk", "threshold") and point["seconds_per_token"] > 0
        assert point["perplexity_interval_95"][0] < point["perplexity"] < point["perplexity_interval_95"][1]
    # A fixed depth is what eval.py measures with the same capacities.
    adm.run("eval.py", f"{at(adm)} --eval_sample_size 1600 --eval_length_factor 1 0")
    about = "_eval_length_factor=1.0,0.0_eval_sample_size=1600"
    assert summary(adm, about)["loss"] == pytest.approx(fixed[1]["loss"], rel=1e-9)
    # A complete sweep is not repeated; one of other text is refused.
    assert "25 of 25 points" in adm.run("get_ppl_per_mac.py", flags).stdout
    adm.refuse("get_ppl_per_mac.py", flags.replace("1600", "800"), 2, "holds points with sample_size 1600")
    adm.run("plot_fig4.py", f"{tmp_path} --output {tmp_path / '4.pdf'}")
    assert (tmp_path / "4.pdf").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("script", "flags", "code", "part"),
    [
        ("generate.py", "--budget 0.1", 2, "cannot be met: one pass for every token is"),
        ("generate.py", "--budget 1.5", 2, "a fraction of full compute is above 0 and at most 1"),
        ("generate.py", "--budget 0.1 0.2 0.3", 2, "give one fraction of full compute, or 2 thresholds"),
        ("generate.py", "--keep_context 17", 2, "--keep_context 17 exceeds sequence_length=16"),
        ("generate.py", "--show_depth page.txt", 2, "give the name of an .html file, or nothing"),
        ("eval.py", "--eval_length_factor 0.5", 2, "n_repeat=3 needs 2 numbers, not 1"),
        ("eval.py", "--eval_length_factor 0.5 0.6", 2, "must not increase"),
        (
            "eval.py",
            "--routing_threshold 0.5",
            2,
            "--routing_threshold has 1 numbers; n_repeat=3 has 2 routers",
        ),
        ("eval.py", "--routing best", 2, "choose from topk, threshold"),
        ("calibrate.py", "", 2, "give the capacities that thresholds must meet"),
        ("calibrate.py", "--eval_length_factor None", 2, "give the capacities that thresholds must meet"),
        ("calibrate.py", "--eval_length_factor 1 0", 2, "capacities of 0 and 1 need no calibration"),
        ("get_ppl_per_mac.py", "--budget 0", 2, "above 0 and at most 1"),
        ("get_router_weights.py", "--split test", 2, "'test' is unknown; choose from val, train"),
    ],
)
def test_wrong_input_is_answered_with_a_sentence(adm, tmp_path, script, flags, code, part):
    adm.refuse(script, f"{at(adm)} {flags}", code, part)


def test_models_without_routers_are_refused(scripts, tmp_path):
    scripts.train("--model but --n_layer 2")
    folder = scripts.folder("but_full_depth")
    for script in ("get_router_weights.py", "get_ppl_per_mac.py"):
        scripts.refuse(script, f"--checkpoint {folder}", 2, "has no routers; give a run of adm")
    scripts.refuse("generate.py", f"--checkpoint {folder} --budget 0.5", 2, "does not route tokens")
    scripts.refuse("plot_fig4.py", f"{folder}", 2, "get_ppl_per_mac.py --checkpoint")
    scripts.refuse("plot_fig5.py", f"{folder}", 2, "holds no router_weights_*.npz")


def test_thresholds_without_the_text_they_are_found_on(adm, tmp_path):
    """Without text, known thresholds serve; for unknown ones the error names the command to run."""
    adm.run("calibrate.py", f"{at(adm)} --budget 0.75")
    moved = tmp_path / "moved"
    shutil.copytree(adm.folder(ADM), moved)
    flags = f"--checkpoint {moved} --data_dir {tmp_path / 'none'} --max_new_tokens 5 --prompt line"
    adm.run("generate.py", f"{flags} --budget 0.75")
    done = adm.run("generate.py", f"{flags} --budget 0.65", 1)
    assert done.stdout == ""  # it is for the text alone; messages go to stderr
    *_, said = done.stderr.splitlines()
    assert said.startswith("error: thresholds for --budget 0.65 are not known")
    assert "python calibrate.py --checkpoint" in said and said.endswith("--budget 0.65")


def test_generate_py_prints_the_tokens_of_the_model(adm):
    run = restore(adm.folder(ADM), {"device": "cpu"})
    corpus = run.open_corpus()
    tokenizer = corpus.load_tokenizer()
    said = adm.run("generate.py", f"{at(adm)} --prompt line --max_new_tokens 20 --temperature 0").stdout
    drawn = model_generate(run.model, [tokenizer.encode("line").tolist()], 20, temperature=0)
    text = b"".join(tokenizer.token_bytes(int(step.tokens)) for step in drawn).decode()
    assert said == f"line{text}\n"
