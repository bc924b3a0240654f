"""Where `data.tokenise` takes documents from: files, or a stream from the Hugging Face hub."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data.records import Damaged, SourceFile, text_blocks
from data.tokenise import Piece
from errors import Failure

PER_PIECE = 1 << 28  # characters of a stream after which a killed preparation can go on

Join = Callable[[Iterable[str]], Iterator[str]]


class Files:
    """Files in the order given, each a piece. column, join: see `SourceFile.blocks`."""

    def __init__(self, files: list[SourceFile], column: str, join: Join | None = None) -> None:
        self._files, self._column, self._join = files, column, join
        self.size = sum(file.size for file in files)
        self.read = 0
        listed = "".join(f"{file.name}\0{file.size}\0{file.split}\n" for file in files)
        self.identity: dict[str, Any] = {
            "files": len(files),
            "bytes": self.size,
            "listing": hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest(),
        }

    def pieces(self, finished: list[dict[str, Any]]) -> Iterator[Piece]:
        self.read = sum(file.size for file in self._files[: len(finished)])
        for file in self._files[len(finished) :]:
            before = self.read
            yield Piece(file.name, file.split, file.blocks(self._column, self._join, self._count))
            self.read = before + file.size

    def _count(self, size: int) -> None:
        self.read += size


class HubStream:
    """Splits of a data set of the hub, read over the network as they are needed.

    open_split: the hub's name of a split -> its `datasets` stream. splits: ours -> theirs; "all" where
    documents are to be held out. keep: which rows count. join: makes documents of texts; such a split is one
    piece, for the documents of the next one begin in the middle of a stretch of rows.
    """

    size = None

    def __init__(
        self,
        identity: dict[str, Any],
        open_split: Callable[[str], Any],
        splits: dict[str, str],
        column: str,
        keep: Callable[[dict[str, Any]], bool] | None = None,
        join: Join | None = None,
    ) -> None:
        self.identity, self.read = identity, 0
        self._open, self._splits, self._column = open_split, splits, column
        self._keep, self._join = keep, join

    def pieces(self, finished: list[dict[str, Any]]) -> Iterator[Piece]:
        done = {line["state"]["split"]: line["state"] for line in finished}
        for ours, theirs in self._splits.items():
            state = done.get(ours)
            if state is not None and state["ended"]:
                continue
            try:
                stream = self._open(theirs)
                if state is not None:
                    stream.load_state_dict(state["stream"])
                rows = iter(stream)
            except Exception as error:  # of the many libraries in between
                raise _unreachable(self.identity, error) from error
            number = sum(line["state"]["split"] == ours for line in finished)
            ended = False
            while not ended:
                stretch = _Stretch(self._texts(rows), None if self._join else PER_PIECE)
                blocks = text_blocks(self._join(stretch) if self._join else stretch)
                split = None if ours == "all" else ours

                def where(stream: Any = stream, stretch: "_Stretch" = stretch, ours: str = ours) -> Any:
                    return {"split": ours, "ended": stretch.ended, "stream": stream.state_dict()}

                number += 1
                yield Piece(f"{theirs}, stretch {number}", split, blocks, where)
                ended = stretch.ended

    def _texts(self, rows: Iterator[dict[str, Any]]) -> Iterator[Any]:
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                raise _unreachable(self.identity, error) from error
            if self._keep is None or self._keep(row):
                if self._column not in row:
                    raise Damaged(f'it has no column "{self._column}", but {", ".join(row)}')
                yield row[self._column]


class _Stretch:
    """Texts up to about `limit` characters. ended: whether they were the last ones."""

    def __init__(self, texts: Iterator[Any], limit: int | None) -> None:
        self._texts, self._limit, self.ended = texts, limit, False

    def __iter__(self) -> Iterator[Any]:
        size = 0
        for text in self._texts:
            yield text
            size += len(text) if isinstance(text, str) else 0
            if self._limit is not None and size >= self._limit:
                return
        self.ended = True


def _unreachable(identity: dict[str, Any], error: Exception) -> Failure:
    return Failure(
        f"cannot read {identity['path']} from the Hugging Face hub ({type(error).__name__}: "
        f"{' '.join(str(error).split())[:200]}); prepare it on a machine with network, where the same "
        f"command goes on from what is finished, or put its files into {identity['by_hand']}/"
    )


def articles(lines: Iterable[str]) -> Iterator[str]:
    """WikiText's articles out of its lines: each begins with a heading of the first order, " = Title = "."""
    article: list[str] = []
    for line in lines:
        if _is_title(line) and article:
            text = "".join(article)
            if text.strip():
                yield text
            article = []
        article.append(line)
    if "".join(article).strip():
        yield "".join(article)


def _is_title(line: str) -> bool:
    parts = line.strip().split(" ")
    return len(parts) > 2 and parts[0] == parts[-1] == "=" and "=" not in parts[1:-1]
