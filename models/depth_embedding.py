"""Telling a pass how many passes are still to come: the depth embedding (paper, Section 4.2).

Before pass r of R (1-based) the index R - r is embedded and added: it counts down, and the last pass gets 0.
"""

from torch import Tensor, nn

from models.config import ModelConfig


class LinearDepthEmbedding(nn.Module):
    """One learned vector times the index: the last pass adds nothing."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embs = nn.Embedding(1, config.n_embd)

    def forward(self, index: int) -> Tensor:
        """index R - r -> (C,)."""
        return self.embs.weight[0] * index


class LearnedDepthEmbedding(nn.Module):
    """A learned vector for each index; row 0 belongs to the last pass."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embs = nn.Embedding(config.n_repeat, config.n_embd)

    def forward(self, index: int) -> Tensor:
        """index R - r -> (C,)."""
        return self.embs.weight[index]


DEPTH_EMBEDDINGS = {"linear_learned": LinearDepthEmbedding, "learned": LearnedDepthEmbedding}
