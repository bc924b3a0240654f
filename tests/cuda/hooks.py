"""Builds and loads hooks.cpp, without which torch refuses the device "cuda". No torch here."""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

SOURCE = Path(__file__).with_name("hooks.cpp")
LIBRARIES = SOURCE.parent / "__pycache__"  # compiled, like what else lies there


class Unavailable(Exception):
    """CUDA cannot be imitated here. The message says why."""


def build() -> Path:
    """The shared library for the installed torch, compiled where it does not exist yet: three seconds.

    Raises Unavailable where there is no Linux, no g++, or headers that do not compile.
    """
    if not sys.platform.startswith("linux"):
        raise Unavailable(f"CUDA is imitated on Linux only, and this is {sys.platform}")
    compiler = shutil.which("g++")
    if compiler is None:
        raise Unavailable("imitating CUDA needs g++")
    torch = Path(importlib.util.find_spec("torch").origin).parent
    key = hashlib.sha256(SOURCE.read_bytes() + f"{version('torch')} {torch}".encode()).hexdigest()[:12]
    library = LIBRARIES / f"hooks-{key}.so"
    if library.exists():
        return library
    includes = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
    linked = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch / 'lib'}"]
    unfinished = LIBRARIES / f"hooks-{key}.{os.getpid()}.so"
    LIBRARIES.mkdir(exist_ok=True)
    command = [compiler, "-std=c++20", "-fPIC", "-shared", "-w", *includes, SOURCE, "-o", unfinished, *linked]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        raise Unavailable(f"the headers of torch {version('torch')} do not compile: {reason.strip()}")
    os.replace(unfinished, library)
    return library


def load() -> None:
    """Load the library, before torch is imported for the first time. Raises Unavailable as `build`."""
    global _library
    if "torch" in sys.modules:
        raise Unavailable("torch has been imported already: CUDA is imitated in a process of its own")
    _library = ctypes.CDLL(str(build()), mode=ctypes.RTLD_GLOBAL)


def take_over() -> None:
    """After torch has been imported: its devices and streams of CUDA are the imitated ones."""
    _library.take_over()


_library: ctypes.CDLL
