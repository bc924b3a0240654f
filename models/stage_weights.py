"""The weights of a block as its compiled stages read them (`models.block_graphs`).

Each block's weights are converted once in a forward pass: linear layers to autocast's format, which a graph
would otherwise convert to at every use. A LayerNorm's weight is multiplied into the linear layers that read
it, so that its gradient, a sum over all tokens, is computed once in a backward pass, not at every use. The
matrices of a stage are packed into one: autograd adds up the gradients of all uses of a block, and each sum
is a kernel.

Shapes: C = n_embd.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

# LayerNorms, and the linear layers that read them.
READERS = {"ln_1": ("attn.c_attn", "attn.q_down", "attn.kv_down"), "ln_2": ("mlp.c_fc",)}
_NORM_OF = {layer: norm for norm, layers in READERS.items() for layer in layers}
_PACKED = "packed"

Weights = dict[str, Tensor]  # of a stage: the packed matrix, and by their names those that are not in it


class _Rows(NamedTuple):
    """The rows of a matrix in a packed one, whose rows have C numbers. turned: it is there transposed."""

    count: int
    turned: bool


class StageWeights:
    """Which weights of a block a stage reads, and how they are handed to its graph."""

    def __init__(self, block: nn.Module, width: int, reads: Callable[[str], bool]) -> None:
        """width: C. reads: whether the stage reads the parameter of that name, LayerNorms included."""
        shapes = {name: weight.shape for name, weight in block.named_parameters() if reads(name)}
        matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2 and width in shape}
        self._rows = {
            name: _Rows(shape.numel() // width, turned=shape[1] != width) for name, shape in matrices.items()
        }
        norms = tuple(f"{norm}." for norm in READERS)
        self._others = [name for name in shapes if name not in self._rows and not name.startswith(norms)]

    def convert(self, given: Mapping[str, Tensor], dtype: torch.dtype) -> Weights:
        """given: a block's parameters by name."""
        made = {name: _folded(given, name, dtype) for name in self._others}
        parts = ((_folded(given, name, dtype), turned) for name, (_, turned) in self._rows.items())
        made[_PACKED] = torch.cat([part.T if turned else part for part, turned in parts])
        return made

    def unpack(self, weights: Weights) -> Weights:
        """What `convert` made, by the names of the block's parameters."""
        found = {name: weight for name, weight in weights.items() if name != _PACKED}
        parts = weights[_PACKED].split([count for count, _ in self._rows.values()])
        for part, (name, (_, turned)) in zip(parts, self._rows.items(), strict=True):
            found[name] = part.T if turned else part
        return found


def _folded(given: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    """A weight or bias with that of the LayerNorm before it, in `dtype`; RMSNorms' keep their format."""
    layer, _, kind = name.rpartition(".")
    weight, norm = given[name], _NORM_OF.get(layer)
    if norm is not None and kind == "weight":
        weight = weight * given[f"{norm}.weight"]
    elif norm is not None:
        weight = weight + given[f"{layer}.weight"] @ given[f"{norm}.bias"]
    return weight.to(dtype) if weight.dim() == 2 or kind == "bias" else weight
