"""Token files that were brought, and damaged ones: each kind of damage has its sentence."""

import json

import numpy as np
import pytest

from data import open_corpus
from errors import Failure, UsageError
from tests.conftest import TEXT


def brought(folder, tokens=1000, largest=50256):
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        (np.arange(tokens) % (largest + 1)).astype("<u2").tofile(folder / f"{split}.bin")
    return folder


@pytest.mark.parametrize(
    ("name", "folder"), [("owt2", "owt2"), ("owt2", "openwebtext2"), ("wikitext", "wikitext")]
)
def test_token_files_that_were_brought(tmp_path, name, folder):
    brought(tmp_path / folder)
    corpus = open_corpus(name, data_dir=tmp_path, vocab_size=50304, sequence_length=8)
    assert corpus.size("train") == 1000 and corpus.meta["tokenizer"]["name"] == "gpt2"


def damage_missing(path):
    path.unlink()


def damage_empty(path):
    path.write_bytes(b"")


def damage_odd(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage_longer(path):
    path.write_bytes(path.read_bytes() * 2)


def damage_token(path):
    tokens = np.fromfile(path, "<u2")
    tokens[len(tokens) // 2] = 60000
    tokens.tofile(path)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_missing, "is missing"),
        (damage_empty, "is empty"),
        (damage_odd, "which is no multiple of the 2 bytes of a token"),
        (damage_truncated, "is truncated"),
        (damage_longer, "is longer than when it was made"),
        (damage_token, rf"holds token 60000, but its char tokeniser has {len(set(TEXT))}"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_token_file_is_named(data_dir, damage, sentence, split):
    open_corpus("shakespeare-char", data_dir=data_dir)
    damage(data_dir / "shakespeare-char" / f"{split}.bin")
    with pytest.raises(Failure, match=sentence) as failure:
        open_corpus("shakespeare-char", data_dir=data_dir, vocab_size=64)
    assert f"{split}.bin" in str(failure.value)
    # What the sentence advises helps, and costs nothing that cannot be made again.
    meta = data_dir / "shakespeare-char" / "meta.json"
    assert str(failure.value).endswith(f"delete {meta}")
    meta.unlink()
    assert open_corpus("shakespeare-char", data_dir=data_dir).size(split) > 1000


def test_a_token_beyond_the_vocabulary_in_a_file_without_description(tmp_path):
    brought(tmp_path / "wikitext", tokens=60000, largest=50300)
    with pytest.raises(Failure, match=r"train\.bin holds token 50300, but its gpt2 tokeniser has 50,257"):
        open_corpus("wikitext", data_dir=tmp_path, vocab_size=50304, sequence_length=8)


@pytest.mark.parametrize(
    "meta",
    [
        "{",
        "[]",
        '{"tokenizer": {"vocab_size": 50257}}',
        '{"tokenizer": {"name": "gpt2", "vocab_size": "many"}}',
        '{"tokenizer": {"name": "gpt2", "vocab_size": 50257}, "splits": {"train": {"tokens": 1000}}}',
        '{"tokenizer": {"name": "gpt2", "vocab_size": 50257}, "splits": {"train": 1000}}',
        '{"tokenizer": {"name": "gpt2", "vocab_size": 50257}, "splits": [1000]}',
    ],
)
def test_a_damaged_description_is_named(tmp_path, meta):
    (brought(tmp_path / "wikitext") / "meta.json").write_text(meta)
    with pytest.raises(Failure, match=r"wikitext/meta\.json is damaged"):
        open_corpus("wikitext", data_dir=tmp_path, vocab_size=50304)


def test_a_description_says_which_tokens_were_brought(tmp_path):
    meta = {"tokenizer": {"name": "bytes", "vocab_size": 257}}
    (brought(tmp_path / "wikitext", largest=256) / "meta.json").write_text(json.dumps(meta))
    corpus = open_corpus("wikitext", data_dir=tmp_path, vocab_size=320)
    assert corpus.load_tokenizer().name == "bytes"
    with pytest.raises(UsageError, match=r"--tokenizer gpt2: .*meta\.json says .* bytes tokens"):
        open_corpus("wikitext", data_dir=tmp_path, tokenizer="gpt2")


def test_a_description_that_cannot_be_read(tmp_path):
    (brought(tmp_path / "wikitext") / "meta.json").mkdir()
    with pytest.raises(Failure, match=r"cannot read .*meta\.json: Is a directory"):
        open_corpus("wikitext", data_dir=tmp_path)


def test_in_ram_is_the_same_tokens(data_dir):
    (mapped,) = open_corpus("shakespeare-char", data_dir=data_dir).arrays("train")
    (in_ram,) = open_corpus("shakespeare-char", data_dir=data_dir, in_ram=True).arrays("train")
    assert isinstance(mapped, np.memmap) and not isinstance(in_ram, np.memmap)
    assert np.array_equal(mapped, in_ram)
