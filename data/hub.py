"""The corpora that come from the Hugging Face hub, a row each; or from files that were brought."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.preparation import Job
from data.records import FORMATS, SourceFile, folder_files
from data.sources import Files, HubStream, Join, articles
from data.tokenise import Source
from errors import Failure

TRAIN_ONLY = {"all": "train"}  # documents are held out of it
BOTH = {"train": "train", "val": "validation"}


@dataclass(frozen=True)
class HubCorpus:
    """path, config: on the hub. column: holds the text. splits: ours -> theirs, "all" to hold documents out.

    files: of the repository, where they are to be read as JSON lines because it has a loading script, which
    we do not run. year: of papers to keep, of those whose meta tells it. join: makes documents of rows.
    """

    name: str
    path: str
    config: str | None
    splits: dict[str, str]
    licence: str
    column: str = "text"
    files: dict[str, str] = field(default_factory=dict)
    year: str | None = None
    join: Join | None = None

    def open_split(self, split: str) -> Any:
        """The `datasets` stream of one of their splits."""
        import datasets

        if self.files:
            where = {split: f"hf://datasets/{self.path}/{self.files[split]}"}
            return datasets.load_dataset("json", data_files=where, split=split, streaming=True)
        return datasets.load_dataset(self.path, self.config, split=split, streaming=True)

    def keep(self, row: dict[str, Any]) -> bool:
        """Whether a row is of this corpus: of its year, by arXiv's YYMM."""
        yymm = (row.get("meta") or {}).get("yymm")
        return yymm is not None and str(yymm).zfill(4).startswith(self.year or "")


_ARXIV = {"train": "arxiv/train/*.jsonl.zst", "validation": "arxiv/validation/*.jsonl.zst"}

HUB = (
    HubCorpus("wikitext", "Salesforce/wikitext", "wikitext-103-raw-v1", BOTH, "CC BY-SA 4.0", join=articles),
    HubCorpus("slimpajama", "DKYoon/SlimPajama-6B", None, BOTH, "its sources' (cerebras/SlimPajama-627B)"),
    HubCorpus("pg19", "emozilla/pg19", None, BOTH, "Apache 2.0 (books in the public domain)"),
    HubCorpus("arxivmath", "EleutherAI/proof-pile-2", None, BOTH, "its papers'", files=_ARXIV),
    HubCorpus(
        "arxiv2000", "EleutherAI/proof-pile-2", None, TRAIN_ONLY, "its papers'", files=_ARXIV, year="00"
    ),
    HubCorpus("fineweb", "HuggingFaceFW/fineweb", "sample-10BT", TRAIN_ONLY, "ODC-By 1.0"),
    HubCorpus("fineweb_100bt", "HuggingFaceFW/fineweb", "sample-100BT", TRAIN_ONLY, "ODC-By 1.0"),
    HubCorpus("fineweb_edu", "HuggingFaceFW/fineweb-edu", "sample-10BT", TRAIN_ONLY, "ODC-By 1.0"),
)  # fmt: skip


def prepare(row: HubCorpus, job: Job) -> int:
    """Write the corpus' token files, from <folder>/source where files lie there, else from the hub.

    Files: source/train/ and source/val/, or source/ alone, out of which documents are then held out.
    Returns how many documents it has. Raises Failure without a network and without files.
    """
    brought = brought_files(job.folder / "source")
    about = {"corpus": row.name, "licence": row.licence}
    if brought:
        source: Source = Files(brought, row.column, row.join)
        about["source"] = {"folder": "source", **source.identity}
    else:
        identity = {"path": row.path, "config": row.config, "splits": row.splits}
        identity |= {"by_hand": str(job.folder / "source")}
        keep = row.keep if row.year else None
        source = HubStream(identity, row.open_split, row.splits, row.column, keep, row.join)
        about["source"] = {"hub": row.path, "config": row.config}
    return job.tokenise(source, about, row.column)


def brought_files(folder: Path) -> list[SourceFile]:
    """Files of documents in a folder, those of train/ before those of val/. Raises Failure for one alone."""
    found = {
        split: sorted(path for path in (folder / split).rglob("*") if path.name.endswith(FORMATS))
        for split in ("train", "val")
    }
    if any(found.values()):
        for split, paths in found.items():
            if not paths:
                raise Failure(f"{folder} holds files for one split only: {folder / split}/ has none")
        return [file for split, paths in found.items() for file in folder_files(paths, split)]
    return folder_files(sorted(path for path in folder.glob("*") if path.name.endswith(FORMATS)))
