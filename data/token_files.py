"""Token files: {train,val}.bin, little-endian uint16 or uint32, and the meta.json that describes them."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from errors import Failure, UsageError
from files import read_json, write_atomically, write_json

SPLITS = ("train", "val")
META = "meta.json"
HF_TOKENIZER = "tokenizer.json"  # the name of Hugging Face tokenisers in meta.json
SPLIT_SEED = 2357
SPLIT_RULE = f"numpy default_rng({SPLIT_SEED}).permutation"  # ends the entry `split` of meta.json
_CHUNK = 1 << 24  # tokens read at once when a file is scanned
_ALWAYS_SCANNED = 1 << 29  # tokens (1 GiB) up to which a file is scanned each time it is opened


def id_dtype(vocab_size: int) -> np.dtype:
    """Dtype of token ids on disk: little-endian, 16 bits where they suffice, else 32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def validation_order(documents: int) -> np.ndarray:
    """Indices of all documents (documents,), in the order in which they are held out for validation.

    This is numpy's default_rng(2357).permutation(documents), as in the released code.
    """
    # Shuffling 32-bit numbers draws the same permutation in half the memory.
    order = np.arange(documents, dtype=np.uint32 if documents < 1 << 32 else np.int64)
    np.random.default_rng(SPLIT_SEED).shuffle(order)
    return order


def held_out_count(documents: int, fraction: float) -> int:
    """The number of validation documents in the released code."""
    return max(1, round(fraction * documents))


def held_out(documents: int, fraction: float) -> np.ndarray:
    """Indices of the validation documents, ascending: the split rule of the released code."""
    return np.sort(validation_order(documents)[: held_out_count(documents, fraction)])


def write_corpus(folder: Path, splits: dict[str, list[np.ndarray]], meta: dict[str, Any]) -> None:
    """Write both splits and meta.json, each atomically; meta.json comes last and marks them complete.

    splits: arrays of token ids, which are concatenated. Raises Failure when the folder cannot be written.
    """
    dtype = id_dtype(meta["tokenizer"]["vocab_size"])
    described = {}
    for split, arrays in splits.items():
        path = folder / f"{split}.bin"
        content = np.concatenate(arrays).astype(dtype)
        write_atomically(path, lambda file, content=content: file.write(content.tobytes()))
        described[split] = describe_tokens(path, dtype)
    write_json(folder / META, {**meta, "dtype": dtype.name, "splits": described})


def describe_tokens(path: Path, dtype: np.dtype, end_of_text: int | None = None) -> dict[str, Any]:
    """Scan a token file for its entry in meta.json: token count, largest token, SHA-256.

    end_of_text: if given, the entry also counts `documents` by it. Raises Failure if the file cannot be read.
    """
    digest, count, largest, documents = hashlib.sha256(), 0, 0, 0
    with reading(path), open(path, "rb") as file:
        while content := file.read(_CHUNK * dtype.itemsize):
            digest.update(content)
            tokens = np.frombuffer(content, dtype=dtype, count=len(content) // dtype.itemsize)
            count += len(tokens)
            largest = max(largest, int(tokens.max(initial=0)))
            documents += 0 if end_of_text is None else int((tokens == end_of_text).sum())
    found = {"tokens": count, "largest_token": largest, "sha256": digest.hexdigest()}
    return found if end_of_text is None else {**found, "documents": documents}


def verify(folder: Path) -> list[str]:
    """Scan both token files and compare tokens, documents and checksums with meta.json.

    Returns a line for each split. Raises Failure at the first difference, or without a meta.json.
    """
    meta = read_meta(folder)
    if meta is None or "splits" not in meta:
        raise Failure(f"{folder} has no meta.json that describes its token files; prepare the corpus first")
    lines = []
    for split in SPLITS:
        path = folder / f"{split}.bin"
        found = describe_tokens(path, dtype_of(meta), meta.get("end_of_text"))
        for name, expected in meta["splits"][split].items():
            if found.get(name) != expected:
                raise Failure(
                    f"{path}: {name} is {found.get(name)}, but meta.json says {expected}; delete the token "
                    "files and prepare the corpus again, or copy the file here again"
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


def dtype_of(meta: dict[str, Any]) -> np.dtype:
    """Dtype of the ids in the files; where meta.json has none, as the vocabulary needs it."""
    if "dtype" not in meta:
        return id_dtype(meta["tokenizer"]["vocab_size"])
    return np.dtype(meta["dtype"]).newbyteorder("<")


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The content of meta.json; None if there is none. Raises Failure when it is damaged."""
    path = folder / META
    try:
        with reading(path):
            meta = read_json(path) if path.exists() else None
        if meta is not None:
            _check_meta(meta)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(
            f"{path} is damaged ({error}); delete it to prepare the corpus again, or copy it here again"
        ) from error
    return meta


def _check_meta(meta: Any) -> None:
    """Raises KeyError, TypeError or AttributeError where a field that is read later is missing or wrong."""
    numbers = {"vocab_size": meta["tokenizer"]["vocab_size"]}
    for split, described in meta.get("splits", {}).items():
        numbers |= {f"{name} of {split}": described[name] for name in ("tokens", "largest_token")}
    for name, value in numbers.items():
        if not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}")
    if not isinstance(meta["tokenizer"]["name"], str):
        raise TypeError("the tokeniser's name is no text")
    if meta.get("dtype", "uint16") not in ("uint16", "uint32"):
        raise TypeError(f"dtype is {meta['dtype']!r}")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises Failure, naming the file, for an OSError within."""
    try:
        yield
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror or error}") from error


def open_tokens(path: Path, meta: dict[str, Any], sequence_length: int, in_ram: bool) -> np.ndarray:
    """Open a token file: (n,), uint16 or uint32, mapped read-only or read into memory.

    Raises Failure, naming the file, if it is missing, empty, truncated, longer than meta.json says, too short
    for one sequence, or holds a token that its tokeniser does not have.
    """
    described, dtype = meta.get("splits", {}).get(path.stem), dtype_of(meta)
    with reading(path):
        count = _token_count(path, dtype)
        if described is not None and described["tokens"] != count:
            difference = "truncated" if count < described["tokens"] else "longer than when it was made"
            raise Failure(
                f"{path} is {difference}: {count:,} tokens, but meta.json says {described['tokens']:,}; "
                f"{_remedy(path)}"
            )
        chosen_here = path.stem == "val" and meta.get("split", "").endswith((SPLIT_RULE, "last tokens"))
        more = (
            f", or hold out more: delete {META} and token files, and give prepare_data.py --val_fraction 0.2"
        )
        require_sequence(path, count, sequence_length, more if chosen_here else "")
        tokens = np.memmap(path, dtype=dtype, mode="r")
    # Scanning a large file at each start would take long: meta.json is trusted. Damage since then is found
    # when a batch is checked against the vocabulary.
    trusted = described is not None and count > _ALWAYS_SCANNED
    largest = described["largest_token"] if trusted else _largest(tokens)
    require_known(path, np.array([largest]), meta["tokenizer"])
    return np.array(tokens) if in_ram else tokens


def require_known(
    path: Path, tokens: np.ndarray, tokenizer: dict[str, Any], remedy: str | None = None
) -> None:
    """Raises Failure, with the remedy, for a token that the tokeniser of the file does not have."""
    if tokens.max() >= tokenizer["vocab_size"]:
        raise Failure(
            f"{path} holds token {tokens.max()}, but its {tokenizer['name']} tokeniser has "
            f"{tokenizer['vocab_size']:,}; {remedy or _remedy(path)}"
        )


def _token_count(path: Path, dtype: np.dtype) -> int:
    """Raises Failure unless the file holds a positive, integral number of tokens."""
    if not path.is_file():
        raise Failure(f"{path} is missing; {_remedy(path)}")
    size = path.stat().st_size
    if size == 0:
        raise Failure(f"{path} is empty; {_remedy(path)}")
    if size % dtype.itemsize:
        raise Failure(
            f"{path} has {size:,} bytes, which is no multiple of the {dtype.itemsize} bytes of a token; "
            f"{_remedy(path)}"
        )
    return size // dtype.itemsize


def _remedy(path: Path) -> str:
    # Deleting the folder could delete the corpus' source, or the other file of a copied pair.
    return f"copy the file here again or, if it was prepared here, delete {path.parent / META}"


def require_sequence(path: Path, count: int, sequence_length: int, remedy: str = "") -> None:
    """Raises Failure for a file that is too short for one window. remedy: what else could be done."""
    if count < 2:
        raise Failure(f"{path} has {count} tokens; a sequence needs 2 at least: give more text{remedy}")
    if count < sequence_length + 1:
        raise Failure(
            f"{path} has {count:,} tokens, too few for a sequence of {sequence_length} and its targets; "
            f"choose --sequence_length below {count}{remedy}"
        )


def _largest(tokens: np.ndarray) -> int:
    return max(int(tokens[start : start + _CHUNK].max()) for start in range(0, len(tokens), _CHUNK))


def require_vocabulary(folder: Path, meta: dict[str, Any], vocab_size: int) -> None:
    """Raises UsageError when the model's vocabulary is smaller than the tokeniser's."""
    needed = meta["tokenizer"]["vocab_size"]
    if needed > vocab_size:
        raise UsageError(
            f"the {meta['tokenizer']['name']} tokeniser of {folder} has {needed:,} tokens, more than "
            f"--vocab_size {vocab_size:,}; give --vocab_size {padded_vocab_size(needed)}"
        )


def padded_vocab_size(vocab_size: int) -> int:
    """The next multiple of 64, which matrix units compute fastest."""
    return -(-vocab_size // 64) * 64


def vocabulary_note(meta: dict[str, Any], vocab_size: int) -> str | None:
    """A sentence if the model's vocabulary is larger than needed, or of a slow width; else None."""
    tokenizer = meta["tokenizer"]
    best = padded_vocab_size(tokenizer["vocab_size"])
    if vocab_size == best:
        return None
    what = "is no multiple of 64, which is slower" if vocab_size % 64 else "has more rows than are used"
    return (
        f"note: --vocab_size {vocab_size} {what}: {tokenizer['vocab_size']:,} {tokenizer['name']} tokens fit "
        f"into --vocab_size {best}"
    )
