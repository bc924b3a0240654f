"""The two formats of checkpoints, damaged and hostile."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from errors import Failure
from files import file_sha256
from optim import checkpoint, checkpoint_file, checkpoint_folder
from tests.optim.test_checkpoint import RunsACommand


def content(step=3):
    weight = torch.randn(5, 4)
    return {
        "format": "cotformer-lab/1",
        "step": step,
        "seconds": 1 / 3,
        "interval": {"steps": 0, "lr": 0.1 + 0.2, "norm_last": None},
        "model": {"a.weight": weight, "head.weight": weight, "b": torch.randn(3).to(torch.bfloat16)},
        "tied": {"head.weight": "a.weight"},
        "optimizer": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(5, 4)}, 10: {}},
        "scaler": {},
        "args": {"lr": 1e-3, "exp_name": None, "text": "naïve 🙂"},
        "tokenizer": {"name": "bytes", "vocab_size": 257},
    }


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_equal(value, other[key])
        elif isinstance(value, torch.Tensor):
            assert value.dtype == other[key].dtype and torch.equal(value, other[key]), key
        else:
            assert value == other[key], key


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_anywhere_in_a_file_is_damage_or_changes_nothing(tmp_path):
    path = tmp_path / "ckpt_3.pt"
    first = content()
    checkpoint.write(path, first)
    intact, noticed = path.read_bytes(), 0
    for at in range(0, len(intact), 7):
        flip(path, at)
        try:
            found = checkpoint.load(path)
        except Failure:
            noticed += 1
        else:
            assert_equal(found, first)
        path.write_bytes(intact)
    assert noticed > len(intact) / 7 / 4


@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "state", "empty"])
def test_a_damaged_folder_is_named_and_the_one_before_taken(tmp_path, damage, capsys):
    for step in (2, 4):
        checkpoint_folder.write(tmp_path / f"ckpt_{step}.dcp", content(step), None, None)
    broken = tmp_path / "ckpt_4.dcp"
    (tensors,) = broken.glob("*.safetensors")
    if damage == "flip":
        flip(tensors, -5)
    elif damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif damage == "lose":
        tensors.unlink()
    elif damage == "state":
        (broken / "state.json").write_text("{")
    else:
        for file in broken.iterdir():
            file.write_bytes(b"")
    path, found = checkpoint.newest(tmp_path)
    assert path.name == "ckpt_2.dcp" and found["step"] == 2
    said = capsys.readouterr().out
    assert said.count("warning: ") == said.count("\n") == 1 and "ckpt_4.dcp is damaged" in said
    assert broken.exists()


def test_a_flipped_bit_in_the_plain_data_is_damage_or_changes_nothing(tmp_path):
    path, first = tmp_path / "ckpt_3.dcp", content()
    checkpoint.write(path, first)
    state = path / "state.json"
    intact = state.read_bytes()
    for at in range(len(intact)):
        flip(state, at)
        try:
            assert_equal(checkpoint.load(path), first)
        except Failure as error:
            assert "ckpt_3.dcp is damaged" in str(error)
        state.write_bytes(intact)


def test_a_folder_of_before_the_checksum_of_its_plain_data_is_read(tmp_path):
    path, first = tmp_path / "ckpt_3.dcp", content()
    checkpoint.write(path, first)
    state = json.loads((path / "state.json").read_text())
    del state["sha256"]
    (path / "state.json").write_text(json.dumps(state))
    assert_equal(checkpoint.load(path), first)


def shards(path, *parts):
    """A checkpoint whose tensor `model/a` consists of (first row, rows) in files of their own."""
    checkpoint.write(path, content() | {"model": {}, "tied": {}, "optimizer": {}})
    state = json.loads((path / "state.json").read_text())
    for number, (first, values) in enumerate(parts):
        file = path / f"shard-{number}.safetensors"
        where = {"model/a": {"saved_offsets": [first] + [0] * (values.dim() - 1)}}
        save_file({"model/a": values}, file, {"DCP_SHARDING_INFO": json.dumps(where)})
        state["files"][file.name] = {"size": file.stat().st_size, "sha256": file_sha256(file)}
    del state["sha256"]
    (path / "state.json").write_text(json.dumps(state))


def test_shards_are_joined_in_their_order(tmp_path):
    a = torch.randn(5, 3)
    shards(tmp_path / "ckpt_3.dcp", (4, a[4:]), (0, a[:2]), (2, a[2:4]))
    assert torch.equal(checkpoint.load(tmp_path / "ckpt_3.dcp")["model"]["a"], a)


@pytest.mark.parametrize("fault", ["hole", "first", "twice", "dtype", "columns", "huge"])
def test_shards_with_holes_or_overlaps_are_damage(tmp_path, fault):
    a, path = torch.randn(6, 3), tmp_path / "ckpt_3.dcp"
    parts = {
        "hole": [(0, a[:2]), (4, a[4:])],
        "first": [(2, a[2:])],
        "twice": [(0, a[:2]), (0, a[:2]), (2, a[2:])],
        "dtype": [(0, a[:2]), (2, a[2:].double())],
        "columns": [(0, a[:2]), (2, a[2:, :2].clone())],
        "huge": [(0, a), (10**12, a)],
    }
    shards(path, *parts[fault])
    with pytest.raises(Failure, match=r"ckpt_3.dcp is damaged"):
        checkpoint.load(path)


def test_a_shard_that_is_not_listed_is_named(tmp_path):
    path = tmp_path / "ckpt_3.dcp"
    checkpoint.write(path, content())
    save_file({"model/a.weight": torch.zeros(5, 4)}, path / "shard-00000.safetensors")
    with pytest.raises(Failure, match=r"shard-00000.safetensors is not of this checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("where", [".metadata", "state.json", "tensors"])
def test_a_hostile_folder_runs_nothing(tmp_path, where):
    path, victim = tmp_path / "ckpt_3.dcp", tmp_path / "ran"
    checkpoint_folder.write(path, content(), None, None)
    hostile = pickle.dumps(RunsACommand(victim))
    target = next(path.glob("*.safetensors")) if where == "tensors" else path / where
    target.write_bytes(hostile)
    try:
        checkpoint.load(path)
    except Failure as error:
        assert where != ".metadata" and "damaged" in str(error)
    assert not victim.exists()


def test_a_file_outside_the_folder_is_not_read(tmp_path):
    path = tmp_path / "ckpt_3.dcp"
    checkpoint_folder.write(path, content(), None, None)
    state = json.loads((path / "state.json").read_text())
    state["files"]["../secret"] = {"size": 0, "sha256": ""}
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(Failure, match="damaged"):
        checkpoint.load(path)


def test_torch_tells_why_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match=r"cannot write .*ckpt\.pt"):
        checkpoint_file.write(tmp_path / "file" / "ckpt.pt", content())
