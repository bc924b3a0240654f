"""Optimisers by --opt, and the parameter groups: Linear weights decay, all others do not."""

from collections.abc import Callable

import torch
from torch import nn

from config.training import TrainConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: Linear weights decay; norms, biases and embeddings (and so the tied head) do not."""
    weights = {kind: _weights_of(model, kind) for kind in (nn.Linear, nn.Embedding)}
    decaying = weights[nn.Linear] - weights[nn.Embedding]
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p in decaying], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p not in decaying], "weight_decay": 0.0},
    ]


def _weights_of(model: nn.Module, kind: type[nn.Module]) -> set[nn.Parameter]:
    return {module.weight for module in model.modules() if isinstance(module, kind)}


def _adamw(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    # The fused kernel updates all weights in one call; CPU and CUDA have it, other devices may not.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=1e-8, fused=fused)


def _sgd(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)


def _adafactor(groups: list[dict], config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, lr=config.lr)


OPTIMIZERS: dict[str, Callable[[list[dict], TrainConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "adafactor": _adafactor,
}


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that --opt names, over the two parameter groups."""
    return OPTIMIZERS[config.opt](parameter_groups(model, config.weight_decay), config)
