"""Runs the gate's items, each in a process of its own with a limit, into a file that survives a cut-off."""

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.gpu_gate.items import Item
from bench.gpu_gate.rows import Skipped, line
from bench.plan import Plan
from bench.processes import in_own_process
from bench.results import read_json
from bench.suite import SAME
from errors import Failure

TAIL = 12  # lines of output that are kept of an item that failed
LEAST_S = 5.0  # with less time left, no item is begun
Result = dict[
    str, Any
]  # item, status (passed, failed, late, skipped), reason, seconds, memory_mib, rows, tail


def perform(function: str, arguments: tuple[str, ...], plan: Plan, folder: Path) -> str | None:
    """Do an item in this process: its output goes to folder/log, its rows to folder/rows as they come.

    Returns why it was skipped, or None.
    """
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    module, _, name = function.partition(":")
    module = module if "." in module else f"bench.gpu_gate.{module}"
    with open(folder / "rows", "w") as file:
        try:
            for one in getattr(importlib.import_module(module), name)(plan, *arguments):
                file.write(json.dumps(one) + "\n")
                file.flush()
        except Skipped as why:
            return str(why)
        finally:
            sys.stdout.flush()
    return None


def run_item(item: Item, plan: Plan, limit_s: float) -> Result:
    """Do an item; whatever happens, the result has the rows that it had made until then."""
    started, memory, status, reason = time.monotonic(), None, "passed", None
    with tempfile.TemporaryDirectory(prefix="gpu-gate-") as name:
        folder = Path(name)
        try:
            arguments = (item.function, item.arguments, plan, folder)
            reason, memory = in_own_process(perform, *arguments, threads=plan.threads, limit_s=limit_s)
            status = "passed" if reason is None else "skipped"
        except Failure as error:
            late = time.monotonic() - started >= limit_s
            status = "late" if late else "failed"
            reason = f"not done within {limit_s:.0f} s" if late else _sentence(error)
        rows = [json.loads(text) for text in _lines(folder / "rows")]
        output = _lines(folder / "log")
    wrong = [one["name"] for one in rows if one["ok"] is False]
    if wrong and status in ("passed", "skipped"):
        status, reason = "failed", ", ".join(wrong)
    elif status == "late" or (status == "failed" and "without an answer" in (reason or "")):
        reason = f"{reason}; its last line: {output[-1] if output else 'none'}"
    tail = output[-TAIL:] if status in ("failed", "late") else []
    return {
        "item": item.name, "status": status, "reason": reason, "memory_mib": memory,
        "seconds": round(time.monotonic() - started, 1), "rows": rows, "tail": tail,
    }  # fmt: skip


def done_before(path: Path | None, machine: dict[str, Any], again: Sequence[str] | None) -> dict[str, Result]:
    """The results of an earlier gate on the same machine, by the same versions and commit: by item.

    None if the code is not committed.

    Args:
        again: items that are asked for by name, and so are done again. None: all are asked for; then a
            complete file is begun anew, one that was cut off goes on.
    """
    if path is None or not path.exists() or (machine["commit"] or "-dirty").endswith("-dirty"):
        return {}
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("items"), list):
        return {}
    same = [name for name in SAME if name != "command"]
    if any(content.get("machine", {}).get(name) != machine[name] for name in same):
        return {}
    if again is None and content.get("complete", True):
        return {}
    return {one["item"]: one for one in content["items"] if one["item"] not in (again or ())}


def run_items(
    items: Sequence[Item], plan: Plan, keep: Callable[[Sequence[Result]], object], limit_s: float,
    before: dict[str, Result] | None = None,
) -> dict[str, Result]:  # fmt: skip
    """Do all items that have no result yet; prints each as it is done.

    Args:
        keep: called with all results so far after each item.
        limit_s: for all items together: those that it leaves no time for get no result.

    Returns the results by item.
    """
    done, end = dict(before or {}), time.monotonic() + limit_s
    for item in items:
        left = end - time.monotonic()
        if item.name in done or left < LEAST_S:
            continue
        result = run_item(item, plan, min(item.limit_s, left))
        if result["status"] == "late" and left < item.limit_s:
            continue  # the gate's limit, not its own: it is begun again by the next gate
        done[item.name] = result
        show(result)
        keep(list(done.values()))
    return done


def show(result: Result) -> None:
    """Print an item's result, its rows, and the end of its output where it failed."""
    why = f": {result['reason']}" if result["reason"] else ""
    print(f"{result['status']:8} {result['item']:12} {result['seconds']:6.1f} s{why}", flush=True)
    for one in result["rows"]:
        print(line(one), flush=True)
    for text in result["tail"]:
        print(f"    | {text}", flush=True)


def _sentence(error: Failure) -> str:
    """Without the name of `perform`, in which all of them fail."""
    _, found, sentence = str(error).partition("perform failed: ")
    return sentence if found else str(error).partition("perform ")[2] or str(error)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(errors="backslashreplace")
    except FileNotFoundError:
        return []
    complete = text if path.name == "log" else text[: text.rfind("\n") + 1]
    return [one for one in complete.splitlines() if one.strip()]
