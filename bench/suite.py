"""Measures the cases of a plan one after the other, into a file from which a later suite resumes."""

import importlib
import logging
import os
import platform
import re
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.plan import Case, Plan, Result
from bench.results import failed, is_result_file, line, read_json
from errors import Failure, UsageError, unknown
from provenance import cores, git_commit, processor

logger = logging.getLogger(__name__)

Done = dict[tuple[str, str], list[Result]]  # the results of each case, by part and name of the case
SAME = ("cpu", "gpu", "cores", "threads", "torch", "python", "commit", "effort", "command")  # to resume

# name: module and function that makes the cases of a plan, and what the part measures.
PARTS = {
    "floor": ("floor:floor", "time of a training step over what arithmetic and memory traffic allow"),
    "train": ("steps:training", "a training step: forward, backward, optimiser"),
    "eval": ("steps:evaluation", "a batch of evaluation: loss and predictions"),
    "capacities": (
        "steps:capacities",
        "time of adaptive models over capacities, against their MACs; decoding too",
    ),
    "prefill": ("steps:prefill", "a prompt into the KV cache"),
    "decode": ("steps:decode", "tokens one by one, with the KV cache and without"),
    "tokeniser": ("pipeline:tokeniser", "preparing a corpus, against tiktoken alone"),
    "checkpoint": ("pipeline:checkpoint", "the time that training waits for a checkpoint"),
    "scaling": ("steps:scaling", "step time and memory over length, repeats, batch, recomputation"),
    "paper": ("floor:paper", "the paper's size on a GPU: utilisation, largest micro-batch, 40k steps"),
}


def cases_of(part: str, plan: Plan) -> Sequence[Case]:
    """Raises UsageError for an unknown part."""
    if part not in PARTS:
        raise UsageError(unknown(f"--only {part}: there is no such part", part, PARTS))
    module, _, function = PARTS[part][0].partition(":")
    return getattr(importlib.import_module(f"bench.{module}"), function)(plan)


def describe(plan: Plan, command: str) -> dict[str, Any]:
    """The machine, the versions and the commit of a result file."""
    import torch

    return {
        "cpu": processor(),
        "cores": cores(),
        "threads": plan.threads or torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": plan.device,
        "gpu": torch.cuda.get_device_name(torch.device(plan.device)) if plan.cuda else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "effort": plan.effort,
        "command": command,
    }


def file_name(machine: dict[str, Any]) -> str:
    """<machine>-<short commit>.json."""
    words = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@.*", " ", machine["gpu"] or machine["cpu"])
    name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "machine"
    commit = machine["commit"] or "unknown"
    dirty = "-dirty" if commit.endswith("-dirty") else ""
    cores = "" if machine["gpu"] else f"-{machine['cores']}cores"
    return f"{name}{cores}-{commit[:8]}{dirty}.json"


def measured_before(path: Path | None, machine: dict[str, Any]) -> Done:
    """The cases of an interrupted suite, on the same machine by the same command, versions and commit.

    None if the code is not committed. Cases that failed are left out, to be measured again.
    """
    if path is None or not path.exists() or (machine["commit"] or "-dirty").endswith("-dirty"):
        return {}
    content = read_json(path)
    if not is_result_file(content) or content.get("complete", True) or "results" not in content:
        return {}
    if any(content["machine"].get(name) != machine[name] for name in SAME):
        return {}
    done: Done = {}
    for one in content["results"]:
        done.setdefault((one["part"], one["case"]), []).append(one)
    return {case: results for case, results in done.items() if all(one["value"] for one in results)}


def measure_all(
    parts: Sequence[str], plan: Plan, keep: Callable[[list[Result]], object], before: Done | None = None
) -> list[Result]:
    """Measure all cases, printing results as they come.

    A case that fails becomes a result with the reason, and the others are still measured. Raises Failure
    where all fail.

    Args:
        keep: called with all results so far after each case.
        before: the results of cases that need not be measured again.
    """
    done: Done = dict(before or {})
    cases = [(part, case) for part in dict.fromkeys(parts) for case in cases_of(part, plan)]
    for part in set(parts) - {part for part, _ in cases}:
        logger.info("%s: nothing to measure (its models are not chosen, or it needs a GPU)", part)
    missing = [(part, case) for part, case in cases if (part, case.name) not in done]
    start, last = time.monotonic(), None
    for number, (part, case) in enumerate(missing, start=1):
        if part != last:
            print(f"\n{part}: {PARTS[part][1]}", flush=True)
            last = part
        results = measure(part, case)
        for one in results:
            one["case"] = case.name
            print(line(one), flush=True)
        done[part, case.name] = results
        keep([one for results in done.values() for one in results])
        minutes = (time.monotonic() - start) / 60
        left = minutes / number * (len(missing) - number)
        logger.info("  [%d of %d, %.1f minutes, about %.1f left]", number, len(missing), minutes, left)
    found = [one for part, case in cases for one in done[part, case.name]]
    if found and all(one["value"] is None for one in found):
        raise Failure(f"nothing could be measured: {found[0]['details']['why']}")
    return found


def measure(part: str, case: Case) -> list[Result]:
    """The results of a case, or one that says why there are none."""
    try:
        return case.measure()
    except Failure as error:
        return [failed(part, case.name, str(error))]
    except Exception as error:
        traceback.print_exc()
        return [failed(part, case.name, f"{type(error).__name__}: {error}")]
