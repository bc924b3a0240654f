"""The language model: embedding, begin blocks, repeated middle, end blocks, norm, head, loss.

Shapes: B batch, T tokens, C = n_embd, V = vocab_size.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.active_tokens import Grid, Rows
from models.block import Block, layer_norm
from models.cache import Cache
from models.capacities import check_factors, draw_factors, tokens_per_pass
from models.config import ModelConfig
from models.depth_embedding import DEPTH_EMBEDDINGS
from models.halting import HaltingGate, StickBreaking
from models.heads import ExpectedExit, LastExit
from models.key_values import ForwardMemory, Memory
from models.mixture_of_repeats import MixtureOfRepeats, RoutedUniversal
from models.pause import PauseTokens
from models.positions import POSITIONS
from models.repeaters import AfterPass, CrossRepeat, Middle, Once, Repeated, Universal
from models.routing import Router, Routing, Threshold, TopK

REPEATERS = {
    "once": Once,
    "universal": Universal,
    "cross_repeat": CrossRepeat,
    "mixture_of_repeats": MixtureOfRepeats,
    "routed_universal": RoutedUniversal,
    "stick_breaking": StickBreaking,
    "ponder": functools.partial(Universal, every_exit=True),
}


class LanguageModel(nn.Module):
    """One class for all variants: the row of `models.variants` says which parts it is put together from.

    Parameters carry the names of the published checkpoints: `transformer.` with `wte`, `h_begin`, `h_mid`
    (`h` in the plain transformer), `h_end`, `ln_mid`, `ln_f`, `mod` (routers); `depth_emb`; `pause_emb`;
    `depth_predictor` (the gate of stick breaking); `to_halt_logits` (PonderNet); `lm_head`, tied to wte.
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
        self.pause_emb = PauseTokens(config) if variant.pauses else None
        self.positions = POSITIONS[config.positional_encoder](config.turning_size)
        if variant.routed:
            self.transformer["mod"] = nn.ModuleList(Router(config) for _ in range(config.n_repeat - 1))
        self.depth_predictor = HaltingGate(config) if variant.repeater == "stick_breaking" else None
        # The last pass takes the rest of the halting probability, so it has no head of its own.
        self.to_halt_logits = nn.ModuleList(nn.Linear(config.n_embd, 1) for _ in range(config.exits - 1))
        self.drop = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.repeater = REPEATERS[variant.repeater]()
        self.after_pass = AfterPass()
        self.readout = ExpectedExit(config) if variant.repeater == "ponder" else LastExit(config)
        self.compute_in_training: Callable[..., dict[str, Any]] | None = None  # None: `compute`
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

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        get_logits: bool = False,
        *,
        length_factors: Sequence[float] | None = None,
        thresholds: Sequence[float] | None = None,
        get_predictions: bool = False,
        get_routing: bool = False,
        cache: Cache | None = None,
        lengths: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """Run the network on token ids idx (B, T), of any length T, and score it where targets are given.

        targets: (B, T) ids; -1 is ignored by the loss. length_factors or thresholds: route by the top k of
        R - 1 capacities, or by R - 1 thresholds, instead of as the configuration says; of no effect on models
        that do not route. cache: continue the sequences that it holds, and add these tokens to them.
        lengths: tokens of each sequence that count, where they differ; the rest of its row is padding.

        Returns a dict with
        logits: None unless get_logits; (B, T, V), or (B, 1, V), the last position, without targets.
        loss: what training minimises, and cross_entropy_loss, the part that perplexity is made of: scalars in
        nats per token, None without targets.
        predictions: None unless get_predictions; the likeliest ids, in the shape of the logits without V.
        With targets, and without get_logits, the logits that they come from are never all there at once.
        average_depth: blocks that a token passes one after the other, on average; pauses pass them beside it,
        and do not add. tokens_per_pass: tokens of a sequence, pauses not counted, that each of the R passes
        computed, averaged over the batch. Scalar tensors where only the device knows them.
        With get_routing also router_scores (B, R - 1, T), NaN where a router did not see a token, and passes
        (B, T), how many each token took.
        """
        routing = None
        if self.config.variant.routed:
            length = idx.shape[1] if lengths is None else max(lengths)
            routing = self._routing(length_factors, thresholds, length, cache is not None)
        compute = LanguageModel.compute
        if self.training and self.compute_in_training is not None:
            compute = self.compute_in_training
        return compute(self, idx, targets, routing, get_logits, get_predictions, get_routing, cache, lengths)

    def compute(
        self,
        idx: Tensor,
        targets: Tensor | None,
        routing: Routing | None,
        get_logits: bool,
        get_predictions: bool,
        get_routing: bool,
        cache: Cache | None,
        lengths: Sequence[int] | None,
    ) -> dict[str, Any]:
        """`forward` once capacities have been drawn: what `optim.compiling` compiles.

        Where it is compiled, stick breaking computes frozen tokens too, and get_routing counts them.
        """
        config = self.config
        rows, memory = self._rows(idx, cache, lengths)
        x = self._embed(idx, rows)
        for index, block in enumerate(self.transformer.h_begin):
            x = block(x, rows, memory.own_pass(("begin", index)))
        repeated = self.repeater(x, rows, self._middle(routing), memory)
        exits = [self._end(x, rows, memory, number) for number, x in enumerate(repeated.exits, start=1)]
        logits = loss = cross_entropy = passes = predictions = None
        if targets is not None or get_logits or get_predictions:
            each = config.rows_per_token  # the last of a token's rows predicts
            exits = [rows.last(x) if targets is None else x[..., each - 1 :: each, :] for x in exits]
            logits, loss, cross_entropy, passes, predictions = self.readout(
                self, exits, targets, self.training, get_logits or targets is None, get_predictions
            )
        if loss is not None and self.training and repeated.penalty is not None:
            per = rows.total if config.act_loss_reduction == "sum" else 1
            loss = loss + config.penalty_weight * per * repeated.penalty
        tokens = [total / config.rows_per_token / rows.grid.batch for total in repeated.totals]
        tokens += [0.0] * (config.repeats - len(tokens))
        if passes is None:
            passes = sum(repeated.totals) / rows.total
        n_begin, n_mid, n_end = config.layers
        output = {
            "logits": logits if get_logits else None,
            "predictions": predictions,
            "loss": loss,
            "cross_entropy_loss": cross_entropy,
            "average_depth": passes * n_mid + n_begin + n_end,
            "tokens_per_pass": tokens,
        }
        if get_routing:
            output |= _routing_by_position(repeated, config.repeats, config.rows_per_token)
        return output

    def _embed(self, idx: Tensor, rows: Rows) -> Tensor:
        """(*rows.shape, C). The rows of a token stand together: it, then its pauses."""
        each = self.config.rows_per_token
        x = self.transformer.wte(idx.flatten()[rows.tokens[::each] // each])
        if self.pause_emb is not None:
            x = self.pause_emb(x)
        return self.drop(x.view(*rows.shape, -1))

    def _rows(self, idx: Tensor, cache: Cache | None, lengths: Sequence[int] | None) -> tuple[Rows, Memory]:
        """All tokens of the input, and their pauses, as rows, and the memory that they work with."""
        each = self.config.rows_per_token
        batch, length = len(idx), idx.shape[1] * each
        positions = torch.arange(length, device=idx.device)
        if cache is not None and any(cache.lengths):
            positions = positions + each * torch.tensor(cache.lengths, device=idx.device)[:, None]
        work = torch.promote_types(self.lm_head.weight.dtype, torch.float32)
        rotation = self.positions(positions)
        grid = Grid(batch, length, positions, rotation and tuple(table.to(work) for table in rotation))
        rows = Rows(grid)
        if lengths is not None:
            ends = each * torch.tensor(lengths, device=idx.device)[:, None]
            rows = rows.keep(torch.arange(length, device=idx.device) < ends)
        if cache is None:
            return rows, ForwardMemory(self.config.attention_window_length)
        cache.advance([count // each for count in rows.counts])
        return rows, cache

    def _middle(self, routing: Routing | None) -> Middle:
        """The parts that the repeater works with."""
        return Middle(
            blocks=self.transformer[self._middle_name],
            n_repeat=self.config.n_repeat,
            ln_mid=self.transformer.ln_mid,
            after_pass=self.after_pass,
            depth_embedding=self.depth_emb,
            routers=None if routing is None else self.transformer["mod"],
            routing=routing,
            halting_gate=self.depth_predictor,
            halt_threshold=self.config.halt_threshold,
            training=self.training,
            checkpointed=self.config.activation_checkpointing == "repeat",
        )

    def _routing(
        self,
        length_factors: Sequence[float] | None,
        thresholds: Sequence[float] | None,
        length: int,
        cached: bool,
    ) -> Routing:
        """What was asked for; else in training a draw of capacities, in evaluation what the flags say."""
        config = self.config
        by_threshold = config.routing == "threshold" and not self.training
        if length_factors is None and thresholds is None and (by_threshold or cached):
            thresholds = config.routing_threshold or [0.0] * (config.n_repeat - 1)
        if thresholds is not None:
            return Threshold(thresholds)
        if length_factors is None and self.training:
            length_factors = config.training_length_factor or self._drawn_factors()
        if length_factors is None:
            length_factors = config.eval_length_factor or [1.0] * (config.n_repeat - 1)
        check_factors("length_factors", length_factors, config.n_repeat)
        rounded = config.variant.single_precision_capacities
        return TopK(tokens_per_pass(length, config.n_repeat, length_factors, rounded))

    def _drawn_factors(self) -> list[float]:
        """From torch's generator on the CPU, which the training loop seeds by step and micro-batch.

        Before anything else of the forward pass is drawn: a compiled step cannot stop for it.
        """
        if self.config.n_repeat == 1:
            return []
        return draw_factors(self.config.depth_random_method, torch.rand(self.config.n_repeat - 1).tolist())

    def _end(self, x: Tensor, rows: Rows, memory: Memory, exit_number: int) -> Tensor:
        for index, block in enumerate(self.transformer.h_end):
            x = block(x, rows, memory.own_pass(("end", index), exit_number))
        return x

    def blocks_that_run_once(self) -> list[Block]:
        """Those that every forward pass calls exactly once, whatever the model and the text."""
        once = [*self.transformer.h_begin]
        if not self.config.variant.repeats:
            once += self.transformer[self._middle_name]
        if self.config.variant.repeater != "ponder":  # which predicts from every pass
            once += self.transformer.h_end
        return once

    def new_cache(self, batch: int) -> Cache:
        """An empty cache for `batch` sequences of up to `sequence_length` tokens: for forward's `cache`."""
        config = self.config
        window = config.attention_window_length
        return Cache(batch, config.sequence_length, window, config.rows_per_token)

    def parameter_count(self) -> int:
        """Number of weights; the head shares the embedding's, which are counted once."""
        return sum(parameter.numel() for parameter in self.parameters())


def _routing_by_position(repeated: Repeated, n_repeat: int, rows_per_token: int) -> dict[str, Tensor]:
    """Scores and passes in the order of the input, of each token's last row."""
    rows = repeated.passes[0]
    size = rows.grid.batch, rows.grid.length
    passes = torch.zeros(size, dtype=torch.long, device=rows.tokens.device)
    for taken in repeated.passes:
        passes.view(-1)[taken.tokens] += 1
    scores = torch.full((n_repeat - 1, *size), torch.nan, device=passes.device)
    for number, (seen, score) in enumerate(repeated.scores):
        scores[number].view(-1)[seen.tokens] = score.detach().flatten().float()
    at = slice(rows_per_token - 1, None, rows_per_token)
    return {"router_scores": scores.transpose(0, 1)[..., at], "passes": passes[:, at]}


def _blocks(config: ModelConfig, count: int) -> nn.ModuleList:
    return nn.ModuleList(Block(config) for _ in range(count))
