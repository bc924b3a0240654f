"""Documents from local files of every format, and from a stream of the `datasets` library."""

import json
import subprocess
import sys
import tracemalloc

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data import open_corpus, prepare_corpus
from data.corpora import CORPORA, HubDataset
from data.hub import HubSource, articles, prepare
from data.local_files import folder_files
from data.sources import LONGEST_RECORD, DamagedFile
from data.tokenise import Preparation
from errors import Failure, UsageError
from files import folder_name
from tests.conftest import ROOT
from tests.data.archives import compressed, texts

DOCUMENTS = texts(60)[:60]


def lines(documents, column="text"):
    return "".join(json.dumps({column: text}) + "\n" for text in documents).encode()


def write(folder, kind, documents, name="part"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{kind}"
    if kind == "jsonl":
        path.write_bytes(lines(documents))
    elif kind == "jsonl.zst":
        path.write_bytes(compressed(lines(documents)))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": documents}), path, row_group_size=7)
    else:
        for number, text in enumerate(documents):
            (folder / f"{name}{number:04d}.txt").write_text(text, newline="")
    return path


def documents_of(corpus):
    """Both splits' documents, in bytes."""
    found = []
    for split in ("train", "val"):
        tokens = np.asarray(corpus.arrays(split)[0])
        found += bytes(np.where(tokens == 256, 0, tokens).astype(np.uint8)).split(b"\0")[:-1]
    return sorted(found)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.zst", "parquet", "txt"])
def test_local_files_of_every_format(tmp_path, kind):
    write(tmp_path / "raw", kind, DOCUMENTS)
    name = f"files:{tmp_path}/raw/*.{kind}"
    corpus = open_corpus(name, data_dir=tmp_path / "data", tokenizer="bytes", vocab_size=320)
    assert documents_of(corpus) == sorted(text.encode() for text in DOCUMENTS)
    assert corpus.folder == tmp_path / "data" / f"{folder_name(name)}-bytes"
    again = open_corpus(name, data_dir=tmp_path / "data", tokenizer="bytes")
    assert again.meta == corpus.meta
    write(tmp_path / "raw", kind, [*DOCUMENTS, "one more"])
    with pytest.raises(Failure, match=r"have changed since .* was prepared from them; delete that folder"):
        open_corpus(name, data_dir=tmp_path / "data", tokenizer="bytes")


def test_several_patterns_are_one_corpus_in_the_order_of_paths(tmp_path):
    write(tmp_path / "b", "jsonl", DOCUMENTS[:20])
    write(tmp_path / "a", "parquet", DOCUMENTS[20:])
    corpus = open_corpus(f"files:{tmp_path}/b/*,{tmp_path}/a/*", data_dir=tmp_path / "d", tokenizer="bytes")
    assert documents_of(corpus) == sorted(text.encode() for text in DOCUMENTS)
    first = DOCUMENTS[20].encode()
    assert bytes(np.asarray(corpus.arrays("train")[0][: len(first)]).astype(np.uint8)) == first


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [("*.nothing", "no file matches"), ("*.csv", "its name must end in one of .jsonl"), ("*", "must end in")],
)
def test_patterns_that_name_no_documents(tmp_path, pattern, sentence):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(UsageError, match=sentence):
        open_corpus(f"files:{tmp_path}/{pattern}", data_dir=tmp_path / "d", tokenizer="bytes")


def test_damaged_local_files(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    write(tmp_path, "jsonl", ["one", "two"], "c")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "d.parquet")
    name = f"files:{tmp_path}/*"
    with pytest.raises(Failure, match=r"a\.parquet: it is no complete parquet file .*--on_error skip"):
        prepare_corpus(name, data_dir=tmp_path / "data", tokenizer="bytes")
    corpus = prepare_corpus(name, data_dir=tmp_path / "data", tokenizer="bytes", on_error="skip")
    assert documents_of(corpus) == [b"one", b"two"]
    named = " ".join(corpus.meta["skipped"]["files"])
    assert (
        "b.txt: it is not UTF-8 (byte 0)" in named and 'd.parquet: it has no column "text", but body' in named
    )


MARK = b"\xef\xbb\xbf"


def test_byte_order_marks_are_no_text(tmp_path):
    """At the beginning of a file, and of lines where files with a mark were joined."""
    (tmp_path / "a.txt").write_bytes(MARK + b"one")
    (tmp_path / "b.jsonl").write_bytes(MARK + lines(["two"]) + MARK + lines(["three"]) + MARK + b"\n")
    (tmp_path / "c.jsonl.zst").write_bytes(compressed(MARK + lines(["four"])))
    corpus = prepare_corpus(f"files:{tmp_path}/*", data_dir=tmp_path / "d", tokenizer="bytes", workers=1)
    assert documents_of(corpus) == [b"four", b"one", b"three", b"two"]


@pytest.mark.parametrize(("kind", "where"), [("txt", "a.txt: it is"), ("jsonl", "a.jsonl, record 1:")])
def test_utf16_is_named(tmp_path, kind, where):
    content = "text" if kind == "txt" else lines(["text"]).decode()
    (tmp_path / f"a.{kind}").write_bytes(content.encode("utf-16"))
    with pytest.raises(Failure, match=f"{where} not UTF-8 .* but UTF-16; convert it with iconv"):
        prepare_corpus(f"files:{tmp_path}/a.*", data_dir=tmp_path / "d", tokenizer="bytes", workers=1)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.zst", "parquet"])
def test_the_number_of_a_bad_record_is_its_place_in_the_file(tmp_path, kind):
    """Over several blocks, after empty lines and, in lines, after a record that is too long."""
    texts_and_bad = [*(["x" * 300_000] * 9), None, "good", None]
    path = write(tmp_path, kind, texts_and_bad)
    expected = [10, 12]
    if kind != "parquet":
        content = (
            b"\n" + lines(texts_and_bad) + b"y" * (LONGEST_RECORD + (3 << 20)) + b"\n" + lines(["ok", 5])
        )
        path.write_bytes(compressed(content) if kind == "jsonl.zst" else content)
        expected = [11, 13, 14, 16]
    corpus = prepare_corpus(
        f"files:{path}", data_dir=tmp_path / "d", tokenizer="bytes", workers=1, on_error="skip"
    )
    named = [example.split("record ")[1].split(":")[0] for example in corpus.meta["skipped"]["examples"]]
    assert list(map(int, named)) == expected


def test_an_endless_line_is_left_out_in_constant_memory(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    endless = b'{"text": "' + b"x" * (3 * LONGEST_RECORD) + b'"}\n'
    path.write_bytes(compressed(lines(["one"]) + endless + lines(["two"])))
    del endless
    (file,) = folder_files([path])
    tracemalloc.start()
    blocks = list(file.blocks("text"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [block.too_long for block in blocks] == [False, True, False]
    assert peak < 2.5 * LONGEST_RECORD  # the buffer, and its copy while it grows: not the line
    with pytest.raises(DamagedFile, match="it is too long"):
        huge = tmp_path / "huge.txt"
        huge.write_bytes(b"x" * (LONGEST_RECORD + 1))
        list(folder_files([huge])[0].blocks("text"))


ROWS = [
    "",
    " = First = \n",
    "",
    " A paragraph . \n",
    " = = Part = = \n",
    " x = y \n",
    " = Second one = \n",
    " B . \n",
]
ARTICLES = [" = First = \n A paragraph . \n = = Part = = \n x = y \n", " = Second one = \n B . \n"]


def test_articles_of_wikitext():
    assert list(articles(ROWS)) == ARTICLES
    assert list(articles([])) == list(articles(["", " \n"])) == []


def hub_folder(tmp_path, splits):
    """A data set in the hub's format, in a folder: what `datasets` reads like one of the hub."""
    for split, documents in splits.items():
        for number in range(3):
            (tmp_path / "set" / split).mkdir(parents=True, exist_ok=True)
            path = tmp_path / "set" / split / f"{number}.parquet"
            pyarrow.parquet.write_table(pyarrow.table({"text": documents[number::3]}), path, row_group_size=4)
    return tmp_path / "set"


def ordered(documents):
    return [text for number in range(3) for text in documents[number::3]]


def test_a_hub_corpus_with_splits_of_its_own(tmp_path):
    path = hub_folder(tmp_path, {"train": DOCUMENTS[:50], "validation": DOCUMENTS[50:]})
    row = HubDataset(str(path), None, {"train": "train", "val": "validation"}, "none")
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    job = Preparation("toy", tmp_path / "data", folder, "bytes", workers=1)
    assert prepare(row, job) == 60
    for split, documents in (("train", DOCUMENTS[:50]), ("val", DOCUMENTS[50:])):
        expected = b"".join(text.encode() + b"\0" for text in ordered(documents))
        tokens = np.fromfile(folder / f"{split}.bin", "<u2")
        assert bytes(np.where(tokens == 256, 0, tokens).astype(np.uint8)) == expected
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["split"] == "the source's own" and meta["licence"] == "none"


def test_a_stream_goes_on_from_the_journal_in_every_stretch(tmp_path, monkeypatch):
    """With stretches of a few documents: what each resumed stream yields, against the whole."""
    path = hub_folder(tmp_path, {"train": DOCUMENTS})
    monkeypatch.setattr("data.hub.PER_PIECE", 20_000)

    def stream():
        return HubSource(
            {"path": "toy", "by_hand": "x"},
            lambda split: datasets.load_dataset(str(path), split=split, streaming=True),
            {"all": "train"},
            "text",
        )

    journal, found = [], []
    for _ in range(100):
        piece = next(stream().pieces(journal), None)  # another process each time
        if piece is None:
            break
        found += [text for block in piece.blocks for text in block.texts]
        journal.append(json.loads(json.dumps({"state": piece.state()})))
    assert found == ordered(DOCUMENTS) and len(journal) > 3 and piece is None


def test_the_year_of_a_paper():
    (row,) = (spec.hub for spec in CORPORA if spec.name == "arxiv2000")
    assert row.keep({"meta": {"yymm": "0007"}}) and row.keep({"meta": {"yymm": 12}})
    assert not any(map(row.keep, ({"meta": {"yymm": "1907"}}, {"meta": None}, {"meta": {}}, {})))


@pytest.mark.process
def test_without_network_a_hub_corpus_says_how_to_bring_it(tmp_path):
    flags = ["--dataset", "wikitext", "--data_dir", str(tmp_path), "--tokenizer", "bytes"]
    command = [sys.executable, "-m", "data.prepare", *flags]
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: cannot read Salesforce/wikitext from the Hugging Face hub")
    assert f"put its files into {tmp_path / 'wikitext-bytes' / 'source'}/" in last


def test_a_hub_corpus_from_files_that_were_brought(tmp_path):
    """wikitext as text, its articles found again; train/ and val/ are its splits."""
    source = tmp_path / "wikitext-bytes" / "source"
    write(source / "train", "parquet", ROWS)
    with pytest.raises(Failure, match=r"for one split only: .*val/ has none"):
        prepare_corpus("wikitext", data_dir=tmp_path, tokenizer="bytes")
    (source / "val").mkdir()
    (source / "val" / "a.txt").write_text("".join(ROWS))
    corpus = prepare_corpus("wikitext", data_dir=tmp_path, tokenizer="bytes")
    assert corpus.meta["documents"] == {"train": 2, "val": 2}
    assert documents_of(corpus) == sorted(text.encode() for text in ARTICLES * 2)


def test_brought_files_take_the_place_of_a_stream_that_was_begun(tmp_path):
    """As the sentence without network advises; a file in both splits is refused."""
    folder = tmp_path / "wikitext-bytes"
    source = folder / "source"
    path = write(source / "train", "parquet", ROWS)
    (source / "val").mkdir()
    (source / "val" / "a.parquet").hardlink_to(path)
    with pytest.raises(Failure, match=r"val/a\.parquet is also in .*train/: remove one of the two"):
        prepare_corpus("wikitext", data_dir=tmp_path, tokenizer="bytes", workers=1)
    (source / "val" / "a.parquet").unlink()
    write(source / "val", "parquet", ROWS[:4])
    stream = {"split": "train", "ended": False, "stream": {}}
    finished = {"piece": "train, stretch 1", "split": "train", "documents": 1, "tokens": 2, "bytes": 1}
    tokenizer = {"name": "bytes", "vocab_size": 257}
    first = {"source": {"path": "x"}, "tokenizer": tokenizer, "fraction": 0.0005}
    (folder / "parts").mkdir()
    lines_of_journal = [first, {**finished, "bad": 0, "examples": [], "state": stream}]
    (folder / "parts" / "journal.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines_of_journal))
    corpus = prepare_corpus("wikitext", data_dir=tmp_path, tokenizer="bytes", workers=1)
    assert corpus.meta["documents"] == {"train": 2, "val": 1}


def test_a_mixture_of_two_corpora(tmp_path):
    for name, documents in (("arxiv2000", DOCUMENTS[:40]), ("wikitext", ROWS)):
        folder = tmp_path / f"{name}-bytes" / "source"
        if name == "wikitext":
            write(folder / "train", "parquet", documents)
            write(folder / "val", "parquet", documents)
        else:
            write(folder, "jsonl", documents)
    mixed = prepare_corpus("arxiv+wiki", data_dir=tmp_path, tokenizer="bytes")
    assert mixed.meta["weights"] == {"arxiv2000": 0.5, "wikitext": 0.5}
    windows = mixed.windows("train", 8, 257)
    wiki = open_corpus("wikitext", data_dir=tmp_path, tokenizer="bytes").windows("train", 8)
    assert windows.epoch_size == 2 * wiki.count  # the smaller one, once; of the larger as much
    assert mixed.windows("val", 8).count > wiki.count
    with pytest.raises(Failure, match="arxiv2000 is not prepared"):
        open_corpus("arxiv+wiki", data_dir=tmp_path / "elsewhere")
