"""Signals, limits of time and steps, other numbers of processes, extended runs, locks, disks that fail."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from optim import checkpoint
from optim.lock import FILE_NAME, RunLock
from tests.faults.team import LAUNCH, Team, assert_close, assert_same, kill


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    made = {}

    def make(model="adm", size=1, backend="None"):
        if (model, size, backend) not in made:
            team = Team(tmp_path_factory.mktemp("straight") / "exps", model, size, backend)
            team.run()
            made[model, size, backend] = team
        return made[model, size, backend]

    return make


def until(process, happens):
    """Read a process' output until a line contains `happens`; returns the output."""
    said = ""
    for line in process.stdout:
        said += line
        if happens in line:
            return said
    raise AssertionError(said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_saves_and_ends_well(straight, tmp_path, number):
    team = Team(tmp_path / "exps", "adm")
    process = team.start("--save_checkpoint_freq 1000 --exit_code_unfinished 85", FAULT="slow")
    until(process, "step 6/")
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 85 and f"stopping ({number.name}) after step" in said, said
    (saved,) = checkpoint.in_folder(team.run_folder())
    assert 6 <= checkpoint.load(saved)["step"] < 24
    assert not (team.run_folder() / FILE_NAME).exists()
    assert f"resuming from {saved}" in team.run("--exit_code_unfinished 85")
    assert_same(team, straight("adm"))


def test_a_signal_while_processes_train_together(straight, tmp_path):
    """torchrun hands SIGTERM on; all ranks agree on the step."""
    team = Team(tmp_path / "exps", "adm", 2, "fsdp", torchrun=True)
    process = team.start("--save_checkpoint_freq 1000")
    until(process, "step 6/")
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    (saved,) = checkpoint.in_folder(team.run_folder())
    assert saved.suffix == ".dcp" and 6 <= checkpoint.load(saved)["step"] < 24
    team.torchrun = False
    team.run()
    assert_same(team, straight("adm", 2, "fsdp"))


SIGNALLED = """
import os, signal
import main, optim.validation as validation, optim.checkpoint_file as checkpoint_file

evaluate, write = validation.evaluate, checkpoint_file.write

def signalled_evaluate(model, batches, precision, processes, stop):
    asked = []
    def stop_asked():
        asked.append(1)
        if len(asked) == 3 and os.environ["MOMENT"] == "evaluation":
            os.kill(os.getpid(), signal.SIGTERM)
        return stop()
    return evaluate(model, batches, precision, processes, stop_asked)

def signalled_write(path, content, staging=None):
    if os.environ["MOMENT"] == "save" and content["step"] == 4:
        os.kill(os.getpid(), signal.SIGTERM)
    write(path, content, staging)

validation.evaluate, checkpoint_file.write = signalled_evaluate, signalled_write
main.run_script(main.main)
"""


def test_a_signal_in_an_evaluation_and_in_a_save(straight, tmp_path):
    """The evaluation is given up and made again; the line of its step is neither lost nor doubled."""
    team = Team(tmp_path / "exps", "adm")
    script = tmp_path / "script.py"
    script.write_text(SIGNALLED)
    for moment in ("save", "evaluation", "evaluation"):
        process = team.start(script=script, MOMENT=moment)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and "stopping (SIGTERM)" in said, said
    team.run()
    assert_same(team, straight("adm"))


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    team = Team(tmp_path / "exps", "adm")
    process = team.start("--acc_steps 4000")
    until(process, "run folder")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode in (0, 130) and "Traceback" not in said, said


def test_chained_jobs(straight, tmp_path):
    team = Team(tmp_path / "exps", "adm")
    flags = "--max_steps_this_run 7 --exit_code_unfinished 85 --save_checkpoint_freq 1000"
    for steps in (7, 14, 21):
        assert f"after step {steps} of 24" in team.run(flags, code=85)
    assert "finished:" in team.run(flags)
    assert_same(team, straight("adm"))


def test_a_limit_of_time(tmp_path):
    team = Team(tmp_path / "exps", "adm")
    flags = "--iterations 100000 --save_checkpoint_freq 100000 --exit_code_unfinished 85"
    assert "stopping (time limit) after step" in team.run(f"--max_time 0.05 {flags}", code=85)
    (saved,) = checkpoint.in_folder(team.run_folder())
    assert checkpoint.load(saved)["step"] == int(saved.stem.removeprefix("ckpt_"))


def test_output_whose_reader_has_gone(straight, tmp_path):
    """Training goes on to its end, with every process."""
    team = Team(tmp_path / "exps", "adm", 2, "gloo")
    process = team.start(FAULT="slow")
    until(process, "step 6/")
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert_same(team, straight("adm", 2, "gloo"))


def test_a_terminal_that_is_cut(straight, tmp_path):
    """Writing to it is an EIO; training goes on where SIGHUP is ignored, as under nohup."""
    team = Team(tmp_path / "exps", "adm")
    ours, its = os.openpty()
    command = ["bash", "-c", 'trap "" HUP; exec "$@"', "-", sys.executable, str(LAUNCH), *team.flags()]
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    with open(ours, errors="replace") as terminal:
        for line in terminal:
            if "step 6/" in line:
                break
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=120) == 0
    assert_same(team, straight("adm"))


def test_a_clock_that_jumps(straight, tmp_path):
    """By an hour and a day, every second: no limit of minutes is reached by that."""
    team = Team(tmp_path / "exps", "adm")
    assert "finished" in team.run("--max_time 5", FAULT="clock")
    assert_same(team, straight("adm"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, "None"), (2, "fsdp")), ((2, "fsdp"), (1, "None")),
        ((2, "gloo"), (1, "None")), ((2, "fsdp"), (4, "gloo")),
    ],
)  # fmt: skip
def test_another_number_and_kind_of_processes(straight, tmp_path, before, after):
    Team(tmp_path / "exps", "adm", *before).run("--max_steps_this_run 9")
    team = Team(tmp_path / "exps", "adm", *after)
    assert "at step 9" in team.run()
    assert_close(team, straight("adm"))


@pytest.mark.parametrize("how", ["rebuild", "keep"])
def test_a_longer_run(tmp_path, how):
    team = Team(tmp_path / "exps", "base")
    team.run()
    said = team.run(f"--iterations 30 --extend_schedule {how}")
    assert "planned for 24 iterations and now has 30" in said
    assert ("warning" in said and "is rebuilt over" in said) == (how == "rebuild")
    rates = [line["lr"] for line in team.lines()]
    assert len(rates) == 10
    if how == "keep":
        assert "keeps the schedule of 24" in said and rates[8:] == [rates[7]] * 2
        team.run("--iterations 36 --extend_schedule keep")  # and again: the first schedule's end is kept
        assert [line["lr"] for line in team.lines()][8:] == [rates[7]] * 4
    else:
        assert rates[8] > rates[7]


def test_two_runs_in_one_folder(tmp_path):
    team = Team(tmp_path / "exps", "base")
    process = team.start("--iterations 100000 --acc_steps 1 --save_checkpoint_freq 100000")
    until(process, "step 3/")
    said = team.run("--iterations 100000 --acc_steps 1", code=2)
    assert f"is in use by process {process.pid} on {socket.gethostname()}" in said
    kill(process)
    assert (team.run_folder() / FILE_NAME).exists()  # stale now: and in nobody's way
    said = team.run("--iterations 100000 --acc_steps 1 --max_steps_this_run 3")
    assert f"process {process.pid} on {socket.gethostname()} has ended and left its lock" in said


def test_a_run_whose_folder_another_has_taken_ends(tmp_path):
    """As it does when it goes on after a minute in which it stood still: it writes nothing more."""
    team = Team(tmp_path / "exps", "base")
    process = team.start("--iterations 100000 --save_checkpoint_freq 100000")
    until(process, "step 3/")
    lock = team.run_folder() / FILE_NAME
    other = json.loads(lock.read_text()) | {"host": "elsewhere", "pid": 7}
    lock.write_text(json.dumps(other))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "was taken over by process 7 on elsewhere" in said, said
    assert checkpoint.in_folder(team.run_folder()) == [] and json.loads(lock.read_text()) == other


def test_a_lock_of_another_machine(tmp_path, monkeypatch, caplog):
    """It is alive if its time moves; a minute without, and it is stale, whatever the clocks say."""
    monkeypatch.setattr("optim.lock.STALE_SECONDS", 2.0)
    lock = tmp_path / FILE_NAME
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": "x", "job": "42"}))
    script = f"import os, time\nfor _ in range(40): os.utime({str(lock)!r}); time.sleep(0.1)"
    beating = subprocess.Popen([sys.executable, "-c", script])
    with pytest.raises(Exception, match="in use by process 7 on elsewhere, Slurm job 42"):
        RunLock(tmp_path)
    beating.kill()
    beating.wait()
    mine = RunLock(tmp_path)
    assert "has ended and left its lock" in caplog.messages[-1]
    assert json.loads(lock.read_text())["pid"] == os.getpid()
    mine.release()
    assert not tmp_path.exists()  # nothing came of that run


def test_a_full_disk(straight, tmp_path):
    """The run continues with warnings; there is room again later, and nothing is missing at the end."""
    team = Team(tmp_path / "exps", "adm")
    process = team.start(FAULT="slow")
    until(process, "step 3/")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    said = until(process, "training continues")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said + rest
    assert "warning: cannot write" in said + rest
    assert_same(team, straight("adm"))


def test_a_full_disk_at_the_end_is_a_failure(tmp_path):
    team = Team(tmp_path / "exps", "adm")
    process = team.start()
    until(process, "step 12/")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "error: cannot write" in said, said
    assert "Traceback" not in said
    best, content = checkpoint.newest(team.run_folder())
    assert content["step"] >= 8 and best.name == f"ckpt_{content['step']}.pt"


@pytest.mark.parametrize(("size", "backend"), [(1, "None"), (2, "fsdp")])
def test_a_folder_that_vanishes(straight, tmp_path, size, backend):
    """What was in it is gone; the curves are not, and the run ends."""
    team = Team(tmp_path / "exps", "adm", size, backend)
    process = team.start(FAULT="slow")
    until(process, "step 9/")
    os.rename(team.run_folder(), tmp_path / "gone")
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0, rest
    assert_same(team, straight("adm", size, backend))


@pytest.mark.parametrize("backend", ["None", "fsdp"])
def test_staging_on_a_disk_of_the_machine(straight, tmp_path, backend):
    size = 2 if backend == "fsdp" else 1
    team = Team(tmp_path / "exps", "adm", size, backend)
    local = tmp_path / "local"
    local.mkdir()
    team.run("--save_checkpoint_freq 5", SLURM_TMPDIR=str(local))
    assert os.listdir(local) == []
    assert_same(team, straight("adm", size, backend))
    shutil.rmtree(team.folder)
    (tmp_path / "file").write_text("no folder")
    assert "finished" in team.run(f"--checkpoint_staging_dir {tmp_path / 'file'}")


def test_which_checkpoints_are_kept(tmp_path):
    team = Team(tmp_path / "exps", "base")
    team.run("--keep_last 2 --keep_every 8")
    names = sorted(path.name for path in checkpoint.in_folder(team.run_folder()))
    assert names == ["ckpt.pt", "ckpt_16.pt", "ckpt_20.pt", "ckpt_22.pt", "ckpt_8.pt"]


def test_going_back_to_an_earlier_checkpoint(straight, tmp_path):
    """Later checkpoints are set aside: they are neither resumed from nor counted by --keep_last."""
    team = Team(tmp_path / "exps", "adm")
    team.run("--save_checkpoint_freq 4")
    folder = team.run_folder()
    (folder / "summary.json").unlink()
    said = team.run(
        "--use_pretrained ckpt_8.pt --keep_last 1 --max_steps_this_run 5 --save_checkpoint_freq 2"
    )
    assert "ckpt_12.pt has more steps than ckpt_8.pt and is renamed to ckpt_12.pt.set-aside" in said
    assert [path.name for path in checkpoint.in_folder(folder)] == ["ckpt_13.pt"]
    assert "at step 13" in team.run()
    assert_same(team, straight("adm"))
    assert len(list(folder.glob("*.set-aside"))) == 4


def test_what_is_kept_is_not_decided_by_a_damaged_file(tmp_path):
    team = Team(tmp_path / "exps", "base")
    team.run("--max_steps_this_run 9 --save_checkpoint_freq 3")
    damaged = team.run_folder() / "ckpt_9.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    said = team.run("--keep_last 1 --save_checkpoint_freq 1000 --max_steps_this_run 2")
    assert "ckpt_9.pt is damaged" in said and "at step 6" in said
    assert [path.name for path in checkpoint.in_folder(team.run_folder())] == ["ckpt_9.pt", "ckpt_8.pt"]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_torchrun_killed_by_a_signal_that_it_does_not_forward(straight, tmp_path, number):
    """Its processes notice, and end as if they had got SIGTERM themselves."""
    team = Team(tmp_path / "exps", "adm", 2, "gloo", torchrun=True)
    process = team.start("--iterations 100000 --save_checkpoint_freq 100000")
    until(process, "step 6/")
    process.send_signal(number)
    said, _ = process.communicate(timeout=100)  # until all that hold the pipe have gone
    assert "stopping (SIGTERM) after step" in said, said
    (saved,) = checkpoint.in_folder(team.run_folder())
    assert checkpoint.load(saved)["step"] >= 6


@pytest.mark.parametrize("size", [1, 2])
def test_a_save_in_progress_is_finished_after_a_failure(tmp_path, size):
    """The disk is slow, and the loss is NaN one step after the checkpoint."""
    team = Team(tmp_path / "exps", "base", size)
    said = team.run("--save_checkpoint_freq 10", code=1, FAULT="nan:0:10")
    assert said.count("error: ") == 1 and "the loss is nan at step 11" in said
    (saved,) = checkpoint.in_folder(team.run_folder())
    assert checkpoint.load(saved)["step"] == 10
    assert not list(team.run_folder().glob("*.tmp"))
