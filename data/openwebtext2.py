"""OpenWebText2: its archive, vocabulary and token files.

The tar of *.jsonl.zst (28 GB, 17.1 million documents) of EleutherAI's Pile, in the mirror
segyges/OpenWebText2. `download` and `bpe` need a network and little else; tokenising needs cores, and neither
network nor the 94 GB of
the extracted archive: it is read as it is.
"""

import shutil
from pathlib import Path

from data.sources import FileSource, tar_files
from data.token_files import META, SPLITS
from data.tokenise import Preparation, tokenise
from data.tokenizers import make_tokenizer
from errors import Failure

NAME, ALIAS = "openwebtext2", "owt2"
ARCHIVE = "openwebtext2.jsonl.zst.tar"
URL = f"https://huggingface.co/datasets/segyges/OpenWebText2/resolve/main/{ARCHIVE}"


def download(folder: Path, url: str = URL, sha256: str | None = None) -> Path:
    """Download the archive into `folder`. Raises Failure, with the command to fetch it by hand."""
    from data.download import download as fetch

    by_hand = (
        f'by hand: on a machine with network, wget -c "{URL}", then rsync --partial it to {folder / ARCHIVE}'
    )
    return fetch(url, folder / ARCHIVE, by_hand=by_hand, sha256=sha256)


def bpe(tokenizer: str = "gpt2") -> int:
    """Put a vocabulary into tiktoken's cache (TIKTOKEN_CACHE_DIR); returns its size.

    Raises Failure if it is neither cached nor downloadable.
    """
    return make_tokenizer(tokenizer).vocab_size


def prepare(job: Preparation) -> int:
    """Write the token files from the archive; returns the number of documents.

    Raises Failure if the archive is missing or damaged; see `data.tokenise.tokenise` for the rest.
    """
    archive = job.archive or find_archive([job.folder, job.data_dir / NAME, job.data_dir / ALIAS])
    source = FileSource(tar_files(archive), "text")
    about = {"corpus": NAME, "source": {"archive": archive.name, **source.identity}}
    return tokenise(source, job, about)


def find_archive(folders: list[Path]) -> Path:
    """The archive in the first folder that has it. Raises Failure, with what to do, if none has."""
    for folder in folders:
        if (folder / ARCHIVE).is_file():
            return folder / ARCHIVE
    begun = any((folder / f"{ARCHIVE}.partial").exists() for folder in folders)
    raise Failure(
        f"{folders[0] / ARCHIVE} is {'not yet complete' if begun else 'missing'}; run `python "
        f"prepare_data.py openwebtext2 download --data_dir {folders[0].parent}` on a machine with network"
    )


def reset(folder: Path, source: bool = False) -> list[Path]:
    """Delete the token files and any unfinished preparation; returns the deleted paths.

    source: the downloaded archive too.
    """
    names = [META, "parts", *(f"{split}.bin" for split in SPLITS), *(f"{s}.bin.partial" for s in SPLITS)]
    if source:
        names += [ARCHIVE, f"{ARCHIVE}.partial", f"{ARCHIVE}.json"]
    deleted = [folder / name for name in names if (folder / name).exists()]
    for path in deleted:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return deleted


if __name__ == "__main__":  # the former `python -m data.openwebtext2`
    import runpy
    import sys

    sys.argv[1:1] = ["openwebtext2"]
    runpy.run_module("prepare_data", run_name="__main__", alter_sys=True)
