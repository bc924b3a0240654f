"""metrics.jsonl: one line for each logged interval of a run, and the curves read back from it."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from errors import Failure
from files import write_atomically

logger = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"
CURVES = ("train_loss", "lr", "grad_norm", "val_loss", "val_perplexity", "val_accuracy")


class MetricsFile:
    """Appends lines; cut back to a step when a run goes on from there.

    All lines are held in memory too: a file that could not be written, or has gone, is written again whole.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """Keep the lines up to `step`: those after it will be written again."""
        self.path = folder / FILE_NAME
        self._lines = [_to_line(line).encode() for line in _lines(self.path) if line["step"] <= step]
        self._write_all()

    def append(self, line: dict[str, Any]) -> None:
        """Write one line at once, so that a killed run has lost none. Raises Failure; the line is kept."""
        size = self._size()
        self._lines.append(_to_line(line).encode())
        if not self._is(size, self._lines[:-1]):
            self._write_all()
            return
        try:
            with open(self.path, "ab") as file:
                file.write(self._lines[-1])
        except OSError as error:
            raise Failure(f"cannot write {self.path}: {error.strerror or error}") from error

    def sync(self) -> None:
        """Force what was written to disk: before a checkpoint claims that its steps are logged."""
        if not self._is(self._size(), self._lines):
            self._write_all()
            return
        try:
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise Failure(f"cannot write {self.path}: {error.strerror or error}") from error

    def _write_all(self) -> None:
        write_atomically(self.path, lambda file: file.writelines(self._lines))

    def _size(self) -> int | None:
        try:
            return self.path.stat().st_size
        except OSError:
            return None

    @staticmethod
    def _is(size: int | None, lines: list[bytes]) -> bool:
        return size == sum(map(len, lines))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in order. Raises Failure when it is missing or empty."""
    lines = _lines(folder / FILE_NAME)
    if not lines:
        raise Failure(f"{folder / FILE_NAME} is missing or holds no line yet: there are no curves to show")
    return lines


def curves(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The lists of summary.json: each curve's values, and the steps of training and of evaluation lines."""
    result: dict[str, Any] = {
        name: [line[name] for line in lines if line.get(name) is not None] for name in CURVES
    }
    result["steps"] = [line["step"] for line in lines]
    result["val_steps"] = [line["step"] for line in lines if "val_loss" in line]
    return result


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not text:
            continue
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            # The power may fail in the middle of the last line; it is written again with its step.
            logger.warning(f"{path}, line {number} is incomplete and is left out")
    return lines


def _to_line(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
