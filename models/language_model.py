"""The language model: embedding, begin blocks, repeated middle, end blocks, norm, head, loss.

Shapes: B batch, T tokens, C = n_embd, V = vocab_size, R = n_repeat.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.active_tokens import ActiveTokens, InputGrid
from models.block import Transformer, run_blocks
from models.capacities import check_factors, draw_factors, tokens_per_pass
from models.config import ModelConfig
from models.embeddings import DEPTH_EMBEDDINGS, POSITIONS, PauseTokens
from models.halting import ExpectedHead, HaltingGate, StickBreaking
from models.kv_cache import KVCache, PassKeys, layer_keys
from models.losses import LastPassHead
from models.mixture_of_repeats import MixtureOfRepeats, RoutedUniversal, Router, Routing, Threshold, TopK
from models.repeaters import AfterPass, CrossRepeat, Middle, Once, Repeater, RepeaterOutput, Universal

REPEATERS: dict[str, Callable[[], Repeater]] = {
    "once": Once,
    "universal": Universal,
    "cross_repeat": CrossRepeat,
    "mixture_of_repeats": MixtureOfRepeats,
    "routed_universal": RoutedUniversal,
    "stick_breaking": StickBreaking,
    "ponder": functools.partial(Universal, every_exit=True),
}


class LanguageModel(nn.Module):
    """One class for all variants: the row of `models.variants` names its parts.

    Parameters carry the names of the published checkpoints: `transformer.` with `wte`, `h_begin`, `h_mid`
    (`h` in the standard transformer), `h_end`, `ln_mid`, `ln_f`, `mod` (routers); `depth_emb`; `pause_emb`;
    `depth_predictor` (the gate of stick breaking); `to_halt_logits` (PonderNet); `lm_head`, tied to wte.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        variant = config.variant
        self.transformer = Transformer(config)
        self.depth_emb = (
            DEPTH_EMBEDDINGS[config.depth_embedding](config) if config.has_depth_embedding else None
        )
        self.pause_emb = PauseTokens(config) if variant.pauses else None
        self.positions = POSITIONS[config.positional_encoder](config.rotary_size)
        if variant.routed:
            self.transformer.mod = nn.ModuleList(Router(config) for _ in range(config.n_repeat - 1))
        self.depth_predictor = HaltingGate(config) if variant.has_halting_gate else None
        # The last pass takes the rest of the halting probability, so it has no head of its own.
        self.to_halt_logits = nn.ModuleList(nn.Linear(config.n_embd, 1) for _ in range(config.exits - 1))
        self.drop = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.repeater = REPEATERS[variant.repeater]()
        self.after_pass = AfterPass()
        self.loss_head = ExpectedHead(config) if variant.predicts_every_pass else LastPassHead(config)
        # What every forward pass asks of the configuration.
        self.routed, self.layers, self.repeats = variant.routed, config.layers, config.repeats
        self.positions_per_token, self.penalty_weight = config.positions_per_token, config.penalty_weight
        self.single_precision_capacities = variant.single_precision_capacities
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
        every_position: bool = False,
        cache: KVCache | None = None,
        lengths: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """Run the network on token ids, and score it where targets are given.

        Args:
            idx: token ids (B, T), of any length T.
            targets: next token ids (B, T); -1 is ignored by the loss.
            get_logits, get_predictions, get_routing: what to return, see below.
            every_position: return logits and predictions of all positions without targets, too.
            length_factors: route by top-k with these R - 1 capacities, instead of as configured.
            thresholds: route by these R - 1 thresholds. Both have no effect on models without routers.
            cache: continue the texts in it, and add these tokens to them.
            lengths: tokens of each sequence that count, where they differ; the rest of its row is padding.

        Returns:
            logits: None unless get_logits; (B, T, V) with targets or every_position, else (B, 1, V), of the
                last position.
            loss: what training minimises, and cross_entropy_loss, the part that perplexity is made of:
                scalars in nats per token; None without targets.
            predictions: None unless get_predictions; the most probable ids, in the logits' shape without V.
                With targets and without get_logits, logits are computed in chunks.
            average_depth: blocks that a token passes in sequence, on average (pause tokens do not add).
            tokens_per_pass: tokens of a sequence that each of the R passes computed, averaged over the
                batch, pause tokens not counted. Scalar tensors where only the device knows them.
            router_scores (B, R - 1, T), NaN where a router did not see a token, and passes (B, T), how many
                each token took: with get_routing only.
        """
        routing = None
        if self.routed:
            length = idx.shape[1] if lengths is None else max(lengths)
            routing = self._routing(length_factors, thresholds, length, cache is not None)
        compute = LanguageModel.compute
        if self.training and self.compute_in_training is not None:
            compute = self.compute_in_training
        wanted = get_logits, get_predictions, get_routing, every_position
        return compute(self, idx, targets, routing, *wanted, cache, lengths)

    def compute(
        self,
        idx: Tensor,
        targets: Tensor | None,
        routing: Routing | None,
        get_logits: bool,
        get_predictions: bool,
        get_routing: bool,
        every_position: bool,
        cache: KVCache | None,
        lengths: Sequence[int] | None,
    ) -> dict[str, Any]:
        """`forward` after capacities have been drawn: the part that `--compile` compiles.

        When compiled, stick breaking computes frozen tokens too, and get_routing counts them.
        """
        tokens, keys = self._active_tokens(idx, routing, cache, lengths)
        x = self._embed(idx, tokens)
        begin, end = self.transformer.h_begin, self.transformer.h_end
        x = run_blocks(begin, layer_keys(keys, "begin", len(begin)), x, tokens)
        middle = self.repeater(x, tokens, self._middle(routing), keys)
        exits = [
            run_blocks(end, layer_keys(keys, "end", len(end), number), x, tokens)
            for number, x in enumerate(middle.exits, start=1)
        ]
        logits = loss = cross_entropy = passes = predictions = None
        if targets is not None or get_logits or get_predictions:
            each = self.positions_per_token  # the last of a token's positions predicts
            every_position = every_position or targets is not None
            exits = [x[..., each - 1 :: each, :] if every_position else tokens.last(x) for x in exits]
            logits, loss, cross_entropy, passes, predictions = self.loss_head(
                self, exits, targets, self.training, get_logits or targets is None, get_predictions
            )
        if loss is not None and self.training and middle.penalty is not None:
            per = tokens.count if self.config.act_loss_reduction == "sum" else 1
            loss = loss + self.penalty_weight * per * middle.penalty
        output = {
            "logits": logits if get_logits else None,
            "predictions": predictions,
            "loss": loss,
            "cross_entropy_loss": cross_entropy,
            **self._depth(tokens, middle, passes),
        }
        if get_routing:
            output |= middle.routing_by_position(self.repeats, self.positions_per_token)
        return output

    def _active_tokens(
        self, idx: Tensor, routing: Routing | None, cache: KVCache | None, lengths: Sequence[int] | None
    ) -> tuple[ActiveTokens, PassKeys | KVCache]:
        """All tokens of the input with their pause tokens, and where their keys and values are kept."""
        each = self.positions_per_token
        batch, length = len(idx), idx.shape[1] * each
        if cache is None:
            positions = torch.arange(length, device=idx.device)
        else:
            positions = cache.new_positions(length, idx.device)
        work = torch.promote_types(self.lm_head.weight.dtype, torch.float32)
        rotation = self.positions(positions)
        rotation = rotation and tuple(table.to(work) for table in rotation)
        tokens = ActiveTokens(InputGrid(batch, length, positions, rotation))
        if lengths is not None:
            tokens = tokens.first([each * count for count in lengths])
        if cache is None:
            return tokens, self._pass_keys(max(tokens.counts), routing)
        cache.advance([count // each for count in tokens.counts])
        return tokens, cache

    def _pass_keys(self, length: int, routing: Routing | None) -> PassKeys:
        """For the keys of one forward pass, of sequences of up to `length` tokens."""
        window = self.config.attention_window_length
        if self.config.attention == ("plain" if self.lm_head.weight.is_cuda else "fast"):
            return PassKeys(window)
        from models.pass_store import choose_store

        return PassKeys(window, choose_store(self, length, routing))

    def _embed(self, idx: Tensor, tokens: ActiveTokens) -> Tensor:
        """Token ids (B, T) -> (*tokens.shape, C), each token followed by its pause tokens."""
        each = self.positions_per_token
        ids = idx.flatten()
        x = self.transformer.wte(ids if tokens.index is None else ids[tokens.index[::each] // each])
        if self.pause_emb is not None:
            x = self.pause_emb(x)
        return self.drop(x.view(*tokens.shape, -1))

    def _middle(self, routing: Routing | None) -> Middle:
        """The parts that the repeater works with."""
        return Middle(
            blocks=self.transformer.middle,
            n_repeat=self.config.n_repeat,
            ln_mid=self.transformer.ln_mid,
            after_pass=self.after_pass,
            depth_embedding=self.depth_emb,
            routers=[] if routing is None else list(self.transformer.mod),
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
        """As asked for; otherwise capacities drawn in training, and in evaluation as configured."""
        config = self.config
        by_threshold = config.routing == "threshold" and not self.training
        if length_factors is None and thresholds is None and (by_threshold or cached):
            thresholds = config.routing_threshold or [0.0] * (config.n_repeat - 1)
        if thresholds is not None:
            return Threshold(thresholds)
        if length_factors is None and self.training:
            length_factors = self.draw_length_factors()
        if length_factors is None:
            length_factors = config.eval_length_factor or [1.0] * (config.n_repeat - 1)
        check_factors("length_factors", length_factors, config.n_repeat)
        single = self.single_precision_capacities
        return TopK(tokens_per_pass(length, config.n_repeat, length_factors, single))

    def draw_length_factors(self) -> Sequence[float]:
        """Capacities of a training forward pass, as configured, or drawn from torch's CPU generator.

        Training seeds the generator for each micro-batch. Drawn before anything else of the forward pass: a
        compiled step cannot stop for it.
        """
        config = self.config
        if config.training_length_factor or config.n_repeat == 1:
            return config.training_length_factor or []
        return draw_factors(config.depth_random_method, torch.rand(config.n_repeat - 1).tolist())

    def _depth(
        self, tokens: ActiveTokens, middle: RepeaterOutput, passes: Tensor | float | None
    ) -> dict[str, Any]:
        """average_depth and tokens_per_pass of `forward`. passes: their average number; None: as counted."""
        counts = [count / self.positions_per_token / tokens.grid.batch for count in middle.counts]
        if passes is None:
            passes = sum(middle.counts) / tokens.count
        n_begin, n_mid, n_end = self.layers
        return {
            "average_depth": passes * n_mid + n_begin + n_end,
            "tokens_per_pass": counts + [0.0] * (self.repeats - len(counts)),
        }

    def blocks_that_run_once(self) -> list[nn.Module]:
        """The blocks that every forward pass calls exactly once, whatever the model and the text."""
        once = [*self.transformer.h_begin]
        if not self.config.variant.repeats:
            once += self.transformer.middle
        if not self.config.variant.predicts_every_pass:
            once += self.transformer.h_end
        return once

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for `batch` texts of up to `sequence_length` tokens: for forward's `cache`."""
        config = self.config
        window = config.attention_window_length
        return KVCache(batch, config.sequence_length, window, config.positions_per_token)

    def parameter_count(self) -> int:
        """Number of weights; the head shares the embedding's, which are counted once."""
        return sum(parameter.numel() for parameter in self.parameters())
