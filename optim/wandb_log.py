"""Weights & Biases, when --wandb asks for it."""

import os
import uuid
from argparse import Namespace
from pathlib import Path
from typing import Any

from errors import Failure
from files import write_atomically

ID_FILE = "wandb_run_id.txt"


class WandbLog:
    """Sends the lines of metrics.jsonl to W&B; does nothing without --wandb.

    The run id is kept in the run's folder, so that a run that is started again goes on in the same W&B run.
    WANDB_MODE=offline works without network.
    """

    def __init__(self, args: Namespace, folder: Path) -> None:
        self._run = None
        if not args.wandb:
            return
        import wandb  # only here: it takes a second to import, and most runs do without

        try:
            self._run = wandb.init(
                project=args.wandb_project,
                entity=args.wandb_entity,
                name=folder.name,
                id=_run_id(folder),
                resume="allow",
                dir=os.environ.get("WANDB_DIR", str(folder)),
                config=vars(args),
            )
        except wandb.errors.Error as error:
            reason = str(error).splitlines()[0].rstrip(". ")
            raise Failure(
                f"W&B does not start ({reason}): `wandb login`, or set WANDB_MODE=offline, or drop --wandb"
            ) from error

    def log(self, line: dict[str, Any]) -> None:
        if self._run is not None:
            self._run.log(line, step=line["step"])

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _run_id(folder: Path) -> str:
    path = folder / ID_FILE
    if not path.exists():
        write_atomically(path, lambda file: file.write(uuid.uuid4().hex[:8].encode()))
    return path.read_text(encoding="utf-8").strip()
