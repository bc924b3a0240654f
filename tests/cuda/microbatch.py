"""A micro-batch at the paper's size on the imitated device, counted: shapes only, nothing is computed."""

from typing import Any

import torch
from torch import Tensor

from bench.plan import SIZES, model_flags
from distributed import choose_device
from models.block_graphs import BlockGraphs
from models.config import ModelConfig
from models.language_model import LanguageModel
from tests.cuda import imitation, regions
from tests.cuda.launches import Count
from tests.cuda.triton import kernels_launched, replaced

CAPACITIES = [0.7, 0.5, 0.3, 0.1]  # of the passes of adaptive models: half of the compute at full depth


def count_micro_batch(model: str, compiled: str = "none", batch: int = 8, **flags: Any) -> Count:
    """The kernels of one forward and backward pass in bfloat16, after a first one.

    Args:
        model: as --model takes it.
        compiled: "none", or "block" as with --compile block.
        batch: sequences.
        flags: fields of ModelConfig.
    """
    imitation.install()
    device, size, count = choose_device("cuda"), SIZES["paper"], Count()
    with imitation.shapes_only(), kernels_launched():
        with device:
            network = LanguageModel(ModelConfig(**{**model_flags(model, size), **flags})).train()
        network.lm_head.weight = network.transformer.wte.weight
        if compiled == "block":
            with replaced(torch, "compile", regions.compile):
                BlockGraphs(network).install()
        idx = torch.zeros(batch, size.length, dtype=torch.long, device=device)
        _run(network, idx)  # from now on gradients are added to others
        with imitation.observed(count):
            _run(network, idx)
    return count


def _run(network: LanguageModel, idx: Tensor) -> None:
    routing = {"length_factors": CAPACITIES} if network.routed else {}
    with torch.autocast("cuda", torch.bfloat16):
        loss = network(idx, idx, **routing)["loss"]
    loss.backward()
