"""Corpora made of files that lie here: `--dataset files:/path/*.jsonl.zst`, patterns parted by commas.

Documents (.jsonl, .jsonl.zst, .parquet, .txt) are prepared like any other corpus; .bin shards are opened as
they are.
"""

import glob
from pathlib import Path
from typing import Any

import numpy as np

from data.preparation import Job
from data.records import folder_files
from data.shards import open_shard
from data.sources import Files
from data.token_files import SPLITS, require_sequence
from data.tokenizers import Tiktoken
from errors import Failure, UsageError
from files import FILES_PREFIX

COLUMN = "text"


def is_local(name: str) -> bool:
    return name.startswith(FILES_PREFIX)


def matching(name: str) -> list[Path]:
    """The files of `files:<pattern>,...`, sorted; ** stands for any folders."""
    patterns = name.removeprefix(FILES_PREFIX).split(",")
    found = {path for pattern in patterns for path in glob.glob(pattern.strip(), recursive=True)}
    return [Path(path).resolve() for path in sorted(found) if Path(path).is_file()]


def prepare(name: str, job: Job) -> int:
    """Write the token files of these documents; returns how many. Raises UsageError where none match."""
    paths = matching(name)
    if not paths:
        raise UsageError(
            f"--dataset {name}: no file matches; give a path or a pattern, like files:/data/*.jsonl"
        )
    source = Files(folder_files(paths), COLUMN)
    return job.tokenise(source, {"corpus": name, "source": source.identity}, COLUMN)


def require_unchanged(name: str, folder: Path, meta: dict[str, Any]) -> None:
    """Raises Failure where the files are here and no longer those that were prepared."""
    paths = matching(name)
    if paths and Files(folder_files(paths), COLUMN).identity != meta.get("source"):
        raise Failure(
            f"the files of {name} are no longer those that {folder} was prepared from; delete that folder to "
            "prepare them again"
        )


def shards(name: str) -> list[Path]:
    """The files, if they are .bin shards: none where they are documents. Raises UsageError for a mixture."""
    paths = matching(name)
    found = [path for path in paths if path.suffix == ".bin"]
    if found and len(found) < len(paths):
        raise UsageError(
            f"--dataset {name}: .bin shards and documents cannot be one corpus; give two patterns"
        )
    return found


def open_shards(
    paths: list[Path], sequence_length: int, in_ram: bool
) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """meta and the arrays of each split, which stands in each file's name. Raises UsageError, Failure."""
    splits: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for path in paths:
        named = [split for split in SPLITS if f"_{split}_" in path.name]
        if len(named) != 1:
            raise UsageError(f"{path}: the name of a shard must hold _train_ or _val_")
        tokens = open_shard(path)
        require_sequence(path, len(tokens), sequence_length)
        splits[named[0]].append(np.array(tokens) if in_ram else tokens)
    for split, arrays in splits.items():
        if not arrays:
            raise UsageError(f"{paths[0].parent}: no shard is named _{split}_; both splits are needed")
    vocab_size, _ = Tiktoken.SIZES["gpt2"]
    return {"corpus": "shards", "tokenizer": {"name": "gpt2", "vocab_size": vocab_size}}, splits
