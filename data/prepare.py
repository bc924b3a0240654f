"""Preparing a corpus: its token files, once, by the module that knows its source."""

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from data import hub, openwebtext2, pydoc, shakespeare
from data.corpora import DEFAULT_FOLDER, CorpusSpec, is_local, require_tokenizer
from data.sources import FileSource, folder_files, matching_files
from data.token_files import HF_TOKENIZER, SPLITS, read_meta
from data.tokenise import Preparation, tokenise
from errors import Failure, UsageError

logger = logging.getLogger(__name__)

_PREPARE = {
    "pydoc": pydoc.prepare,
    "shakespeare-char": shakespeare.prepare,
    "openwebtext2": openwebtext2.prepare,
}  # corpus -> the function that writes its token files and returns the number of documents


def prepare(
    spec: CorpusSpec, folder: Path, data_dir: str | Path | None, tokenizer: str | None, **settings: Any
) -> None:
    """Write a corpus' token files into `folder`. settings: the rest of `Preparation`.

    Raises UsageError or Failure; an unfinished preparation is resumed by the same call.
    """
    require_tokenizer(spec, tokenizer)
    copied = [path for split in SPLITS if (path := folder / f"{split}.bin").exists()]
    if copied and spec.command and not (folder / "parts").exists() and read_meta(folder) is None:
        raise Failure(
            f"{copied[0]} is there without a meta.json, so it was copied from elsewhere; move it away to "
            "prepare the corpus here"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written fails before the work
    except OSError as error:
        raise Failure(f"cannot write {folder}: {error.strerror}; choose another --data_dir") from error
    tokenizer = tokenizer or spec.tokenizer
    if tokenizer.endswith(".json"):  # a copy goes with the token files
        copy = folder / HF_TOKENIZER
        if not copy.exists():
            shutil.copyfile(tokenizer, copy)
        tokenizer = str(copy)
    logger.info(f"preparing {spec.name} in {folder}, once ...")
    started = time.perf_counter()
    data_dir = DEFAULT_FOLDER if data_dir is None else Path(data_dir)
    job = Preparation(spec.name, data_dir, folder, tokenizer, **settings)
    if spec.hub is not None:
        documents = hub.prepare(spec.hub, job)
    else:
        documents = (_prepare_files if is_local(spec.name) else _PREPARE[spec.name])(job)
    tokens = {split: described["tokens"] for split, described in read_meta(folder)["splits"].items()}
    logger.info(
        f"prepared {spec.name}: {documents:,} documents, {tokens['train']:,} + {tokens['val']:,} "
        f"{tokenizer} tokens (train + val) in {time.perf_counter() - started:.1f} s"
    )


def _prepare_files(job: Preparation) -> int:
    """Prepare `files:<pattern>`. Raises UsageError if no file matches."""
    paths = matching_files(job.corpus)
    if not paths:
        raise UsageError(
            f"--dataset {job.corpus}: no file matches; give a path or a pattern, like files:/data/*.jsonl"
        )
    source = FileSource(folder_files(paths))
    return tokenise(source, job, {"corpus": job.corpus, "source": source.identity})


def require_unchanged(name: str, folder: Path, meta: dict[str, Any]) -> None:
    """Raises Failure if the files of `files:<pattern>` differ from those that were prepared.

    Token files may also be used where no file matches.
    """
    paths = matching_files(name)
    if paths and FileSource(folder_files(paths)).identity != meta.get("source"):
        raise Failure(
            f"the files of {name} have changed since {folder} was prepared from them; delete that folder to "
            "prepare them again"
        )


if __name__ == "__main__":  # the former `python -m data.prepare`
    import runpy

    runpy.run_module("prepare_data", run_name="__main__", alter_sys=True)
