"""Documents out of files: each file is read as blocks of records that fit in little memory.

Formats by ending: .jsonl and .jsonl.zst (an object a line), .parquet (a column), .txt (the file is one
document). JSONL may be a member of an uncompressed tar archive: it is read where it lies, nothing is
extracted.
"""

import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from errors import Failure, UsageError

BLOCK_BYTES = 1 << 20  # of text that one task of a worker holds
LONGEST_RECORD = 1 << 26  # bytes; what is longer is no document, and would not fit in constant memory
_READ = 1 << 20
_FEED = (64, 1 << 12)  # compressed bytes handed over at once, fewest and most
_GROWN = 1 << 20  # what they are to become: text that repeats itself grows ten thousandfold
FORMATS = (".jsonl", ".jsonl.zst", ".parquet", ".txt")


class Damaged(Exception):
    """A file that cannot be read to its end: the reason."""


@dataclass(frozen=True)
class Block:
    """Records that follow one another. lines: those of a JSONL file, unparsed; or texts: documents.

    too_long: a record that was left out for its length stands here instead.
    """

    lines: bytes = b""
    texts: tuple[str, ...] = ()
    too_long: bool = False


@dataclass(frozen=True)
class SourceFile:
    """Where the bytes of a file are: `size` of them from `offset` in `path`. name: what reports call it.

    split: train or val; None where documents are to be held out of it. damage: why it cannot be read, if that
    is known beforehand.
    """

    name: str
    path: Path
    size: int
    offset: int = 0
    split: str | None = None
    damage: str | None = None

    def blocks(
        self,
        column: str,
        join: Callable[[Iterable[str]], Iterator[str]] | None = None,
        count: Callable[[int], None] = lambda size: None,
    ) -> Iterator[Block]:
        """The file's records in order. Raises Damaged.

        column: the one of a parquet file that is read. join: makes documents of the rows of a parquet file,
        or of the lines of a text, where they are not documents themselves. count: is told how many bytes of
        the file have been read, time and again.
        """
        if self.damage:
            raise Damaged(self.damage)
        if self.name.endswith(".parquet"):
            texts = _parquet_texts(self, column)
            yield from text_blocks(join(texts) if join else texts)
        elif self.name.endswith(".txt"):
            text = _whole(self, count)
            yield from text_blocks(join(text.splitlines(keepends=True)) if join else [text])
        elif self.name.endswith(".jsonl.zst"):
            yield from _line_blocks(_decompressed(self._bytes(count)))
        else:
            yield from _line_blocks(self._bytes(count))

    def _bytes(self, count: Callable[[int], None]) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            left = self.size
            while left:
                part = file.read(min(_READ, left))
                if not part:
                    raise Damaged(f"{left:,} bytes are missing at its end")
                left -= len(part)
                count(len(part))
                yield part


def tar_files(archive: Path, ending: str = ".jsonl.zst") -> list[SourceFile]:
    """The members of a tar archive whose names end so, sorted by name; of equal names the last one counts.

    Raises Failure where the archive is missing, is none, or is truncated.
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
                        member.name, archive, member.size, member.offset_data, damage=damage
                    )
    except tarfile.TarError as error:
        raise Failure(f"{archive} is no whole tar archive ({error}); bring or download it again") from error
    except OSError as error:
        raise Failure(f"cannot read {archive}: {error.strerror or error}") from error
    if not members:
        raise Failure(f"{archive} holds no *{ending}: it is another archive than was expected")
    return [members[name] for name in sorted(members)]


def _escapes(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def folder_files(paths: list[Path], split: str | None = None) -> list[SourceFile]:
    """These files, in the order given. Raises UsageError for a missing one, or one of another format."""
    found = []
    for path in paths:
        if not path.name.endswith(FORMATS):
            raise UsageError(f"{path}: its name must end in one of {', '.join(FORMATS)}")
        if not path.is_file():
            raise UsageError(f"{path} is no file")
        found.append(SourceFile(str(path), path, path.stat().st_size, split=split))
    return found


def _line_blocks(chunks: Iterator[bytes]) -> Iterator[Block]:
    """Whole lines, BLOCK_BYTES or a little more at a time."""
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
    """The content of zstd frames that follow one another. Raises Damaged, also where the last one is cut."""
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
        raise Damaged(f"its compression is damaged ({error})") from error
    if not complete:
        raise Damaged("it breaks off in the middle of its compressed data")


def _whole(file: SourceFile, count: Callable[[int], None]) -> str:
    if file.size > LONGEST_RECORD:
        raise Damaged(
            f"as one document of {file.size:,} bytes it is too long (at most {LONGEST_RECORD:,}); split it, "
            'or write its documents as lines of JSON with a "text"'
        )
    try:
        return b"".join(file._bytes(count)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"it is not UTF-8 (byte {error.start:,})") from error


def _parquet_texts(file: SourceFile, column: str) -> Iterator[str | None]:
    """A column, row by row; memory holds one row group of it."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file.path)
        if column not in table.schema_arrow.names:
            raise Damaged(f'it has no column "{column}", but {", ".join(table.schema_arrow.names)}')
        for batch in table.iter_batches(batch_size=256, columns=[column], use_threads=False):
            yield from batch.column(0).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise Damaged(f"it is no whole parquet file ({' '.join(str(error).split())})") from error


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
