"""What happens in the middle: the strategies that run the shared blocks once or several times.

A repeater takes the representations after the first blocks and returns each token's final representation,
together with what that cost. It owns no weights: it works on the parts that the language model holds, so that
every parameter keeps the name it has in the published checkpoints.

Shapes: B batch, T tokens, C = n_embd, R = n_repeat.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from models.key_values import AllPasses, OwnPass


@dataclass(frozen=True)
class Middle:
    """The parts a repeater works with. Where a variant has no ln_mid it is the identity."""

    blocks: nn.ModuleList
    n_repeat: int
    ln_mid: nn.Module
    depth_embedding: nn.Module | None
    window: int | None


class Repeated(NamedTuple):
    """x: final representations (B, T, C). passes: passes through the middle, averaged over tokens."""

    x: Tensor
    passes: float


class Once:
    """The standard transformer: every block once."""

    def __call__(self, x: Tensor, positions: Tensor, rotation: Tensor, middle: Middle) -> Repeated:
        store = OwnPass(positions, middle.window)
        for block in middle.blocks:
            x = block(x, rotation, store)
        return Repeated(x, 1.0)


class Universal:
    """Block Universal Transformer: R passes, each of which attends to its own tokens only (T keys)."""

    def __call__(self, x: Tensor, positions: Tensor, rotation: Tensor, middle: Middle) -> Repeated:
        store = OwnPass(positions, middle.window)
        for _ in range(middle.n_repeat):
            for block in middle.blocks:
                x = block(x, rotation, store)
        return Repeated(x, float(middle.n_repeat))


class CrossRepeat:
    """CoTFormer: pass r attends to the keys and values of passes 1..r (Eq. 3; r * T keys).

    With `depth_embedding` and `ln_mid` this is the LN-CoTFormer: the embedding of R - r is added before pass
    r, and the LayerNorm follows every pass, the last one too.
    """

    def __call__(self, x: Tensor, positions: Tensor, rotation: Tensor, middle: Middle) -> Repeated:
        store = AllPasses(len(middle.blocks), positions, middle.window)
        for repeat in range(1, middle.n_repeat + 1):
            if middle.depth_embedding is not None:
                x = x + middle.depth_embedding(middle.n_repeat - repeat)
            for index, block in enumerate(middle.blocks):
                x = block(x, rotation, store.layer(index))
            x = middle.ln_mid(x)
        return Repeated(x, float(middle.n_repeat))


REPEATERS = {"once": Once, "universal": Universal, "cross_repeat": CrossRepeat}
