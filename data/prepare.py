"""Preparing a corpus: its token files, once, by the module that knows its source."""

import logging
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from data.corpora import DEFAULT_FOLDER, CorpusSpec, is_local, require_tokenizer
from data.local_files import RECORD, Changes, LocalFiles, changes, folder_files, listed, match, record_older
from data.sources import FileSource, SourceFile
from data.token_files import META, SPLITS, read_meta
from data.tokenise import Preparation, tokenise
from data.tokenizers import keep_file
from errors import Failure, UsageError
from files import FILES_PREFIX, file_sha256, removed_if_empty

logger = logging.getLogger(__name__)

LEAST_VALIDATION = 1 << 14  # tokens held out of local files, if they have so many
# Corpus -> the module whose prepare(job) writes its token files and returns the number of documents.
_MODULES = {"pydoc": "pydoc", "shakespeare-char": "shakespeare", "openwebtext2": "openwebtext2"}


def prepare_unless_done(
    spec: CorpusSpec,
    folder: Path,
    data_dir: str | Path | None,
    tokenizer: str | None,
    *,
    val_fraction: float | None = None,
    **settings: Any,
) -> None:
    """Prepare a corpus, unless `folder` holds it already. val_fraction, settings: see `Preparation`.

    Local files are prepared again where files were added. Raises UsageError or Failure.
    """
    meta = read_meta(folder)
    if meta is not None and is_local(spec.name) and _outgrown(spec.name, folder, meta):
        (folder / META).unlink(missing_ok=True)
        meta = None
    if meta is None:
        with removed_if_empty(folder):
            prepare(spec, folder, data_dir, tokenizer, val_fraction=val_fraction, **settings)
    elif val_fraction not in (None, meta.get("val_fraction")):
        raise UsageError(
            f"--val_fraction {val_fraction}: {folder} is prepared already, and holds out another part "
            f"({meta.get('split', 'unknown')}); delete its {META} and token files to prepare it again"
        )


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
        tokenizer = str(keep_file(Path(tokenizer), folder))
    logger.info(f"preparing {spec.name} in {folder}, once ...")
    started = time.perf_counter()
    data_dir = DEFAULT_FOLDER if data_dir is None else Path(data_dir)
    job = Preparation(spec.name, data_dir, folder, tokenizer, **settings)
    if spec.hub is not None:
        from data import hub

        documents = hub.prepare(spec.hub, job)
    elif is_local(spec.name):
        documents = _prepare_files(job)
    else:
        documents = import_module(f"data.{_MODULES[spec.name]}").prepare(job)
    tokens = {split: described["tokens"] for split, described in read_meta(folder)["splits"].items()}
    logger.info(
        f"prepared {spec.name}: {documents:,} documents, {tokens['train']:,} + {tokens['val']:,} "
        f"{tokenizer} tokens (train + val) in {time.perf_counter() - started:.1f} s"
    )


def _prepare_files(job: Preparation) -> int:
    """Prepare `files:<pattern>`. Raises UsageError if a pattern matches no file."""
    found = match(job.corpus, job.folder)
    if found.missing or not found.paths:
        what = f" {found.missing[0]}" if found.paths else ""
        raise UsageError(
            f"--dataset {job.corpus}: no file matches{what}; give a file, a folder or a pattern, like "
            "files:/data/*.jsonl"
        )
    if found.repeated:
        logger.info(f"each file is read once; left out are further names: {listed(found.repeated)}")
    folder = Path(job.corpus.removeprefix(FILES_PREFIX))
    if folder.is_dir():
        read = {path.resolve() for path in found.paths}
        others = [path for path in sorted(folder.rglob("[!.]*")) if path.is_file()]
        others = [path for path in others if path.resolve() not in read]
        if others:
            logger.info(f"left out of {folder}, by their endings: {listed(others)}")
    source = LocalFiles(_files(found.paths))
    return tokenise(source, job, {"corpus": job.corpus, "source": source.identity}, least=LEAST_VALIDATION)


def _files(paths: list[Path]) -> list[SourceFile]:
    return [replace(file, key=str(file.path.resolve())) for file in folder_files(paths)]


def _changes(name: str, folder: Path, meta: dict[str, Any]) -> Changes:
    """How the files of `files:<pattern>` differ from those that were prepared.

    Token files may also be used where no file matches.
    """
    found = match(name, folder)
    if not found.paths:
        return Changes()
    files = _files(found.paths)
    known = changes(files, folder)
    if known is not None:
        return known
    if FileSource(files).identity == meta.get("source"):
        record_older(files, folder)
        return Changes()
    # Earlier versions kept no record of contents, and read a file once for each of its names.
    names = sorted([*found.paths, *found.repeated], key=str)
    if FileSource(_files(names)).identity != meta.get("source"):
        return Changes(changed=["names or sizes"])
    logger.warning(
        f"{folder} was made by an earlier version, which read {listed(found.repeated)} although other names "
        "of the same files match: documents count twice; delete that folder to prepare them again"
    )
    return Changes()


def require_unchanged(name: str, folder: Path, data_dir: str | Path | None, meta: dict[str, Any]) -> None:
    """Raises Failure if the local files of a corpus differ from those that were prepared."""
    if is_local(name):
        found = _changes(name, folder, meta)
        if any(found):
            raise Failure(
                f"the files of {name} have changed since {folder} was prepared from them; delete that folder "
                f"to prepare them again ({found})"
            )
    elif "sha256" in meta:  # of shakespeare-char
        from data.shakespeare import find

        path = find(DEFAULT_FOLDER if data_dir is None else Path(data_dir), folder)
        if path is not None and file_sha256(path) != meta["sha256"]:
            raise Failure(
                f"{path} has changed since {name} was prepared; delete {folder / META} to prepare it again"
            )


def _outgrown(name: str, folder: Path, meta: dict[str, Any]) -> bool:
    """Whether files were added to those that were prepared, which are all as they were."""
    if not (folder / RECORD).exists():
        return False
    found = _changes(name, folder, meta)
    outgrown = bool(found.added) and not found.changed and not found.gone
    if outgrown:
        logger.info(f"{folder} is prepared again, as files were added ({found})")
    return outgrown


if __name__ == "__main__":  # the former `python -m data.prepare`
    import runpy

    runpy.run_module("prepare_data", run_name="__main__", alter_sys=True)
