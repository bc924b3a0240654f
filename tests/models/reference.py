"""What references share: networks with large weights in float64, and rotation written out."""

import math

import torch

from models.config import ModelConfig
from models.language_model import LanguageModel

SIZES = {"vocab_size": 31, "sequence_length": 9, "n_layer": 4, "n_head": 2, "n_embd": 12, "n_repeat": 3}
RESERVED = {"n_layer_begin": 1, "n_layer_end": 1}


def make(model, device="cpu", **fields):
    torch.manual_seed(7)
    network = LanguageModel(ModelConfig(model=model, **{**SIZES, **fields})).double().eval()
    for parameter in network.parameters():  # larger than at initialisation, so that every part matters
        torch.nn.init.normal_(parameter, std=0.4)
    return network.to(device)


def rotated(vector, position):
    """One head's query or key (D,), turned pair by pair by position * 10000^(-2i/D)."""
    result = vector.clone()
    for i in range(0, len(vector), 2):
        angle = position * 10000.0 ** (-i / len(vector))
        a, b = vector[i].clone(), vector[i + 1].clone()
        result[i] = a * math.cos(angle) - b * math.sin(angle)
        result[i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return result
