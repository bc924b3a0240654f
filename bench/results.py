"""Result files of the suite: read, and found. No torch here."""

import json
from pathlib import Path
from typing import Any

from errors import UsageError

RESULTS = Path(__file__).parent / "results"


def read(path: Path) -> dict[str, Any]:
    """machine and rows. Raises UsageError for a file that is not there or not of the suite."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not is_result(content):
        raise UsageError(f"{path} is not a result of `python -m bench`: it has no machine and rows")
    return content


def is_result(content: Any) -> bool:
    return isinstance(content, dict) and "machine" in content and isinstance(content.get("rows"), list)


def newest(folder: Path = RESULTS) -> dict[str, Any] | None:
    """The latest result of the suite in a folder, which may hold other files; None where there is none."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found = [content for content in found if is_result(content)]
    return max(found, key=lambda content: content["machine"]["date"]) if found else None
