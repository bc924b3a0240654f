"""Runs that are killed at random, with disks that take their time, and end as if nothing had happened.

The short version runs with all tests; `make test-faults` kills 200 times, and writes its counts to
bench/results/faults.json (FAULTS=200).
"""

import os
import random
import time

import pytest

from files import write_json
from optim import checkpoint
from tests.conftest import ROOT
from tests.faults.team import Team, assert_same, kill

KINDS = [(model, size, backend) for model in ("base", "ln_cotformer", "adm")
         for size, backend in ((1, "None"), (2, "gloo"), (2, "fsdp"))]  # fmt: skip
SHORT = [("ln_cotformer", 1, "None"), ("adm", 2, "gloo"), ("adm", 2, "fsdp")]
KILLS = int(os.environ.get("FAULTS", "0"))


def straight_and_killed(tmp_path, model, size, backend, kills, seed):
    """Kill runs again and again, `kills` times in all; returns the counts."""
    straight = Team(tmp_path / "straight", model, size, backend)
    straight.run(FAULT="slow")
    randomness = random.Random(seed)
    counts = {"kills": 0, "inside a save": 0, "runs": 0}
    while counts["kills"] < kills:
        counts["runs"] += 1
        team = Team(tmp_path / f"killed{counts['runs']}", model, size, backend)
        while not _ended_well(process := team.start(FAULT="slow"), team, randomness):
            counts["inside a save"] += bool(_temporary(team))
            kill(process)
            counts["kills"] += 1
            for path in checkpoint.in_folder(team.run_folder()):
                checkpoint.load(path)  # none that has its name is ever damaged
            if counts["kills"] == kills:
                team.run(FAULT="slow")
                break
        assert_same(team, straight)
    return counts


def _ended_well(process, team, randomness):
    """Wait for a random time after the first sign of progress; whether the run has ended by then."""
    before, end = _steps(team), None
    while process.poll() is None:
        if end is None and (_temporary(team) or _steps(team) != before):
            end = time.monotonic() + randomness.uniform(0.0, 0.8)
        if end is not None and time.monotonic() > end:
            return False
        time.sleep(0.002)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return True


def _steps(team):
    return sorted(path.name for path in team.folder.glob("*/*/*/ckpt*[0-9].*"))


def _temporary(team):
    return sorted(path.name for path in team.folder.glob("*/*/*/ckpt*.tmp"))


@pytest.mark.parametrize(("model", "size", "backend"), SHORT)
@pytest.mark.skipif(KILLS > 0, reason="the long version runs")
def test_a_few_kills(tmp_path, model, size, backend):
    counts = straight_and_killed(tmp_path, model, size, backend, 3, seed=1)
    assert counts["kills"] == 3


@pytest.mark.skipif(KILLS == 0, reason="takes twenty minutes: make test-faults")
def test_many_kills(tmp_path):
    found = {}
    for number, (model, size, backend) in enumerate(KINDS):
        share = KILLS * (number + 1) // len(KINDS) - KILLS * number // len(KINDS)
        name = f"{model}, {size} x {backend}"
        found[name] = straight_and_killed(tmp_path / str(number), model, size, backend, share, seed=number)
        print(name, found[name], flush=True)
    total = sum(counts["kills"] for counts in found.values())
    assert total == KILLS
    result = {"kills": total, "lost or unreadable runs": 0, "runs that differ": 0, "by kind": found}
    write_json(ROOT / "bench" / "results" / "faults.json", result)
