"""The job scripts without Slurm: how they are written, what they refuse, and --local."""

import json
import os
import re
import shutil
import signal
import subprocess

import pytest

from config.experiments import BY_NAME
from tests.conftest import ROOT

SCRIPTS = sorted([*ROOT.glob("iridis/**/*.sh"), *ROOT.glob("iridis/job-*.example")])
PACKAGES = sorted(ROOT.glob("iridis/*/job.sh"))


def named(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_shellcheck(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        ["shellcheck", "-x", "-s", "bash", script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_no_paths_of_people_and_no_secrets(script):
    text = script.read_text()
    assert not re.search(r"/home/|sshpass|api_key|password", text, re.IGNORECASE)
    if script.parent.name != "clusters":
        assert "/scratch/" not in text  # paths of a cluster stand in its file


@pytest.mark.parametrize("script", PACKAGES, ids=lambda path: path.parent.name)
def test_heads(script):
    """GPUs without a type, as many as N_GPUS; the name of the package; a row that exists."""
    text = script.read_text()
    if script.parent.name == "download-dataset":
        assert "#SBATCH" not in text  # a login node has the network
        return
    assert f"#SBATCH --job-name={script.parent.name}\n" in text
    gres = re.search(r"^#SBATCH --gres=(.*)$", text, re.MULTILINE)
    gpus = re.search(r"^N_GPUS=\$\{N_GPUS:-(\d)\}", text, re.MULTILINE)
    assert (gres and gres[1]) == (gpus and f"gpu:{gpus[1]}")
    for row in re.findall(r"^EXPERIMENT=\$\{EXPERIMENT:-(.*?)\}", text, re.MULTILINE):
        assert row in BY_NAME
    if "train" in script.parent.name:
        sizes = dict(re.findall(r"^(BATCH_SIZE|ACC_STEPS)=\$\{\w+:-(\d+)\}", text, re.MULTILINE))
        assert int(sizes["BATCH_SIZE"]) * int(sizes["ACC_STEPS"]) == 128


ASKED = "$CLUSTER|$SCRATCH_DIR|$DATA_DIR|$COTFORMER_ENV|$NOTIFY_EMAIL"


def environment(cluster, unset=(), host="laptop", **env):
    """What env.sh sets, on a machine of that name."""
    keep = {name: value for name, value in cluster.env.items() if name not in unset} | env
    fake = cluster.repo / "bin"
    fake.mkdir(exist_ok=True)
    (fake / "hostname").write_text(f"#!/bin/sh\necho {host}\n")
    (fake / "hostname").chmod(0o755)
    keep["PATH"] = f"{fake}:{keep['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f'source iridis/env.sh && echo "{ASKED}"'],
        cwd=cluster.repo,
        env=keep,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip().split("|") if done.returncode == 0 else (done.returncode, done.stderr)


def test_the_cluster_is_found_by_the_name_of_the_machine(cluster):
    default = ("CLUSTER", "SCRATCH_DIR", "COTFORMER_ENV", "NOTIFY_EMAIL")
    found = environment(cluster, default, "loginx001.iridis.soton.ac.uk")
    assert found[:4] == ["iridis-x", "/scratch/ab3u21", "/scratch/ab3u21/datasets", "conda"]
    assert found[4].endswith("@soton.ac.uk")
    assert environment(cluster, default)[0] == "generic"
    assert environment(cluster, default, CLUSTER="iridis-x")[0] == "iridis-x"
    code, said = environment(cluster, default, CLUSTER="iridis-9")
    assert code == 2 and "choose from generic iridis-x" in said


def test_adding_a_cluster_is_adding_a_file(cluster):
    text = (cluster.repo / "iridis/clusters/generic.sh").read_text()
    text = text.replace("CLUSTER_HOSTS=''", "CLUSTER_HOSTS='head?.example.org'")
    (cluster.repo / "iridis/clusters/mine.sh").write_text(text)
    assert environment(cluster, ("CLUSTER",), "head1.example.org")[0] == "mine"


def test_every_path_can_be_set_by_the_environment_and_by_a_file_of_ones_own(cluster):
    assert environment(cluster, DATA_DIR="/data")[2] == "/data"
    (cluster.repo / "iridis/env.local.sh").write_text("DATA_DIR=/mine\nNOTIFY_EMAIL=\n")
    assert environment(cluster, DATA_DIR="/data")[2::2] == ["/mine", ""]


def test_times(cluster):
    """Slurm's ways to write a time, as sinfo and the heads of packages have them."""
    ways = {"30": 1800, "30:00": 1800, "12:00:00": 43200, "1-00:00:00": 86400, "2-12": 216000, "0-1:30": 5400}
    text = (cluster.repo / "iridis/queue.sh").read_text()
    function = re.search(r"^seconds\(\) \{.*?^\}", text, re.MULTILINE | re.DOTALL)[0]
    for way, seconds in ways.items():
        done = subprocess.run(["bash", "-c", f"{function}\nseconds {way}"], capture_output=True, text=True)
        assert done.stdout.strip() == str(seconds), way


def local(name, flags=""):
    return f"bash iridis/{name}/job.sh --local {flags}"


def test_wrong_input(cluster):
    train = "bash iridis/lncot-train/job.sh --dry-run --local"
    cluster.refuse(f"{train} --n_layr 3", 2, "did you mean --n_layer?")
    cluster.refuse(f"{train} --row ln-cotformer", 2, "table1/ln-cotformer", "did you mean table")
    cluster.refuse(f"{train} --chain none", 2, "--chain none")
    cluster.refuse(f"{train} --chain 2 --requeue", 2, "give one")
    cluster.refuse(f"{train} --requeue", 2, "--local has none")
    cluster.refuse(f"{train} --n_gpus", 2, "--n_gpus needs a value")
    cluster.refuse(f"{train} --dataset owt2", 1, "openwebtext2", "is not prepared")
    cluster.refuse(
        train, 2, "COTFORMER_ENV=poetry; choose from conda, venv, apptainer", COTFORMER_ENV="poetry"
    )
    cluster.refuse(train, 1, "there is no /nowhere/bin/python", VENV_DIR="/nowhere")
    cluster.refuse(train, 2, "CLUSTER=moon", CLUSTER="moon")
    cluster.refuse("bash iridis/eval-lncot/job.sh --local", 1, "there is no checkpoint", "lncot-train")
    cluster.refuse("bash iridis/submit.sh lncot", 2, "choose from adm-train")
    cluster.refuse("bash iridis/status.sh lncot", 2, "did you mean")
    cluster.refuse("bash iridis/sync.sh pul", 2, "give push or pull")
    cluster.refuse("bash iridis/download-dataset/job.sh", 2, "--full, --bpe or --reset")
    cluster.refuse("bash iridis/download-dataset/job.sh --reset", 2, "--yes")
    cluster.refuse("bash iridis/download-dataset/job.sh --all", 2, "choose from --full")
    cluster.refuse("bash iridis/extract-tokenize-dataset/job.sh --local", 1, "download-dataset")
    assert not list(cluster.repo.glob("iridis/*/run_*"))
    assert not (cluster.scratch / "exps").exists()


def test_no_folder_to_write_to(cluster):
    (cluster.scratch / "file").write_text("")
    cluster.refuse(
        local("lncot-train"), 1, "cannot write", "EXPS_DIR", EXPS_DIR=f"{cluster.scratch}/file/exps"
    )


def test_without_slurm(cluster):
    programs = cluster.repo / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "basename", "hostname", "id", "mkdir", "paste", "sed", "head", "sinfo"):
        if shutil.which(name):
            (programs / name).symlink_to(shutil.which(name))
    cluster.refuse(
        "bash iridis/lncot-train/job.sh",
        2,
        "there is no Slurm",
        "--local",
        PATH=str(programs),
        VENV_DIR=cluster.env["VENV_DIR"],
    )


def test_local_training_and_evaluation(cluster):
    """The same packages on a laptop: two processes, then a second time: nothing is left to do."""
    said = cluster.run(local("lncot-train"))
    assert "2 processes (DDP)" in said and said.strip().endswith("complete")
    folder, run_dir = cluster.folder("lncot-train"), cluster.run_dir("lncot-train")
    assert (folder / "summary.json").exists()
    assert {path.name for path in run_dir.iterdir()} == {
        "local.log", "run.json", "curves.png", "summary.json", "metrics.jsonl",
    }  # fmt: skip
    record = json.loads((run_dir / "run.json").read_text())
    assert (
        record["complete"] and record["packages"]["torch"] and record["environment"]["CLUSTER"] == "iridis-x"
    )
    assert record["attempts"][0]["to_step"] == 20
    assert not [name for name in record["environment"] if "KEY" in name]
    assert "finished already" in cluster.run(local("lncot-train"))
    assert cluster.run(local("eval-lncot")).strip().endswith("complete")
    results = {path.name for path in cluster.run_dir("eval-lncot").iterdir()}
    assert {"eval_20.txt", "eval_summary_ckpt.json", "run.json"} <= results
    table = cluster.run("bash iridis/status.sh lncot-train adm-train")
    assert re.search(r"lncot-train +run_1 +local +complete +20 of 20 +\d\.\d+", table)
    assert re.search(r"adm-train .*never run", table)


def test_a_local_run_that_is_interrupted(cluster):
    """Ctrl-C goes to all processes of the terminal; training is told once, saves, and ends."""
    command = local("lncot-train", "--iterations 100000 --save_checkpoint_freq 100000").split()
    log = cluster.run_dir("lncot-train") / "local.log"
    with open(cluster.scratch / "said", "w") as out:
        process = subprocess.Popen(
            command, cwd=cluster.repo, env=cluster.env, stdout=out, stderr=out, start_new_session=True
        )
    try:
        cluster.wait_until(lambda: log.exists() and "step 20/" in log.read_text(), "it does not train")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "stopping (SIGUSR1)" in log.read_text() and "not complete" in log.read_text()
    assert "--iterations 100000 --save_checkpoint_freq 100000 resumes it" in log.read_text()
    assert list(cluster.folder("lncot-train").glob("ckpt_*.pt"))


def test_gpu_test_on_processors(cluster):
    said = cluster.run(local("gpu_test", "--device cpu --disk_mib 4 --n_gpus 2"))
    assert "all-reduce over 2" in said and "all is well" in said
    found = json.loads((cluster.run_dir("gpu_test") / "gpu_test.json").read_text())
    assert found["bf16_teraflops"] > 0 and len(found["disks"]) == 2


def test_download_and_tokenise(cluster, tmp_path):
    """Step 1 from a real server, step 2; complete files are not made again."""
    import functools
    import http.server
    import threading

    from tests.data import archives

    archives.archive(tmp_path / "web", archives.monthly(archives.texts(40), 3))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "web/openwebtext2")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/openwebtext2.jsonl.zst.tar"
    said = cluster.run(
        "bash iridis/download-dataset/job.sh --reset --yes --url " + url, (0, 1)
    )  # 1: no vocabulary, without network
    assert "is complete" in said, said
    server.shutdown()
    said = cluster.run(local("extract-tokenize-dataset", "--on_error skip"), TOKENIZER="bytes", WORKERS="2")
    assert said.strip().endswith("complete")
    assert (cluster.scratch / "datasets/openwebtext2-bytes/train.bin").exists()


def test_sync(cluster, tmp_path):
    """Real rsync, through a "remote shell" that runs the command here."""
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    shell = tmp_path / "shell"
    shell.write_text('#!/bin/sh\nshift\ncd "$REMOTE_HOME" && exec sh -c "$*"\n')
    shell.chmod(0o755)
    home, outputs = tmp_path / "home", cluster.scratch / "job-outputs"
    env = {
        "RSYNC_RSH": str(shell), "REMOTE_HOME": str(home), "REMOTE_HOST": "there", "REMOTE_REPO": "CoTFormer",
        "REMOTE_SCRATCH": str(cluster.scratch), "CLUSTER": "generic", "SCRATCH_DIR": "/another/one",
    }  # fmt: skip
    for path in ("home", "scratch/job-outputs/me-1-x", "scratch/exps/run"):
        (tmp_path / path).mkdir(parents=True)
    for path in ("iridis/env.local.sh", "iridis/lncot-train/run_1/slurm_1.out", "exps/big.pt"):
        (cluster.repo / path).parent.mkdir(parents=True, exist_ok=True)
        (cluster.repo / path).write_text("# mine")
    cluster.run("bash iridis/sync.sh push --dry-run", **env)
    assert not list(home.iterdir())
    cluster.run("bash iridis/sync.sh push", **env)
    there = home / "CoTFormer"
    assert (there / "main.py").exists() and (there / "iridis/lncot-train/job.sh").exists()
    for left in ("iridis/env.local.sh", "iridis/lncot-train/run_1", "exps"):
        assert not (there / left).exists(), left
    (there / "iridis/adm-train/run_7").mkdir(parents=True)
    (there / "iridis/adm-train/run_7/slurm_7.out").write_text("log")
    (outputs / "me-1-x" / "figure.png").write_text("figure")
    (cluster.scratch / "exps/run/ckpt.pt").write_text("weights")
    (cluster.scratch / "exps/run/summary.json").write_text("{}")
    cluster.run("bash iridis/sync.sh pull", **env)
    assert (cluster.repo / "iridis/adm-train/run_7/slurm_7.out").read_text() == "log"
    assert (cluster.repo / "job-outputs/me-1-x/figure.png").exists()
    assert (cluster.repo / "exps/run/summary.json").exists()
    assert not (cluster.repo / "exps/run/ckpt.pt").exists()
    assert (cluster.repo / "iridis/env.local.sh").read_text() == "# mine"
