"""Shards: written and read, in which tokens, and what is left from elsewhere."""

import json
import subprocess
import sys

import numpy as np
import pytest

from data import open_corpus, prepare_corpus
from data.brought import SAMPLE
from data.shards import open_shard, write_shard, write_shards
from errors import Failure, UsageError
from tests.conftest import ROOT
from tests.data.archives import texts
from tests.data.test_tokenizers import train_tokenizer


def prepared(folder, tokenizer="bytes", documents=60):
    """A small corpus of our own text."""
    for number, text in enumerate(texts(documents)[:documents]):
        (folder / "raw").mkdir(exist_ok=True)
        (folder / "raw" / f"{number}.txt").write_text(text)
    name = f"files:{folder}/raw/*.txt"
    return prepare_corpus(name, data_dir=folder / "data", tokenizer=tokenizer, workers=1)


def shards_of(tmp_path, per_shard=50_000, **settings):
    written = list(write_shards(prepared(tmp_path, **settings), tmp_path / "shards", per_shard))
    return written, f"files:{tmp_path}/shards/*.bin"


@pytest.mark.process
def test_the_command_writes_what_the_loader_reads(tmp_path):
    corpus = prepared(tmp_path)
    command = [sys.executable, "-m", "data.shards", "--dataset", corpus.name, "--tokenizer", "bytes"]
    command += ["--data_dir", str(tmp_path / "data"), "--output", str(tmp_path / "shards")]
    subprocess.run([*command, "--tokens_per_shard", "50000"], cwd=ROOT, check=True, capture_output=True)
    written = sorted((tmp_path / "shards").glob("*.bin"))
    assert len(written) > 3 and all("_train_" in path.name or "_val_" in path.name for path in written)
    header = np.fromfile(written[0], "<i4", 256)
    assert header[:3].tolist() == [20240520, 1, 50000] and not header[3:].any()
    for name in (f"files:{tmp_path}/shards/*.bin", f"files:{tmp_path}/shards/*", f"files:{tmp_path}/shards"):
        opened = open_corpus(name, vocab_size=320, sequence_length=16)
        assert opened.meta["tokenizer"] == corpus.meta["tokenizer"]
        for split in ("train", "val"):
            assert np.array_equal(np.concatenate(opened.arrays(split)), corpus.arrays(split)[0])
    assert opened.windows("train", 16).count == sum(
        (len(array) - 1) // 16 for array in opened.arrays("train")
    )


def test_shards_are_in_the_tokens_they_were_written_in(tmp_path):
    written, name = shards_of(tmp_path)
    assert open_corpus(name, tokenizer="bytes").load_tokenizer().name == "bytes"
    with pytest.raises(UsageError, match=r"--tokenizer gpt2: .*meta\.json says .* in bytes tokens \(257\)"):
        open_corpus(name, tokenizer="gpt2")
    with pytest.raises(UsageError, match="but the model was trained on gpt2"):
        open_corpus(name).require_tokenizer({"name": "gpt2", "vocab_size": 50257}, "the model")
    write_shard(tmp_path / "gpt2_train_000001.bin", np.arange(100, dtype=np.uint16))
    with pytest.raises(UsageError, match=r"in bytes tokens, but .* in gpt2 tokens: they cannot be"):
        open_corpus(f"files:{tmp_path}/gpt2*.bin,{written[0]}")


def test_a_tokenizer_json_goes_with_its_shards(tmp_path):
    train_tokenizer(tmp_path / "tokenizer.json", "byte level")
    _, name = shards_of(tmp_path, tokenizer=str(tmp_path / "tokenizer.json"))
    for path in [tmp_path / "tokenizer.json", *(tmp_path / "data").glob("*/tokenizer.json")]:
        path.unlink()
    assert open_corpus(name).load_tokenizer().path == tmp_path / "shards" / "tokenizer.json"


def test_shards_that_were_brought_are_taken_for_gpt2_with_a_sentence(tmp_path, caplog):
    caplog.set_level("INFO")
    end = np.full(1, 50256, np.uint16)
    tokens = np.resize(np.arange(257, dtype=np.uint16), SAMPLE)
    for split in ("train", "val"):
        write_shard(tmp_path / f"x_{split}_000001.bin", np.append(end, tokens))
    name = f"files:{tmp_path}/*.bin"
    assert open_corpus(name).meta["tokenizer"]["name"] == "gpt2"
    assert caplog.messages == [f"note: {tmp_path} has no meta.json: its tokens are taken to be of gpt2"]
    caplog.clear()
    write_shard(tmp_path / "x_train_000001.bin", tokens)
    open_corpus(name)
    (said,) = caplog.messages
    assert "none of the first 65,536 is its end of text, 50256, and the largest is 256" in said
    with pytest.raises(Failure, match="holds token 50256, but its bytes tokeniser has 257; give the --token"):
        open_corpus(name, tokenizer="bytes")
    write_shard(tmp_path / "x_val_000001.bin", tokens)
    caplog.clear()
    assert open_corpus(name, tokenizer="bytes").meta["tokenizer"]["vocab_size"] == 257
    (tmp_path / "meta.json").write_text('{"tokenizer": {"name": "bytes", "vocab_size": 257}}')  # as advised
    assert open_corpus(name).meta["tokenizer"]["name"] == "bytes" and not caplog.messages


def test_shards_shorter_than_a_window_are_left_out(tmp_path):
    whole = len(prepared(tmp_path).arrays("train")[0])
    written, name = shards_of(tmp_path, per_shard=(whole - 5) // 2)
    assert len(open_shard(written[-1])) < 8
    corpus = open_corpus(name, sequence_length=64)
    windows = corpus.windows("train", 64)
    assert windows.count == 2 * (((whole - 5) // 2 - 1) // 64)
    inputs, _ = windows.gather(np.array([windows.count - 1]))
    assert inputs.shape == (1, 64)
    with pytest.raises(Failure, match=r"_train_.*too few for a sequence of 1000000 and its targets"):
        open_corpus(name, sequence_length=1_000_000)


def test_shards_of_an_earlier_export_are_never_mixed_in(tmp_path, caplog):
    """Neither when others are written next to them, nor when they are found there later."""
    written, name = shards_of(tmp_path)
    corpus, folder = prepared(tmp_path), tmp_path / "shards"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match=r"holds other token files, .*_train_000002\.bin; choose another"):
        list(write_shards(corpus, folder, 1_000_000))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(write_shards(corpus, folder, 50_000)) == written  # the same again
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    write_shard(folder / "y_train_000009.bin", np.zeros(100, np.uint16))
    with pytest.raises(Failure, match=r"y_train_000009\.bin is not the file of that name in meta\.json"):
        open_corpus(name)
    (folder / "y_train_000009.bin").unlink()
    written[-1].unlink()
    open_corpus(name)
    assert caplog.messages[-1].startswith("1 of the ")


def test_a_folder_of_shards_holds_one_kind_of_tokens(tmp_path):
    shards_of(tmp_path)
    train_tokenizer(tmp_path / "tokenizer.json", "byte level")
    other = prepared(tmp_path, tokenizer=str(tmp_path / "tokenizer.json"))
    other.name = "other"
    with pytest.raises(UsageError, match=r"is for bytes tokens, and these are tokenizer\.json tokens"):
        list(write_shards(other, tmp_path / "shards", 50_000))
    same = prepared(tmp_path)
    same.name = "same"
    list(write_shards(same, tmp_path / "shards", 50_000))
    listed = json.loads((tmp_path / "shards" / "meta.json").read_text())["shards"]
    assert set(listed) == {path.name for path in (tmp_path / "shards").glob("*.bin")}
    assert any(name.startswith("files-") for name in listed)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda content: content[:-2], "is damaged: it has"),
        (lambda content: b"\0" * 4 + content[4:], "is no shard"),
        (lambda content: content[:4] + b"\2\0\0\0" + content[8:], "of version 2"),
        (lambda content: content[:100], "is no shard"),
    ],
)
def test_damaged_shards(tmp_path, damage, sentence):
    path = tmp_path / "x_train_000001.bin"
    write_shard(path, np.arange(1000, dtype=np.uint16))
    assert np.array_equal(open_shard(path), np.arange(1000))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Failure, match=sentence):
        open_corpus(f"files:{path}", data_dir=tmp_path)


def test_shards_without_a_split_in_their_names(tmp_path):
    write_shard(tmp_path / "tokens.bin", np.arange(1000, dtype=np.uint16))
    with pytest.raises(UsageError, match="must hold _train_ or _val_"):
        open_corpus(f"files:{tmp_path}/*.bin")
    with pytest.raises(UsageError, match="ids below 65,536"):
        write_shard(tmp_path / "x_val_0.bin", np.array([70000], dtype=np.uint32))
