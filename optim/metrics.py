"""What a run records: metrics.jsonl (a line per logged interval), summary.json at its end, and W&B."""

import datetime
import json
import logging
import os
import platform
import uuid
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.training import TrainConfig
from errors import Failure
from files import encode_json, is_utf8, write_atomically, write_json
from provenance import git_commit, machine

if TYPE_CHECKING:
    from optim.state import TrainState

logger = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"
CURVES = ("train_loss", "lr", "grad_norm", "val_loss", "val_perplexity", "val_accuracy")
WANDB_ID_FILE = "wandb_run_id.txt"


class MetricsFile:
    """Appends lines to metrics.jsonl.

    All lines are kept in memory too: a file that could not be written, or has vanished, is rewritten.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """Keep the lines up to `step`, from which the run resumes; later ones will be written again."""
        self.path = folder / FILE_NAME
        self._lines = [encode_json(line) for line in _read_lines(self.path) if line["step"] <= step]
        self._write_all()

    def append(self, line: dict[str, Any]) -> None:
        """Write one line at once, so that killing the run loses none. Raises Failure; the line is kept."""
        size = self._size()
        self._lines.append(encode_json(line))
        if size != sum(map(len, self._lines[:-1])):
            self._write_all()
            return
        try:
            with open(self.path, "ab") as file:
                file.write(self._lines[-1])
        except OSError as error:
            raise Failure(f"cannot write {self.path}: {error.strerror or error}") from error

    def sync(self) -> None:
        """Force the lines to disk, before a checkpoint of their steps is written. Raises Failure."""
        if self._size() != sum(map(len, self._lines)):
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


def interval_line(state: "TrainState", config: TrainConfig) -> dict[str, Any]:
    """The line of metrics.jsonl for the interval that ends at this step."""
    interval = state.interval
    return {
        "step": state.step,
        "tokens": state.step * config.tokens_per_step,
        "train_loss": interval.loss_sum / interval.steps,
        "lr": interval.lr,
        "grad_norm": interval.norm_last,
        "max_grad_norm": interval.norm_max,
        "mean_grad_norm": interval.norm_mean,
        "tokens_per_second": round(interval.steps * config.tokens_per_step / interval.seconds, 1),
        "seconds": round(state.seconds, 3),
    }


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in order. Raises Failure when it is missing or empty."""
    lines = _read_lines(folder / FILE_NAME)
    if not lines:
        raise Failure(f"{folder / FILE_NAME} is missing or holds no line yet: there are no curves to show")
    return lines


def curves(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The lists of summary.json: values of each curve, and the steps of the lines and of the evaluations."""
    result: dict[str, Any] = {
        name: [line[name] for line in lines if line.get(name) is not None] for name in CURVES
    }
    result["steps"] = [line["step"] for line in lines]
    result["val_steps"] = [line["step"] for line in lines if "val_loss" in line]
    return result


def write_summary(folder: Path, args: Namespace, about: dict[str, Any]) -> None:
    """Write summary.json: flags, `about`, and curves and final values from metrics.jsonl."""
    lines = read_metrics(folder)
    write_json(
        folder / "summary.json",
        {
            "args": vars(args),
            **about,
            "average_depth": lines[-1].get("val_average_depth"),
            "final": lines[-1],
            **curves(lines),
            "versions": versions(),
            "git_commit": git_commit(),
            "machine": machine(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    )


def versions() -> dict[str, str]:
    """Versions that a run's numbers depend on."""
    import numpy  # here, so that plots of curves do without torch
    import torch

    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__}


class WandbLog:
    """Sends the lines of metrics.jsonl to Weights & Biases; does nothing without --wandb.

    The W&B run id is kept in the run's folder, so that a resumed run continues the same W&B run.
    WANDB_MODE=offline works without network.
    """

    def __init__(self, args: Namespace, folder: Path) -> None:
        """Raises Failure when W&B does not start."""
        self._run = None
        if not args.wandb:
            return
        place = os.environ.get("WANDB_DIR", str(folder))
        if not is_utf8(place):
            raise Failure(
                f"W&B cannot write into {place}, which is no UTF-8: set WANDB_DIR to another folder"
            )
        try:
            import wandb  # takes a second to import

            self._run = wandb.init(
                project=args.wandb_project,
                entity=args.wandb_entity,
                name=_as_utf8(folder.name),
                id=_wandb_id(folder),
                resume="allow",
                dir=place,
                config={name: _as_utf8(value) for name, value in vars(args).items()},
            )
        except Failure:
            raise
        except Exception as error:  # of its network, its settings, its packages
            raise Failure(
                f"W&B does not start ({_reason(error)}): `wandb login`, or set WANDB_MODE=offline, or drop "
                "--wandb"
            ) from error

    def log(self, line: dict[str, Any]) -> None:
        """Send a line. If that fails, a warning is logged, and training goes on without W&B."""
        if self._run is not None:
            try:
                self._run.log({name: _as_utf8(value) for name, value in line.items()}, step=line["step"])
            except Exception as error:
                self._run = None
                logger.warning(f"W&B has failed ({_reason(error)}); training continues without it")

    def close(self) -> None:
        """Finish the W&B run. If that fails, a warning is logged."""
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:
                logger.warning(f"W&B has failed at the end ({_reason(error)}); metrics.jsonl is complete")


def _as_utf8(value: Any) -> Any:
    """The value; a text's bytes that are no UTF-8 are escaped."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _reason(error: Exception) -> str:
    """The error's message in one line, without pydantic's details."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(" [type=")[0].rstrip(". ")[:200]


def _wandb_id(folder: Path) -> str:
    path = folder / WANDB_ID_FILE
    if not path.exists():
        write_atomically(path, lambda file: file.write(uuid.uuid4().hex[:8].encode()))
    return path.read_text(encoding="utf-8").strip()


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not text:
            continue
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            # A power cut within the last line; its step is trained, and the line written, again.
            logger.warning(f"{path}, line {number} is incomplete and is left out")
    return lines
