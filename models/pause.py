"""Pause tokens: more computation for a prediction by more tokens, where repeats take more passes.

Goyal et al. 2023, arXiv:2310.02226; a row of the CoTFormer paper's Table 6. Shapes: N tokens, C = n_embd, P =
n_pause.
"""

import torch
from torch import Tensor, nn

from models.config import ModelConfig


class PauseTokens(nn.Module):
    """P learned tokens stand behind each token of the text, and what follows it is predicted at the last.

    To the network they are tokens: it sees (1 + P) T of them, at positions from 0 to (1 + P) T - 1, and
    `attention_window_length` counts these. Goyal et al. repeat one embedding; here each of the P has its own.
    Rotary positions tell how far two tokens are apart and not where they stand: equal pauses would have to
    find out from what they see which of them they are, the last, which predicts, among them. That costs
    (P - 1) C weights more.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embs = nn.Embedding(config.n_pause, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings of the text (N, C) -> (N * (1 + P), C), each with its pauses behind it."""
        pauses = self.embs.weight.expand(len(x), -1, -1)
        return torch.cat((x[:, None], pauses), dim=1).flatten(0, 1)
