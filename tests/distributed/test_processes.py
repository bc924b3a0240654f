"""Several ranks in real processes: the same optimisation as one, and one error message."""

import json
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distributed.parallel import RankSlice, choose_parallel
from distributed.processes import Processes, Stop, environment_number, require_single_process
from errors import UsageError
from tests.faults.team import Team, assert_close, assert_same


def test_rank_slices_cover_a_step_once():
    for batch_size, acc_steps, size in ((8, 4, 1), (8, 4, 2), (8, 4, 4), (8, 4, 8), (6, 3, 2), (4, 6, 4)):
        seen = []
        for rank in range(size):
            share = RankSlice.of(batch_size, acc_steps, rank, size)
            rows = range(batch_size)[share.rows]
            seen += [(share.first_micro_batch + m, row) for m in range(share.acc_steps) for row in rows]
            assert share.part == rows[0] // len(rows)
        assert sorted(seen) == [(m, row) for m in range(acc_steps) for row in range(batch_size)]


def test_numbers_of_the_environment(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    require_single_process()
    assert environment_number("WORLD_SIZE", 1) == 1
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="WORLD_SIZE='two', which is no number"):
        require_single_process()


def test_an_uneven_split_is_refused():
    with pytest.raises(
        UsageError, match=r"cannot be split across 4 processes: .* multiple of 4, or batch_size"
    ):
        RankSlice.of(3, 2, 0, 4)


@pytest.mark.parametrize(
    ("backend", "opt", "dtype", "part"),
    [
        ("nccl", "adamw", "float32", "needs GPUs"),
        ("fsdp", "adafactor", "float32", "goes with --opt adamw or sgd"),
        ("fsdp", "adamw", "torch.float16", "not with --dtype torch.float16"),
    ],
)
def test_backends_that_do_not_go_with_the_device_or_the_flags(backend, opt, dtype, part):
    with pytest.raises(UsageError, match=part):
        choose_parallel(backend, SimpleNamespace(size=2), torch.device("cpu"), opt=opt, dtype=dtype)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run in one process of each model, made when it is first asked for."""
    made = {}

    def make(model, flags=""):
        if (model, flags) not in made:
            team = Team(tmp_path_factory.mktemp("alone") / "exps", model)
            team.run(flags)
            made[model, flags] = team
        return made[model, flags]

    return make


@pytest.mark.process
@pytest.mark.parametrize(
    ("model", "size", "backend"),
    [
        # adm among 2 processes: the next test.
        ("base", 2, "None"), ("base", 2, "fsdp"), ("adm", 4, "gloo"), ("but", 4, "fsdp"), ("mla", 2, "fsdp"),
    ],
)  # fmt: skip
def test_the_same_losses_as_one_process(alone, tmp_path, model, size, backend):
    team = Team(tmp_path / "exps", model, size, backend)
    said = team.run()
    assert f"{size} processes ({'FSDP' if backend == 'fsdp' else 'DDP'})" in said
    assert said.count("run folder") == said.count("finished:") == 1  # only the first one speaks
    assert_close(team, alone(model))


@pytest.mark.process
@pytest.mark.parametrize("backend", ["gloo", "fsdp"])
def test_four_ranks_resume_bit_for_bit(tmp_path, backend):
    """Of more than two numbers, the sum depends on their order."""
    straight, resumed = (Team(tmp_path / name, "adm", 4, backend) for name in ("straight", "resumed"))
    straight.run()
    resumed.run("--max_steps_this_run 11")
    resumed.run()
    assert_same(straight, resumed)


@pytest.mark.process
@pytest.mark.parametrize("backend", ["gloo", "fsdp"])
def test_same_losses_when_ranks_split_a_micro_batch(alone, tmp_path, backend):
    """acc_steps 3 on 2 ranks: each computes half of every micro-batch, with the capacities of all of it."""
    flags = "--acc_steps 3 --grad_clip 0.5"
    team = Team(tmp_path / "exps", "adm", 2, backend)
    assert "3 micro-batches of 2 sequences" in team.run(flags)
    assert_close(team, alone("adm", flags))


@pytest.mark.process
def test_targets_spread_unevenly_over_ranks(tmp_path):
    """A step's loss and gradient are the same however its sequences are cut into micro-batches and split."""
    flags = "--dataset counting --vocab_size 256 --sequence_length 64 --iterations 6 --log_freq 1"
    runs = []
    for size, backend, cut in (
        (1, "None", "--batch_size 12 --acc_steps 1"),
        (2, "fsdp", "--batch_size 4 --acc_steps 3"),  # both compute a part of every micro-batch
        (4, "None", "--batch_size 6 --acc_steps 2"),  # two ranks to a micro-batch
    ):
        team = Team(tmp_path / f"exps{size}", "base", size, backend)
        team.run(f"{flags} {cut}")
        (path,) = (team.folder / "counting" / "base").glob("*/metrics.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        runs.append([[line["train_loss"], line["grad_norm"]] for line in lines])
    for run in runs[1:]:
        torch.testing.assert_close(torch.tensor(run), torch.tensor(runs[0]), rtol=1e-5, atol=1e-6)


@pytest.mark.process
def test_dropout_differs_between_ranks_that_split_a_micro_batch(tmp_path):
    """All sequences are alike: with common masks, two ranks would compute what one does with one of them."""
    (tmp_path / "data" / "owt2").mkdir(parents=True)
    for split in ("train", "val"):
        np.full(2000, 5, "<u2").tofile(tmp_path / "data" / "owt2" / f"{split}.bin")
    flags = (
        "--dataset owt2 --vocab_size 50304 --dropout 0.5 --acc_steps 1 --iterations 1 --eval_seq_prefix none"
    )
    losses = []
    for size in (1, 2):
        team = Team(tmp_path / f"exps{size}", "base", size)
        said = team.run(f"{flags} --batch_size {size} --data_dir {tmp_path / 'data'}")
        assert ("draw their own dropout masks" in said) == (size == 2)
        (path,) = (team.folder / "owt2" / "base").glob("*/metrics.jsonl")
        losses.append(json.loads(path.read_text())["train_loss"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-5)


@pytest.mark.process
def test_wrong_flags_are_reported_once(tmp_path):
    team = Team(tmp_path / "exps", "base", 2, torchrun=True)
    for flags, sentence in (
        ("--batch_size 3 --acc_steps 3", "cannot be split across 2 processes"),
        ("--lr 0", "must be above 0"),
    ):
        said = team.run(flags, code=1)  # torchrun's own code for any failure
        assert said.count("error: ") == 1 and sentence in said, said
        assert "exitcode  : 2" in said


@pytest.mark.process
@pytest.mark.parametrize("kind", ["raise", "kill"])
def test_a_rank_that_fails_ends_all_in_seconds(tmp_path, kind):
    team = Team(tmp_path / "exps", "base", 2, torchrun=True)
    started = time.monotonic()
    said = team.run(code=1, FAULT=f"{kind}:1:5")
    assert time.monotonic() - started < 60
    if kind == "raise":
        assert said.count("ValueError: the fault that was asked for") == 1
        assert said.count("rank 1:\nTraceback") == 1 and "rank 0:\n" not in said
    else:
        assert "Signal 9 (SIGKILL)" in said and "rank 0:\n" not in said
    team.torchrun = False
    assert "finished" in team.run()  # the same flags resume


@pytest.mark.process
def test_a_rank_that_hangs_is_named_after_the_time_that_was_set(tmp_path):
    team = Team(tmp_path / "exps", "base", 2, torchrun=True)
    said = team.run("--distributed_timeout 0.2", code=1, FAULT="hang:1:5")
    assert said.count("error: ") == 1
    assert "made no progress for 0.2 minutes" in said and "least progress: rank 1" in said


@pytest.mark.process
@pytest.mark.parametrize("kind", ["block", "kill"])
def test_a_rank_that_others_wait_for_in_c_is_named(tmp_path, kind):
    """As with NCCL: no call raises, and Python's signal handlers do not run."""
    team = Team(tmp_path / "exps", "base", 2)
    timeout = 0.1 if kind == "block" else 10
    started = time.monotonic()
    said = team.run(f"--distributed_timeout {timeout}", code=1, FAULT=f"{kind}:1:5", WAITS="in C")
    assert time.monotonic() - started < 60
    assert said.count("error: ") == 1 and f"made no progress for {timeout} minutes" in said
    reason = "rank 0 still waits" if kind == "block" else "rank 1 has stopped"
    assert f"least progress: rank 1 ({reason})" in said


def test_a_hangup_that_is_ignored_stays_ignored():
    """As under nohup; otherwise it stops the run, like the signals of schedulers."""
    alone = Processes()
    for handler in (signal.SIG_IGN, signal.SIG_DFL):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with Stop(alone, None, 0.0) as stop:
                os.kill(os.getpid(), signal.SIGHUP)
                assert stop.requested() == (handler is signal.SIG_DFL)
            assert signal.getsignal(signal.SIGHUP) is handler
        finally:
            signal.signal(signal.SIGHUP, before)
