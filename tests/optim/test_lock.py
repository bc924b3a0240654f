"""The lock on a run's folder: who is refused, who takes over, and how a run learns that it has lost it."""

import json
import os
import select
import shutil
import threading
import time

import pytest

from errors import Failure, UsageError
from optim import lock
from optim.lock import FILE_NAME, RunLock


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.6)
    monkeypatch.setattr(lock, "_WRITING_SECONDS", 0.3)


def own(tmp_path):
    """The content of this process' lock."""
    mine = RunLock(tmp_path)
    content = json.loads(mine.path.read_text())
    mine.release()
    return content


# What a process of this machine that cannot be seen from here differs in.
ELSEWHERE = {
    "another pid namespace": lambda mine: {"pid": 2**30, "pid_namespace": "pid:[1]"},
    "before namespaces were recorded": lambda mine: {"pid": 2**30, "pid_namespace": None},
    "another boot, or a namesake": lambda mine: {"pid": 2**30, "started": "boot 1"},
    "another machine": lambda mine: {"host": "elsewhere", "job": "42"},
}


@pytest.mark.parametrize("where", ELSEWHERE)
@pytest.mark.parametrize("alive", [True, False])
def test_a_process_that_cannot_be_seen_is_alive_if_the_time_of_its_lock_moves(tmp_path, where, alive):
    mine = own(tmp_path)
    path = tmp_path / FILE_NAME
    tmp_path.mkdir(exist_ok=True)
    path.write_text(json.dumps(mine | ELSEWHERE[where](mine)))
    beat = threading.Timer(0.2, os.utime, (path,))
    if alive:
        beat.start()
        with pytest.raises(UsageError, match="is in use by process"):
            RunLock(tmp_path)
        beat.join()
    else:
        RunLock(tmp_path).release()


def test_a_process_of_this_namespace_that_has_ended_is_known_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 1000.0)
    content = own(tmp_path) | {"pid": 2**30}
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    RunLock(tmp_path).release()


def test_the_lock_needs_no_hard_links(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "link")
    RunLock(tmp_path / "run").release()


@pytest.mark.parametrize("make", [lambda path: path.touch(), os.mkfifo, lambda path: path.write_text("[1]")])
def test_a_damaged_lock_is_replaced(tmp_path, make):
    make(tmp_path / FILE_NAME)
    mine = RunLock(tmp_path)
    mine.require()
    mine.release()


def test_a_lock_that_is_being_written_is_waited_for(tmp_path):
    content, path = own(tmp_path), tmp_path / FILE_NAME
    tmp_path.mkdir(exist_ok=True)
    path.touch()
    threading.Timer(0.15, path.write_text, (json.dumps(content),)).start()
    with pytest.raises(UsageError, match=f"is in use by process {os.getpid()}"):
        RunLock(tmp_path)


def test_a_run_learns_that_another_has_taken_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    said = []
    mine = RunLock(tmp_path, said.append)
    other = json.loads(mine.path.read_text()) | {"host": "elsewhere", "pid": 7}
    mine.path.write_text(json.dumps(other))
    with pytest.raises(Failure, match="was taken over by process 7 on elsewhere"):
        mine.require()
    for _ in range(100):
        if said:
            break
        time.sleep(0.02)
    assert len(said) == 1 and "process 7 on elsewhere" in said[0]
    mine.release()
    assert json.loads(mine.path.read_text()) == other


def test_a_folder_that_was_deleted_is_locked_again(tmp_path):
    folder = tmp_path / "run"
    mine = RunLock(folder)
    shutil.rmtree(folder)
    mine.require()
    with pytest.raises(UsageError, match="is in use by process"):
        RunLock(folder)
    mine.release()


def test_a_lock_that_went_while_the_run_stood_still_is_lost(tmp_path):
    """Another run may have taken the folder, trained, and released it."""
    mine = RunLock(tmp_path)
    mine.path.unlink()
    mine._held_at -= 10.0
    with pytest.raises(Failure, match="another run may have used the folder"):
        mine.require()
    mine.release()


@pytest.mark.process
@pytest.mark.parametrize("left", [None, "{}", "stale"])
def test_of_several_processes_that_start_together_one_takes_the_folder(tmp_path, left):
    if left is not None:
        content = json.dumps(own(tmp_path) | {"pid": 2**30}) if left == "stale" else left
        tmp_path.mkdir(exist_ok=True)
        (tmp_path / FILE_NAME).write_text(content)
    end, open_until_all_tried = os.pipe()
    group = 0
    for _ in range(8):
        child = os.fork()
        if child == 0:
            code = 3
            try:
                os.close(open_until_all_tried)
                RunLock(tmp_path)
                select.select([end], [], [], 60.0)  # hold it until the others have ended
                code = 0
            except UsageError:
                code = 2
            finally:
                os._exit(code)
        group = group or child
        os.setpgid(child, group)
    codes = [os.waitstatus_to_exitcode(os.waitpid(-group, 0)[1]) for _ in range(7)]
    os.close(open_until_all_tried)
    codes = sorted([*codes, os.waitstatus_to_exitcode(os.waitpid(-group, 0)[1])])
    assert codes == [0] + [2] * 7
    assert os.listdir(tmp_path) == [FILE_NAME]
