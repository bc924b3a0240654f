"""What happens in the middle: the strategies that run the shared blocks once or several times.

A repeater takes the representations after the first blocks and returns each token's final representation,
together with what that cost. It owns no weights: it works on the parts that the language model holds, so that
every parameter keeps the name it has in the published checkpoints. Those that let tokens stop early stand in
`models.mixture_of_repeats` and `models.halting`.

Shapes: *rows.shape as in `models.active_tokens`, C = n_embd, R = n_repeat.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from models.active_tokens import Rows
from models.checkpointing import pays, recomputed
from models.key_values import Memory, Store
from models.routing import Routing


@dataclass(frozen=True)
class Middle:
    """The parts a repeater works with; where a variant has none they are None (ln_mid: the identity).

    training: whether the blocks are. checkpointed: whether the backward pass computes passes a second time.
    """

    blocks: nn.ModuleList
    n_repeat: int
    ln_mid: nn.Module
    after_pass: "AfterPass"
    depth_embedding: nn.Module | None
    routers: nn.ModuleList | None
    routing: Routing | None
    halting_gate: nn.Module | None
    halt_threshold: float
    training: bool
    checkpointed: bool

    def own_pass(self, memory: Memory, repeat: int = 1) -> list[Store]:
        """A store for each block: its tokens of this pass."""
        return [memory.own_pass(("middle", index), repeat) for index in range(len(self.blocks))]

    def all_passes(self, memory: Memory, repeat: int) -> list[Store]:
        """A store for each block: its tokens of this and earlier passes."""
        return [memory.all_passes(("middle", index), repeat) for index in range(len(self.blocks))]

    def run_pass(
        self, function: Callable[..., Tensor], stores: Sequence[Store], key_rows: Rows, rows: Rows, *args: Any
    ) -> Tensor:
        """function(stores, *args): a pass in which `rows` look at `key_rows`: see `recomputed`."""
        if self.checkpointed and pays(self.training, stores[0]):
            return recomputed(function, stores, key_rows, rows, *args)
        return function(stores, *args)

    def plain_pass(self, x: Tensor, rows: Rows, stores: Sequence[Store]) -> Tensor:
        """x (*rows.shape, C) through all blocks and ln_mid, among themselves."""
        return self.run_pass(self._blocks, stores, rows, rows, x, rows)

    def _blocks(self, stores: Sequence[Store], x: Tensor, rows: Rows) -> Tensor:
        for block, store in zip(self.blocks, stores, strict=True):
            x = block(x, rows, store)
        return self.ln_mid(x)

    def with_depth(self, x: Tensor, repeat: int) -> Tensor:
        """x before pass `repeat` (1-based), with the embedding of the R - repeat passes to come."""
        return x if self.depth_embedding is None else x + self.depth_embedding(self.n_repeat - repeat)


@dataclass(frozen=True)
class Repeated:
    """What the middle did.

    exits: representations (*rows.shape, C) to predict from: one, but PonderNet has one after every pass.
    passes: the rows that each pass computed. scores: those of each router, of the rows it saw.
    penalty: what the model adds to its training loss for depth, already weighted per token; a scalar or None.
    going: where halted rows were computed too, how many of each pass had not halted, scalars; else empty.
    """

    exits: list[Tensor]
    passes: list[Rows]
    scores: list[tuple[Rows, Tensor]]
    penalty: Tensor | None = None
    going: Sequence[Tensor] = ()

    @property
    def totals(self) -> Sequence[int | Tensor]:
        """Rows that took each pass."""
        return self.going or [rows.total for rows in self.passes]


class AfterPass(nn.Module):
    """Does nothing: the place where hooks find each token's representation after a pass (`analysis.hooks`).

    Every repeater but stick breaking calls it at the end of each pass that it computes.
    """

    def forward(self, x: Tensor, rows: Rows, repeat: int) -> Tensor:
        """x (*rows.shape, C), as the next pass will take it (before the depth embedding); repeat: 1-based."""
        return x


class Repeater(Protocol):
    """A strategy for the middle."""

    def __call__(self, x: Tensor, rows: Rows, middle: Middle, memory: Memory) -> Repeated:
        """x (*rows.shape, C), before the middle."""


class Once:
    """The standard transformer: every block once."""

    def __call__(self, x: Tensor, rows: Rows, middle: Middle, memory: Memory) -> Repeated:
        x = middle.plain_pass(x, rows, middle.own_pass(memory))
        return Repeated([middle.after_pass(x, rows, 1)], [rows], [])


class Universal:
    """Block Universal Transformer: R passes, each of which attends to its own tokens only (T keys).

    every_exit: predict from the representations after every pass (PonderNet), not only after the last.
    """

    def __init__(self, every_exit: bool = False) -> None:
        self._every_exit = every_exit

    def __call__(self, x: Tensor, rows: Rows, middle: Middle, memory: Memory) -> Repeated:
        exits = []
        for repeat in range(1, middle.n_repeat + 1):
            x = middle.plain_pass(x, rows, middle.own_pass(memory, repeat))
            x = middle.after_pass(x, rows, repeat)
            exits.append(x)
        return Repeated(exits if self._every_exit else exits[-1:], [rows] * middle.n_repeat, [])


class CrossRepeat:
    """CoTFormer: pass r attends to the keys and values of passes 1..r (Eq. 3; r * T keys).

    With `depth_embedding` and `ln_mid` this is the LN-CoTFormer: the embedding of R - r is added before pass
    r, and the LayerNorm follows every pass, the last one too.
    """

    def __call__(self, x: Tensor, rows: Rows, middle: Middle, memory: Memory) -> Repeated:
        for repeat in range(1, middle.n_repeat + 1):
            x = middle.plain_pass(middle.with_depth(x, repeat), rows, middle.all_passes(memory, repeat))
            x = middle.after_pass(x, rows, repeat)
        return Repeated([x], [rows] * middle.n_repeat, [])
