"""Corpora of the Hugging Face hub, streamed over the network or read from files copied here."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data.corpora import HubDataset
from data.local_files import LocalFiles, distinct, documents, folder_files
from data.sources import FORMATS, DamagedFile, Join, Piece, Source, SourceFile, text_blocks
from data.tokenise import Preparation, refuse_fraction, tokenise
from errors import Failure

PER_PIECE = 1 << 28  # characters of a stream in one piece: how much a killed preparation may repeat


def prepare(dataset: HubDataset, job: Preparation) -> int:
    """Write the corpus' token files from the files in <folder>/source, or from the hub if there are none.

    Files lie in source/train/ and source/val/, or in source/ itself; documents are then held out of them.
    Returns the number of documents. Raises Failure with neither network nor files.
    """
    local_files = source_files(job.folder / "source")
    if any(file.split for file in local_files) or (not local_files and "all" not in dataset.splits):
        refuse_fraction(job.corpus, job.val_fraction)
    join = articles if dataset.rows_are_lines else None
    about: dict[str, Any] = {"corpus": job.corpus, "licence": dataset.licence}
    if local_files:
        source: Source = LocalFiles(local_files, dataset.column, join)
        about["source"] = {"folder": "source", **source.identity}
    else:
        identity = {"path": dataset.path, "config": dataset.config, "splits": dataset.splits}
        identity |= {"by_hand": str(job.folder / "source")}
        keep = dataset.keep if dataset.year else None
        source = HubSource(identity, dataset.open_split, dataset.splits, dataset.column, keep, join)
        about["source"] = {"hub": dataset.path, "config": dataset.config}
    return tokenise(source, job, about, column=dataset.column)


def source_files(folder: Path) -> list[SourceFile]:
    """Files of documents in a folder, those of train/ before those of val/.

    A file of several names is read once. Raises Failure if only one of the two has files, or both have the
    same one.
    """
    found = {
        split: sorted(path for path in documents(folder / split) if path.name.endswith(FORMATS))
        for split in ("train", "val")
    }
    if any(found.values()):
        for split, paths in found.items():
            if not paths:
                raise Failure(f"{folder} holds files for one split only: {folder / split}/ has none")
        once = {split: distinct(paths)[0] for split, paths in found.items()}
        if shared := distinct([*once["train"], *once["val"]])[1]:
            raise Failure(f"{shared[0]} is also in {folder / 'train'}/: remove one of the two")
        return [file for split, paths in once.items() for file in folder_files(paths, split)]
    return folder_files(distinct(sorted(path for path in folder.glob("*") if path.name.endswith(FORMATS)))[0])


class HubSource:
    """Splits of a data set of the hub, streamed over the network.

    Args:
        identity: distinguishes the source; `path` and `by_hand` are named when the hub cannot be reached.
        open_split: the hub's name of a split -> its `datasets` stream.
        splits: our name -> the hub's; "all" if documents are to be held out.
        keep: tells which rows belong to the corpus.
        join: makes documents of rows. Such a split is one piece: elsewhere a document could be cut.
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
            except Exception as error:  # the libraries below raise many kinds
                raise _unreachable(self.identity, error) from error
            number = sum(line["state"]["split"] == ours for line in finished)
            ended = False
            while not ended:
                stretch = _Stretch(self._texts(rows), None if self._join else PER_PIECE)
                blocks = text_blocks(self._join(stretch) if self._join else stretch)
                split = None if ours == "all" else ours

                def position(stream: Any = stream, stretch: "_Stretch" = stretch, ours: str = ours) -> Any:
                    return {"split": ours, "ended": stretch.ended, "stream": stream.state_dict()}

                number += 1
                yield Piece(f"{theirs}, stretch {number}", split, blocks, position)
                ended = stretch.ended

    def unchanged(self, finished: list[dict[str, Any]], same: bool) -> list[dict[str, Any]] | None:
        return None

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
                    raise DamagedFile(f'it has no column "{self._column}", but {", ".join(row)}')
                yield row[self._column]


class _Stretch:
    """Texts up to about `limit` characters. ended: whether the stream ended with them."""

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
        f"command resumes after the last finished piece, or put its files into {identity['by_hand']}/"
    )


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Articles out of WikiText's lines: each begins with a heading of first order, " = Title = "."""
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
