"""Which files `files:<pattern>` names, and what is noticed when they change."""

import hashlib
import json
import os
import shutil

import pytest

from data import open_corpus, prepare_corpus, sources
from data.local_files import RECORD, match
from data.token_files import META
from errors import Failure, UsageError

DOCUMENTS = [f"Document {number} is about {number * 7919 % 101} things." for number in range(20)]


def write(path, documents=DOCUMENTS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def replace_silently(path, old, new):
    """Edit a file to the same size, and give it back its time of modification."""
    stat = path.stat()
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


class Lab:
    """Corpora of files in a folder of their own, as bytes."""

    def __init__(self, folder):
        self.folder, self.data_dir = folder / "raw", folder / "data"

    def _call(self, function, pattern, settings):
        name = f"files:{self.folder}/{pattern}"
        return function(name, data_dir=self.data_dir, tokenizer="bytes", **settings)

    def prepare(self, pattern="*.jsonl", **settings):
        return self._call(prepare_corpus, pattern, {"workers": 1, **settings})

    def open(self, pattern="*.jsonl"):
        return self._call(open_corpus, pattern, {})

    def names(self, *patterns):
        found = match("files:" + ",".join(f"{self.folder}/{pattern}" for pattern in patterns))
        assert not found.missing
        return [str(path.relative_to(self.folder)) for path in found.paths]


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def count(corpus):
    return sum(corpus.meta["documents"].values())


@pytest.mark.parametrize(
    "name",
    ["dir [a]/x.jsonl", "b [1].jsonl", "one, two.jsonl", "a*?.jsonl", " c .jsonl", "{d}#~.txt"],
)
def test_a_path_that_exists_is_no_pattern(lab, name):
    write(lab.folder / name)
    write(lab.folder / "plain.jsonl")
    assert lab.names(name) == [name]
    assert lab.names(name, "plain.jsonl") == sorted([name, "plain.jsonl"])
    assert lab.names("plain.jsonl", name) == sorted([name, "plain.jsonl"])


def test_patterns_in_folders_with_brackets_and_commas(lab):
    for folder in ("dir [a]", "x, y"):
        for number in range(3):
            write(lab.folder / folder / f"part{number}.jsonl")
    assert lab.names("dir [a]/part[01].jsonl") == [f"dir [a]/part{number}.jsonl" for number in (0, 1)]
    assert lab.names("d*[a]/part1.jsonl") == ["dir [a]/part1.jsonl"]
    assert len(lab.names("x, y/*.jsonl", "dir [a]/*.jsonl")) == 6
    assert len(lab.names("**/*.jsonl")) == 6


def test_a_home_folder(lab, monkeypatch):
    monkeypatch.setenv("HOME", str(lab.folder))
    path = write(lab.folder / "a.jsonl")
    assert match("files:~/*.jsonl").paths == [path]


def test_a_folder_is_all_documents_in_it(lab, caplog):
    caplog.set_level("INFO")
    for name in ("b.jsonl", "deep/er/a.txt", ".hidden/c.jsonl", "README.md", "train.bin"):
        write(lab.folder / name)
    assert lab.names("") == ["b.jsonl", "deep/er/a.txt"]
    assert count(lab.prepare("")) == 21
    (left_out,) = [message for message in caplog.messages if "left out" in message]
    assert left_out.endswith("raw/README.md, " + str(lab.folder / "train.bin"))
    write(lab.folder / "empty" / "notes.md")
    with pytest.raises(UsageError, match="no file matches; give a file, a folder or a pattern"):
        lab.prepare("empty")


def test_links_that_lead_back_into_a_folder(lab):
    """Each folder is entered once."""
    write(lab.folder / "deep" / "a.jsonl")
    for name in ("one", "two", "deep/three"):
        (lab.folder / name).symlink_to(lab.folder)
    assert lab.names("") == ["deep/a.jsonl"]


def test_the_token_files_of_a_corpus_are_no_part_of_it(lab):
    write(lab.folder / "a.jsonl")
    write(lab.folder / "b.jsonl", ["one", 2])
    lab.data_dir = lab.folder / "prepared"  # its journal matches the pattern
    with pytest.raises(Failure, match=r"b\.jsonl, record 2"):
        lab.prepare("**/*.jsonl")
    assert count(lab.prepare("**/*.jsonl", on_error="skip")) == count(lab.open("**/*.jsonl")) == 21


def test_copies_are_named(lab, caplog):
    write(lab.folder / "a.jsonl")
    shutil.copyfile(lab.folder / "a.jsonl", lab.folder / "b.jsonl")
    lab.prepare()
    assert any("copies count twice, also in validation" in m and "b.jsonl" in m for m in caplog.messages)


def test_every_pattern_must_match(lab):
    write(lab.folder / "a.jsonl")
    with pytest.raises(UsageError, match=r"no file matches .*/b\*\.jsonl; give a file"):
        lab.prepare(f"a*.jsonl,{lab.folder}/b*.jsonl")
    (lab.folder / "b.jsonl").symlink_to("removed.jsonl")
    with pytest.raises(UsageError, match=r"no file matches .*/b\.jsonl"):
        lab.prepare()
    assert not lab.data_dir.exists()  # refused commands leave no empty folders


def test_the_ending_is_that_of_the_name_as_typed(lab):
    """As in the hub's cache, where names are links to blobs; else that of the target."""
    write(lab.folder / "blobs" / "0a1b2c")
    snapshot = lab.folder / "snapshots" / "abc" / "train.jsonl"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to("../../blobs/0a1b2c")
    assert count(lab.prepare("snapshots/*/*.jsonl")) == 20
    snapshot.with_name("latest").symlink_to("train.jsonl")
    write(lab.folder / "plain.jsonl")
    (lab.folder / "newest").symlink_to("plain.jsonl")
    assert count(lab.prepare("newest")) == 20
    (lab.folder / "blob").symlink_to("blobs/0a1b2c")
    with pytest.raises(UsageError, match=r"raw/blob: its name must end in one of \.jsonl"):
        lab.prepare("blob")


def test_a_file_of_several_names_is_read_once(lab, caplog):
    caplog.set_level("INFO")
    path = write(lab.folder / "a.jsonl")
    (lab.folder / "link.jsonl").symlink_to("a.jsonl")
    (lab.folder / "hard.jsonl").hardlink_to(path)
    (lab.folder / "folder").symlink_to(".")
    corpus = lab.prepare(f"*.jsonl,{lab.folder}/../raw/a.jsonl,{lab.folder}/folder/a.jsonl")
    assert count(corpus) == 20 and corpus.meta["source"]["files"] == 1
    assert any("each file is read once" in message for message in caplog.messages)


def test_a_corpus_of_earlier_versions_that_read_a_file_twice(lab, caplog):
    """It stays usable, with a warning."""
    write(lab.folder / "a.jsonl")
    (lab.folder / "b.jsonl").write_bytes((lab.folder / "a.jsonl").read_bytes())
    corpus = lab.prepare()
    old = dict(corpus.meta["source"])
    (lab.folder / "b.jsonl").unlink()
    (lab.folder / "b.jsonl").symlink_to("a.jsonl")
    (corpus.folder / RECORD).unlink()
    listing = "".join(
        f"{lab.folder}/a.jsonl\0{(lab.folder / 'a.jsonl').stat().st_size}\0None\n" for _ in "ab"
    )
    old["listing"] = hashlib.sha256(listing.encode()).hexdigest()
    (corpus.folder / META).write_text(json.dumps({**corpus.meta, "source": old}))
    assert count(lab.open()) == 40
    assert any("documents count twice; delete that folder" in message for message in caplog.messages)


CHANGED = r"have changed since .* was prepared from them; delete that folder to prepare them again"


def test_an_edit_to_the_same_size_and_time_is_noticed(lab):
    path = write(lab.folder / "a.jsonl")
    lab.prepare()
    replace_silently(path, "about", "a#out")
    for call in (lab.open, lab.prepare):
        with pytest.raises(Failure, match=rf"{CHANGED} \(changed: {path}\)"):
            call()
    path.unlink()
    assert count(lab.open()) == 20  # token files are used where their source is not
    write(lab.folder / "b.jsonl", DOCUMENTS[:5])
    with pytest.raises(Failure, match=rf"gone: {path}; new: .*b\.jsonl"):
        lab.open()


def test_a_copy_with_the_same_content_is_the_same(lab):
    """Other times and inodes: compared once, then remembered."""
    path = write(lab.folder / "a.jsonl")
    corpus = lab.prepare()
    before = (corpus.folder / RECORD).read_text()
    path.rename(path.with_name("old"))
    shutil.copyfile(path.with_name("old"), path)
    assert lab.open().meta == corpus.meta
    after = (corpus.folder / RECORD).read_text()
    assert after != before
    lab.open()
    assert (corpus.folder / RECORD).read_text() == after
    (corpus.folder / RECORD).write_text("[{}]")
    with pytest.raises(Failure, match=r"files\.json is damaged .*; delete .* to prepare the corpus again"):
        lab.open()


def test_a_corpus_of_an_earlier_version_without_checksums(lab):
    """Its files are recorded if they are older than it; names and sizes tell otherwise."""
    path = write(lab.folder / "a.jsonl")
    record = lab.prepare().folder / RECORD
    now = record.stat().st_mtime
    for age, old, new in ((-100, "about", "a#out"), (100, "things", "th#ngs")):
        record.unlink()
        os.utime(record.with_name(META), (now - age, now - age))
        lab.open()
        assert record.exists() == (age < 0)
        replace_silently(path, old, new)
        if age < 0:
            with pytest.raises(Failure, match=rf"{CHANGED} \(changed: {path}\)"):
                lab.open()
        else:
            lab.open()
    write(path, DOCUMENTS[:10])
    with pytest.raises(Failure, match=rf"{CHANGED} \(changed: names or sizes\)"):
        lab.open()


def test_added_files_are_prepared_by_the_command_and_refused_in_training(lab):
    write(lab.folder / "a.jsonl")
    lab.prepare()
    write(lab.folder / "b.jsonl", DOCUMENTS[:5])
    with pytest.raises(Failure, match=rf"{CHANGED} \(new: .*b\.jsonl\)"):
        lab.open()
    assert count(lab.prepare()) == count(lab.open()) == 25


def test_a_refused_source_that_was_repaired_is_prepared(lab):
    for name in "abc":
        write(lab.folder / f"{name}.jsonl")
    good = (lab.folder / "b.jsonl").read_text()
    (lab.folder / "b.jsonl").write_text(good + '{"text": "unfinished')
    with pytest.raises(Failure, match=r"b\.jsonl, record 21: not JSON"):
        lab.prepare()
    (lab.folder / "b.jsonl").write_text(good)
    assert count(lab.prepare()) == 60


def test_a_resumed_preparation_keeps_unchanged_files_only(lab, caplog):
    """Journal lines of a.jsonl and b.jsonl are there; b.jsonl is then edited to the same size and time."""
    caplog.set_level("INFO")
    for name in "ab":
        write(lab.folder / f"{name}.jsonl")
    bad = write(lab.folder / "c.jsonl", ["one", 2])
    with pytest.raises(Failure, match="record 2"):
        lab.prepare()
    replace_silently(lab.folder / "b.jsonl", "about", "a#out")
    write(bad)
    corpus = lab.prepare()
    assert "the source has changed: 1 of 2 finished files are kept" in caplog.messages
    text = bytes(token for token in corpus.arrays("train")[0].tolist() if token < 256)
    assert count(corpus) == 60 and 15 < text.count(b"a#out") < 21


def test_a_file_that_changes_while_it_is_read(lab, monkeypatch):
    path = write(lab.folder / "a.jsonl")
    decode = sources._line_blocks

    def appended(chunks):
        yield from decode(chunks)
        with open(path, "a") as file:
            file.write("\n")

    monkeypatch.setattr(sources, "_line_blocks", appended)
    with pytest.raises(Failure, match=r"a\.jsonl was changed while it was read; run the same command again"):
        lab.prepare(on_error="skip")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(lab):
    write(lab.folder / "a.jsonl").chmod(0)
    with pytest.raises(Failure, match=r"cannot read .*a\.jsonl: Permission denied"):
        lab.prepare(on_error="skip")


def test_names_that_are_no_utf8(lab):
    write(lab.folder / os.fsdecode(b"na\xefve.jsonl"))
    assert count(lab.prepare()) == 20
    assert count(lab.open()) == 20
