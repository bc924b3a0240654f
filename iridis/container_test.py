"""The container's %test: imports every package and runs a forward pass of a small LN-CoTFormer."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import datasets  # noqa: F401
import matplotlib  # noqa: F401
import numpy  # noqa: F401
import safetensors  # noqa: F401
import tiktoken  # noqa: F401
import tokenizers  # noqa: F401
import torch
import tqdm  # noqa: F401
import wandb  # noqa: F401
import zstandard  # noqa: F401

import config
import models

FLAGS = (
    "--model ln_cotformer --n_layer 4 --n_layer_begin 1 --n_layer_end 1 --n_repeat 3 --n_embd 32 --n_head 2 "
    "--vocab_size 64 --sequence_length 16"
)

tokens = torch.randint(64, (2, 16))
loss = models.make_model_from_args(config.parse_args(FLAGS.split()))(tokens, targets=tokens)["loss"]
assert torch.isfinite(loss), loss
print(f"torch {torch.__version__} for CUDA {torch.version.cuda}: a forward pass, loss {loss.item():.3f}")
