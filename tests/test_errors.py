"""Log lines of scripts: on stdout, from one rank, above a bar; and a closed pipe is no failure."""

import logging
import os
import subprocess
import sys

import pytest

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


@pytest.mark.process
def test_a_reader_that_has_gone_is_no_failure():
    command = f"{sys.executable} -c '{PROGRAM}' endless | head -n 2; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.count("\n") == 2
    assert "Traceback" not in done.stderr


def test_lines_stand_above_a_bar(capsys):
    from tqdm import tqdm

    with tqdm(total=3, file=sys.stderr) as bar:
        bar.update()
        logging.getLogger("optim.train").info("a line")
    said = capsys.readouterr()
    assert said.out == "a line\n"
    assert said.err.count("1/3") >= 2  # drawn again after the line
