"""Memory that stays with the process, seen by the pages that the kernel has to bring."""

import os
import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = """
import resource, sys, torch
from distributed.device import keep_heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), keep_heap(), faults() and faults())
"""


def run(**env):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    clean.pop("GLIBC_TUNABLES", None)
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, env=clean | env, capture_output=True, text=True, check=True)
    before, kept, after = done.stdout.split()
    return int(before), kept, int(after)


@pytest.mark.process
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has it")
def test_large_tensors_come_from_kept_memory():
    before, kept, after = run()
    assert kept == "True" and after < before / 50


@pytest.mark.process
def test_the_environment_has_its_way():
    assert run(MALLOC_ARENA_MAX="2")[1] == "False"
