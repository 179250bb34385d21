"""A request's sampler: llama.cpp's filters and grammar around our own keyed draw.

Order: logit bias, penalties, top_k, top_p, min_p, temperature, draw. A grammar is asked about the
one drawn token first, and masks the whole vocabulary only when it refuses (400 times cheaper).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from model_server.errors import GrammarRefused, NoTokenAllowed
from model_server.llama import backend
from model_server.llama.grammar import check_grammar
from model_server.llama.schema import schema_to_gbnf
from model_server.llama.vocab import Vocab
from model_server.protocol import Sampling
from model_server.sampling import Penalties, draw, greedy, gumbel_noise, log_softmax

_CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])


class Candidates:
    """Scratch space for one vocabulary, in llama.cpp's layout. One per engine thread."""

    def __init__(self, vocab_size: int) -> None:
        self._ids = np.arange(vocab_size, dtype=np.int32)
        self._array = np.zeros(vocab_size, _CANDIDATE)

    def filter(
        self, sampler: llama_cpp.llama_sampler_p | None, logits: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Ids and logits that one of llama.cpp's samplers leaves of the whole vocabulary. Views."""
        self._array["id"] = self._ids
        self._array["logit"] = logits
        left = self._array if sampler is None else _apply(sampler, self._array)
        return left["id"], left["logit"]


def _apply(sampler: llama_cpp.llama_sampler_p, candidates: NDArray[Any]) -> NDArray[Any]:
    """Run a sampler over candidates in place; gives those it left."""
    pointer = ctypes.cast(candidates.ctypes.data, llama_cpp.llama_token_data_p)
    array = llama_cpp.llama_token_data_array(pointer, len(candidates), -1, False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    return candidates[: array.size]


class Sampler:
    """Sampling state of one request. It moves along emitted tokens only."""

    def __init__(self, vocab: Vocab, params: Sampling, banned: Sequence[int] = ()) -> None:
        """`banned` tokens are never drawn. Raises GrammarRefused."""
        self._filters = self._grammar = None
        self._params = params
        self._penalties = Penalties(
            params.repeat_penalty, params.presence_penalty, params.frequency_penalty
        )
        bias = {**params.logit_bias, **dict.fromkeys(banned, -np.inf)}
        self._bias_ids = np.fromiter(bias, np.int64)
        self._bias = np.fromiter(bias.values(), np.float32)
        self._changes_logits = bool(bias) or self._penalties.active
        self._filters = _make_filters(params)
        self._grammar = _make_grammar(vocab, params)
        self.constrained = self._grammar is not None  # a grammar must be asked about every token

    def close(self) -> None:
        """Free llama.cpp's part of the state."""
        for sampler in (self._filters, self._grammar):
            if sampler is not None:
                llama_cpp.llama_sampler_free(sampler)
        self._filters = self._grammar = None

    def __del__(self) -> None:
        self.close()

    def see_prompt(self, tokens: Iterable[int]) -> None:
        """Take the prompt into the repeat penalty's window."""
        self._penalties.see_prompt(tokens)

    def accept(self, token: int) -> None:
        """Move on by an emitted token. The grammar must have allowed it."""
        if self._penalties.active:
            self._penalties.accept(token)
        if self._grammar is not None:
            llama_cpp.llama_sampler_accept(self._grammar, token)

    def allows(self, token: int) -> bool:
        """Whether the grammar, if there is one, allows `token` next."""
        if self._grammar is None:
            return True
        candidate = np.array([(token, 0.0, 0.0)], _CANDIDATE)
        _apply(self._grammar, candidate)
        return bool(np.isfinite(candidate["logit"][0]))

    def sample(self, logits: NDArray[np.float32], position: int, scratch: Candidates) -> int:
        """The token for an answer's `position`. Raises NoTokenAllowed."""
        if self._changes_logits:
            logits = self._biased(logits)
        token = self._pick(logits, position, scratch)
        if self._grammar is None or self.allows(token):
            return token
        ids, left = scratch.filter(self._grammar, logits)
        masked = np.full_like(logits, -np.inf)
        masked[ids] = left
        return self._pick(masked, position, scratch)

    def distribution(
        self, logits: NDArray[np.float32], scratch: Candidates
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Ids and probabilities that `sample` draws from, but for the grammar."""
        if self._changes_logits:
            logits = self._biased(logits)
        if self._params.temperature == 0:
            return np.array([greedy(logits)], np.int32), np.ones(1)
        ids, scaled = self._filtered(logits, scratch)
        return ids, np.exp(log_softmax(scaled))

    def _biased(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = logits.copy()
        logits[self._bias_ids] += self._bias
        self._penalties.apply(logits)
        return logits

    def _pick(self, logits: NDArray[np.float32], position: int, scratch: Candidates) -> int:
        best = greedy(logits)
        if not logits[best] > -np.inf:
            raise NoTokenAllowed
        params = self._params
        if params.temperature == 0:
            return best
        ids, scaled = self._filtered(logits, scratch)
        return draw(ids, scaled, gumbel_noise(params.seed, params.choice, position, ids))

    def _filtered(
        self, logits: NDArray[np.float32], scratch: Candidates
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """What the filters leave, divided by the temperature, which is above 0."""
        ids, left = scratch.filter(self._filters, logits)
        # From the highest down, in float64: any temperature above 0 leaves finite scores.
        with np.errstate(over="ignore"):
            return ids, (left - left.max()).astype(np.float64) / self._params.temperature


def _make_filters(params: Sampling) -> llama_cpp.llama_sampler_p | None:
    filters = []
    if params.top_k:
        filters.append(llama_cpp.llama_sampler_init_top_k(params.top_k))
    if params.top_p < 1:
        filters.append(llama_cpp.llama_sampler_init_top_p(params.top_p, 1))
    if params.min_p > 0:
        filters.append(llama_cpp.llama_sampler_init_min_p(params.min_p, 1))
    if not filters or params.temperature == 0:
        return None
    chain: llama_cpp.llama_sampler_p = llama_cpp.llama_sampler_chain_init(
        llama_cpp.llama_sampler_chain_default_params()
    )
    for sampler in filters:
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    return chain


def _make_grammar(vocab: Vocab, params: Sampling) -> llama_cpp.llama_sampler_p | None:
    if params.json_schema is not None:
        text = schema_to_gbnf(params.json_schema)
    elif params.grammar is not None:
        check_grammar(text := params.grammar)
    else:
        return None
    backend.clear_errors()
    grammar: llama_cpp.llama_sampler_p | None
    grammar = llama_cpp.llama_sampler_init_grammar(vocab.pointer, text.encode(), b"root")
    if not grammar:
        raise GrammarRefused(
            f"grammar: llama.cpp can't parse it: {backend.last_error()}", "grammar"
        )
    return grammar
