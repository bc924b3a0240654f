"""Token files that came without a meta.json: what they are taken for, and whether that is likely."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from data.token_files import SPLITS, id_dtype, reading
from errors import Failure

logger = logging.getLogger(__name__)

SAMPLE = 1 << 16  # 16-bit numbers that are looked at


def brought(folder: Path, tokenizer: dict[str, Any], end_of_text: int | None) -> dict[str, Any]:
    """Entries of meta.json for token files that came without one: their tokeniser and dtype.

    Ids of a small vocabulary may be in 32 bits as well, which is seen in them.

    Args:
        tokenizer: the description of what they are taken for.

    Raises:
        Failure: the files hold ids of several sizes, or of 64 bits.
    """
    usual, dtypes, samples = id_dtype(tokenizer["vocab_size"]), set(), []
    for path in (folder / f"{split}.bin" for split in SPLITS):
        if not path.is_file():
            continue
        with reading(path):
            read = np.fromfile(path, "<u2", SAMPLE)
        wide = read[::2].any() and not read[1::2].any()
        dtypes.add(np.dtype("<u4") if wide else usual)
        samples.append(read[: len(read) // 4 * 4].view("<u4" if wide else usual))
        if wide and not samples[-1][1::2].any():
            raise Failure(
                f"{path} holds ids of 64 bits; convert it to uint16, or uint32 for large vocabularies"
            )
    if len(dtypes) > 1:
        raise Failure(f"the token files in {folder} hold ids of 16 bits and of 32; copy both from one place")
    note_origin(folder, tokenizer, end_of_text, samples[0])
    return {"tokenizer": tokenizer, "dtype": dtypes.pop().name}


def note_origin(folder: Path, tokenizer: dict[str, Any], end_of_text: int | None, first: np.ndarray) -> None:
    """Log what tokens without a meta.json are taken for, and whether that is unlikely.

    first (n,): some of them. end_of_text: the id that is expected among them.
    """
    name = tokenizer["name"]
    said = f"{folder} has no meta.json: its tokens are taken to be of {name}"
    if len(first) < SAMPLE // 2 or end_of_text is None or (first == end_of_text).any():
        logger.info(f"note: {said}")
        return
    logger.warning(
        f"{said}, but none of the first {len(first):,} is its end of text, {end_of_text}, and the largest is "
        f"{first.max()}; if they are of another tokeniser, put a meta.json there with its name and size: "
        '{"tokenizer": {"name": "bytes", "vocab_size": 257}}'
    )
