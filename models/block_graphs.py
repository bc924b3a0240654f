"""`--compile block`: a block's work before and after attention, compiled once for all blocks of a model.

All of a block but attention works token by token: LayerNorms, projections, rotation, MLP, residuals. These
stages become graphs for any number of tokens, with the weights as inputs, so that one graph serves every use
of every block: compiling takes seconds, whatever the depth. Attention between them stays eager, and with it
all that depends on passes and sequences.

Shapes: *tokens.shape as in `models.active_tokens`, N tokens, C = n_embd.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.active_tokens import ActiveTokens
from models.attention import KeySource
from models.block import Block
from models.embeddings import Rotation
from models.kv_cache import LayerKeys
from models.language_model import LanguageModel

# Tokens of the batches that graphs are first made for: no other size of a model is such a number, so that the
# compiler cannot take the two for one.
TOKENS, SOURCE_TOKENS = 1033, 1171
FEWEST_TOKENS = 2  # a compiler takes 0 and 1 for constants

Weights = dict[str, Tensor]


class _Prepare(nn.Module):
    """From a block's input to queries, keys and values."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.ln_1, self.attn = block.ln_1, block.attn

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        source_x: Tensor | None,
        source_rotation: Rotation | None,
    ) -> list[Tensor]:
        source_x = None if source_x is None else self.ln_1(source_x)
        return self.attn.prepare(self.ln_1(x), rotation, source_x, source_rotation)

    @staticmethod
    def reads(name: str) -> bool:
        return name.startswith(("ln_1.", "attn.")) and not name.startswith(("attn.c_proj.", "attn.kv_up."))


class _Finish(nn.Module):
    """From a block's input x and the result y of its attention to the block's output."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.attn, self.ln_2, self.mlp = block.attn, block.ln_2, block.mlp

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.attn.output(y)
        return x + self.mlp(self.ln_2(x))

    @staticmethod
    def reads(name: str) -> bool:
        return name.startswith(("attn.c_proj.", "ln_2.", "mlp."))


class BlockGraphs:
    """The compiled stages of a model's blocks, and the weights of a forward pass in autocast's format.

    Inside a graph autocast would convert weights at every use. Here each is converted once in a forward pass,
    and the gradients of all its uses add up on the converted one, as with autocast's cache.
    """

    def __init__(self, model: LanguageModel, backend: str = "inductor") -> None:
        self._model = model
        with torch.device("meta"):
            self._template = Block(model.config).train()  # every use brings its weights
        prepare, finish = _Prepare(self._template), _Finish(self._template)

        # Two functions: the compiler looks through all graphs of a function for one that fits.
        def run_prepare(weights: Weights, *args: Any) -> list[Tensor]:
            return functional_call(prepare, weights, args)

        def run_finish(weights: Weights, *args: Any) -> Tensor:
            return functional_call(finish, weights, args)

        settings: dict[str, Any] = {"dynamic": True, "fullgraph": True, "backend": backend}
        self._prepare = torch.compile(run_prepare, **settings)
        self._finish = torch.compile(run_finish, **settings)
        self._weights: dict[Block, tuple[Weights, Weights]] = {}
        self._rotations: dict[tuple[ActiveTokens, bool], Rotation | None] = {}

    def install(self) -> None:
        """From now on the model's training forward passes run on the graphs; evaluation stays eager."""
        for block in _blocks(self._model):
            block.graphs = self
        self._model.compute_in_training = self._compute

    def _compute(self, *args: Any) -> dict[str, Any]:
        # Converted weights stay until the next forward pass: activation checkpointing asks for them again.
        self._weights.clear()
        self._rotations.clear()
        return LanguageModel.compute(*args)

    @staticmethod
    def apply_to(tokens: ActiveTokens, source: KeySource | None) -> bool:
        """Whether graphs can compute these tokens."""
        return tokens.count >= FEWEST_TOKENS and (source is None or source.tokens.count >= FEWEST_TOKENS)

    def run(
        self, block: Block, keys: LayerKeys, x: Tensor, tokens: ActiveTokens, source: KeySource | None
    ) -> Tensor:
        """What `block` makes of x, (*tokens.shape, C) -> the same."""
        if block not in self._weights:
            self._weights[block] = _converted(block, _Prepare.reads), _converted(block, _Finish.reads)
        to_prepare, to_finish = self._weights[block]
        rows, rotation, key_tokens, of_source = _rows(x), self._rotation(tokens), tokens, (None, None)
        if source is not None:
            key_tokens = source.tokens
            of_source = _rows(source.x), self._rotation(key_tokens, of_source=True)
        q, *rest = self._prepare(to_prepare, rows, rotation, *of_source)
        prepared = [q.unflatten(0, tokens.shape), *(part.unflatten(0, key_tokens.shape) for part in rest)]
        y = block.attn.attend(prepared, tokens, keys, source)
        assert y is not None  # there are tokens
        return _no_view(self._finish(to_finish, rows, _rows(y)), (*tokens.shape, -1))

    def compile(self) -> None:
        """Make the graphs, forward and backward, before the first step needs them.

        Raises whatever hinders the compiler.
        """
        config, like = self._model.config, self._model.lm_head.weight
        block = copy.deepcopy(self._template).to(like.dtype).to_empty(device=like.device)
        to_prepare, to_finish = _converted(block, _Prepare.reads), _converted(block, _Finish.reads)
        work = torch.promote_types(like.dtype, torch.float32)

        def batch(count: int) -> tuple[Tensor, Rotation | None]:
            x = torch.ones(count, config.n_embd, dtype=like.dtype, device=like.device, requires_grad=True)
            rotation = self._model.positions(torch.arange(count, device=like.device))
            return x, rotation and tuple(table.to(work) for table in rotation)

        x, rotation = batch(TOKENS)
        prepared: list[Tensor] = []
        sources = [(None, None), *([batch(SOURCE_TOKENS)] if config.variant.halted_tokens_offer_keys else [])]
        for source in sources:
            prepared = self._prepare(to_prepare, x, rotation, *source)
            torch.autograd.backward(prepared, [torch.zeros_like(part) for part in prepared])
        y = prepared[0].new_ones(len(x), block.attn.c_proj.in_features, requires_grad=True)
        self._finish(to_finish, x, y).sum().backward()

    def _rotation(self, tokens: ActiveTokens, of_source: bool = False) -> Rotation | None:
        """The tokens' rotation written out row by row: (N, D/2) each."""
        # Sources have tensors of their own: the compiler would make another graph where two are the same.
        if (tokens, of_source) not in self._rotations:
            tables = tokens.rotation and tuple(t.expand(*tokens.shape, -1) for t in tokens.rotation)
            self._rotations[tokens, of_source] = tables and tuple(_rows(table) for table in tables)
        return self._rotations[tokens, of_source]


def _rows(x: Tensor) -> Tensor:
    """x (..., C) -> (N, C), without a copy where that is possible."""
    x = x.reshape(-1, x.shape[-1])
    return _no_view(x, x.shape)


def _no_view(x: Tensor, shape: Sequence[int]) -> Tensor:
    """x in another shape, but to autograd no view of it.

    Of a view the compiler would also look at the shape of its base, and FSDP warns of one.
    """
    return torch.ops.aten._unsafe_view(x, shape)


def _blocks(model: LanguageModel) -> Iterator[Block]:
    return (module for module in model.modules() if isinstance(module, Block))


def _converted(block: Block, reads: Callable[[str], bool]) -> Weights:
    """The weights of a stage, those of linear layers as autocast would convert them."""
    found = {}
    for name, weight in block.named_parameters():
        if not reads(name):
            continue
        layer = block.get_submodule(name.rpartition(".")[0])
        device = weight.device.type
        if isinstance(layer, nn.Linear) and torch.is_autocast_enabled(device):
            if weight.dtype != torch.float64:
                weight = weight.to(torch.get_autocast_dtype(device))
            torch._dynamo.mark_static(weight)  # parameters are static by themselves
        found[name] = weight
    return found
