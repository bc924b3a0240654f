"""The table of corpora: name -> its tokeniser and how it is made."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.algorithmic import TASKS
from data.tokenizers import make_tokenizer
from errors import UsageError, unknown
from files import FILES_PREFIX, folder_name

DEFAULT_FOLDER = Path(__file__).parent / "datasets"


@dataclass(frozen=True)
class HubDataset:
    """A data set of the Hugging Face hub.

    path, config: its name there. splits: our name -> the hub's; "all" if documents are to be held out.
    column: of the text. files: glob of each split's JSON-lines files, for a repository with a loading script,
    which is not run. year: keeps the papers of a year only. rows_are_lines: articles are joined from lines.
    """

    path: str
    config: str | None
    splits: dict[str, str]
    licence: str
    column: str = "text"
    files: dict[str, str] = field(default_factory=dict)
    year: str | None = None
    rows_are_lines: bool = False

    def open_split(self, split: str) -> Any:
        """The `datasets` stream of one of the hub's splits."""
        import datasets

        if self.files:
            where = {split: f"hf://datasets/{self.path}/{self.files[split]}"}
            return datasets.load_dataset("json", data_files=where, split=split, streaming=True)
        return datasets.load_dataset(self.path, self.config, split=split, streaming=True)

    def keep(self, row: dict[str, Any]) -> bool:
        """Whether a row is of the year, by arXiv's YYMM; rows without a date are not."""
        yymm = (row.get("meta") or {}).get("yymm")
        return yymm is not None and str(yymm).zfill(4).startswith(self.year or "")


@dataclass(frozen=True)
class CorpusSpec:
    """A row of the table.

    tokenizer: the default. fixed: there is no other. command: prepares it, if it is too large to be prepared
    when training begins. hub: where it comes from, if that is the Hugging Face hub.
    """

    name: str
    tokenizer: str
    aliases: tuple[str, ...] = ()
    fixed: bool = False
    command: str | None = None
    hub: HubDataset | None = None


def _from_hub(name: str, *args: Any, **kwargs: Any) -> CorpusSpec:
    command = f"python prepare_data.py --dataset {name}"
    return CorpusSpec(name, "gpt2", command=command, hub=HubDataset(*args, **kwargs))


_SPLIT_HERE = {"all": "train"}
_BOTH_SPLITS = {"train": "train", "val": "validation"}
_ARXIV = {"train": "arxiv/train/*.jsonl.zst", "validation": "arxiv/validation/*.jsonl.zst"}
_STEPS = "python prepare_data.py openwebtext2"
_OWT2 = f"{_STEPS} download` with network, then `{_STEPS} tokenize"

CORPORA = (
    CorpusSpec("pydoc", "bytes"),
    CorpusSpec("shakespeare-char", "char", fixed=True),
    CorpusSpec("openwebtext2", "gpt2", aliases=("owt2",), command=_OWT2),
    _from_hub(
        "wikitext", "Salesforce/wikitext", "wikitext-103-raw-v1", _BOTH_SPLITS, "CC BY-SA 4.0",
        rows_are_lines=True,
    ),
    _from_hub(
        "slimpajama", "DKYoon/SlimPajama-6B", None, _BOTH_SPLITS, "its sources' (cerebras/SlimPajama-627B)"
    ),
    _from_hub("pg19", "emozilla/pg19", None, _BOTH_SPLITS, "Apache 2.0 (books in the public domain)"),
    _from_hub(
        "arxivmath", "EleutherAI/proof-pile-2", None, _BOTH_SPLITS, "its papers'", files=_ARXIV
    ),
    _from_hub(
        "arxiv2000", "EleutherAI/proof-pile-2", None, _SPLIT_HERE, "its papers'", files=_ARXIV, year="00"
    ),
    _from_hub("fineweb", "HuggingFaceFW/fineweb", "sample-10BT", _SPLIT_HERE, "ODC-By 1.0"),
    _from_hub("fineweb_100bt", "HuggingFaceFW/fineweb", "sample-100BT", _SPLIT_HERE, "ODC-By 1.0"),
    _from_hub("fineweb_edu", "HuggingFaceFW/fineweb-edu", "sample-10BT", _SPLIT_HERE, "ODC-By 1.0"),
)  # fmt: skip

# Mixtures of corpora: name -> the weight of each in training.
MIXTURES = {"arxiv+wiki": {"arxiv2000": 0.5, "wikitext": 0.5}}


def registered_corpora() -> list[str]:
    """Every name of the table, aliases, mixtures and tasks included; --dataset also takes files:<pattern>."""
    names = [name for spec in CORPORA for name in (spec.name, *spec.aliases)]
    return [*names, *MIXTURES, *TASKS]


def is_local(name: str) -> bool:
    """Whether a corpus is made of local files, `files:<pattern>,...`."""
    return name.startswith(FILES_PREFIX)


def find(name: str) -> CorpusSpec:
    """The row of a corpus. Raises UsageError for a name that is not registered."""
    if is_local(name):
        return CorpusSpec(name, "gpt2")
    for spec in CORPORA:
        if name in (spec.name, *spec.aliases):
            return spec
    raise UsageError(unknown(f"--dataset {name}: unknown corpus", name, registered_corpora()))


def require_tokenizer(spec: CorpusSpec, tokenizer: str | None) -> None:
    """Raises UsageError for another tokeniser than that of a corpus with a fixed one."""
    if spec.fixed and tokenizer not in (None, spec.tokenizer):
        raise UsageError(f"--tokenizer {tokenizer}: {spec.name} comes in {spec.tokenizer} only")


def corpus_folder(name: str, data_dir: str | Path | None, tokenizer: str | None) -> Path:
    """The folder of a corpus' token files. data_dir: None for data/datasets. tokenizer: None for its own."""
    spec, data_dir = find(name), DEFAULT_FOLDER if data_dir is None else Path(data_dir)
    if tokenizer is None or tokenizer == spec.tokenizer:
        for alias in spec.aliases:  # token files made under the short name
            if not (data_dir / spec.name).is_dir() and (data_dir / alias).is_dir():
                return data_dir / alias
        return data_dir / folder_name(spec.name)
    label = tokenizer
    if tokenizer.endswith(".json"):
        label = f"json-{make_tokenizer(tokenizer).to_meta()['sha256'][:8]}"
    return data_dir / f"{folder_name(spec.name)}-{label}"
