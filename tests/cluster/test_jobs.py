"""The packages on a real Slurm, with tiny models on processors: each by its documented command."""

import json
import sys
import threading

import pytest

from optim import checkpoint
from tests.conftest import assert_same_state
from tests.data import archives


def weights(folder):
    return checkpoint.load(folder / "ckpt.pt")


def test_every_package(on_slurm):
    """Train all, then evaluate what was trained: what each leaves in its run_N."""
    cluster, env = on_slurm, {"WANDB_PROJECT": "rcotformer"}
    archives.archive(cluster.scratch / "datasets", archives.monthly(archives.texts(20), 2))
    jobs = {
        "extract-tokenize-dataset": cluster.package(
            "extract-tokenize-dataset", "--on_error skip", TOKENIZER="bytes", WORKERS="1"
        ),
        "gpu_test": cluster.package("gpu_test", "--disk_mib 4"),
        "lncot-train": cluster.package("lncot-train", **env),  # with W&B, offline
        **{name: cluster.package(name) for name in ("cot-res-train", "adm-train")},
        "base-train": cluster.package("base-train", "--row but-12x2 --n_gpus 1"),
    }
    for name, job in jobs.items():
        cluster.wait(job)
        assert "\ncomplete\n" in f"\n{cluster.log(name)}", name
    assert list((cluster.scratch / ".cache/wandb").glob("offline-run-*"))
    assert "2 processes (DDP)" in cluster.log("adm-train") and "processes (" not in cluster.log("base-train")
    assert cluster.folder("base-train", EXPERIMENT="table1/but-12x2").parent.name == "but_full_depth"
    for name in ("lncot-train", "cot-res-train", "adm-train"):
        summary = json.loads((cluster.folder(name) / "summary.json").read_text())
        assert summary["processes"] == 2 and summary["iterations"] == 20
        assert (cluster.run_dir(name) / "curves.png").exists()

    env = {"EARLIER": "10"}
    names = ("eval-cot-res", "eval-lncot", "eval-adm", "lncot-exp4", "kv-analysis-lncot+adm")
    jobs = {name: cluster.package(name, **env) for name in names}
    found = {}
    for name, job in jobs.items():
        cluster.wait(job)
        run_dir = cluster.run_dir(name)
        found[name] = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    for name in ("eval-cot-res", "eval-lncot"):
        assert {"eval_20.txt", "eval_summary_ckpt.json", "run.json", "submission.json"} <= found[name]
    assert "exp4/figure4_pareto.png" in found["lncot-exp4"]
    for name in ("ln-cotformer", "adm"):
        assert f"{name}/kv_compression_ckpt_spectra.png" in found["kv-analysis-lncot+adm"]
    assert {
        "eval_20.txt", "eval_10.txt", "eval_summary_ckpt.json", "eval_summary_ckpt_10.json",
        "ln-cotformer/eval_20.txt", "adm_v1/exp4/figure4_pareto.png", "adm_v1/exp5-10/figure5_raw.png",
        "adm_v1/exp5-end/figure5_raw.png", "adm_v1/exp5-end/figure5_picascade.png",
        "adm_v1/exp5-end/figure5_ptcascade.png",
    } <= found["eval-adm"]  # fmt: skip
    assert "eval-adm" in cluster.slurm.mails() and "someone@example.org" in cluster.slurm.mails()
    table = cluster.run("bash iridis/status.sh")
    assert table.count("complete") == len(names) + 6


def test_two_submissions_at_the_same_moment(on_slurm):
    """Each has a run_N of its own, and neither meets the other's rendezvous."""
    jobs = {}

    def submit(seed):
        jobs[seed] = on_slurm.package("lncot-train", f"--seed {seed}")

    threads = [threading.Thread(target=submit, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for job in jobs.values():
        on_slurm.wait(job)
    runs = sorted(path.name for path in on_slurm.run_dir("lncot-train").parent.glob("run_*"))
    assert runs == ["run_1", "run_2"]
    recorded = [json.loads((on_slurm.run_dir("lncot-train", n) / "run.json").read_text()) for n in (1, 2)]
    assert all(run["complete"] and run["cluster"] == "iridis-x" for run in recorded)
    assert len({run["folder"] for run in recorded}) == 2


def test_jobs_that_slurm_refuses_leave_nothing_behind(on_slurm):
    refuse = on_slurm.refuse
    submit = "bash iridis/lncot-train/job.sh"
    refuse(f"{submit} --account physics", 2, "Slurm refuses this job", "Account physics is not known")
    refuse(f"{submit} --partition l40", 2, "Slurm refuses this job", "partition")
    refuse(f"{submit} --time 200:00:00", 2, "Slurm refuses this job", "time limit")
    refuse(submit, 2, "N_GPUS=1", "gpu:2", "--n_gpus", N_GPUS="1")
    refuse(f"{submit} --gres gpu:l4:2", 2, "without a type")
    refuse(f"{submit} --dataset owt2", 1, "is not prepared")
    said = on_slurm.run(f"{submit} --dry-run --account ecs --partition scavenger_l4")
    assert "would submit 1 job(s)" in said and "scavenger_l4, gpu:2, 12:00:00" in said  # all that it allows
    assert not list(on_slurm.repo.glob("iridis/*/run_[0-9]*")) and not (on_slurm.scratch / "exps").exists()


LONG = (
    "--save_checkpoint_freq 100000 --iterations 300 --eval_freq 1000 --requeue"  # saves when it is signalled
)


def uncut(cluster, flags=LONG):
    """The same run, never stopped; returns its job."""
    return cluster.package("lncot-train", flags, EXPS_DIR=f"{cluster.scratch}/uncut")


def assert_same_as_uncut(cluster, flags=LONG):
    folder = cluster.folder("lncot-train")
    other = cluster.scratch / "uncut" / folder.relative_to(cluster.scratch / "exps")
    assert_same_state(weights(folder), weights(other))


def wait_for_step(cluster, name="lncot-train", number=1):
    cluster.wait_until(lambda: "step 20/" in cluster.log(name, number), "it does not train")


def attempts(cluster, name="lncot-train", number=1):
    return json.loads((cluster.run_dir(name, number) / "run.json").read_text())["attempts"]


def test_requeued_until_it_is_complete(on_slurm):
    """USR1 to the shell is how Slurm tells that the time is nearly over."""
    job = on_slurm.package("lncot-train", LONG)
    wait_for_step(on_slurm)
    on_slurm.slurm.run("scancel", "--batch", "--signal=USR1", job)
    on_slurm.wait_until(lambda: on_slurm.slurm.state(job)["Restarts"] == "1", "it is not requeued")
    other = uncut(on_slurm)
    assert on_slurm.wait(job)["Restarts"] == "1"
    first, second = attempts(on_slurm)
    assert first["signal"] == "USR1" and first["to_step"] == second["from_step"] > 0
    assert second["to_step"] == 300 and not second["signal"]
    on_slurm.wait(other)
    assert_same_as_uncut(on_slurm)


@pytest.mark.slow
def test_pre_emption(on_slurm):
    """A job of a higher partition takes the GPUs; the pre-empted one comes back after it."""
    longer = f"{LONG} --iterations 4000"
    job = on_slurm.package("lncot-train", f"{longer} --partition scavenger_4a100")
    wait_for_step(on_slurm)
    command = [
        "sbatch",
        "--parsable",
        "--partition=a100",
        "--gres=gpu:4",
        "--output=/dev/null",
        "--wrap=sleep 1",
    ]
    higher = on_slurm.slurm.run(*command).strip()
    on_slurm.wait(higher)
    state = on_slurm.wait(job)
    assert state["Restarts"] == "1"
    first, second = attempts(on_slurm)
    assert first["signal"] == "TERM" and first["to_step"] == second["from_step"] > 0
    on_slurm.wait(uncut(on_slurm, longer))
    assert_same_as_uncut(on_slurm, longer)


def test_cancelled(on_slurm):
    """It saves, and does not come back."""
    job = on_slurm.package("lncot-train", LONG)
    wait_for_step(on_slurm)
    on_slurm.slurm.run("scancel", job)
    on_slurm.wait(job, "CANCELLED")
    on_slurm.wait_until(lambda: "ended" in attempts(on_slurm)[0], "its end is not recorded")
    assert attempts(on_slurm)[0]["to_step"] > 0 and on_slurm.slurm.state(job)["Restarts"] == "0"
    assert job not in on_slurm.slurm.queue()
    assert "stopped" in on_slurm.run("bash iridis/status.sh lncot-train")
    assert "resumes from ckpt_" in on_slurm.run("bash iridis/lncot-train/job.sh --dry-run " + LONG)


def test_a_crash_is_not_requeued_for_ever(on_slurm):
    job = on_slurm.package("lncot-train", "--requeue --lr 1e9 --iterations 60 --n_gpus 1")  # diverges
    assert on_slurm.wait(job, "FAILED")["Restarts"] == "2"
    assert "3 attempts in a row saved nothing new" in on_slurm.log("lncot-train")
    assert "failed (1)" in on_slurm.run("bash iridis/status.sh lncot-train")


def test_a_chain(on_slurm):
    """Each starts when the one before has ended; one with nothing left to do ends."""
    last = on_slurm.package("lncot-train", "--chain 3 --max_steps_this_run 12 --n_gpus 1")
    on_slurm.wait(last)
    steps = [(a["from_step"], a["to_step"]) for n in (1, 2, 3) for a in attempts(on_slurm, number=n)]
    assert steps == [(0, 12), (12, 20), (20, 20)]
    assert "finished already" in on_slurm.log("lncot-train", 3)
    on_slurm.wait(uncut(on_slurm, "--n_gpus 1"))
    assert_same_as_uncut(on_slurm)


def test_missing_environment_or_data_when_the_job_starts(on_slurm):
    """The environment, then the data: one sentence in the log, and the job is not requeued."""
    venv = on_slurm.scratch / "venv"
    venv.symlink_to(sys.prefix)
    whole = on_slurm.slurm.run(
        "sbatch", "--parsable", "--exclusive", "--output=/dev/null", "--wrap=sleep 600"
    )
    first = on_slurm.package("lncot-train", "--requeue", VENV_DIR=str(venv))
    tokens = on_slurm.scratch / "datasets/openwebtext2-bytes"
    tokens.mkdir()
    for split in ("train", "val"):
        (tokens / f"{split}.bin").write_bytes(bytes(4000))
    second = on_slurm.package("lncot-train", "--requeue --dataset owt2 --tokenizer bytes --vocab_size 320")
    venv.unlink()
    tokens.rename(on_slurm.scratch / "gone")
    on_slurm.slurm.run("scancel", whole.strip())
    for number, (job, said) in enumerate(
        ((first, "make the environment"), (second, "not prepared")), start=1
    ):
        assert on_slurm.wait(job, "FAILED")["Restarts"] == "0"
        (sentence,) = [line for line in on_slurm.log("lncot-train", number).split("\n") if "error:" in line]
        assert said in sentence


def test_submitted_without_the_wrapper(on_slurm):
    """`sbatch job.sh` from the repository: the job finds it, and makes its own run_N."""
    said = on_slurm.run("sbatch --output=/dev/null iridis/lncot-train/job.sh")
    on_slurm.wait(said.split()[-1])
    assert (on_slurm.run_dir("lncot-train") / "summary.json").exists()


def test_follow(on_slurm):
    said = on_slurm.run("bash iridis/gpu_test/job.sh --disk_mib 4 --follow")
    assert "all is well" in said
