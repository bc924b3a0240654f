"""`--compile block`: a block's work before and after attention, compiled once for all blocks of a model.

All of a block but attention works token by token: LayerNorms, projections, rotation, MLP, residuals. These
stages become graphs for any number of tokens, with the weights as inputs, so that one graph serves every use
of every block: compiling takes seconds, whatever the depth. Attention between them stays eager, and with it
all that depends on passes and sequences.

Shapes: *tokens.shape as in `models.active_tokens`, N tokens, C = n_embd.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
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
from models.stage_weights import StageWeights, Weights

# Tokens of the batches that graphs are first made for: no other size of a model is such a number, so that the
# compiler cannot take the two for one.
TOKENS, SOURCE_TOKENS = 1033, 1171
FEWEST_TOKENS = 2  # a compiler takes 0 and 1 for constants


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
    """The compiled stages of a model's blocks, and the weights of a forward pass as the stages read them.

    A block's weights are converted once in a forward pass (`models.stage_weights`), and the gradients of all
    its uses add up on the converted ones.
    """

    def __init__(self, model: LanguageModel, backend: str = "inductor") -> None:
        self._model = model
        with torch.device("meta"):
            self._template = Block(model.config).train()  # every use brings its weights
        block = copy.copy(self._template)
        block._modules = {**block._modules, "ln_1": _bare(block.ln_1), "ln_2": _bare(block.ln_2)}
        prepare, finish = _Prepare(block), _Finish(block)

        width = model.config.n_embd
        to_prepare, to_finish = (
            StageWeights(self._template, width, stage.reads) for stage in (prepare, finish)
        )

        # Several functions: the compiler looks through all graphs of a function for one that fits.
        def run_prepare(weights: Weights, *args: Any) -> list[Tensor]:
            return functional_call(prepare, to_prepare.unpack(weights), args)

        def run_finish(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
            return functional_call(finish, to_finish.unpack(weights), (x, y))

        def run_between(
            weights: Weights, x: Tensor, y: Tensor, of_next: Weights, rotation: Rotation | None
        ) -> list[Tensor]:
            x = run_finish(weights, x, y)
            return [x, *run_prepare(of_next, x, rotation, None, None)]

        def convert(given: Mapping[str, Tensor], dtype: torch.dtype) -> list[Weights]:
            return [stage.convert(given, dtype) for stage in (to_prepare, to_finish)]

        settings: dict[str, Any] = {"fullgraph": True, "backend": backend}
        self._convert = torch.compile(convert, dynamic=False, **settings)
        self._prepare = torch.compile(run_prepare, dynamic=True, **settings)
        self._finish = torch.compile(run_finish, dynamic=True, **settings)
        self._between = torch.compile(run_between, dynamic=True, **settings)
        self._weights: dict[Block, list[Weights]] = {}
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

    def apply_to_all(self, blocks: Sequence[Block], tokens: ActiveTokens, keys: LayerKeys) -> bool:
        """Whether `run` can compute all blocks together: not where one is recomputed, or watched by a hook,
        as FSDP's, which collects its weights."""
        return self.apply_to(tokens, None) and all(
            block.training
            and not block.is_recomputed(keys)
            and not (block._forward_hooks or block._forward_pre_hooks)
            for block in blocks
        )

    def run(
        self,
        blocks: Sequence[Block],
        keys: Sequence[LayerKeys],
        x: Tensor,
        tokens: ActiveTokens,
        source: KeySource | None = None,
    ) -> Tensor:
        """What blocks make of x, one after another, (*tokens.shape, C) -> the same.

        The end of a block and the start of the next are one graph, where the residual stream and its gradient
        pass through fewer kernels. source: as a block takes it; for one block.
        """
        rows, rotation, of_source = _rows(x), self._rotation(tokens), (None, None)
        if source is not None:
            of_source = _rows(source.x), self._rotation(source.tokens, of_source=True)
        weights = [self._of_stages(block) for block in blocks]
        prepared = self._prepare(weights[0][0], rows, rotation, *of_source)
        for number, (block, layer_keys) in enumerate(zip(blocks, keys, strict=True)):
            y = _attended(block, prepared, tokens, layer_keys, source)
            to_finish = weights[number][1]
            if number + 1 < len(blocks):
                rows, *prepared = self._between(to_finish, rows, y, weights[number + 1][0], rotation)
            else:
                rows = self._finish(to_finish, rows, y)
        return _no_view(rows, (*tokens.shape, -1))

    def compile(self) -> None:
        """Make the graphs, forward and backward, before the first step needs them.

        Raises whatever hinders the compiler.
        """
        config, like = self._model.config, self._model.lm_head.weight
        block = copy.deepcopy(self._template).to(like.dtype).to_empty(device=like.device)
        to_prepare, to_finish = self._of_stages(block)
        work = torch.promote_types(like.dtype, torch.float32)

        def batch(count: int) -> tuple[Tensor, Rotation | None]:
            x = torch.ones(count, config.n_embd, dtype=like.dtype, device=like.device, requires_grad=True)
            rotation = self._model.positions(torch.arange(count, device=like.device))
            return x, rotation and tuple(table.to(work) for table in rotation)

        x, rotation = batch(TOKENS)
        sources = [(None, None), *([batch(SOURCE_TOKENS)] if config.variant.halted_tokens_offer_keys else [])]
        made = [part for source in sources for part in self._prepare(to_prepare, x, rotation, *source)]
        y = made[0].new_ones(len(x), block.attn.c_proj.in_features, requires_grad=True)
        made += [self._finish(to_finish, x, y), *self._between(to_finish, x, y, to_prepare, rotation)]
        torch.autograd.backward(made, [torch.zeros_like(part) for part in made])

    def _of_stages(self, block: Block) -> list[Weights]:
        """A block's weights as the two stages read them."""
        if block not in self._weights:
            given: dict[str, Tensor] = dict(block.named_parameters())
            device, dtype = self._model.lm_head.weight.device.type, given["ln_1.weight"].dtype
            if dtype != torch.float64 and torch.is_autocast_enabled(device):
                dtype = torch.get_autocast_dtype(device)
            # Outside of what activation checkpointing computes again, which finds them converted.
            with torch.autograd.graph.saved_tensors_hooks(_same, _same):
                of_stages = self._convert(given, dtype)
            for weight in itertools.chain.from_iterable(weights.values() for weights in of_stages):
                if not isinstance(weight, nn.Parameter):  # which are static by themselves
                    torch._dynamo.mark_static(weight)
            self._weights[block] = of_stages
        return self._weights[block]

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


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _bare(norm: nn.LayerNorm) -> nn.LayerNorm:
    """A LayerNorm without weights."""
    return nn.LayerNorm(list(norm.normalized_shape), norm.eps, elementwise_affine=False)


def _attended(
    block: Block, prepared: Sequence[Tensor], tokens: ActiveTokens, keys: LayerKeys, source: KeySource | None
) -> Tensor:
    """Attention between the stages: what `prepare` made, row by row, -> (N, H * D)."""
    queries, *others = prepared
    key_tokens = tokens if source is None else source.tokens
    shaped = [queries.unflatten(0, tokens.shape), *(part.unflatten(0, key_tokens.shape) for part in others)]
    y = block.attn.attend(shaped, tokens, keys, source)
    assert y is not None  # there are tokens
    return _rows(y)
