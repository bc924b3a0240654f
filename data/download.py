"""Downloads of large files: resumed after an interruption, checked, and in place only when complete.

The Hugging Face hub's client makes the requests, tries again after errors and shows progress.
"""

import logging
import os
import re
import time
from pathlib import Path

from errors import Failure
from files import file_sha256, write_json

logger = logging.getLogger(__name__)

ATTEMPTS = 5  # without a byte; an attempt that brings some starts the count again


def download(url: str, path: Path, *, by_hand: str, sha256: str | None = None) -> Path:
    """Download `url` to `path`, resuming <path>.partial if there is one; returns `path`.

    Next to the file, <name>.json keeps its size and checksum.

    Args:
        by_hand: how to fetch the file without this command, for the sentence when there is no network.
        sha256: the expected checksum; None: the one that the server names, if it does.

    Raises:
        Failure: the file cannot be downloaded or written, or has another checksum.
    """
    partial = path.with_name(path.name + ".partial")
    if path.exists():
        logger.info(f"{path} is there already; delete it to download it again")
        return path
    named = _fetch(url, partial, by_hand)
    expected = sha256 or named
    try:
        size = partial.stat().st_size
        logger.info(f"{path.name}: checking {size:,} bytes ...")
        digest = file_sha256(partial)
        if expected is not None and digest != expected:
            partial.unlink()
            raise Failure(
                f"{url}: the checksum of the download is {digest[:16]}..., not {expected[:16]}..., so it was "
                "deleted; run the same command again"
            )
        about = {"url": url, "bytes": size, "sha256": digest, "checked": expected is not None}
        write_json(path.with_name(path.name + ".json"), about)
        partial.replace(path)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror or error}") from error
    if expected is None:
        logger.info(f"{path.name}: the server names no checksum; its SHA-256 is {digest}")
    return path


def _fetch(url: str, partial: Path, by_hand: str) -> str | None:
    """Fetch what `partial` lacks of the file; returns the SHA-256 that the server names, or None."""
    from huggingface_hub.file_download import get_hf_file_metadata, http_get

    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        file = open(partial, "ab")  # noqa: SIM115  (closed by the block below)
    except OSError as error:
        raise Failure(f"cannot write {partial}: {error.strerror or error}") from error
    failures = 0
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its attempts are told of below
    with file:
        while True:
            before = file.seek(0, os.SEEK_END)
            try:
                # The hub names size and checksum where it redirects to its store.
                about = get_hf_file_metadata(url, token=False)
                if about.size is not None and before > about.size:
                    file.truncate(0)  # of another file
                    before = file.seek(0)
                http_get(
                    url, file, resume_size=before, expected_size=about.size, displayed_filename=partial.stem
                )
                return about.etag if re.fullmatch("[0-9a-f]{64}", about.etag or "") else None
            except Exception as error:  # the libraries below raise many kinds
                if _is_of_the_disk(error):
                    raise Failure(f"cannot write {partial}: {error}") from error
                have = file.seek(0, os.SEEK_END)
                reason = " ".join(str(error).split()) or type(error).__name__
                failures = 0 if have > before else failures + 1
                if failures >= ATTEMPTS or (failures and _is_final(error)):
                    raise Failure(
                        f"cannot download {url} ({reason}); {have:,} bytes are in {partial}, and the same "
                        f"command resumes from there; {by_hand}"
                    ) from error
                logger.info(f"broken off at {have:,} bytes ({reason}); resuming")
                time.sleep(failures and 2.0**failures)


def _is_of_the_disk(error: Exception) -> bool:
    """Whether writing failed: an OSError that is no library's, and not of a connection."""
    of_network = isinstance(error, ConnectionError | TimeoutError) or type(error).__module__ != "builtins"
    return isinstance(error, OSError) and bool(error.errno) and not of_network


def _is_final(error: Exception) -> bool:
    """Whether trying again is useless: no network, no such file."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 429)
    return type(error).__name__ == "ConnectError"
