"""Preparation in real processes: killed, side by side, on a full disk, and from the command line."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from data import open_corpus
from tests.conftest import ROOT, SHARED_DATA, TEXT
from tests.in_process import run_in_process

# Writing takes long enough to be met in the middle of it.
LONG_TEXT = "".join(f"line {number}: and {number * 7919 % 10007} again.\n" for number in range(200_000))
FILES = ("meta.json", "train.bin", "val.bin")
CACHE = SHARED_DATA / "tiktoken_cache"


def put_text(data_dir, text=LONG_TEXT):
    """The folder of shakespeare-char with that text in it."""
    folder = data_dir / "shakespeare-char"
    folder.mkdir(parents=True)
    (folder / "input.txt").write_text(text)
    return folder


def start(data_dir, *flags, dataset="shakespeare-char", **env):
    return subprocess.Popen(
        [sys.executable, "-m", "data.prepare", "--dataset", dataset, "--data_dir", str(data_dir), *flags],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def checksums(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Checksums of LONG_TEXT's files, prepared in peace."""
    data_dir = tmp_path_factory.mktemp("undisturbed")
    folder = put_text(data_dir)
    open_corpus("shakespeare-char", data_dir=data_dir)
    return checksums(folder)


def kill_when_there_is(folder, pattern, process):
    deadline = time.monotonic() + 60
    while not any(folder.glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline, f"{pattern} never appeared"
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.process
@pytest.mark.parametrize("moment", ["train.bin.*", "train.bin"])
def test_a_killed_preparation_never_looks_whole(tmp_path, undisturbed, moment):
    """SIGKILL while train.bin is being written, and when it has just been."""
    folder = put_text(tmp_path)
    for _ in range(5):
        kill_when_there_is(folder, moment, start(tmp_path))
        if not (folder / "val.bin").exists():
            break  # else the machine was slow to kill: that was not the middle
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    else:
        pytest.fail("no attempt was killed in the middle")
    assert not (folder / "meta.json").exists()
    if (folder / "train.bin").exists():  # then it is whole
        assert hashlib.sha256((folder / "train.bin").read_bytes()).hexdigest() == undisturbed["train.bin"]
    open_corpus("shakespeare-char", data_dir=tmp_path)
    assert checksums(folder) == undisturbed


@pytest.mark.process
def test_two_preparations_at_once(tmp_path, undisturbed):
    folder = put_text(tmp_path)
    for process in [start(tmp_path), start(tmp_path)]:
        said = process.communicate()
        assert process.returncode == 0, said
    assert checksums(folder) == undisturbed
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "input.txt"])


def test_token_files_without_description_are_prepared_again(data_dir):
    folder = data_dir / "shakespeare-char"
    open_corpus("shakespeare-char", data_dir=data_dir)
    whole = checksums(folder)
    (folder / "meta.json").unlink()
    (folder / "train.bin").write_bytes(b"half")
    open_corpus("shakespeare-char", data_dir=data_dir)
    assert checksums(folder) == whole


@pytest.mark.process
def test_a_disk_that_fills_up(data_dir):
    """A limit on the size of files stands in for the disk: the system refuses the write in the same place."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "from data import open_corpus; from errors import run_script\n"
        f"run_script(lambda: open_corpus('shakespeare-char', data_dir={str(data_dir)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot write" in done.stderr and "train.bin: File too large" in done.stderr
    assert [path.name for path in (data_dir / "shakespeare-char").iterdir()] == ["input.txt"]


@pytest.mark.process
def test_the_command_prints_the_description(tmp_path):
    folder = put_text(tmp_path, TEXT)
    process = start(tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0 and err == ""
    description = json.loads((folder / "meta.json").read_text())
    assert json.loads(out[out.index("{") :]) == description
    assert description["bytes"] == {"train": int(0.9 * len(TEXT)), "val": len(TEXT) - int(0.9 * len(TEXT))}


@pytest.mark.process
def test_the_command_refuses_with_a_sentence(tmp_path):
    process = start(tmp_path, dataset="shakespear-char")
    _, err = process.communicate()
    assert process.returncode == 2 and err.count("\n") == 1
    assert "did you mean shakespeare-char?" in err


@pytest.mark.process
def test_an_answer_that_is_not_in_http(tmp_path):
    """As behind the login page of a network; in a process of its own, as urllib keeps the first proxy."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        process = start(tmp_path, https_proxy=f"http://127.0.0.1:{server.getsockname()[1]}")
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"please log in\r\n\r\n")
        _, err = process.communicate()
    assert process.returncode == 1 and err.count("\n") == 1, err
    assert "tiny Shakespeare could not be downloaded" in err and "input.txt" in err


def test_pydoc_in_gpt2_tokens(small_library, tmp_path):
    cache = os.environ.get("TIKTOKEN_CACHE_DIR", str(CACHE) if CACHE.exists() else "")
    if not cache:
        pytest.skip("GPT-2's vocabulary is not cached")
    flags = ["--dataset", "pydoc", "--tokenizer", "gpt2", "--data_dir", str(tmp_path)]
    done = run_in_process(["-m", "data.prepare", *flags], {"TIKTOKEN_CACHE_DIR": cache})
    assert done.returncode == 0, done.stderr
    corpus = open_corpus("pydoc", data_dir=tmp_path, tokenizer="gpt2", vocab_size=50304)
    assert corpus.folder == tmp_path / "pydoc-gpt2" and corpus.meta["tokenizer"]["name"] == "gpt2"
    for split, tokens in (("train", corpus.arrays("train")[0]), ("val", corpus.arrays("val")[0])):
        assert (tokens == 50256).sum() == corpus.meta["documents"][split]
        assert 2.5 < corpus.meta["bytes"][split] / len(tokens) < 5  # English in GPT-2's tokens
