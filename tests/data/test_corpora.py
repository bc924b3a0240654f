"""Corpora on disk: what is prepared, what is refused, and that half a preparation never looks whole."""

import hashlib
import json
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from data import open_corpus, registered_corpora
from data.corpora import validation_documents
from data.pydoc import prose
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
    assert len(corpus.train) > 2_000_000 and 50_000 < len(corpus.val) < len(corpus.train) / 5
    for split, tokens in (("train", corpus.train), ("val", corpus.val)):
        assert meta["splits"][split]["tokens"] == len(tokens)
        assert meta["splits"][split]["largest_token"] == tokens.max() == 256
        assert meta["splits"][split]["sha256"] == sha256(pydoc_dir / "pydoc" / f"{split}.bin")
        assert meta["documents"][split] == (np.asarray(tokens) == 256).sum()
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

    assert not documents(corpus.train) & documents(corpus.val)


def test_pydoc_is_prepared_the_same_way_each_time(pydoc_dir, tmp_path):
    open_corpus("pydoc", data_dir=tmp_path)
    for name in ("train.bin", "val.bin", "meta.json"):
        assert sha256(tmp_path / "pydoc" / name) == sha256(pydoc_dir / "pydoc" / name)


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
    chosen = validation_documents(10_000, 0.0005)
    assert chosen == set(np.random.default_rng(2357).permutation(10_000)[:5].tolist())
    assert len(validation_documents(3, 0.0005)) == 1


def test_shakespeare_from_a_local_file(data_dir):
    said = []
    corpus = open_corpus("shakespeare-char", data_dir=data_dir, log=said.append)
    tokenizer = corpus.load_tokenizer()
    assert decode(tokenizer, np.concatenate((corpus.train, corpus.val))) == TEXT
    assert len(corpus.train) == int(0.9 * len(TEXT))
    assert tokenizer.vocab_size == len(set(TEXT)) == corpus.meta["tokenizer"]["vocab_size"]
    assert len(said) == 2
    said.clear()
    open_corpus("shakespeare-char", data_dir=data_dir, log=said.append)
    assert said == []  # prepared once


@pytest.mark.skipif(not (SHARED_DATA / "tinyshakespeare.txt").exists(), reason="no tiny Shakespeare at hand")
def test_the_real_shakespeare(tmp_path):
    (tmp_path / "tinyshakespeare.txt").write_bytes((SHARED_DATA / "tinyshakespeare.txt").read_bytes())
    corpus = open_corpus("shakespeare-char", data_dir=tmp_path)
    assert corpus.meta["tokenizer"]["vocab_size"] == 65
    assert (len(corpus.train), len(corpus.val)) == (1_003_854, 111_540)  # as nanoGPT prepares it


def test_shakespeare_without_network_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(Failure, match=r"put the text at .*shakespeare-char/input\.txt"):
        open_corpus("shakespeare-char", data_dir=tmp_path)
    assert not (tmp_path / "shakespeare-char" / "meta.json").exists()


def test_a_file_that_is_no_text(data_dir):
    (data_dir / "shakespeare-char" / "input.txt").write_bytes(b"good \xff bad")
    with pytest.raises(UsageError, match=r"input\.txt is not text in UTF-8 \(byte 5\)"):
        open_corpus("shakespeare-char", data_dir=data_dir)


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
    assert len(corpus.train) == 1000 and corpus.meta["tokenizer"]["name"] == "gpt2"


def test_corpora_that_cannot_be_prepared_say_what_to_bring(tmp_path):
    with pytest.raises(Failure, match=r"cannot prepare slimpajama: bring .*slimpajama/train\.bin"):
        open_corpus("slimpajama", data_dir=tmp_path)


def test_unknown_names(tmp_path):
    with pytest.raises(UsageError, match="did you mean pydoc"):
        open_corpus("pydocs", data_dir=tmp_path)
    with pytest.raises(UsageError, match="wikitext comes in gpt2 only"):
        open_corpus("wikitext", data_dir=tmp_path, tokenizer="bytes")
    assert {"pydoc", "owt2", "openwebtext2", "arxiv+wiki"} <= set(registered_corpora())


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
        (damage_odd, "has an odd number of bytes"),
        (damage_truncated, "is truncated"),
        (damage_longer, "is longer than it was made"),
        (damage_token, "holds token 60000, beyond vocab_size 64"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_token_file_is_named(data_dir, damage, sentence, split):
    open_corpus("shakespeare-char", data_dir=data_dir)
    damage(data_dir / "shakespeare-char" / f"{split}.bin")
    with pytest.raises(Failure, match=sentence) as failure:
        open_corpus("shakespeare-char", data_dir=data_dir, vocab_size=64)
    assert f"{split}.bin" in str(failure.value)


def test_a_token_beyond_the_vocabulary_in_a_file_without_description(tmp_path):
    brought(tmp_path / "wikitext", tokens=60000, largest=50300)
    with pytest.raises(Failure, match=r"train\.bin holds token 50300, beyond vocab_size 50257"):
        open_corpus("wikitext", data_dir=tmp_path, vocab_size=50257, sequence_length=8)


def test_other_refusals(data_dir, tmp_path):
    with pytest.raises(Failure, match="too few for a sequence of 100000"):
        open_corpus("shakespeare-char", data_dir=data_dir, sequence_length=100_000)
    with pytest.raises(UsageError, match=r"more than --vocab_size 8; give --vocab_size 64"):
        open_corpus("shakespeare-char", data_dir=data_dir, vocab_size=8)
    (data_dir / "shakespeare-char" / "meta.json").write_text("{")
    with pytest.raises(Failure, match=r"meta\.json is damaged"):
        open_corpus("shakespeare-char", data_dir=data_dir)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Failure, match="cannot write"):
        open_corpus("pydoc", data_dir=tmp_path / "file")


def test_tokens_must_mean_what_they_meant_to_the_model(data_dir):
    corpus = open_corpus("shakespeare-char", data_dir=data_dir)
    corpus.require_tokenizer(corpus.meta["tokenizer"], "the model")
    corpus.require_tokenizer(None, "the model")
    with pytest.raises(UsageError, match="but the model was trained on bytes"):
        corpus.require_tokenizer({"name": "bytes", "vocab_size": 257}, "the model")


def test_in_ram_is_the_same_tokens(data_dir):
    mapped = open_corpus("shakespeare-char", data_dir=data_dir)
    in_ram = open_corpus("shakespeare-char", data_dir=data_dir, in_ram=True)
    assert isinstance(mapped.train, np.memmap) and not isinstance(in_ram.train, np.memmap)
    assert np.array_equal(mapped.train, in_ram.train)


def test_a_killed_preparation_never_looks_whole(pydoc_dir, tmp_path):
    """SIGKILL at several moments of a real preparation; the next one gives the same bytes."""
    script = f"from data import open_corpus; open_corpus('pydoc', data_dir={str(tmp_path)!r})"
    for delay in (0.5, 1.5, 3.0):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL and (tmp_path / "pydoc" / "meta.json").exists():
            assert all((tmp_path / "pydoc" / f"{split}.bin").exists() for split in ("train", "val"))
    open_corpus("pydoc", data_dir=tmp_path)
    for split in ("train", "val"):
        assert sha256(tmp_path / "pydoc" / f"{split}.bin") == sha256(pydoc_dir / "pydoc" / f"{split}.bin")


def test_nothing_of_this_imports_torch():
    code = "import sys, data; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
