"""Result files of the suite: read, and found. No torch here."""

import json
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from bench.plan import Done
from errors import UsageError

RESULTS = Path(__file__).parent / "results"
MACHINE_FIELDS = {"cpu", "gpu", "cores", "threads", "torch", "commit", "date"}
ROW_FIELDS = {"part", "name", "unit", "value", "ratio", "memory_mib", "plain_memory_mib", "details"}


def read(path: Path) -> dict[str, Any]:
    """machine and rows. Raises UsageError for a file that is not there or not of the suite."""
    content = _json(path)
    if not is_result(content):
        raise UsageError(f"{path} is not a result of `python -m bench`: it has no machine and rows")
    return content


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error


def is_result(content: Any) -> bool:
    """Whether it has what every result has; its rows are then as `bench.rows` makes them."""
    if not (isinstance(content, dict) and isinstance(content.get("machine"), dict)):
        return False
    if not content["machine"].keys() >= MACHINE_FIELDS or not isinstance(content.get("rows"), list):
        return False
    return all(isinstance(row, dict) and row.keys() >= ROW_FIELDS for row in content["rows"])


def begun(path: Path | None, machine: dict[str, Any]) -> Done:
    """What a run that was cut off has measured, by part and name of the case, on the same machine by the same
    command, versions, and code; nothing where that is not committed. Cases that failed are left out.
    """
    if path is None or not path.exists() or (machine["commit"] or "-dirty").endswith("-dirty"):
        return {}
    content = _json(path)
    same = ("cpu", "gpu", "cores", "threads", "torch", "python", "commit", "effort", "command")
    if not is_result(content) or content.get("complete", True) or "cases" not in content:
        return {}
    if any(content["machine"].get(name) != machine[name] for name in same):
        return {}
    rows = iter(content["rows"])
    done = {(part, name): [*islice(rows, count)] for part, name, count in content["cases"]}
    return {case: rows for case, rows in done.items() if all(row["value"] for row in rows)}


def newest(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The latest whole result of the suite from CPUs, and that from GPUs, as far as there are such.

    The folder may hold other files, and results of runs that were cut off. Raises UsageError for what is not
    JSON.
    """
    found = [_json(path) for path in sorted(folder.glob("*.json"))]
    found = [content for content in found if is_result(content) and content.get("complete", True)]
    found.sort(key=lambda content: content["machine"]["date"])
    latest = {content["machine"].get("gpu") is not None: content for content in found}
    return [latest[on_gpu] for on_gpu in (False, True) if on_gpu in latest]


def require_writable(path: Path) -> None:
    """Before hours of measuring. Raises UsageError where no file can be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
