"""A large file from the web: resumed where it broke off, checked, and in its place only when it is whole."""

import http.client
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from errors import Failure
from files import file_sha256, write_json

TIMEOUT_SECONDS = 30.0
ATTEMPTS = 8  # in a row without a byte; each that brings some begins the count anew
TRANSIENT = (
    urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError
)  # fmt: skip
_CHUNK = 1 << 20


@dataclass
class Remote:
    """What servers said of the file on the way to it: its size and SHA-256, None where they did not tell."""

    size: int | None = None
    sha256: str | None = None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """The hub names checksum and size (of large files) where it redirects to its store."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote

    def redirect_request(self, request, file, code, message, headers, url):
        note(self.remote, headers)
        return super().redirect_request(request, file, code, message, headers, url)


def note(remote: Remote, headers: Any) -> None:
    """Keep what these headers tell."""
    tag = (headers.get("X-Linked-Etag") or "").strip('W/"')
    if re.fullmatch("[0-9a-f]{64}", tag):
        remote.sha256 = tag
    if (headers.get("X-Linked-Size") or "").isdigit():
        remote.size = int(headers["X-Linked-Size"])


def download(
    url: str,
    path: Path,
    *,
    by_hand: str,
    sha256: str | None = None,
    wait: float = 2.0,
    say: Callable[[str], None] = print,
) -> Path:
    """Fetch `url` to `path`, going on with <path>.partial where there is one; returns `path`.

    by_hand: how to bring the file without this command, for the sentence when there is no network. sha256:
    what it must be, if known; otherwise what the server tells is required. wait: seconds before the second
    attempt, doubled from one to the next. Beside the file, <name>.json keeps size and checksum.
    Raises Failure when it cannot be had, or is not what it should be.
    """
    partial = path.with_name(path.name + ".partial")
    remote = Remote(sha256=sha256)
    if path.exists():
        say(f"{path} is there already; delete it to download it again")
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        failures, last = 0, None
        while not _complete(partial, remote):
            before = _size(partial)
            try:
                _fetch(url, partial, remote)
            except TRANSIENT as error:
                last = error
                if (
                    isinstance(error, urllib.error.HTTPError)
                    and 400 <= error.code < 500
                    and error.code != 429
                ):
                    raise Failure(f"{url}: the server says {error.code} {error.reason}; {by_hand}") from error
            failures = 0 if _size(partial) > before else failures + 1
            if failures >= ATTEMPTS or (failures and _is_offline(last)):
                raise Failure(
                    f"cannot download {url} ({' '.join(str(last or 'it ends early').split())}); "
                    f"{_size(partial):,} bytes are in {partial} and the same command goes on from there; "
                    f"{by_hand}"
                )
            if not _complete(partial, remote):
                say(f"broken off at {_size(partial):,} bytes ({last or 'the server ended'}); going on")
                time.sleep(min(wait * 2**failures, 60.0))
        say(f"{path.name}: checking {_size(partial):,} bytes ...")
        digest = file_sha256(partial)
        if remote.sha256 is not None and digest != remote.sha256:
            partial.unlink()
            raise Failure(
                f"{url}: the checksum of what came is {digest[:16]}..., not {remote.sha256[:16]}..., so it "
                "was deleted; run the same command again"
            )
        write_json(
            path.with_name(path.name + ".json"),
            {"url": url, "bytes": _size(partial), "sha256": digest, "checked": remote.sha256 is not None},
        )
        partial.replace(path)
    except OSError as error:
        raise Failure(f"cannot write {partial}: {error.strerror or error}") from error
    if remote.sha256 is None:
        say(f"{path.name}: the server tells no checksum; its SHA-256 is {digest}")
    return path


def _fetch(url: str, partial: Path, remote: Remote) -> None:
    """One request, for what is missing."""
    have = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    opener = urllib.request.build_opener(_Redirects(remote))
    try:
        response = opener.open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing lies behind what we have
            raise
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total.isdigit() and int(total) == have:
            remote.size = have
            return
        partial.unlink()  # it is longer than the file: of another one
        return
    with response:
        note(remote, response.headers)
        resumed = response.status == 206
        if response.headers.get("Content-Length"):
            remote.size = int(response.headers["Content-Length"]) + (have if resumed else 0)
        with (
            open(partial, "ab" if resumed else "wb") as file,
            tqdm(
                total=remote.size,
                initial=have if resumed else 0,
                desc=partial.name.removesuffix(".partial"),
                unit="B",
                unit_scale=True,
                disable=not sys.stderr.isatty(),
            ) as bar,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if remote.size is None:
            remote.size = _size(partial)  # the server did not say: it has ended properly


def _complete(partial: Path, remote: Remote) -> bool:
    return remote.size is not None and _size(partial) == remote.size


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_offline(error: Exception | None) -> bool:
    """Whether there is no network at all, so that trying again is a waste of time."""
    reason = getattr(error, "reason", error)
    return isinstance(reason, socket.gaierror | ConnectionRefusedError) or (
        isinstance(reason, OSError) and reason.errno in (101, 113)  # network or host unreachable
    )
