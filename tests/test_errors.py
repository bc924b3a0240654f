"""Log lines of scripts: on stdout, from one rank, above a bar; and a closed pipe is no failure."""

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import errors
from tests.conftest import ROOT

PROGRAM = """
import logging, os, sys
from errors import run_script
def main():
    for name in ("optim.train", "__main__", "library"):
        logging.getLogger(name).info("info of %s", name)
    logging.getLogger("data.corpora").warning("too short")
    logging.getLogger("optim.saver").error("lost")
    logging.getLogger("library").warning("as libraries do")
    while "endless" in sys.argv:
        logging.getLogger("optim.train").info("more")
run_script(main)
"""


def run(*words, **env):
    command = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True)


@pytest.mark.process
def test_the_first_rank_prints_all_messages_and_the_others_their_errors():
    done = run()
    assert done.stdout == "info of optim.train\ninfo of __main__\nwarning: too short\nlost\n"
    assert done.stderr == "as libraries do\n"
    assert run(RANK="1").stdout == "lost\n"


OUTPUT = """
import sys
from pathlib import Path
from errors import run_script, stdout_is_result, stdout_lost
def main():
    if "result" in sys.argv:
        stdout_is_result()
    for number in range(20000):
        print("caf\u00e9", flush=number == 0)
    Path(sys.argv[1]).write_text(f"lost: {stdout_lost()}")
run_script(main)
"""
GONE = "| head -n 2 >/dev/null; exit ${PIPESTATUS[0]}"
CANNOT = "cannot write to stdout: No space left on device"


@pytest.mark.process
@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        (GONE, 0, "warning: cannot write to stdout: Broken pipe; the work goes on without it"),
        (">/dev/full", 0, f"warning: {CANNOT}; the work goes on without it"),
        (">&-", 0, ""), ("2>&- >/dev/full", 0, ""), ("<&- >&- 2>&-", 0, ""),
        (f"result {GONE}", 0, ""), ("result >/dev/full", 1, f"error: {CANNOT}"),
        ("result >&-", 1, "error: stdout is closed, and the result is printed there"),
    ],
)  # fmt: skip
def test_work_goes_on_without_its_output(how, code, says, tmp_path):
    """What only prints ends with it: quietly where the reader has enough."""
    command = f"{sys.executable} -c '{OUTPUT}' {tmp_path / 'done'} {how}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (code, says)
    if "result" not in how:
        assert (tmp_path / "done").read_text() == "lost: True"


@pytest.mark.process
@pytest.mark.parametrize(
    ("encoding", "bytes_of_it"),
    [("utf-8", b"\xc3\xa9 \\udcff"), ("latin-1", b"\xe9 \\udcff"), ("ascii:replace", b"? ?")],
)
def test_characters_that_the_terminal_lacks(encoding, bytes_of_it):
    program = "import sys; from errors import run_script; run_script(lambda: print(chr(0xe9), chr(0xdcff)))"
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, bytes_of_it, b"")


def test_a_full_pipe_that_does_not_block():
    """Another process on the same terminal has set O_NONBLOCK: writing waits for the reader."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader, "rb") as end, ThreadPoolExecutor() as pool:
        with open(writer, "w") as old:
            stream = errors._text_stream(errors._Output(old, "stdout"), old)
            read = pool.submit(end.read)
            stream.write("x" * 10**6)
            stream.flush()
        assert read.result() == b"x" * 10**6


def test_lines_stand_above_a_bar(capsys):
    from tqdm import tqdm

    with tqdm(total=3, file=sys.stderr) as bar:
        bar.update()
        logging.getLogger("optim.train").info("a line")
    said = capsys.readouterr()
    assert said.out == "a line\n"
    assert said.err.count("1/3") >= 2  # drawn again after the line


@pytest.mark.process
def test_a_script_that_only_prints_fails_where_nothing_can_be_printed():
    for closed, sentence in ((">/dev/full", CANNOT), (">&-", "stdout is closed")):
        command = f"{sys.executable} count_macs.py --model but {closed}"
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and sentence in done.stderr


def test_an_operation_without_a_deterministic_form_is_one_sentence():
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError) as refused:
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    finally:
        torch.use_deterministic_algorithms(False)
    failure = errors.explained(refused.value)
    assert str(failure).startswith("put_ is an operation") and "--deterministic false" in str(failure)
    assert errors.explained(RuntimeError("shapes differ")) is None


def test_running_out_of_memory_is_one_sentence():
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 22.16 GiB of which "
        "1.2 GiB is free. Including non-PyTorch memory, this process has 20.96 GiB memory in use."
    )
    said = str(errors.explained(error))
    assert said.startswith("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity")
    assert "this process" not in said
    assert "--batch_size" in said
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60)
    assert "--batch_size" in str(errors.explained(refused.value))


def test_what_is_explained_ends_a_script_without_a_traceback(capsys):
    def refused():
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set ...")

    def broken():
        raise RuntimeError("shapes differ")

    with pytest.raises(SystemExit) as stop:
        errors.run_script(refused)
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("error: cumsum_cuda_kernel is an operation")
    with pytest.raises(RuntimeError, match="shapes differ"):
        errors.run_script(broken)
