"""What torch refuses on CUDA in deterministic mode: the list in torch.use_deterministic_algorithms."""

from collections.abc import Sequence
from typing import Any

# Of its operations, those that a language model could use.
REFUSED = {
    "_ctc_loss_backward", "_embedding_bag_dense_backward", "cumsum", "grid_sampler_2d_backward", "histc",
    "kthvalue", "nll_loss2d_forward", "put_", "reflection_pad1d_backward", "upsample_linear1d_backward",
}  # fmt: skip
REFUSED_WITH_INDICES = {"median", "nanmedian"}  # their forms with a dimension


def refuses(function: Any, args: Sequence[Any]) -> bool:
    """Whether the operation, an overload in torch.ops.aten, has no deterministic form for these arguments."""
    name = function._schema.name.removeprefix("aten::")
    if name == "cumsum":
        return args[0].is_floating_point()
    if name == "bincount":
        return args[1:2] not in ((), (None,))  # weights
    if name in REFUSED_WITH_INDICES:
        return function._schema.overload_name != ""
    return name in REFUSED
