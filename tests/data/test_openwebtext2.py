"""The corpus from its archive to its token files: through the command line, killed, damaged, misused."""

import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import tiktoken

from data.openwebtext2 import ARCHIVE
from tests.conftest import ROOT, SHARED_DATA
from tests.data.archives import archive, compressed, member, monthly, plain_pipeline, texts

CACHE = os.environ.get("TIKTOKEN_CACHE_DIR") or str(SHARED_DATA / "tiktoken_cache")
FILES = ("train.bin", "val.bin")


def command(*flags):
    return [sys.executable, "-m", "data.openwebtext2", *map(str, flags)]


def run(*flags, code=0, **env):
    done = subprocess.run(
        command(*flags), cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and (code == 0 or done.stderr.count("\n") == 1), done.stderr
    return done


def tokenize(data_dir, *flags, code=0):
    return run("tokenize", "--data_dir", data_dir, "--tokenizer", "bytes", *flags, code=code)


def files(data_dir, folder="openwebtext2-bytes"):
    return {name: (data_dir / folder / name).read_bytes() for name in FILES}


def encode_bytes(text):
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


@pytest.mark.process
@pytest.mark.parametrize("workers", [1, 2])
def test_equal_to_the_plain_pipeline_in_bytes(tmp_path, workers):
    path = archive(tmp_path, monthly(texts(100), 7))
    tokenize(tmp_path, "--workers", workers)
    expected = plain_pipeline(path, tmp_path / "extracted", encode_bytes, 256)
    assert files(tmp_path) == {f"{split}.bin": content for split, content in expected.items()}
    folder = tmp_path / "openwebtext2-bytes"
    assert sorted(found.name for found in folder.iterdir()) == ["meta.json", *FILES]  # the journal has gone
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["documents"] == {"train": 105, "val": 1}
    assert meta["bytes"]["train"] + meta["documents"]["train"] == meta["splits"]["train"]["tokens"]
    assert path.exists()
    said = run("verify", "--data_dir", tmp_path, "--tokenizer", "bytes").stdout
    assert said.count("as meta.json says") == 2
    assert "train" in tokenize(tmp_path).stdout  # a second call has nothing to do
    assert files(tmp_path)["val.bin"] == expected["val"]


@pytest.mark.process
@pytest.mark.skipif(not Path(CACHE).exists(), reason="GPT-2's vocabulary is not cached")
def test_equal_to_the_plain_pipeline_in_gpt2_tokens(tmp_path):
    documents = texts(60)
    if SHARED_DATA.exists():
        documents += (SHARED_DATA / "wikitext2_valid.txt").read_text().split("\n = ")
    path = archive(tmp_path, monthly(documents, 5))
    run("tokenize", "--data_dir", tmp_path, TIKTOKEN_CACHE_DIR=CACHE)
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", CACHE)
    encode = tiktoken.get_encoding("gpt2").encode_ordinary
    expected = plain_pipeline(path, tmp_path / "extracted", encode, 50256)
    assert files(tmp_path, "openwebtext2") == {f"{split}.bin": part for split, part in expected.items()}


def kill_when(process, condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.001)
    children = {
        int(pid.name) for pid in Path("/proc").iterdir() if pid.name.isdigit() and _parent(pid) == process.pid
    }
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return children


def _parent(pid):
    try:
        return int((pid / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


@pytest.mark.process
def test_killed_anywhere_a_second_run_writes_the_same_bytes(tmp_path):
    """SIGKILL behind several files, and while the parts are put together; workers end with their parent."""
    documents = texts(100)
    members = monthly(documents * 36, 24)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    archive(undisturbed, members)
    archive(killed, members)
    tokenize(undisturbed)
    folder = killed / "openwebtext2-bytes"
    journal = folder / "parts" / "journal.jsonl"

    def lines():
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    flags = command("tokenize", "--data_dir", killed, "--tokenizer", "bytes", "--workers", 2)
    seen = 0
    for moment in (1, 12, 27, 33):
        process = subprocess.Popen(flags, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        children = kill_when(process, lambda moment=moment: lines() >= moment)
        assert not (folder / "meta.json").exists()
        assert lines() >= seen
        seen = lines()
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(Path(f"/proc/{pid}").exists() for pid in children)
        with open(journal, "ab") as file:
            file.write(b'{"piece": "torn')  # as a power cut leaves it
    said = tokenize(killed).stdout
    assert files(killed) == files(undisturbed)
    assert "MB/s" not in said or "resuming after" in said
    assert json.loads((folder / "meta.json").read_text()) == json.loads(
        (undisturbed / "openwebtext2-bytes" / "meta.json").read_text()
    )


@pytest.mark.process
@pytest.mark.parametrize("finished", [0, 3])  # files: at 0 the workers are only starting
def test_ctrl_c_prints_a_sentence_and_the_next_run_resumes(tmp_path, finished):
    """In the process group, as a terminal sends it: the workers leave the last word to their parent."""
    members = monthly(texts(100) * 36, 24)
    archive(tmp_path, members)
    archive(tmp_path / "undisturbed", members)
    journal = tmp_path / "openwebtext2-bytes" / "parts" / "journal.jsonl"
    flags = command("tokenize", "--data_dir", tmp_path, "--tokenizer", "bytes", "--workers", 2)
    process = subprocess.Popen(
        flags, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 1 + finished):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    time.sleep(0.1 if finished == 0 else 0.0)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said, said
    assert "resuming after" in tokenize(tmp_path).stdout or not finished
    tokenize(tmp_path / "undisturbed")
    assert files(tmp_path) == files(tmp_path / "undisturbed")


@pytest.mark.process
@pytest.mark.parametrize("limit", [100_000, 2_000_000])  # bytes: of a part, of train.bin
def test_a_full_file_system(tmp_path, limit):
    members = monthly(texts(100) * 6, 8)
    archive(tmp_path, members)
    archive(tmp_path / "undisturbed", members)
    done = subprocess.run(
        command("tokenize", "--data_dir", tmp_path, "--tokenizer", "bytes"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot write in" in done.stderr and "resumes after the last" in done.stderr
    assert not (tmp_path / "openwebtext2-bytes" / "meta.json").exists()
    tokenize(tmp_path)
    tokenize(tmp_path / "undisturbed")
    assert files(tmp_path) == files(tmp_path / "undisturbed")


@pytest.mark.process
@pytest.mark.skipif(not Path(CACHE).exists(), reason="GPT-2's vocabulary is not cached")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_text_that_the_tokeniser_cannot_split_is_a_bad_record(tmp_path, workers):
    """tiktoken's pattern runs out of stack on very many spaces before a letter."""
    archive(tmp_path, {"a.jsonl.zst": member(["good", " " * 999_999 + "a", "good too"])})
    flags = ("tokenize", "--data_dir", tmp_path, "--workers", workers)
    said = run(*flags, code=1, TIKTOKEN_CACHE_DIR=CACHE).stderr
    assert "a.jsonl.zst, record 2: gpt2 cannot split the text" in said
    assert "1 records and 0 files" in run(*flags, "--on_error", "skip", TIKTOKEN_CACHE_DIR=CACHE).stdout
    assert len(files(tmp_path, "openwebtext2")["train.bin"]) in (4, 6)


BAD_LINES = b"\n".join(
    [
        json.dumps({"text": "good"}).encode(),
        b"{not json",
        json.dumps({"title": "no text"}).encode(),
        json.dumps({"text": 7}).encode(),
        b'{"text": "\xff"}',
        b"",
        json.dumps(["text"]).encode(),
        json.dumps({"text": "good too"}).encode(),
    ]
)


@pytest.mark.process
def test_bad_records_and_damaged_files_are_named_and_left_out_or_fatal(tmp_path):
    whole = member(["a document of a file that breaks off"] * 2000)
    members = {
        "2005-01.jsonl.zst": member(["first"]),
        "2005-02.jsonl.zst": compressed(BAD_LINES),
        "2005-03.jsonl.zst": whole[: len(whole) // 2],
        "2005-04.jsonl.zst": b"no compression at all",
        "../../escaped.jsonl.zst": member(["an evil path"]),
        "2005-05.jsonl.zst": b"",
        "2005-06.jsonl.zst": member(["last"]),
    }
    archive(tmp_path, members, links={"2005-07.jsonl.zst": "/etc/passwd"})
    refused = tokenize(tmp_path, code=1)
    assert "escaped.jsonl.zst: its path leads out" in refused.stderr and "--on_error skip" in refused.stderr
    said = tokenize(tmp_path, "--on_error", "skip").stdout
    folder = tmp_path / "openwebtext2-bytes"
    meta = json.loads((folder / "meta.json").read_text())
    tokens = np.concatenate([np.fromfile(folder / name, "<u2") for name in FILES])
    text = bytes(np.where(tokens == 256, 0, tokens).astype(np.uint8)).split(b"\0")[:-1]
    assert sorted(text) == [b"first", b"good", b"good too", b"last"]
    assert meta["skipped"]["records"] == 5 and len(meta["skipped"]["files"]) == 4
    named = " | ".join(meta["skipped"]["files"] + meta["skipped"]["examples"])
    for part in (
        "2005-02.jsonl.zst, record 2: not JSON", 'record 3: no "text"', 'record 4: its "text" is int',
        "record 5: not UTF-8", 'record 7: no "text"', "2005-03.jsonl.zst: it breaks off",
        "2005-04.jsonl.zst: its compression", "2005-07.jsonl.zst: it is a link",
    ):  # fmt: skip
        assert part in named
    assert "left out: 5 records and 4 files" in said
    assert not (tmp_path.parent / "escaped.jsonl.zst").exists()


@pytest.mark.process
def test_what_was_finished_before_a_fatal_file_is_kept(tmp_path):
    path = archive(tmp_path, {"a.jsonl.zst": member(["one", "two"]), "b.jsonl.zst": b"damaged"})
    assert "b.jsonl.zst: its compression is damaged" in tokenize(tmp_path, code=1).stderr
    said = tokenize(tmp_path, "--on_error", "skip").stdout
    assert "resuming after a.jsonl.zst, number 1" in said
    assert path.exists()


@pytest.mark.process
def test_a_single_document_is_no_corpus(tmp_path):
    archive(tmp_path, {"a.jsonl.zst": member(["one"])})
    assert "has 1 document; training and validation need one each" in tokenize(tmp_path, code=1).stderr


@pytest.mark.process
def test_another_archive_is_not_mixed_into_a_preparation_that_was_begun(tmp_path):
    archive(tmp_path, {"a.jsonl.zst": member(["one", "two"]), "b.jsonl.zst": b"damaged"})
    tokenize(tmp_path, code=1)
    archive(tmp_path, {"a.jsonl.zst": member(["another", "one"])})
    refused = tokenize(tmp_path, code=2)
    assert "holds an unfinished preparation of another source" in refused.stderr
    assert "nothing" not in run("reset", "--data_dir", tmp_path, "--tokenizer", "bytes", "--yes").stdout
    tokenize(tmp_path)


@pytest.mark.process
def test_archives_that_are_none(tmp_path):
    path = tmp_path / "openwebtext2" / ARCHIVE
    missing = tokenize(tmp_path, code=1)
    assert "is missing; run `python prepare_data.py openwebtext2 download" in missing.stderr
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".partial").write_bytes(b"begun")
    assert "is not yet complete" in tokenize(tmp_path, code=1).stderr
    path.write_bytes(b"no tar")
    assert "is no complete tar archive" in tokenize(tmp_path, code=1).stderr
    whole = archive(tmp_path, monthly(texts(80), 3)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "is no complete tar archive (unexpected end of data)" in tokenize(tmp_path, code=1).stderr
    with tarfile.open(path, "w") as tar:
        tar.add(ROOT / "README.md", "README.md")
    assert "holds no *.jsonl.zst" in tokenize(tmp_path, code=1).stderr
    archive(tmp_path, monthly(texts(5), 1))
    assert "--workers 0 must be at least 1" in tokenize(tmp_path, "--workers", 0, code=2).stderr


@pytest.mark.process
def test_damage_is_found_by_verify_and_reset_deletes_only_what_was_made(tmp_path):
    path = archive(tmp_path, monthly(texts(40), 2))
    tokenize(tmp_path)
    folder = tmp_path / "openwebtext2-bytes"
    with open(folder / "train.bin", "r+b") as file:
        file.seek(100)
        file.write(b"\x07")
    wrong = run("verify", "--data_dir", tmp_path, "--tokenizer", "bytes", code=1).stderr
    assert "train.bin: sha256 is" in wrong
    asked = run("reset", "--data_dir", tmp_path, "--tokenizer", "bytes", code=2).stderr
    assert "give --yes" in asked and (folder / "train.bin").exists()
    run("reset", "--data_dir", tmp_path, "--tokenizer", "bytes", "--yes")
    assert list(folder.iterdir()) == [] and path.exists()
    run("reset", "--data_dir", tmp_path, "--yes", "--source")
    assert not path.exists()
    assert "prepare the corpus first" in run("verify", "--data_dir", tmp_path, code=1).stderr


@pytest.mark.process
@pytest.mark.parametrize("killed", [False, True])
def test_of_two_at_once_the_second_waits(tmp_path, killed):
    """And goes on where the first was, should that one be killed."""
    archive(tmp_path, monthly(texts(100) * 24, 12))
    flags = command("tokenize", "--data_dir", tmp_path, "--tokenizer", "bytes", "--workers", 1)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(flags, cwd=ROOT, **pipes)
    journal = tmp_path / "openwebtext2-bytes" / "parts" / "journal.jsonl"
    while not journal.exists() or not journal.stat().st_size:
        time.sleep(0.001)
    first.send_signal(signal.SIGSTOP)
    second = subprocess.Popen(flags, cwd=ROOT, **pipes)
    line = second.stdout.readline()
    while "another process is preparing" not in line:
        assert line, second.communicate()
        line = second.stdout.readline()
    first.send_signal(signal.SIGKILL if killed else signal.SIGCONT)
    first.communicate()
    assert second.communicate()[1] == "" and second.returncode == 0
    assert killed or first.returncode == 0
    run("verify", "--data_dir", tmp_path, "--tokenizer", "bytes")


@pytest.mark.process
def test_token_files_that_were_brought_are_not_overwritten(tmp_path):
    archive(tmp_path, monthly(texts(10), 2))
    brought = tmp_path / "openwebtext2-bytes" / "train.bin"
    brought.parent.mkdir()
    brought.write_bytes(b"\0\0")
    assert "copied from elsewhere; move it away" in tokenize(tmp_path, code=1).stderr
    assert brought.read_bytes() == b"\0\0"
