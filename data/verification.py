"""Token files against their meta.json, from the first byte to the last."""

from pathlib import Path

from data.token_files import SPLITS, describe_tokens, dtype_of, read_meta
from errors import Failure


def verify(folder: Path) -> list[str]:
    """Recount tokens, documents and checksums; returns a line for each split.

    Raises Failure, naming the first thing that differs, or where there is nothing to verify.
    """
    meta = read_meta(folder)
    if meta is None or "splits" not in meta:
        raise Failure(
            f"{folder} has no meta.json that says what its token files hold; prepare the corpus first"
        )
    lines = []
    for split in SPLITS:
        path, dtype = folder / f"{split}.bin", dtype_of(meta)
        found = describe_tokens(path, dtype, meta.get("end_of_text"))
        for name, said in meta["splits"][split].items():
            if found.get(name) != said:
                raise Failure(
                    f"{path}: {name} is {found.get(name)}, but meta.json says {said}; delete the token files "
                    "and prepare the corpus again, or bring the file again"
                )
        documents = meta.get("documents", {}).get(split)
        counted = found.get("documents", documents)
        if documents is not None and counted != documents:
            raise Failure(f"{path} has {counted:,} documents, but meta.json says {documents:,}")
        lines.append(
            f"{path}: {found['tokens']:,} tokens"
            + (f" in {documents:,} documents" if documents is not None else "")
            + f", sha256 {found['sha256'][:16]}...: as meta.json says"
        )
    return lines
