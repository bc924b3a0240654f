"""Archives in the published format of OpenWebText2, of real text; and what a plain pipeline makes of them."""

import functools
import io
import json
import tarfile
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import zstandard

from data import pydoc
from data.openwebtext2 import ARCHIVE


def texts(count: int) -> list[str]:
    """At most 100 documents of Python's own documentation, and one of every kind of trouble that is none."""
    special = [
        "",
        "<|endoftext|> is text here",
        "naïve 日本語 🙂",
        "a\u2028b\r\nc",
        "half a pair \ud83d",
        " " * 3000,
    ]
    return [*_documents()[:count], *special]


@functools.cache
def _documents() -> list[str]:
    return list(islice(pydoc.documents(), 100))  # 0.7 MB; of more, sources are parsed for seconds


def compressed(lines: bytes, frames: int = 1) -> bytes:
    """zstd, in several frames that follow one another."""
    cuts = [len(lines) * i // frames for i in range(frames + 1)]
    return b"".join(
        zstandard.ZstdCompressor(level=3).compress(lines[start:stop]) for start, stop in pairwise(cuts)
    )


def member(documents: list[str], frames: int = 1) -> bytes:
    """A .jsonl.zst as the corpus has them."""
    return compressed(
        "".join(json.dumps({"text": t, "meta": {"url": "u"}}) + "\n" for t in documents).encode(), frames
    )


def archive(data_dir: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    """The tar, its members in the order given."""
    path = data_dir / "openwebtext2" / ARCHIVE
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return path


def monthly(documents: list[str], count: int) -> dict[str, bytes]:
    """The documents over `count` members, which stand in the archive in another order than their names'."""
    parts = {
        f"2{i:03d}-{i % 12 + 1:02d}.jsonl.zst": member(documents[i::count], 1 + i % 3) for i in range(count)
    }
    return dict(sorted(parts.items(), key=lambda item: item[0][::-1]))


def plain_pipeline(archive_path: Path, extract_to: Path, encode, end: int, fraction: float = 0.0005):
    """The published recipe, step by step and all in memory -> bytes of train.bin and val.bin."""
    with tarfile.open(archive_path) as tar:
        tar.extractall(extract_to, filter="data")
    documents = []
    for path in sorted(extract_to.glob("*.jsonl.zst")):
        with open(path, "rb") as file:
            content = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
        documents += [
            [*encode(json.loads(line)["text"]), end] for line in content.decode().split("\n") if line
        ]
    count = max(1, round(fraction * len(documents)))
    val = set(np.random.default_rng(2357).permutation(len(documents))[:count].tolist())
    splits = {"train": [], "val": []}
    for index, document in enumerate(documents):
        splits["val" if index in val else "train"] += document
    return {split: np.array(tokens, dtype=np.uint16).tobytes() for split, tokens in splits.items()}
