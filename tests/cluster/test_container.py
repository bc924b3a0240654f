"""The container's recipe, as far as it can be tried without Apptainer: what it copies suffices its %test."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

RECIPES = ("iridis/rcotformer.def", "iridis/rcotformer.def.example")


def sections(name):
    """The parts of a recipe by their names, comments at the beginning of lines left out."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    parts = re.split(r"^%(\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_its_test_runs_on_what_it_copies(name, tmp_path):
    found = sections(name)
    image = tmp_path / "opt"
    for line in found["files"].split("\n"):
        if line.strip():
            source, target = line.split()
            target = image / target.removeprefix("/opt/")
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copyfile)(ROOT / source, target)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python3").chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", found["test"].replace("/opt/cotformer", f"{image}/cotformer")],
        env={"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2." in done.stdout


@pytest.mark.parametrize("name", RECIPES)
def test_it_installs_what_everything_else_installs(name):
    found = sections(name)
    assert "pip install --no-cache-dir -r /opt/cotformer/requirements.txt" in found["post"]
    assert "requirements.txt /opt/cotformer/requirements.txt" in found["files"]
    assert subprocess.run(["bash", "-n", "-c", found["post"]]).returncode == 0
