"""checkpoints.py: lists, verifies and converts the checkpoints of runs; and its old name."""

import json
import os

import pytest

from checkpoints import convert
from errors import UsageError
from optim import checkpoint
from tests.faults.team import Team, assert_same
from tests.in_process import run_in_process
from tests.optim.test_checkpoint_folder import assert_equal, content, flip


def test_from_one_format_into_the_other_and_back(tmp_path):
    first = content()
    checkpoint.write(tmp_path / "ckpt_3.pt", first)
    convert(tmp_path / "ckpt_3.pt", tmp_path / "other" / "ckpt_3.dcp")
    convert(tmp_path / "other", tmp_path / "again.pt")
    for path in ("ckpt_3.pt", "other/ckpt_3.dcp", "again.pt"):
        assert_equal(checkpoint.load(tmp_path / path), first)
    assert sorted(os.listdir(tmp_path)) == ["again.pt", "ckpt_3.pt", "other"]  # no temporary files
    with pytest.raises(UsageError, match=r"again\.pt exists"):
        convert(tmp_path / "ckpt_3.pt", tmp_path / "again.pt")
    with pytest.raises(UsageError, match=r"must end in \.pt or \.dcp"):
        convert(tmp_path / "ckpt_3.pt", tmp_path / "x.safetensors")


def commands(*words, code=0, script="checkpoints.py"):
    done = run_in_process([*script.split(), *map(str, words)], {})
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.process
def test_commands_on_a_run_of_two_processes(tmp_path):
    """list, verify, convert; and eval.py gives the same losses for FSDP's folder and the converted file."""
    team = Team(tmp_path / "exps", "adm", 2, "fsdp")
    team.run("--save_checkpoint_freq 9")
    folder = team.run_folder()
    listed = commands("list", folder)
    assert listed.count("\n") == 3 and "ckpt_18.dcp" in listed and "step 24, intact" in listed
    assert commands("verify", folder, script="-m optim.checkpoint").count("intact") == 3
    commands("convert", folder / "ckpt.dcp", tmp_path / "one.pt")
    assert_equal(checkpoint.load(tmp_path / "one.pt"), checkpoint.load(folder / "ckpt.dcp"))
    losses = []
    for path in (folder, folder / "ckpt.dcp", tmp_path / "one.pt"):
        commands("--checkpoint", path, "--output_dir", tmp_path / "out", script="eval.py")
        (summary,) = (tmp_path / "out").iterdir()
        losses.append(json.loads(summary.read_text())["batch_losses"])
        summary.unlink()
    assert losses[0] == losses[1] == losses[2]
    flip(next((folder / "ckpt_9.dcp").glob("*.safetensors")), -1)
    said = commands("verify", folder, code=1)
    assert said.count("intact") == 2 and "ckpt_9.dcp  damaged" in said and "1 of the checkpoints" in said
    assert_same(team, team)
