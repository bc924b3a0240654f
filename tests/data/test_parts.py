"""How much is held out for validation, and how a text is cut."""

import json
import shutil

import numpy as np
import pytest

from data import open_corpus, parts, prepare_corpus
from data.parts import _append_halves
from data.prepare import LEAST_VALIDATION
from data.token_files import held_out
from data.tokenizers import ByteTokenizer
from errors import Failure, UsageError
from tests.conftest import TEXT


class Lab:
    """A corpus of a file of JSON lines, as bytes."""

    def __init__(self, folder):
        self.source, self.data_dir = folder / "a.jsonl", folder / "data"
        self.name = f"files:{self.source}"

    def write(self, documents):
        self.source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))

    def prepare(self, documents=None, **settings):
        if documents is not None:
            self.write(documents)
            shutil.rmtree(self.data_dir, ignore_errors=True)
        return prepare_corpus(self.name, data_dir=self.data_dir, tokenizer="bytes", workers=1, **settings)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def texts(corpus, split):
    tokens = corpus.arrays(split)[0].tolist()
    assert tokens[-1] == 256
    found = bytes(0 if token == 256 else token for token in tokens).split(b"\0")[:-1]
    assert corpus.meta["documents"][split] == len(found)
    assert corpus.meta["bytes"][split] == sum(map(len, found))
    assert corpus.meta["splits"][split]["tokens"] == len(tokens)
    return [text.decode() for text in found]


def numbered(count, size):
    return [f"{number:06d} ".ljust(size, "x") for number in range(count)]


def test_a_small_corpus_holds_out_a_tenth_of_its_tokens(lab):
    documents = numbered(2000, 29)
    corpus = lab.prepare(documents)
    held = texts(corpus, "val")
    assert len(held) == 200 and sorted(held + texts(corpus, "train")) == documents
    order = np.random.default_rng(2357).permutation(2000)  # more in the order of the published rule
    assert held == [documents[index] for index in sorted(order[:200])]
    assert "200 documents" in corpus.meta["split"]


def test_a_larger_one_holds_out_enough_tokens_or_the_published_fraction(lab):
    assert len(texts(lab.prepare(numbered(1000, 1023)), "val")) == LEAST_VALIDATION / 1024
    documents = numbered(40, 40_000)  # one document is more than that
    corpus = lab.prepare(documents)
    assert texts(corpus, "val") == [documents[index] for index in held_out(40, 0.0005)]
    assert corpus.meta["split"].startswith("0.05% of the documents")


def test_a_single_document_is_cut(lab):
    corpus = lab.prepare([TEXT])
    train, val = texts(corpus, "train")[0], texts(corpus, "val")[0]
    assert train + val == TEXT and len(val) == int(0.1 * (len(TEXT) + 1)) - 1
    assert corpus.meta["split"] == f"the {len(val) + 1:,} last tokens"
    train, val = (texts(lab.prepare([TEXT], val_fraction=0.25), split)[0] for split in ("train", "val"))
    assert train + val == TEXT and len(val) == int(0.25 * (len(TEXT) + 1)) - 1


def test_a_document_longer_than_all_others_is_cut(lab):
    """Whether it comes first in the random order or not, training keeps most of the text."""
    for documents in (["preface", TEXT], [TEXT, "epilogue"], ["a", TEXT, "b", "c"], [TEXT, *["d"] * 50]):
        corpus = lab.prepare(documents)
        train, val = texts(corpus, "train"), texts(corpus, "val")
        assert corpus.size("val") > corpus.size("train") / 30 and corpus.size("train") > corpus.size("val")
        assert len("".join(train + val)) == len("".join(documents))


@pytest.mark.parametrize("cut", range(9))
def test_parts_that_split_a_document(tmp_path, cut):
    """Against the plain concatenation, at every token: within documents and between them."""
    tokenizer, documents = ByteTokenizer(), ["ab", "", "cdé"]
    encoded = [np.append(tokenizer.encode(text), tokenizer.end_of_text) for text in documents]
    tokens = np.concatenate(encoded).astype(np.uint16)
    tokens.tofile(tmp_path / "tokens")
    sizes = [(len(array), len(text.encode())) for array, text in zip(encoded, documents, strict=True)]
    np.array(sizes, np.uint32).tofile(tmp_path / "sizes")
    counts = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in ("train", "val")}
    with open(tmp_path / "train", "wb") as train, open(tmp_path / "val", "wb") as val:
        files = {"train": train, "val": val}
        _append_halves((tmp_path / "tokens", tmp_path / "sizes"), cut, files, counts, tokenizer)
    expected = {"train": tokens[:cut].tolist(), "val": tokens[cut:].tolist()}
    if expected["train"] and expected["train"][-1] != 256:
        expected["train"].append(256)
    for split, ids in expected.items():
        assert np.fromfile(tmp_path / split, np.uint16).tolist() == ids
        counted = {"documents": ids.count(256), "tokens": len(ids), "bytes": len(ids) - ids.count(256)}
        assert counts[split] == counted


def test_empty_documents(lab):
    for documents in ([""], ["", ""]):
        with pytest.raises(Failure, match="are empty: their source has no text"):
            lab.prepare(documents)


def test_val_fraction(lab):
    documents = numbered(200, 30)
    corpus = lab.prepare(documents, val_fraction=0.25)
    assert texts(corpus, "val") == [documents[index] for index in held_out(200, 0.25)]
    assert lab.prepare(val_fraction=0.25).meta == lab.prepare().meta == corpus.meta
    with pytest.raises(UsageError, match=r"prepared already, and holds out another part \(25\.00% of"):
        lab.prepare(val_fraction=0.5)
    assert corpus.meta["documents"]["train"] == 150
    assert len(texts(lab.prepare(documents[:2], val_fraction=0.9), "train")) == 1
    for wrong in (0.0, 1.0, float("nan")):
        with pytest.raises(UsageError, match="must be between 0 and 1"):
            lab.prepare(documents, val_fraction=wrong)


@pytest.mark.parametrize("corpus", ["shakespeare-char", "counting", "wikitext"])
def test_corpora_with_a_validation_set_of_their_own(tmp_path, corpus):
    with pytest.raises(UsageError, match=f"{corpus} has a validation set of its own; leave it out"):
        prepare_corpus(corpus, data_dir=tmp_path, val_fraction=0.1, workers=1)


def test_validation_that_is_too_short_names_the_flag(lab):
    corpus = lab.prepare(numbered(10, 30))
    with pytest.raises(Failure, match=r"val\.bin has 31 tokens, too few .* --val_fraction 0\.2"):
        open_corpus(lab.name, data_dir=lab.data_dir, tokenizer="bytes", sequence_length=64)
    assert corpus.windows("val", 16).count == 1


def test_a_preparation_that_is_resumed_in_its_assembly_holds_out_the_same(lab, monkeypatch):
    """Killed after the first of two parts, which is deleted by then."""
    lab.write(numbered(50, 29))
    lab.source.with_name("b.jsonl").write_bytes(lab.source.read_bytes())
    lab.name = f"files:{lab.source.parent}/*.jsonl"
    whole = lab.prepare()
    expected = {split: texts(whole, split) for split in ("train", "val")}
    shutil.rmtree(lab.data_dir)
    append, calls = parts._append_part, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        append(*args)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "_append_part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lab.prepare()
    assert {split: texts(lab.prepare(), split) for split in ("train", "val")} == expected
    assert len(expected["val"]) == 10
