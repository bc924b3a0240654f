"""A model of ours as lm-evaluation-harness sees one: log-likelihoods of texts, and continuations.

Only `evaluation.lm_eval` imports this module, for the harness is not among the requirements. Shapes: B batch,
T tokens, V = vocab_size.
"""

import json
import math
import sys
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
except ImportError:  # an optional requirement: without it this module can be imported, but not used
    TemplateLM = Instance = object

Window = tuple[list[int], int]  # tokens, and how many of the last ones are scored


class Harness(TemplateLM):
    """The model with its tokeniser. What the harness asks for is computed in batches of similar length.

    routing: `thresholds` of models that route, else nothing. Never the top k: whether a token is among the
    best of a sequence depends on the tokens behind it, so the likelihood of an answer would depend on how
    long the answer is, on its own later words, and on the padding of its batch.
    max_length: tokens that the model sees at once. seed: of the continuations of tasks that sample.
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
        self.notes: dict[str, int] = defaultdict(int)  # what was not as the tasks say -> how often

    @property
    def average_passes(self) -> float | None:
        """Through the middle, of each token that a score was made from or that was written; None before."""
        return self._passes / self._tokens if self._tokens else None

    @property
    def eot_token_id(self) -> int:
        """What stands before a text. Raises UsageError for a tokeniser that has no such token."""
        if self._tokenizer.end_of_text is None:
            raise UsageError(
                f"the tokeniser {self._tokenizer.name} has no end-of-text token, which stands before a text "
                "without a context"
            )
        return self._tokenizer.end_of_text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of the text alone: none is put before or behind it."""
        return self._tokenizer.encode(string).tolist()

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in nats: every token counts once, the first after an end-of-text token.

        A text of more than max_length tokens is cut into windows as the harness defines them.
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
        """(_, context, continuation) -> the continuation's log-probability in nats, and whether it is what
        greedy decoding would write. A context that does not fit into max_length is cut from the left."""
        by_request = [self._windows(context, continuation) for _, context, continuation in requests]
        scores = iter(self._score([window for windows in by_request for window in windows], disable_tqdm))
        found = [[next(scores) for _ in windows] for windows in by_request]
        return [
            (math.fsum(value for value, _ in parts), all(greedy for _, greedy in parts)) for parts in found
        ]

    def _windows(self, context: list[int], continuation: list[int]) -> list[Window]:
        """One; several for a continuation longer than the model can see (the harness' own models refuse)."""
        context = context or [self.eot_token_id]
        if len(continuation) <= self.max_length:
            return [((context + continuation)[-self.max_length - 1 :], len(continuation))]
        self.notes["continuations longer than the model's context, scored window by window"] += 1
        return self._rolling(continuation, context[-1])

    def _rolling(self, tokens: list[int], prefix: int) -> list[Window]:
        windows = get_rolling_token_windows(tokens, prefix, self.max_length, context_len=1)
        return [(seen + scored, len(scored)) for seen, scored in map(make_disjoint_window, windows)]

    def _score(self, windows: Sequence[Window], disable_tqdm: bool) -> list[tuple[float, bool]]:
        """For each window the log-probability of its scored tokens, and whether each is the likeliest.

        What the model sees of the four answers of a question of one token each is the same, and is computed
        once. The longest come first, so that a batch that is too large for the memory is so at once.
        """
        by_input = defaultdict(list)
        for index, (tokens, _) in enumerate(windows):
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
        """logits (count, V) at the places that predict the tokens."""
        if not len(logits):  # a continuation that its context's last token has swallowed
            return 0.0, True
        expected = torch.tensor(tokens, device=logits.device)
        found = logits.float().log_softmax(-1).gather(1, expected[:, None]).double().sum().item()
        # The vocabulary may be padded with ids that no tokeniser knows, and that are never written.
        likeliest = logits[:, : self._tokenizer.vocab_size].argmax(-1)
        return found, torch.equal(likeliest, expected)

    @torch.no_grad()
    def _logits(self, inputs: Sequence[Sequence[int]]) -> Tensor:
        """(B, T, V). Padding is behind the texts, where no token of theirs sees it."""
        lengths = [len(tokens) for tokens in inputs]
        idx = torch.tensor([[*tokens, *[0] * (max(lengths) - len(tokens))] for tokens in inputs])
        idx = idx.to(self.precision.device)
        with self.precision.autocast():
            # With targets, whatever they are, all positions predict, not the last one alone.
            output = self.model(idx, idx, get_logits=True, get_routing=True, **self.routing)
        for passes, length in zip(output["passes"].cpu(), lengths, strict=True):
            self._count(passes[:length])
        return output["logits"]

    def _count(self, passes: Tensor) -> None:
        self._tokens += len(passes)
        self._passes += passes.sum().item()

    def _generation_settings(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What a task asks for, as arguments of `_continue`."""
        asked = normalize_gen_kwargs(asked)
        until = asked.pop("until", None) or []
        settings = {
            "until": [until] if isinstance(until, str) else until,
            "max_new_tokens": asked.pop("max_gen_toks"),
            "temperature": float(asked.pop("temperature", 0.0)),
        }
        asked.pop("do_sample", None)  # which has made the temperature 0 where it is false
        for name, value in asked.items():
            if name in ("top_k", "top_p"):
                settings[name] = value or None  # 0 is none
            elif value is not None:
                self.notes[f"setting {name}={value} of a task's continuations, which has no effect here"] += 1
        return settings

    def _continue(
        self, contexts: list[list[int]], until: list[str], max_new_tokens: int, **sampling: Any
    ) -> list[str]:
        """The continuations of contexts, written together, without the stop sequences that ended them."""
        limit = self.model.config.sequence_length
        room = max(limit - max_new_tokens, limit // 2, 1)
        texts = [""] * len(contexts)
        decoders = [StreamDecoder(self._tokenizer) for _ in contexts]
        going = set(range(len(contexts)))
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
                for number in sorted(going):
                    self._count(drawn.passes[number : number + 1])
                    if tokens[number] == self._tokenizer.end_of_text:
                        going.remove(number)
                        continue
                    texts[number] += decoders[number].push(tokens[number])
                    if any(stop and stop in texts[number] for stop in until):
                        going.remove(number)
                if not going:
                    break
        texts = [text + decoder.finish() for text, decoder in zip(texts, decoders, strict=True)]
        return [postprocess_generated_text(text, until, None) for text in texts]


def _args(requests: Sequence[Instance]) -> Iterator[tuple]:
    return (request.args for request in requests)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _bar(total: int, what: str, hidden: bool) -> tqdm:
    return tqdm(total=total, desc=what, disable=hidden or not sys.stderr.isatty())
