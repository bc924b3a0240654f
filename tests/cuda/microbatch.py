"""A micro-batch at the paper's size on the imitated device, counted: shapes only, nothing is computed."""

from typing import Any

import torch
from torch import Tensor

from bench.plan import SIZES, model_flags
from models.config import ModelConfig
from models.language_model import LanguageModel
from tests.cuda import imitation
from tests.cuda.launches import Count

CAPACITIES = [0.7, 0.5, 0.3, 0.1]  # of the passes of adaptive models: half of the compute at full depth


def count_micro_batch(model: str, batch: int = 8, **flags: Any) -> Count:
    """The kernels of one forward and backward pass in bfloat16, after those of a first one.

    Args:
        model: as --model takes it.
        batch: sequences.
        flags: fields of ModelConfig.
    """
    device, size, count = imitation.install(), SIZES["paper"], Count()
    with imitation.shapes_only():
        with device:
            network = LanguageModel(ModelConfig(**{**model_flags(model, size), **flags})).train()
        network.lm_head.weight = network.transformer.wte.weight
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
