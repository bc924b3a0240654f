"""Weights of the released CoTFormer code, renamed and joined so that our models load them strictly."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from errors import UsageError
from models.config import ModelConfig

_PREFIXES = ("_orig_mod.", "module.")  # added by torch.compile and DistributedDataParallel
# PonderNet's last LayerNorm and head are in a list of their own.
_RENAMED = {
    "to_logits.0.weight": "transformer.ln_f.weight",
    "to_logits.0.bias": "transformer.ln_f.bias",
    "to_logits.1.weight": "lm_head.weight",
}
_TIED = ("transformer.wte.weight", "lm_head.weight")


def import_released(state_dict: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Translate a state dict of the released code; one of ours passes through unchanged.

    Dropped: prefixes, buffers (causal masks, the four-dimensional `attn.bias`; rotary tables,
    `transformer.wpe`) and weights that are never used (router and halting head after the last pass,
    PonderNet's stick-breaking gate). A split projection (`q_attn` C -> C and `c_attn` C -> 2C) is joined to
    one of C -> 3C with rows q, k, v. Of the tied embedding and head, one may be missing.

    Raises:
        UsageError: the two tied tensors differ, or a value is not a tensor.
    """
    weights = {}
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise UsageError(f"{name} in the checkpoint is a {type(value).__name__}, not a tensor of weights")
        name = _RENAMED.get(_strip(name), _strip(name))
        if not _is_buffer(name, value) and not _is_unused(name, config):
            weights[name] = value
    _join_projections(weights, config.n_embd)
    _tie(weights)
    return weights


def _strip(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _is_buffer(name: str, value: Tensor) -> bool:
    return name.startswith("transformer.wpe.") or (name.endswith(".attn.bias") and value.dim() == 4)


def _is_unused(name: str, config: ModelConfig) -> bool:
    last = config.n_repeat - 1
    if config.variant.predicts_every_pass and name.startswith("depth_predictor."):
        return True
    return name.startswith((f"transformer.mod.{last}.", f"to_halt_logits.{last}."))


def _join_projections(weights: dict[str, Tensor], n_embd: int) -> None:
    for query_name in [name for name in weights if re.search(r"\.q_attn\.(weight|bias)$", name)]:
        joint_name = query_name.replace(".q_attn.", ".c_attn.")
        keys_values = weights.get(joint_name)
        if keys_values is None or len(keys_values) != 2 * n_embd:
            raise UsageError(f"{query_name} in the checkpoint needs {joint_name} with {2 * n_embd} rows")
        weights[joint_name] = torch.cat((weights.pop(query_name), keys_values))


def _tie(weights: dict[str, Tensor]) -> None:
    present = [name for name in _TIED if name in weights]
    if len(present) == 2 and not torch.equal(*(weights[name] for name in _TIED)):
        raise UsageError(f"{' and '.join(_TIED)} differ in the checkpoint, but these models tie them")
    for name in _TIED:
        if present:
            weights.setdefault(name, weights[present[0]])
