"""The runs of experiments, the statistics of comparisons, reproduce.py on runs that are really trained."""

import json
import math
import random
import signal
import subprocess
import time

import pytest

import config
from config.experiments import BY_NAME
from errors import Failure, UsageError
from reproduction import claims, report
from reproduction.claims import CLAIMS, GROWING_GAPS
from reproduction.plan import choose_experiments, make_plan
from reproduction.statistics import Scores, at_fixed_depths, compare, mean


def scores(batches, of="text"):
    return Scores(sum(batches) / len(batches), batches, of)


def test_experiments_that_share_a_run_train_it_once():
    experiments = choose_experiments(["table1/cotformer-24x5", "table2", "table6/cotformer-24x5"])
    runs = make_plan(experiments, "nano", [0, 1], [])
    assert len({run.folder for run in runs}) == len(runs) == 8
    shared = next(run for run in runs if "table1/cotformer-24x5" in run.experiments)
    assert {"table2/cotformer-24x5", "table6/cotformer-24x5"} <= set(shared.experiments)
    assert [run.seed for run in runs] == [0] * 4 + [1] * 4  # seed by seed


@pytest.mark.parametrize("scale", ["nano", "small", "paper"])
def test_no_two_experiments_are_one_run_of_different_length(scale):
    runs = make_plan(choose_experiments([]), scale, [0], [])
    for run in runs:
        for row in run.experiments:
            words = ["--experiment", row, "--scale", scale, "--seed", "0"]
            assert config.parse_args(words).iterations == run.args.iterations, row
    assert len({run.folder for run in runs}) == len(runs)
    published = {row for run in runs if run.as_published for row in run.experiments}
    assert published == (set(choose_experiments([])) if scale == "paper" else set())


def test_flags_that_would_mix_runs_up():
    rows = ["table1/standard-12", "table1/standard-24"]
    for flags in (["--exp_name", "one"], ["--seed=5"], ["--scale", "paper"]):
        with pytest.raises(UsageError, match="experiments, --seeds and --scale decide"):
            make_plan(rows, "nano", [0], flags)
    assert len(make_plan(rows, "nano", [0, 0], [])) == 2
    other = make_plan(rows[:1], "paper", [0], ["--dataset", "pydoc"])
    assert not other[0].as_published


def test_damaged_results(tmp_path):
    (run,) = make_plan(["figure4/adm"], "nano", [0], ["--results_base_folder", str(tmp_path)])
    run.folder.mkdir(parents=True)
    assert run.result() is None and not run.swept
    run.evaluation.write_text("{}")
    with pytest.raises(Failure, match="there is no loss in it"):
        run.result()
    run.sweep.write_text("[")
    with pytest.raises(Failure, match="is damaged"):
        _ = run.swept
    fixed = [{"series": "fixed depth"}] * 5
    router = [{"series": f"router, {kind}"} for kind in ("top-k", "threshold") for _ in range(13)]
    for points, whole in ((router, False), (fixed + router, True), (fixed + router[:20], False)):
        run.sweep.write_text(json.dumps({"about": {}, "points": points}))
        assert run.swept == whole


def test_experiments_by_their_beginnings():
    assert choose_experiments(["table1/but"]) == [name for name in BY_NAME if name.startswith("table1/but")]
    assert not any(name.startswith("figure3") for name in choose_experiments([]))
    for row in ("figure3", "figure3/but-12x5"):
        with pytest.raises(UsageError, match="nothing is trained for figure3"):
            choose_experiments([row])
    with pytest.raises(UsageError, match=r"did you mean table2\?"):
        choose_experiments(["tabel2"])
    with pytest.raises(UsageError, match="did you mean table1/but-12x2"):
        choose_experiments(["table1/but_12x2"])


def test_claims_are_about_experiments():
    names = {name for claim in CLAIMS for name in (claim.better, claim.worse)}
    names |= {name for gaps in GROWING_GAPS for gap in gaps for name in gap}
    assert names <= BY_NAME.keys()
    for claim in CLAIMS:  # the claims agree with the published numbers
        assert BY_NAME[claim.better].perplexity < BY_NAME[claim.worse].perplexity, claim


def test_mean_with_students_interval():
    found = mean([1.0, 2.0, 3.0])
    assert found.value == 2.0 and found.standard_error == pytest.approx(1 / math.sqrt(3))
    assert found.margin == pytest.approx(4.303 / math.sqrt(3)) and found.sign == 0
    assert mean([1.0]).margin is None and mean([5.0, 5.1, 5.2]).sign == 1


def test_paired_differences_are_sharper_than_the_spread_of_text():
    generator = random.Random(0)
    text = [generator.gauss(2.0, 0.5) for _ in range(40)]

    def noisy(shift):
        return {
            seed: scores([loss + shift + generator.gauss(0.0, 0.01) for loss in text]) for seed in range(3)
        }

    one, other = noisy(0.0), noisy(0.02)
    found = compare(one, other)
    assert found.over_seeds.sign == found.over_batches.sign == -1
    assert found.over_batches.count == 39 and found.over_seeds.count == 3  # the last batch may be smaller
    assert found.over_batches.margin < 0.01
    assert compare(one, {7: scores(text)}) is None
    assert compare(one, {0: scores(text[:30], "other text")}).over_batches is None


def test_a_small_last_batch_does_not_decide():
    """The loss is that of all tokens; of the batches only full ones are compared."""
    one = {
        seed: Scores(2.0, [2.0 + 0.01 * index + 0.001 * seed for index in range(9)] + [9.0], "text")
        for seed in range(3)
    }
    other = {
        seed: Scores(2.1, [2.1 + 0.01 * index for index in range(9)] + [5.0], "text") for seed in range(3)
    }
    found = compare(one, other)
    assert found.over_seeds.value == pytest.approx(-0.1)
    assert found.over_batches.value == pytest.approx(-0.099) and found.over_batches.count == 9


def test_students_quantiles():
    """Against published tables."""
    for count, expected in ((3, 4.303), (7, 2.447), (11, 2.228), (21, 2.086), (142, 1.977)):
        found = mean([0.0] * (count - 1) + [1.0])
        assert found.margin / found.standard_error == pytest.approx(expected, abs=6e-4)


def test_verdicts_on_claims():
    def losses(shift, seeds=3, of="text", noise=0.001):
        generator = random.Random(f"{shift} {noise}")
        return {
            seed: scores([2.0 + shift + generator.gauss(0, noise) for _ in range(9)], of)
            for seed in range(seeds)
        }

    better, worse = "table6/pause-24", "table6/standard-24"
    cases = (
        (losses(-0.1), "holds"),
        (losses(0.1), "contradicted"),
        (losses(0.0, noise=0.01), "undecided, tends to"),
        (losses(0.0), "undecided"),
        (losses(-0.1, seeds=1), "undecided: one seed, of which it holds"),
        (losses(-0.1, of="other batches"), "holds"),  # over seeds alone
    )
    for found, verdict in cases:
        (finding,) = claims.judge({better: found, worse: losses(0.0)})
        assert finding.verdict.startswith(verdict), finding
    cells = dict(zip(report.CLAIM_HEADINGS, report.finding_cells(finding), strict=True))
    assert cells["over seeds"].startswith("-0.1") and cells["over batches"] == ""


def test_growing_gaps():
    """CoTFormer's lead of 0.1 at 2 repeats and 0.3 at 5; and where two rows were evaluated otherwise."""

    def level(loss):
        return {seed: scores([loss + 0.001 * seed + 0.002 * n for n in range(9)]) for seed in range(3)}

    rows = {
        f"table1/{model}-12x{n}": level(loss)
        for model, n, loss in (("but", 2, 3.0), ("cotformer", 2, 2.9), ("but", 5, 2.8), ("cotformer", 5, 2.5))
    }
    (gap,) = (finding for finding in claims.judge(rows) if finding.where == "Figure 2")
    assert gap.compared.over_seeds.value == pytest.approx(-0.2) and gap.verdict == "holds"
    rows["table1/but-12x5"] = {seed: scores([2.8] * 12, "other batches") for seed in range(3)}
    (gap,) = (finding for finding in claims.judge(rows) if finding.where == "Figure 2")
    assert gap.compared.over_batches is None and gap.verdict == "holds"


def test_a_router_is_compared_at_the_compute_of_fixed_depths():
    """Losses that fall linearly with compute for the router, and by less for fixed depths."""

    def point(series, setting, macs, loss):
        return {
            "series": series, "setting": setting, "macs_per_sequence": {"paper": macs},
            "loss": loss + 0.5, "batch_losses": [loss, loss + 1.0],
        }  # fmt: skip

    router = [
        point("router, top-k", part, macs, 3.0 - macs / 10)
        for part, macs in ((1.0, 10), (0.5, 17), (0.0, 20))
    ]
    fixed = [
        point("fixed depth", n, macs, loss)
        for n, macs, loss in ((3, 18, 1.5), (1, 10, 2.0), (4, 20, 1.0), (2, 14, 1.8))
    ]
    sweep = {"about": {"split": "val"}, "points": router + fixed}
    routed, compared = at_fixed_depths(sweep, "router, top-k")
    assert routed.batches == pytest.approx([1.4, 2.4])  # at 14 and 18: 1.6 and 1.2
    assert compared.batches == pytest.approx([1.65, 2.65])
    assert (routed.loss, compared.loss) == pytest.approx((1.9, 2.15)) and routed.of == compared.of
    assert at_fixed_depths({**sweep, "points": fixed}, "router, top-k") is None
    for entry in router:
        del entry["batch_losses"]
    assert at_fixed_depths(sweep, "router, top-k") is None


def test_zero_shot_next_to_the_papers(tmp_path):
    (run,) = make_plan(["table3/but-24x2"], "nano", [0], ["--results_base_folder", str(tmp_path)])
    assert report.zero_shot([run])["table3/but-24x2"]["ARC"] == (None, 29.5)
    results = {
        "arc_easy": {"acc_norm,none": 0.4},
        "arc_challenge": {"acc_norm,none": 0.2},
        "mmlu": {"acc,none": 0.25},
    }
    run.folder.mkdir(parents=True)
    (run.folder / "lm_eval_ckpt.json").write_text(json.dumps({"results": results}))
    scores = report.zero_shot([run])["table3/but-24x2"]
    assert (
        scores["ARC"][0] == pytest.approx(30.0)
        and scores["MMLU"][0] == 25.0
        and scores["PIQA"] == (None, 59.09)
    )
    cells = dict(zip(*report.zero_shot_cells({"table3/but-24x2": scores}), strict=True))
    assert cells["ARC: ours"] == "30.00" and cells["PIQA: ours"] == "" and cells["PIQA: paper"] == "59.09"


@pytest.mark.process
def test_run_and_report_and_complete_runs_are_not_trained_again(scripts):
    """Two tiny experiments: a signal interrupts the first, then both finish, then nothing is left to do."""
    rows = (
        f"table1/standard-12 table5/pondernet --seeds 0 --results_base_folder {scripts.results} --device cpu"
    )
    tiny = (
        f"-- --dataset shakespeare-char --data_dir {scripts.data_dir} --vocab_size 64 --n_embd 16 --n_head 2 "
        "--sequence_length 16 --iterations 120 --log_freq 10 --dtype float32"
    )
    command = scripts.command("reproduce.py", f"run {rows} {tiny}")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 120
    while not list(scripts.results.glob("*/base/*/metrics.jsonl")) and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # as Ctrl-C, which background commands of a shell ignore
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command resumes" in said, said
    status = scripts.run("reproduce.py", f"status {rows} {tiny}").stdout
    assert "table1/standard-12" in status and "complete" not in status
    assert "perplexity" in scripts.run("reproduce.py", f"run --jobs 2 {rows} {tiny}").stdout
    assert "2 of 2 runs are complete" in scripts.run("reproduce.py", f"run {rows} {tiny}").stdout
    assert scripts.run("reproduce.py", f"status {rows} {tiny}").stdout.count("complete") == 2
    output = scripts.results / "report.md"
    flags = f"report --format markdown --output {output} --figures {scripts.results} {rows} {tiny}"
    text = scripts.run("reproduce.py", flags).stdout
    assert text.startswith(output.read_text()) and "| table1/standard-12 | 1 |" in text
    for name in ("perplexity", "figure2"):
        assert all(
            (scripts.results / f"{name}{kind}").stat().st_size > 100 for kind in (".png", ".pdf", ".json")
        )
    (folder,) = scripts.results.glob("*/base/*")
    found = json.loads((folder / "eval_summary_ckpt.json").read_text())
    assert f"{found['perplexity']:.3f}" in text


def test_wrong_input(scripts):
    refuse = scripts.refuse
    refuse("reproduce.py", "run table9", 2, "there is no experiment table9")
    refuse("reproduce.py", "run --jobs 0", 2, "--jobs 0")
    refuse("reproduce.py", "reprot", 2, "command: 'reprot' is unknown; did you mean report? choose from list")
    refuse("reproduce.py", "report --scale nan", 2, "--scale: 'nan' is unknown; did you mean nano?")


def test_figure_3_counts(scripts):
    """The published counts at 12x3 and T = 128 and 256, and where CoTFormer's square overtakes BUT's."""
    path = scripts.results / "figure3.png"
    scripts.run("plot_fig3.py", f"--output {path}")
    content = json.loads(path.with_suffix(".json").read_text())
    assert path.stat().st_size > 1000 and content["lengths"][0] == 128 and content["lengths"][-1] == 12288
    assert content["figure3/cotformer-12x3"][:2] == [34_465_480_704, 72_516_206_592]
    under = [
        a < b for a, b in zip(content["figure3/cotformer-12x3"], content["figure3/but-12x5"], strict=True)
    ]
    assert (
        content["lengths"][under.index(False)] == 12 * 768
    )  # 12 C: where 2 T C (6 - 5) = 12 C^2 (5 - 3) / C


def test_figure_2(scripts):
    path = scripts.results / "figure2.pdf"
    scripts.refuse(
        "plot_fig2.py", f"--results_base_folder {scripts.results}", 1, "reproduce.py run table1 figure2"
    )
    scripts.run("plot_fig2.py", f"--published --output {path}")
    points = {point["row"]: point for point in json.loads(path.with_suffix(".json").read_text())}
    assert points["table1/cotformer-12x5"]["published_macs"] == 126_874_386_432
    assert points["table1/cotformer-12x5"]["published_perplexity"] == 26.64
    assert points["figure2/but-12x15"]["repeats"] == 15 and path.stat().st_size > 1000
    assert path.with_suffix(".png").stat().st_size > 1000
