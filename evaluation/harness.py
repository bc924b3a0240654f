"""Interface of a trained model to lm-evaluation-harness: log-likelihoods of texts, and continuations.

The harness is an optional requirement. Shapes: B batch, T tokens, V = vocab_size.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data.tokenizers import StreamDecoder, Tokenizer
from distributed import Precision
from errors import UsageError
from models.generation import generate
from models.language_model import LanguageModel

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:  # without it this module can be imported, but not used
    TemplateLM = Instance = object

Window = tuple[list[int], int]  # tokens, and how many of the last ones are scored


class Harness(TemplateLM):
    """A model with its tokeniser; requests are computed in batches of similar length.

    Routing is by thresholds, never top-k: under top-k, whether a token is selected depends on later tokens,
    so the likelihood of an answer would depend on its length, its later words and the padding of its batch.

    Args:
        max_length: tokens that the model sees at once.
        routing: {"thresholds": [...]} for models that route, else {}.
        seed: for continuations of tasks that sample.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        precision: Precision,
        *,
        batch_size: int,
        max_length: int,
        routing: dict[str, Any],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.precision, self.routing, self.seed = model, precision, routing, seed
        self.batch_size, self.max_length = batch_size, max_length
        self._tokenizer = tokenizer
        self._tokens = self._passes = 0
        self.notes: dict[str, int] = defaultdict(int)  # deviation from a task's request -> how often

    @property
    def average_passes(self) -> float | None:
        """Passes through the middle, the mean over all tokens scored or generated; None before the first."""
        return self._passes / self._tokens if self._tokens else None

    @property
    def eot_token_id(self) -> int:
        """The token that precedes a text. Raises UsageError if the tokeniser has no end-of-text token."""
        if self._tokenizer.end_of_text is None:
            raise UsageError(
                f"the tokeniser {self._tokenizer.name} has no end-of-text token, which precedes a text "
                "without a context"
            )
        return self._tokenizer.end_of_text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Returns the tokens of the text, without special tokens."""
        return self._tokenizer.encode(string).tolist()

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each full text, in nats.

        Every token counts once, the first one after an end-of-text token. Texts of more than max_length
        tokens are cut into the harness's rolling windows.
        """
        by_text = [self._rolling(self.tok_encode(text), self.eot_token_id) for (text,) in _args(requests)]
        scores = iter(self._score([window for windows in by_text for window in windows], disable_tqdm))
        return [math.fsum(next(scores)[0] for _ in windows) for windows in by_text]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts until a stop sequence, the end of the text, or max_gen_toks (256) tokens.

        A context is cut from the left to leave room for those, but to no less than half of max_length.
        """
        texts = [""] * len(requests)
        by_settings = defaultdict(list)
        for index, (context, settings) in enumerate(_args(requests)):
            ids = self.tok_encode(context) or [self.eot_token_id]
            by_settings[json.dumps(settings, sort_keys=True)].append((index, ids))
        bar = _bar(len(requests), "continuations", disable_tqdm)
        for key, contexts in by_settings.items():
            settings = self._generation_settings(json.loads(key))
            contexts.sort(key=lambda context: -len(context[1]))
            for batch in _batches(contexts, self.batch_size):
                found = self._continue([ids for _, ids in batch], **settings)
                for (index, _), text in zip(batch, found, strict=True):
                    texts[index] = text
                bar.update(len(batch))
        bar.close()
        return texts

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Score continuations; a context that does not fit into max_length is cut from the left.

        Args:
            requests: (unused, context, continuation), the latter two as token ids.

        Returns:
            For each the continuation's log-probability in nats, and whether greedy decoding would write it.
        """
        by_request = [self._windows(context, continuation) for _, context, continuation in requests]
        scores = iter(self._score([window for windows in by_request for window in windows], disable_tqdm))
        found = [[next(scores) for _ in windows] for windows in by_request]
        return [
            (math.fsum(value for value, _ in parts), all(greedy for _, greedy in parts)) for parts in found
        ]

    def _windows(self, context: list[int], continuation: list[int]) -> list[Window]:
        """One window; several for a continuation of more than max_length tokens."""
        context = context or [self.eot_token_id]
        if len(continuation) <= self.max_length:
            return [((context + continuation)[-self.max_length - 1 :], len(continuation))]
        self.notes["continuations longer than the model's context, scored window by window"] += 1
        return self._rolling(continuation, context[-1])

    def _rolling(self, tokens: list[int], prefix: int) -> list[Window]:
        windows = get_rolling_token_windows(tokens, prefix, self.max_length, context_len=1)
        return [(seen + scored, len(scored)) for seen, scored in map(make_disjoint_window, windows)]

    def _score(self, windows: Sequence[Window], disable_tqdm: bool) -> list[tuple[float, bool]]:
        """Returns each window's log-probability of its scored tokens, and whether all are the likeliest.

        Equal inputs are computed once: those of a question's one-token answers are equal. The longest come
        first, so that running out of memory happens at once.
        """
        by_input = defaultdict(list)
        for index, (tokens, count) in enumerate(windows):
            if count:  # a continuation without tokens is certain: the context's last token may include it
                by_input[tuple(tokens[:-1])].append(index)
        inputs = sorted(by_input, key=lambda tokens: (-len(tokens), tokens))
        scores = [(0.0, True)] * len(windows)
        bar = _bar(len(inputs), "log-likelihoods", disable_tqdm)
        for batch in _batches(inputs, self.batch_size):
            for seen, logits in zip(batch, self._logits(batch), strict=True):
                for index in by_input[seen]:
                    tokens, count = windows[index]
                    scores[index] = self._score_one(logits[len(seen) - count : len(seen)], tokens[-count:])
            bar.update(len(batch))
        bar.close()
        return scores

    def _score_one(self, logits: Tensor, tokens: list[int]) -> tuple[float, bool]:
        """Score tokens by the logits (count, V) that predict them."""
        expected = torch.tensor(tokens, device=logits.device)
        found = logits.float().log_softmax(-1).gather(1, expected[:, None]).double().sum().item()
        # The vocabulary may be padded with ids that no tokeniser knows; they are never generated.
        likeliest = logits[:, : self._tokenizer.vocab_size].argmax(-1)
        return found, torch.equal(likeliest, expected)

    @torch.no_grad()
    def _logits(self, inputs: Sequence[Sequence[int]]) -> Tensor:
        """Returns logits (B, T, V). Padding follows the texts, so causal attention never sees it."""
        lengths = [len(tokens) for tokens in inputs]
        idx = torch.tensor([[*tokens, *[0] * (max(lengths) - len(tokens))] for tokens in inputs])
        idx = idx.to(self.precision.device)
        with self.precision.autocast():
            output = self.model(idx, get_logits=True, get_routing=True, every_position=True, **self.routing)
        for passes, length in zip(output["passes"].cpu(), lengths, strict=True):
            self._count(passes[:length])
        return output["logits"]

    def _count(self, passes: Tensor) -> None:
        self._tokens += len(passes)
        self._passes += int(passes.sum())

    def _generation_settings(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Returns a task's generation settings as arguments of `_continue`."""
        asked = normalize_gen_kwargs(asked)
        until = asked.pop("until", None) or []
        settings = {
            "until": [until] if isinstance(until, str) else until,
            "max_new_tokens": asked.pop("max_gen_toks"),
            "temperature": float(asked.pop("temperature", 0.0)),
        }
        asked.pop("do_sample", None)  # normalize_gen_kwargs has set the temperature to 0 if it is false
        for name, value in asked.items():
            if name in ("top_k", "top_p"):
                settings[name] = value or None  # 0 means none
            elif value is not None:
                self.notes[f"setting {name}={value} of a task's continuations, which has no effect here"] += 1
        return settings

    def _continue(
        self, contexts: list[list[int]], until: list[str], max_new_tokens: int, **sampling: Any
    ) -> list[str]:
        """Returns the continuations of contexts, generated in one batch, without their stop sequences."""
        limit = self.model.config.sequence_length
        room = max(limit - max_new_tokens, limit // 2, 1)
        texts = [""] * len(contexts)
        decoders = [StreamDecoder(self._tokenizer, context) for context in contexts]
        unfinished = set(range(len(contexts)))
        with self.precision.autocast():
            for drawn in generate(
                self.model,
                [ids[-room:] for ids in contexts],
                max_new_tokens,
                n_tokens=self._tokenizer.vocab_size,
                generator=torch.Generator().manual_seed(self.seed),
                **sampling,
                **self.routing,
            ):
                tokens = drawn.tokens.tolist()
                for number in sorted(unfinished):
                    self._count(drawn.passes[number : number + 1])
                    if tokens[number] == self._tokenizer.end_of_text:
                        unfinished.remove(number)
                        continue
                    texts[number] += decoders[number].push(tokens[number])
                    if any(stop and stop in texts[number] for stop in until):
                        unfinished.remove(number)
                if not unfinished:
                    break
        texts = [text + decoder.finish() for text, decoder in zip(texts, decoders, strict=True)]
        return [postprocess_generated_text(text, until, None) for text in texts]


def _args(requests: Sequence[Instance]) -> Iterator[tuple]:
    return (request.args for request in requests)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _bar(total: int, what: str, hidden: bool) -> tqdm:
    return tqdm(total=total, desc=what, disable=hidden or None)
