"""Token files without a meta.json: their ids' size, and what they are taken for."""

import json

import numpy as np
import pytest

from data import open_corpus
from errors import Failure
from tests.data.test_token_files import brought


@pytest.mark.parametrize(
    ("tokenizer", "folder", "largest", "dtype"),
    [
        (None, "wikitext", 50256, "<u2"),
        (None, "wikitext", 50256, "<u4"),
        ("cl100k_base", "wikitext-cl100k_base", 100_000, "<u4"),
    ],
)
def test_the_size_of_ids_that_were_brought_is_seen_in_them(tmp_path, tokenizer, folder, largest, dtype):
    (tmp_path / folder).mkdir()
    for split in ("train", "val"):
        np.arange(largest - 1000, largest).astype(dtype).tofile(tmp_path / folder / f"{split}.bin")
    corpus = open_corpus("wikitext", data_dir=tmp_path, tokenizer=tokenizer, sequence_length=8)
    assert corpus.arrays("train")[0].dtype == dtype
    assert np.array_equal(corpus.arrays("val")[0], np.arange(largest - 1000, largest))


def test_ids_of_64_bits_and_of_two_sizes_are_refused(tmp_path):
    folder = brought(tmp_path / "wikitext")
    np.arange(1000).astype("<u4").tofile(folder / "val.bin")
    with pytest.raises(Failure, match="hold ids of 16 bits and of 32"):
        open_corpus("wikitext", data_dir=tmp_path)
    np.arange(1000).astype("<i8").tofile(folder / "train.bin")
    with pytest.raises(Failure, match=r"train\.bin holds ids of 64 bits; convert"):
        open_corpus("wikitext", data_dir=tmp_path)


def test_a_description_without_a_dtype_has_that_of_its_vocabulary(tmp_path):
    (tmp_path / "wikitext").mkdir()
    for split in ("train", "val"):
        np.arange(69_000, 70_000).astype("<u4").tofile(tmp_path / "wikitext" / f"{split}.bin")
    meta = {"tokenizer": {"name": "cl100k_base", "vocab_size": 100277}}
    (tmp_path / "wikitext" / "meta.json").write_text(json.dumps(meta))
    assert open_corpus("wikitext", data_dir=tmp_path).size("train") == 1000


def test_brought_bytes_that_pass_for_gpt2_are_warned_of(tmp_path, caplog):
    brought(tmp_path / "wikitext", tokens=100_000, largest=256)
    open_corpus("wikitext", data_dir=tmp_path)
    assert "taken to be of gpt2, but none of the first 65,536 is its end of text" in caplog.text
