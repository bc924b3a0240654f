"""The language model: embedding, begin blocks, repeated middle, end blocks, norm, head, loss.

Shapes: B batch, T tokens, C = n_embd, V = vocab_size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.block import Block, layer_norm
from models.config import ModelConfig
from models.depth_embedding import DEPTH_EMBEDDINGS
from models.key_values import OwnPass
from models.positions import POSITIONS
from models.repeaters import REPEATERS, Middle


class LanguageModel(nn.Module):
    """One class for all variants: the row of `models.variants` says which parts it is put together from.

    Parameters carry the names of the published checkpoints: `transformer.` with `wte`, `h_begin`, `h_mid`
    (`h` in the plain transformer), `h_end`, `ln_mid`, `ln_f`; `depth_emb`; `lm_head`, tied to wte.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        variant = config.variant
        n_begin, n_mid, n_end = config.layers
        # The released checkpoints call the blocks of a transformer without repeats plainly "h".
        self._middle_name = "h_mid" if variant.repeats else "h"

        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "h_begin": _blocks(config, n_begin),
                self._middle_name: _blocks(config, n_mid),
                "ln_mid": layer_norm(config) if config.has_ln_mid else nn.Identity(),
                "h_end": _blocks(config, n_end),
                "ln_f": layer_norm(config),
            }
        )
        self.depth_emb = (
            DEPTH_EMBEDDINGS[config.depth_embedding](config) if config.has_depth_embedding else None
        )
        self.positions = POSITIONS[config.positional_encoder](config.head_size)
        self.drop = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.repeater = REPEATERS[variant.repeater]()
        self._initialise()
        self.lm_head.weight = self.transformer.wte.weight

    def _initialise(self) -> None:
        """N(0, 0.02) weights, zero biases; projections back into the stream N(0, 0.02 / sqrt(2 n_layer))."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                narrow = math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj") else 1.0
                nn.init.normal_(module.weight, std=0.02 / narrow)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def middle(self) -> Middle:
        """The parts that the repeater works with."""
        return Middle(
            blocks=self.transformer[self._middle_name],
            n_repeat=self.config.n_repeat,
            ln_mid=self.transformer.ln_mid,
            depth_embedding=self.depth_emb,
            window=self.config.attention_window_length,
        )

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, get_logits: bool = False
    ) -> dict[str, Tensor | float | None]:
        """Run the network on token ids idx (B, T), of any length T, and score it where targets are given.

        targets: (B, T) ids; -1 is ignored by the loss. Returns a dict with
        logits: None unless get_logits; (B, T, V), or (B, 1, V), the last position, without targets.
        loss: what training minimises, and cross_entropy_loss, the part that perplexity is made of: scalars in
        nats per token, None without targets.
        average_depth: blocks that a token passes, on average.
        """
        x, passes = self.hidden_states(idx)
        logits = loss = None
        if targets is not None or get_logits:
            logits = self.lm_head(x if targets is not None else x[:, -1:])
        if targets is not None:
            scores = logits.to(torch.promote_types(logits.dtype, torch.float32))  # not in half precision
            loss = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=-1)
        n_begin, n_mid, n_end = self.config.layers
        return {
            "logits": logits if get_logits else None,
            "loss": loss,
            "cross_entropy_loss": loss,
            "average_depth": passes * n_mid + n_begin + n_end,
        }

    def hidden_states(self, idx: Tensor) -> tuple[Tensor, float]:
        """idx (B, T) -> what the head reads, (B, T, C), after ln_f; and the passes through the middle."""
        positions = torch.arange(idx.shape[1], device=idx.device)
        rotation = self.positions(positions)
        store = OwnPass(positions, self.config.attention_window_length)
        x = self.drop(self.transformer.wte(idx))
        for block in self.transformer.h_begin:
            x = block(x, rotation, store)
        x, passes = self.repeater(x, positions, rotation, self.middle)
        for block in self.transformer.h_end:
            x = block(x, rotation, store)
        return self.transformer.ln_f(x), passes

    def parameter_count(self) -> int:
        """Number of weights; the head shares the embedding's, which are counted once."""
        return sum(parameter.numel() for parameter in self.parameters())


def _blocks(config: ModelConfig, count: int) -> nn.ModuleList:
    return nn.ModuleList(Block(config) for _ in range(count))
