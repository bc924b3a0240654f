"""Documents out of files: a source is a list of files, each read as blocks of records in constant memory.

Formats by ending: .jsonl and .jsonl.zst (an object per line), .parquet (one column), .txt (one document per
file). JSONL files may be members of an uncompressed tar archive, which are read in place, without extracting.
"""

import codecs
import hashlib
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from data.token_files import reading
from errors import Failure

BLOCK_BYTES = 1 << 20  # of text in one task of a worker
LONGEST_RECORD = 1 << 26  # bytes; longer records are skipped, which keeps memory constant
_READ = 1 << 20
_FEED = (64, 1 << 12)  # compressed bytes decompressed at once, fewest and most
_GROWN = 1 << 20  # bytes they should become at most: repetitive text grows ten thousandfold
FORMATS = (".jsonl", ".jsonl.zst", ".parquet", ".txt")


Join = Callable[[Iterable[str]], Iterator[str]]  # makes documents of rows or lines


class DamagedFile(Exception):
    """A file that cannot be read to its end; the message is the reason."""


@dataclass(frozen=True)
class Block:
    """Consecutive records of a file: unparsed `lines` of JSONL, or the `texts` of documents.

    too_long: the block stands for one record that was skipped for its length.
    """

    lines: bytes = b""
    texts: tuple[str, ...] = ()
    too_long: bool = False


@dataclass(frozen=True)
class Piece:
    """A part of a source that is finished as one: a file, or a stretch of a stream.

    name: for reports. split: train or val; None if documents are to be held out of it. blocks: may raise
    DamagedFile. state: called after the last block, where the source stands then, as plain data.
    """

    name: str
    split: str | None
    blocks: Iterator[Block]
    state: Callable[[], Any] = field(default=lambda: None)


class Source(Protocol):
    """Where documents come from. identity: plain data that distinguishes it from other sources.

    size: bytes, None if unknown. read: bytes read so far.
    """

    identity: dict[str, Any]
    size: int | None
    read: int

    def pieces(self, finished: list[dict[str, Any]]) -> Iterator[Piece]:
        """All pieces after the finished ones, whose journal lines are given."""

    def unchanged(self, finished: list[dict[str, Any]], same: bool) -> list[dict[str, Any]] | None:
        """The finished pieces' journal lines up to the first piece that has changed since.

        None if nothing but the identity tells. same: whether the identity is that of the journal.
        """


@dataclass(frozen=True)
class SourceFile:
    """A file, or a member of an archive: `size` bytes from `offset` in `path`.

    name: for reports. format: one of FORMATS. split: train or val; None if documents are to be held out of
    it. damage: why it cannot be read, if that is known already. key: distinguishes it from other files; the
    name if empty.
    """

    name: str
    path: Path
    size: int
    format: str
    offset: int = 0
    split: str | None = None
    damage: str | None = None
    key: str = ""

    def blocks(
        self, column: str, join: Join | None = None, count: Callable[[int], None] = lambda size: None
    ) -> Iterator[Block]:
        """The file's records in order.

        Args:
            column: of the text in a parquet file.
            join: makes documents of a parquet file's rows or a text's lines, if they are not documents.
            count: called with the number of bytes after each read.

        Raises:
            DamagedFile: the file cannot be read to its end.
            Failure: the system refuses to read it.
        """
        if self.damage:
            raise DamagedFile(self.damage)
        if self.format == ".parquet":
            texts = _parquet_texts(self, column)
            yield from text_blocks(join(texts) if join else texts)
        elif self.format == ".txt":
            text = _text(self, count)
            yield from text_blocks(join(text.splitlines(keepends=True)) if join else [text])
        elif self.format == ".jsonl.zst":
            yield from _line_blocks(_decompressed(self._bytes(count)))
        else:
            yield from _line_blocks(self._bytes(count))

    def _bytes(self, count: Callable[[int], None]) -> Iterator[bytes]:
        with reading(self.path), open(self.path, "rb") as file:
            file.seek(self.offset)
            left = self.size
            while left:
                part = file.read(min(_READ, left))
                if not part:
                    raise DamagedFile(f"{left:,} bytes are missing at its end")
                left -= len(part)
                count(len(part))
                yield part


class FileSource:
    """Files in the given order, each a piece. column, join: see `SourceFile.blocks`."""

    def __init__(self, files: list[SourceFile], column: str = "text", join: Join | None = None) -> None:
        self._files, self._column, self._join = files, column, join
        self.size: int | None = sum(file.size for file in files)
        self.read = 0
        listed = "".join(f"{file.key or file.name}\0{file.size}\0{file.split}\n" for file in files)
        self.identity: dict[str, Any] = {
            "files": len(files),
            "bytes": self.size,
            "listing": hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest(),
        }

    def pieces(self, finished: list[dict[str, Any]]) -> Iterator[Piece]:
        self.read = sum(file.size for file in self._files[: len(finished)])
        for file in self._files[len(finished) :]:
            before = self.read
            blocks = file.blocks(self._column, self._join, self._count)
            yield Piece(file.name, file.split, blocks, partial(self.state, file))
            self.read = before + file.size

    def state(self, file: SourceFile) -> Any:
        """Of a file that has been read, for the journal."""

    def unchanged(self, finished: list[dict[str, Any]], same: bool) -> list[dict[str, Any]] | None:
        return None

    def _count(self, size: int) -> None:
        self.read += size


def tar_files(archive: Path, ending: str = ".jsonl.zst") -> list[SourceFile]:
    """The members of a tar archive with that ending, sorted by name; of equal names the last one counts.

    Raises Failure if the archive is missing, truncated or no tar archive, or has no such member.
    """
    members: dict[str, SourceFile] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                if member.name.endswith(ending):
                    damage = None if member.isreg() else "it is a link, not a file"
                    if _escapes(member.name):
                        damage = "its path leads out of the archive's folder"
                    members[member.name] = SourceFile(
                        member.name, archive, member.size, ending, member.offset_data, damage=damage
                    )
    except tarfile.TarError as error:
        raise Failure(f"{archive} is no complete tar archive ({error}); copy or download it again") from error
    except OSError as error:
        raise Failure(f"cannot read {archive}: {error.strerror or error}") from error
    if not members:
        raise Failure(f"{archive} holds no *{ending}: it is another archive than was expected")
    return [members[name] for name in sorted(members)]


def _escapes(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _line_blocks(chunks: Iterator[bytes]) -> Iterator[Block]:
    """Blocks of complete lines, of BLOCK_BYTES or a little more."""
    rest = bytearray()
    skipping = False  # within a line that is too long
    for chunk in chunks:
        if skipping:
            start = chunk.find(b"\n") + 1
            if not start:
                continue
            skipping = False
            yield Block(too_long=True)
            rest += chunk[start:]
        else:
            rest += chunk
        if len(rest) < BLOCK_BYTES:
            continue
        end = rest.rfind(b"\n") + 1
        if end:
            yield Block(lines=bytes(rest[:end]))
            del rest[:end]
        if len(rest) > LONGEST_RECORD:
            rest.clear()
            skipping = True
    if skipping:
        yield Block(too_long=True)
    if rest:
        yield Block(lines=bytes(rest))


def _decompressed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The content of concatenated zstd frames. Raises DamagedFile, also if the last one is truncated."""
    import zstandard

    frame, complete = zstandard.ZstdDecompressor().decompressobj(), True
    feed = _FEED[0]
    try:
        for chunk in chunks:
            start = 0
            while start < len(chunk):
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                data = chunk[start : start + feed]
                content = frame.decompress(data)
                start += len(data) - len(frame.unused_data)
                complete = frame.eof
                feed = min(2 * feed, _FEED[1]) if len(content) < _GROWN else max(feed // 4, _FEED[0])
                if content:
                    yield content
    except zstandard.ZstdError as error:
        raise DamagedFile(f"its compression is damaged ({error})") from error
    if not complete:
        raise DamagedFile("it breaks off in the middle of its compressed data")


def _text(file: SourceFile, count: Callable[[int], None]) -> str:
    if file.size > LONGEST_RECORD:
        raise DamagedFile(
            f"as one document of {file.size:,} bytes it is too long (at most {LONGEST_RECORD:,}); split it, "
            'or write its documents as lines of JSON with a "text"'
        )
    try:
        return b"".join(file._bytes(count)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedFile(f"it is not UTF-8 (byte {error.start:,}){utf16_hint(error)}") from error


def utf16_hint(error: UnicodeDecodeError) -> str:
    """What to do about text that begins with the byte order mark of UTF-16; else ""."""
    marked = error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return " but UTF-16; convert it with iconv -f UTF-16 -t UTF-8" if marked else ""


def _parquet_texts(file: SourceFile, column: str) -> Iterator[str | None]:
    """A column, row by row; memory holds one row group."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file.path)
        if column not in table.schema_arrow.names:
            raise DamagedFile(f'it has no column "{column}", but {", ".join(table.schema_arrow.names)}')
        for batch in table.iter_batches(batch_size=256, columns=[column], use_threads=False):
            yield from batch.column(0).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedFile(f"it is no complete parquet file ({' '.join(str(error).split())})") from error


def text_blocks(texts: Iterable[str | None]) -> Iterator[Block]:
    """Documents in blocks of about BLOCK_BYTES."""
    block, size = [], 0
    for text in texts:
        block.append(text)
        size += len(text) if isinstance(text, str) else 0
        if size >= BLOCK_BYTES:
            yield Block(texts=tuple(block))
            block, size = [], 0
    if block:
        yield Block(texts=tuple(block))
