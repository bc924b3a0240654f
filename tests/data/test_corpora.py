"""Corpora on disk: what is prepared, from where, and what is refused."""

import hashlib
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from data import open_corpus, registered_corpora
from data.pydoc import prose
from data.token_files import held_out
from data.tokenizers import decode
from errors import Failure, UsageError
from tests.conftest import ROOT, SHARED_DATA, TEXT


@pytest.fixture(scope="session")
def pydoc_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pydoc")
    open_corpus("pydoc", data_dir=folder, vocab_size=257, sequence_length=64)
    return folder


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pydoc_is_english_text_with_its_description(pydoc_dir):
    corpus = open_corpus("pydoc", data_dir=pydoc_dir)
    meta = json.loads((pydoc_dir / "pydoc" / "meta.json").read_text())
    assert (
        len(corpus.arrays("train")[0]) > 2_000_000
        and 50_000 < len(corpus.arrays("val")[0]) < len(corpus.arrays("train")[0]) / 5
    )
    for split, tokens in (("train", corpus.arrays("train")[0]), ("val", corpus.arrays("val")[0])):
        assert meta["splits"][split]["tokens"] == len(tokens)
        assert meta["splits"][split]["largest_token"] == tokens.max() == 256
        assert meta["splits"][split]["sha256"] == sha256(pydoc_dir / "pydoc" / f"{split}.bin")
        assert meta["documents"][split] == (np.asarray(tokens) == 256).sum()
        assert meta["bytes"][split] == (np.asarray(tokens) < 256).sum()
        words = decode(corpus.load_tokenizer(), tokens[:200_000]).split()
        assert sum(word in ("the", "a", "is", "to", "of", "and") for word in words) > len(words) / 10
    assert meta["tokenizer"] == {"name": "bytes", "vocab_size": 257}


def test_pydoc_documents_are_split_apart(pydoc_dir):
    corpus = open_corpus("pydoc", data_dir=pydoc_dir)

    def documents(tokens):
        return {
            hashlib.sha256(part).digest() for part in bytes_of(tokens).split(b"\x00\x01") if len(part) > 400
        }

    def bytes_of(tokens):
        return np.asarray(tokens).astype("<u2").tobytes()

    assert not documents(corpus.arrays("train")[0]) & documents(corpus.arrays("val")[0])


def test_pydoc_is_prepared_the_same_way_each_time(small_library, tmp_path):
    for folder in ("one", "two"):
        open_corpus("pydoc", data_dir=tmp_path / folder)
    for name in ("train.bin", "val.bin", "meta.json"):
        assert sha256(tmp_path / "one" / "pydoc" / name) == sha256(tmp_path / "two" / "pydoc" / name)


def test_prose_takes_docstrings_and_comments_in_order():
    source = textwrap.dedent(
        '''
        #!/usr/bin/python
        # First line,
        # second line.
        x = "# no comment"  # behind code
        # ------
        class C:
            """Of the class.

                Indented.
            """
            def f(self):
                """Of the function."""
                "not a docstring"
        '''
    ).encode()
    assert prose(source) == (
        "First line,\nsecond line.\nbehind code\n\nOf the class.\n\nIndented.\n\nOf the function."
    )
    assert prose(b"def broken(:") == ""


def test_validation_documents_are_the_published_rule():
    """With numpy's permutation itself, which ours draws in narrower numbers."""
    for count in (1, 3, 10_000, 70_001):
        expected = np.random.default_rng(2357).permutation(count)[: max(1, round(0.0005 * count))]
        assert held_out(count, 0.0005).tolist() == sorted(expected.tolist())
    assert len(held_out(10_000, 0.0005)) == 5 and len(held_out(3, 0.0005)) == 1


def test_shakespeare_from_a_local_file(data_dir, caplog):
    caplog.set_level("INFO")
    corpus = open_corpus("shakespeare-char", data_dir=data_dir)
    tokenizer = corpus.load_tokenizer()
    assert decode(tokenizer, np.concatenate((corpus.arrays("train")[0], corpus.arrays("val")[0]))) == TEXT
    assert len(corpus.arrays("train")[0]) == int(0.9 * len(TEXT))
    assert tokenizer.vocab_size == len(set(TEXT)) == corpus.meta["tokenizer"]["vocab_size"]
    assert len(caplog.messages) == 2
    caplog.clear()
    open_corpus("shakespeare-char", data_dir=data_dir)
    assert caplog.messages == []  # prepared once


@pytest.mark.skipif(not (SHARED_DATA / "tinyshakespeare.txt").exists(), reason="no tiny Shakespeare at hand")
def test_the_real_shakespeare(tmp_path):
    (tmp_path / "tinyshakespeare.txt").write_bytes((SHARED_DATA / "tinyshakespeare.txt").read_bytes())
    corpus = open_corpus("shakespeare-char", data_dir=tmp_path)
    assert corpus.meta["tokenizer"]["vocab_size"] == 65
    assert (len(corpus.arrays("train")[0]), len(corpus.arrays("val")[0])) == (
        1_003_854,
        111_540,
    )  # as nanoGPT prepares it


def test_shakespeare_without_network_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(Failure, match=r"put the text at .*shakespeare-char/input\.txt"):
        open_corpus("shakespeare-char", data_dir=tmp_path)
    assert not (tmp_path / "shakespeare-char" / "meta.json").exists()


def test_an_empty_text(data_dir):
    """Refused before token files are made of it: the text that is put there next is prepared."""
    path = data_dir / "shakespeare-char" / "input.txt"
    path.write_text("")
    with pytest.raises(UsageError, match=r"input\.txt is empty"):
        open_corpus("shakespeare-char", data_dir=data_dir)
    path.write_text(TEXT)
    assert len(open_corpus("shakespeare-char", data_dir=data_dir).arrays("train")[0]) == int(0.9 * len(TEXT))


def test_a_file_that_is_no_text(data_dir):
    (data_dir / "shakespeare-char" / "input.txt").write_bytes(b"good \xff bad")
    with pytest.raises(UsageError, match=r"input\.txt is not text in UTF-8 \(byte 5\)"):
        open_corpus("shakespeare-char", data_dir=data_dir)


def test_a_text_that_was_changed_after_it_was_prepared(data_dir):
    folder = open_corpus("shakespeare-char", data_dir=data_dir).folder
    path = folder / "input.txt"
    path.write_text(TEXT.replace("cat", "dog"))
    with pytest.raises(Failure, match=r"input\.txt has changed since .* delete .*meta\.json to prepare"):
        open_corpus("shakespeare-char", data_dir=data_dir)
    path.unlink()
    open_corpus("shakespeare-char", data_dir=data_dir)  # the token files are enough
    meta = json.loads((folder / "meta.json").read_text())
    del meta["sha256"]  # as earlier versions wrote it
    (folder / "meta.json").write_text(json.dumps(meta))
    path.write_text("another text")
    open_corpus("shakespeare-char", data_dir=data_dir)


def test_a_byte_order_mark_is_no_character(data_dir):
    path = data_dir / "shakespeare-char" / "input.txt"
    path.write_bytes(TEXT.encode("utf-16"))
    with pytest.raises(UsageError, match="but UTF-16; convert it"):
        open_corpus("shakespeare-char", data_dir=data_dir)
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert open_corpus("shakespeare-char", data_dir=data_dir).load_tokenizer().vocab_size == len(set(TEXT))


def test_corpora_that_cannot_be_prepared_say_what_to_bring(tmp_path):
    with pytest.raises(Failure, match=r"slimpajama is not prepared in .*: run `python prepare_data"):
        open_corpus("slimpajama", data_dir=tmp_path)


def test_unknown_names(tmp_path):
    with pytest.raises(UsageError, match="did you mean pydoc"):
        open_corpus("pydocs", data_dir=tmp_path)
    with pytest.raises(UsageError, match="shakespeare-char comes in char only"):
        open_corpus("shakespeare-char", data_dir=tmp_path, tokenizer="bytes")
    assert {"pydoc", "owt2", "openwebtext2", "arxiv+wiki"} <= set(registered_corpora())


def test_other_refusals(data_dir, tmp_path):
    with pytest.raises(Failure, match="too few for a sequence of 100000"):
        open_corpus("shakespeare-char", data_dir=data_dir, sequence_length=100_000)
    with pytest.raises(UsageError, match=r"more than --vocab_size 8; give --vocab_size 64"):
        open_corpus("shakespeare-char", data_dir=data_dir, vocab_size=8)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Failure, match="cannot write"):
        open_corpus("pydoc", data_dir=tmp_path / "file")


def test_tokens_must_mean_what_they_meant_to_the_model(data_dir):
    corpus = open_corpus("shakespeare-char", data_dir=data_dir)
    corpus.require_tokenizer(corpus.meta["tokenizer"], "the model")
    corpus.require_tokenizer(None, "the model")
    with pytest.raises(UsageError, match="but the model was trained on bytes"):
        corpus.require_tokenizer({"name": "bytes", "vocab_size": 257}, "the model")


@pytest.mark.process
def test_nothing_of_this_imports_torch():
    code = "import sys, data; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
