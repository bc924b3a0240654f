"""Exported models: a folder with the weights and the configuration of the network.

model.safetensors holds each weight once, under its first name (the head is the embedding). config.json holds
the fields of `ModelConfig` under "model", a description of the tokenizer and of the run, and the SHA-256 of
the weights. A tokenizer.json that the model was trained with is there too. Plain data only: reading such a
folder runs no code.
"""

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from errors import Failure, UsageError
from files import (
    TEMPORARY_SUFFIX,
    copy_atomically,
    file_sha256,
    read_json,
    require_regular,
    sync_folder,
    utf8_path,
    write_atomically,
    write_json,
)
from models.config import ModelConfig
from models.language_model import LanguageModel

FORMAT = "cotformer-lab/model/1"
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


def is_pretrained(path: Path) -> bool:
    """Whether `save` wrote this folder, even if it is damaged: run folders hold no config.json."""
    return (path / CONFIG).is_file()


def save(folder: Path, model: LanguageModel, tokenizer_file: Path | None = None, **about: Any) -> None:
    """Write the folder atomically. about: plain data for config.json. tokenizer_file: copied into it.

    Raises UsageError if the folder exists, Failure when writing fails.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists; give another name, or move it away")
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters()}
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        write_atomically(temporary / WEIGHTS, lambda file: file.write(to_bytes(weights, {"format": "pt"})))
        content = {
            "format": FORMAT,
            "model": asdict(model.config),
            "parameters": model.parameter_count(),
            "sha256": file_sha256(temporary / WEIGHTS),
            **about,
        }
        write_json(temporary / CONFIG, content)
        if tokenizer_file is not None:
            copy_atomically(tokenizer_file, temporary / TOKENIZER)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise Failure(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json, and the weights on the CPU. Raises UsageError for a folder that is no model's.

    Raises Failure for a damaged one.
    """
    if not is_pretrained(folder):
        raise UsageError(f"{folder} is no exported model: it has no {CONFIG}")
    try:
        about = read_json(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise Failure(f"{folder / CONFIG} is damaged ({type(error).__name__})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UsageError(
            f"{folder / CONFIG} is not of an exported model of this project: its format is not {FORMAT}"
        )
    path = folder / WEIGHTS
    try:
        require_regular(path)
        if file_sha256(path) != about.get("sha256"):
            raise Failure(f"{path} is damaged, or of another model: its checksum is not that in {CONFIG}")
        with utf8_path(path) as readable:
            return about, load_file(readable)
    except (OSError, SafetensorError) as error:
        raise Failure(f"{path} is missing or damaged ({type(error).__name__})") from error


def from_pretrained(folder: str | Path) -> LanguageModel:
    """The model in a folder that `save` wrote: on the CPU, in evaluation mode.

    Raises UsageError for a folder that is no model's, Failure for a damaged one, or where the weights are not
    exactly those of the network.
    """
    folder = Path(folder)
    about, weights = read(folder)
    try:
        model = LanguageModel(ModelConfig(**about["model"]))
    except (KeyError, TypeError, UsageError) as error:
        raise Failure(f"{folder / CONFIG} describes no network of this version ({error})") from error
    _load(model, weights, folder / WEIGHTS)
    return model.eval()


def require_floats(weights: dict[str, Any], path: Path) -> None:
    """Raises Failure for weights of the file at `path` that are no floating-point numbers."""
    for name, weight in weights.items():
        if isinstance(weight, Tensor) and not weight.is_floating_point():
            raise Failure(f"{path}: {name} is {weight.dtype}; weights are floating-point numbers")


@torch.no_grad()
def _load(model: LanguageModel, weights: dict[str, Tensor], path: Path) -> None:
    own = dict(model.named_parameters())
    for name in sorted(own.keys() ^ weights.keys()):
        what = "lacks" if name in own else "holds, besides those of the network,"
        raise Failure(f"{path} {what} {name}")
    require_floats(weights, path)
    for name, weight in own.items():
        if weights[name].shape != weight.shape:
            found, due = list(weights[name].shape), list(weight.shape)
            raise Failure(f"{path}: {name} has the shape {found}, and {due} in this network")
        weight.copy_(weights[name])
