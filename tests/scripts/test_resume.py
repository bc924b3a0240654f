"""Runs that are killed and started again end as if nothing had happened: same weights, same curves."""

import json
import random
import shutil
import signal
import time

import pytest
import torch

from optim import checkpoint
from tests.conftest import Scripts, assert_same_state, comparable
from tests.forked import Forked

LN = (
    "--model ln_cotformer --n_layer 4 --n_layer_begin 1 --n_layer_end 1 --n_repeat 3 "
    "--depth_embedding learned --dropout 0.1 --iterations 40 --save_checkpoint_freq 5 "
    "--eval_freq 10 --log_freq 3"
)
MODEL = "cotformer_full_depth_lnmid_depthemb"


def final(scripts, model=MODEL):
    return checkpoint.load(scripts.folder(model) / "ckpt.pt")


def assert_same_end(one, other, model=MODEL):
    assert_same_state(final(one, model), final(other, model))
    assert comparable(one.lines(model)) == comparable(other.lines(model))
    curves = [json.loads((scripts.folder(model) / "summary.json").read_text()) for scripts in (one, other)]
    assert (
        curves[0]["val_loss"] == curves[1]["val_loss"] and curves[0]["train_loss"] == curves[1]["train_loss"]
    )


@pytest.fixture
def straight(trained, tmp_path):
    return trained(LN, into=tmp_path / "exps")


@pytest.mark.process
def test_killed_at_random_steps(straight, tmp_path):
    """SIGKILL whenever a random line of metrics has been written, until a start runs through."""
    broken = Scripts(straight.data_dir, tmp_path / "broken")
    generator = random.Random(4)
    kills = 0
    while kills < 4:
        process = broken.start("main.py", broken.train_flags(LN))
        for _ in range(generator.randint(5, 11)):  # lines of output: some before the first step, some after
            process.stdout.readline()
        time.sleep(generator.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    broken.train(LN)
    assert_same_end(straight, broken)


SLOW_SAVE = """
import os, runpy, sys, time
real = os.replace
def slow(source, target):
    if str(target).endswith({suffix!r}):
        print("renaming", flush=True)
        time.sleep(30)
    real(source, target)
os.replace = slow
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.process
@pytest.mark.parametrize("suffix", ["ckpt_5.pt", "ckpt_10.pt", "ckpt.pt", "summary.json"])
def test_killed_inside_a_save(straight, tmp_path, suffix):
    """The disk is made slow between writing and renaming, and the process killed there."""
    broken = Scripts(straight.data_dir, tmp_path / "broken")
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW_SAVE.format(suffix=suffix))
    process = Forked([str(slow), *broken.command("main.py", broken.train_flags(LN))[1:]])
    assert any(line == "renaming\n" for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = broken.folder(MODEL)
    assert list(folder.glob("*.tmp")) and not (folder / suffix).exists()
    broken.train(LN)
    assert_same_end(straight, broken)
    assert not [path for path in folder.glob("*.tmp") if suffix != "summary.json"]


def test_a_truncated_checkpoint_is_passed_over(straight, tmp_path):
    broken = Scripts(straight.data_dir, tmp_path / "broken")
    shutil.copytree(straight.results, broken.results)
    folder = broken.folder(MODEL)
    for name in ("ckpt.pt", "summary.json"):
        (folder / name).unlink()
    newest = folder / "ckpt_35.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    said = broken.train(LN).stdout
    assert "ckpt_35.pt is damaged or no checkpoint" in said and "ckpt_30.pt at step 30" in said
    assert_same_end(straight, broken)


def test_a_finished_run_is_skipped_and_a_longer_one_extends_it(straight):
    folder = straight.folder(MODEL)
    before = (folder / "ckpt.pt").read_bytes()
    assert "finished already" in straight.train(LN).stdout
    assert "finished already" in straight.train(f"{LN} --iterations 30").stdout
    assert (folder / "ckpt.pt").read_bytes() == before

    said = straight.train(f"{LN} --iterations 50").stdout
    assert "at step 40" in said and "planned for 40 iterations and now has 50" in said
    assert final(straight)["step"] == 50 and straight.lines(MODEL)[-1]["step"] == 50
    assert (folder / "ckpt_40.pt").read_bytes() == before  # the finished run's checkpoint is kept
    assert json.loads((folder / "summary.json").read_text())["iterations"] == 50


def test_use_pretrained(scripts, tmp_path):
    scripts.train("--exp_name one --save_checkpoint_freq 4")
    said = scripts.run(
        "main.py", scripts.train_flags("--exp_name one --use_pretrained None --iterations 20"), 2
    )
    assert "--use_pretrained None would overwrite the run" in said.stderr
    fresh = scripts.train_flags("--exp_name one --use_pretrained None")  # though it has finished
    scripts.refuse("main.py", fresh, 2, "--use_pretrained None would overwrite the run")
    one = scripts.results / "shakespeare-char" / "base" / "one"
    two = scripts.results / "shakespeare-char" / "base" / "two"

    named = scripts.train(f"--exp_name two --use_pretrained {one / 'ckpt_8.pt'}").stdout
    assert "ckpt_8.pt at step 8" in named
    first, second = (checkpoint.load(folder / "ckpt.pt")["model"] for folder in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [json.loads(line)["step"] for line in (two / "metrics.jsonl").read_text().splitlines()] == [10, 12]

    for file in ("ckpt_8.pt", "ckpt.pt"):
        flags = scripts.train_flags(f"--exp_name four --iterations 8 --use_pretrained {one / file}")
        assert "asks for no more" in scripts.run("main.py", flags, 2).stderr

    refused = scripts.run("main.py", scripts.train_flags("--exp_name three --use_pretrained gone.pt"), 2)
    assert "gone.pt: there is no such checkpoint" in refused.stderr
    assert not (scripts.results / "shakespeare-char" / "base" / "three").exists()


def test_other_flags_on_resuming(scripts):
    """Another network is refused; another rate is said, and used."""
    scripts.train("--exp_name one --save_checkpoint_freq 4 --n_embd 16")
    refused = scripts.run("main.py", scripts.train_flags("--exp_name one --iterations 20 --n_embd 32"), 2)
    assert "is of another architecture (--n_embd 16 -> 32)" in refused.stderr
    said = scripts.train("--exp_name one --iterations 20 --lr 5e-3 --scheduler none").stdout
    assert "--lr 0.001 -> 0.005" in said and "--scheduler cos -> none" in said and "rounding" not in said
    assert scripts.lines()[-1]["lr"] == 5e-3
    said = scripts.train("--exp_name one --iterations 21 --lr 5e-3 --deterministic no --tf32 no").stdout
    assert "was trained with --deterministic True -> False, --tf32 True -> False: on a GPU" in said


def test_a_run_that_resumes_on_other_tokens_says_so(scripts, data_dir):
    text = data_dir / "shakespeare-char" / "input.txt"
    scripts.train("--exp_name one")
    assert "other training tokens" not in scripts.train("--exp_name one --iterations 14").stdout
    text.write_text(text.read_text()[:-200])
    (text.parent / "meta.json").unlink()
    said = scripts.train("--exp_name one --iterations 16").stdout
    assert f"warning: {text.parent} holds other training tokens than " in said and "ckpt" in said


def test_a_finished_run_under_the_same_name_with_other_flags(scripts):
    """Its numbers are not those of other flags; flags that do not change them may differ."""
    scripts.train("--exp_name one")
    for flags, parts in (
        ("--lr 5e-3 --seed 3", ["--lr 0.001 -> 0.005", "--seed 2 -> 3"]),
        ("--n_embd 32", ["--n_embd 16 -> 32"]),
        ("--depth_random_method other --attention_window_length 4", ["--attention_window_length None -> 4)"]),
        ("--dtype bfloat16 --iterations 3", ["--dtype torch.float32 -> torch.bfloat16"]),
    ):
        said = scripts.refuse("main.py", scripts.train_flags(f"--exp_name one {flags}"), 2, *parts)
        assert "summary.json is of a finished run with other flags (" in said and "another --exp_name" in said
    allowed = (
        "--iterations 6 --log_freq 7 --eval_freq 3 --save_checkpoint_freq 2 --activation_checkpointing block "
        "--compile --distributed_timeout 3 --data_in_ram --loss plain --use_pretrained ckpt.pt --seed 2"
    )
    assert "finished already" in scripts.train(f"--exp_name one {allowed}").stdout


def test_intermediary_checkpoints_are_removed_when_asked(scripts):
    scripts.train("--save_checkpoint_freq 4 --remove_intermediary_checkpoints_at_end")
    assert sorted(path.name for path in scripts.folder().glob("*.pt")) == ["ckpt.pt"]


@pytest.mark.process
def test_an_interrupted_run_says_how_to_resume(scripts):
    flags = "--iterations 100000 --eval_freq 50000 --log_freq 5 --save_checkpoint_freq 10"
    process = scripts.start("main.py", scripts.train_flags(flags))
    for line in process.stdout:
        if line.startswith("step 20/"):
            break
    process.send_signal(signal.SIGINT)
    said = process.stdout.read()
    assert process.wait() == 0
    assert "stopping (SIGINT) after step" in said and "the same command resumes from there" in said
    assert "Traceback" not in said
