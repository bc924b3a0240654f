"""JSON and paths that hold bytes which are no UTF-8; folders that cannot be written."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from errors import Failure
from files import encode_json, is_utf8, removed_if_empty, utf8_path, why_unwritable, write_json

LATIN = os.fsdecode(b"caf\xe9")


def test_json_of_bytes_that_are_no_utf8(tmp_path):
    """They are read back as they were; the file is UTF-8 for all readers, and other text stays readable."""
    content = {"prefix": LATIN, LATIN: ["é", 'a "quote"\n']}
    write_json(tmp_path / LATIN, content)
    text = (tmp_path / LATIN).read_text(encoding="utf-8")
    assert json.loads(text) == content and "é" in text
    assert json.loads(encode_json(content)) == content


def test_libraries_that_take_utf8_paths_only(tmp_path):
    path = tmp_path / LATIN / "w.safetensors"
    path.parent.mkdir()
    path.write_bytes(save({"w": torch.ones(2)}))
    with utf8_path(path) as link:
        assert is_utf8(str(link)) and not is_utf8(str(path))
        assert load_file(link)["w"].tolist() == [1, 1]
    assert not link.exists() and path.exists()
    with utf8_path(tmp_path) as same:
        assert same == tmp_path


def test_unwritable_folders_are_known_before_writing(tmp_path):
    (tmp_path / "file").touch()
    assert why_unwritable(tmp_path / "new" / "folder") is None and not (tmp_path / "new").exists()
    assert why_unwritable(tmp_path / "file") == "Not a directory"
    assert why_unwritable(Path("/proc/self")) is not None


def test_folders_of_a_refused_command_are_removed(tmp_path):
    old, new = tmp_path / "old", tmp_path / "old" / "a" / "b"
    old.mkdir()
    with pytest.raises(Failure), removed_if_empty(new):
        new.mkdir(parents=True)
        raise Failure("refused")
    assert old.is_dir() and not list(old.iterdir())
    with pytest.raises(Failure), removed_if_empty(new):
        write_json(new.parent / "kept.json", {})
        new.mkdir()
        raise Failure("refused")
    assert [path.name for path in new.parent.iterdir()] == ["kept.json"]
    with removed_if_empty(new):
        new.mkdir()
    assert new.is_dir()
