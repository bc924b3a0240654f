"""What tests/cuda/test_count.py asks of the process in which CUDA is imitated."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.cuda import imitation, regions
from tests.cuda.launches import Count
from tests.cuda.microbatch import count_micro_batch


def micro_batch(model: str, compiled: str) -> tuple[int, float]:
    """Launches and GB."""
    count = count_micro_batch(model, compiled)
    return count.launches, count.bytes / 1e9


def counted(what: str) -> list[tuple[int, int]]:
    """(launches, bytes) of one operation on float32 tensors (32, 32)."""
    x, index = torch.ones(32, 32, device="cuda"), torch.arange(2, device="cuda")
    operations = {
        "view": lambda: x.view(-1)[3:].unsqueeze(0),
        "add": lambda: x + x,
        "add_row": lambda: x + x[:1],
        "copy_in_place": lambda: x.copy_(x),
        "fill": lambda: x.zero_(),
        "cast": lambda: x.bfloat16(),
        "pick_rows": lambda: x.index_select(0, index),
        "product": lambda: x @ x,
    }
    count = Count()
    with imitation.observed(count):
        operations[what]()
    return [(kernel.launches, kernel.bytes) for kernel in count.kernels]


def region() -> dict[str, list]:
    """The kernels of an MLP with its LayerNorm and residual, compiled; shapes of results and gradients."""

    def mlp(x: Tensor, up: Tensor, scale: Tensor, down: Tensor) -> Tensor:
        hidden = F.gelu(F.linear(F.layer_norm(x, (768,), scale), up))
        return x + F.linear(hidden, down)

    with imitation.shapes_only():
        shapes = (2048, 768), (3072, 768), (768,), (768, 3072)
        half = torch.bfloat16
        dtypes = torch.float32, half, torch.float32, half
        inputs = [
            torch.empty(shape, dtype=dtype, device="cuda", requires_grad=True)
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        forward, backward, transposed = Count(), Count(), Count()
        with imitation.observed(forward), torch.autocast("cuda", half):
            y = regions.compile(mlp)(*inputs)
        grad = torch.empty_like(y)
        with imitation.observed(backward):
            y.backward(grad, retain_graph=True)
        gradients = [list(x.grad.shape) for x in inputs]
        with imitation.observed(transposed):
            torch.autograd.grad(y, inputs, torch.empty(768, 2048, device="cuda").T)
    return {
        "forward": [(kernel.name, kernel.bytes) for kernel in forward.kernels],
        "backward": [(kernel.name, kernel.bytes) for kernel in backward.kernels],
        "shapes": [list(y.shape), str(y.dtype), y.device.type],
        "gradients": gradients,
        "copies": [kernel.name for kernel in transposed.kernels if not kernel.name.startswith("compiled")],
    }
