"""Checkpoints are written atomically, selected by their steps, and run no code when they are read."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import warnings
import zipfile

import pytest
import torch

from errors import Failure, UsageError
from optim import checkpoint


def write(path, step, size=10):
    checkpoint.write(path, {"step": step, "model": torch.full((size,), float(step))})


def test_round_trip_and_no_temporary_files(tmp_path):
    path = tmp_path / "run" / "ckpt_5.pt"
    content = {
        "step": 5,
        "model": {"w": torch.randn(3)},
        "args": {"lr": 1e-3, "exp_name": None},
        "list": [1.5],
    }
    checkpoint.write(path, content)
    loaded = checkpoint.load(path)
    assert torch.equal(loaded["model"].pop("w"), content["model"].pop("w")) and loaded == content
    assert os.listdir(path.parent) == ["ckpt_5.pt"]


def test_newest_checkpoint_first(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    for step in (100, 1000, 20):
        write(tmp_path / checkpoint.name_of(step), step)
    (tmp_path / "ckpt_old.pt").write_bytes(b"not ours")
    assert [path.name for path in checkpoint.in_folder(tmp_path)] == [
        "ckpt_1000.pt",
        "ckpt_100.pt",
        "ckpt_20.pt",
    ]
    assert checkpoint.newest(tmp_path)[0].name == "ckpt_1000.pt"
    write(tmp_path / "ckpt.pt", 500)  # a finished run that was extended to 1000 and beyond
    assert checkpoint.newest(tmp_path)[0].name == "ckpt_1000.pt"
    write(tmp_path / "ckpt.pt", 1500)
    assert checkpoint.newest(tmp_path)[0].name == "ckpt.pt"
    checkpoint.remove_intermediary(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["ckpt.pt", "ckpt_old.pt"]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"hello" * 50])
def test_a_damaged_file_is_named_and_the_one_before_taken(tmp_path, damage, capsys):
    write(tmp_path / "ckpt_1.pt", 1)
    write(tmp_path / "ckpt_2.pt", 2)
    newest = tmp_path / "ckpt_2.pt"
    broken = damage(newest.read_bytes())
    newest.write_bytes(broken)
    path, content = checkpoint.newest(tmp_path)
    assert path.name == "ckpt_1.pt" and content["step"] == 1
    said = capsys.readouterr().out
    assert said.count("warning: ") == said.count("\n") == 1
    assert "ckpt_2.pt is damaged or no checkpoint" in said
    assert newest.read_bytes() == broken  # left in place


def test_starting_afresh_silently_is_worse_than_stopping(tmp_path):
    (tmp_path / "ckpt_2.pt").write_bytes(b"broken")
    with pytest.raises(Failure, match="none of the 1 checkpoints"):
        checkpoint.newest(tmp_path)


class RunsACommand:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_hostile_checkpoint_is_refused_and_nothing_runs(tmp_path, how):
    path, victim = tmp_path / "ckpt.pt", tmp_path / "ran"
    content = {"model": RunsACommand(victim)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(Failure, match=r"ckpt\.pt"):
        checkpoint.load(path)
    assert not victim.exists()


def test_other_files_are_no_checkpoints(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(Failure, match="holds a list, not a checkpoint"):
        checkpoint.load(tmp_path / "list.pt")
    with pytest.raises(UsageError, match="there is no such checkpoint"):
        checkpoint.load(tmp_path / "gone.pt")
    with pytest.raises(UsageError, match="there is no such file or folder"):
        checkpoint.find(tmp_path / "gone")
    with pytest.raises(UsageError, match="holds no checkpoint"):
        checkpoint.find(tmp_path)


@pytest.mark.parametrize("suffix", ["pt", "dcp"])
def test_pipes_devices_and_links_in_place_of_files_are_named(tmp_path, suffix):
    path = tmp_path / f"ckpt_3.{suffix}"
    if suffix == "dcp":
        path.mkdir()
        path /= "state.json"
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)):
        make(path)
        with pytest.raises(Failure, match=r"not a regular file|no such checkpoint|levels of symbolic links"):
            checkpoint.load(tmp_path / f"ckpt_3.{suffix}")
        path.unlink()


def test_a_pipe_as_summary_is_named(tmp_path):
    os.mkfifo(tmp_path / "summary.json")
    with pytest.raises(UsageError, match="is not the summary of a run"):
        checkpoint.covered_by_summary(tmp_path, 1)


def expanding(depth):
    """2^depth values in `depth` dicts."""
    nested = {"a": 1}
    for _ in range(depth):
        nested = {"a": nested, "b": nested}
    return nested


@pytest.mark.parametrize(
    "model",
    [
        {"a": torch.zeros(1).expand(10**12)},
        {"a": torch.empty(10**15, device="meta")},
        {"a": torch.eye(3).to_sparse()},
        {str(n): torch.zeros(300)[n:] for n in range(3)} | {"views": torch.zeros(1).expand(9999)},
        expanding(30),
    ],
    ids=["view", "meta", "sparse", "views", "nested"],
)
def test_contents_that_would_take_all_memory_are_refused(tmp_path, model):
    torch.save({"step": 3, "model": model}, tmp_path / "ckpt_3.pt")
    with pytest.raises(Failure, match="is no checkpoint: "):
        checkpoint.load(tmp_path / "ckpt_3.pt")


@pytest.mark.parametrize("how", ["compressed", "twice"])
def test_archives_that_torch_does_not_write_are_refused(tmp_path, how):
    write(tmp_path / "good.pt", 3)
    path = tmp_path / "ckpt_3.pt"
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as hostile:
        kind = zipfile.ZIP_DEFLATED if how == "compressed" else zipfile.ZIP_STORED
        for name in good.namelist():
            for _ in range(1 + (how == "twice" and name.endswith("data/0"))):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    hostile.writestr(name, good.read(name), kind)
    with pytest.raises(Failure, match="torch does not write such archives"):
        checkpoint.load(path)


@pytest.mark.parametrize("damage", [{"step": "3"}, {"step": -1}, {"model": []}, {"args": None}], ids=str)
def test_damaged_plain_data_is_named(tmp_path, damage):
    checkpoint.write(tmp_path / "ckpt_3.pt", {"format": "cotformer-lab/1", "step": 3, "model": {}} | damage)
    with pytest.raises(Failure, match=f"is damaged or no checkpoint: its {next(iter(damage))} "):
        checkpoint.load(tmp_path / "ckpt_3.pt")


def test_a_failed_save_leaves_the_old_file(tmp_path):
    write(tmp_path / "ckpt.pt", 1)
    with pytest.raises(TypeError):
        checkpoint.write(tmp_path / "ckpt.pt", {"step": 2, "generator": (x for x in ())})
    assert checkpoint.load(tmp_path / "ckpt.pt")["step"] == 1
    assert os.listdir(tmp_path) == ["ckpt.pt"]


@pytest.mark.process
def test_sigkill_inside_saves(tmp_path):
    """A process that saves all the time is killed again and again: its file is always intact."""
    script = textwrap.dedent(
        """
        import sys, torch
        from pathlib import Path
        from optim import checkpoint
        weights = torch.zeros(2_000_000)
        step = 0
        while True:
            step += 1
            checkpoint.write(Path(sys.argv[1]) / "ckpt.pt", {"step": step, "model": weights.fill_(step)})
            print(step, flush=True)
        """
    )
    for attempt in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2 + attempt):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        content = checkpoint.load(tmp_path / "ckpt.pt")
        assert (content["model"] == content["step"]).all()
    checkpoint.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["ckpt.pt"]
