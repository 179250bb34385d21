"""A request's sampler: llama.cpp's filters around our own keyed draw.

Order: logit bias, penalties, grammar, top_k, top_p, min_p, temperature, draw.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from model_server.contract.protocol import Sampling
from model_server.errors import NoTokenAllowed
from model_server.guide.compiler import Guide
from model_server.sampling import Penalties, draw, greedy, gumbel_noise, log_softmax

_CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])


class TokenDataArray:
    """Scratch space for one vocabulary, in llama.cpp's layout. One per engine thread."""

    def __init__(self, vocab_size: int) -> None:
        self._ids = np.arange(vocab_size, dtype=np.int32)
        self._array = np.zeros(vocab_size, _CANDIDATE)

    def filter(
        self,
        sampler: llama_cpp.llama_sampler_p | None,
        logits: NDArray[np.float32],
        ids: NDArray[np.int32] | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Ids and logits that one of llama.cpp's samplers leaves. Views.

        `ids`: whose logits these are; None: the whole vocabulary's.
        """
        if sampler is None:
            return (self._ids if ids is None else ids), logits
        candidates = self._array[: len(logits)]
        candidates["id"] = self._ids if ids is None else ids
        candidates["logit"] = logits
        left = _apply(sampler, candidates)
        return left["id"], left["logit"]


def _apply(sampler: llama_cpp.llama_sampler_p, candidates: NDArray[Any]) -> NDArray[Any]:
    """Run a sampler over candidates in place; gives those it left."""
    pointer = ctypes.cast(candidates.ctypes.data, llama_cpp.llama_token_data_p)
    array = llama_cpp.llama_token_data_array(pointer, len(candidates), -1, False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    return candidates[: array.size]


class Sampler:
    """Sampling state of one request. It moves along emitted tokens only."""

    def __init__(
        self, params: Sampling, banned: Sequence[int] = (), guide: Guide | None = None
    ) -> None:
        """`banned` tokens are never drawn, nor what `guide` doesn't allow."""
        self._filters = None
        self._params = params
        self._guide = guide
        self._penalties = Penalties(
            params.repeat_penalty, params.presence_penalty, params.frequency_penalty
        )
        bias = {**params.logit_bias, **dict.fromkeys(banned, -np.inf)}
        self._bias_ids = np.fromiter(bias, np.int64)
        self._bias = np.fromiter(bias.values(), np.float32)
        self._changes_logits = bool(bias) or self._penalties.active
        self._filters = _make_filters(params)

    def close(self) -> None:
        """Free llama.cpp's part of the state."""
        if self._filters is not None:
            llama_cpp.llama_sampler_free(self._filters)
        self._filters = None

    def __del__(self) -> None:
        self.close()

    @property
    def follows_model(self) -> bool:
        """Whether what is drawn is what the model itself would say, mostly: not shaped, biased,
        penalised or drawn from a flatter distribution.
        """
        params = self._params
        bends = self._guide is not None or params.logit_bias or self._penalties.active
        return not bends and params.temperature <= 1

    def see_prompt(self, tokens: Iterable[int]) -> None:
        """Take the prompt into the repeat penalty's window."""
        self._penalties.see_prompt(tokens)

    def accept(self, token: int) -> None:
        """Move on by an emitted token. The grammar must have allowed it. Raises GrammarTooSlow."""
        if self._penalties.active:
            self._penalties.accept(token)
        if self._guide is not None:
            self._guide.accept(token)

    def allows(self, token: int) -> bool:
        """Whether the grammar, if there is one, allows `token` next."""
        return self._guide is None or self._guide.allows(token)

    def forced(self) -> list[int]:
        """The tokens that the grammar leaves no choice about, as far as there are any."""
        return [] if self._guide is None else self._guide.forced()

    def sample(self, logits: NDArray[np.float32], position: int, scratch: TokenDataArray) -> int:
        """The token for an answer's `position`. Raises NoTokenAllowed, GrammarTooSlow."""
        params = self._params
        if params.temperature == 0:
            return self._best(self._changed(logits))
        ids, scaled = self._filtered(logits, scratch)
        return draw(ids, scaled, gumbel_noise(params.seed, params.choice, position, ids))

    def distribution(
        self, logits: NDArray[np.float32], scratch: TokenDataArray
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Ids and probabilities that `sample` draws from. Raises as it does."""
        if self._params.temperature == 0:
            return np.array([self._best(self._changed(logits))], np.int32), np.ones(1)
        ids, scaled = self._filtered(logits, scratch)
        return ids, np.exp(log_softmax(scaled))

    def _changed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """With bias and penalties."""
        if self._changes_logits:
            logits = logits.copy()
            logits[self._bias_ids] += self._bias
            self._penalties.apply(logits)
        return logits

    def _best(self, logits: NDArray[np.float32]) -> int:
        best, guide = greedy(logits), self._guide
        if guide is not None and not guide.allows(best):
            ids = guide.allowed()
            best = int(ids[greedy(logits[ids])]) if len(ids) else _refuse()
        return best if logits[best] > -np.inf else _refuse()

    def _filtered(
        self, logits: NDArray[np.float32], scratch: TokenDataArray
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """What grammar and filters leave, divided by the temperature, which is above 0."""
        ids, left = None, self._changed(logits)
        if self._guide is not None:
            ids = self._guide.allowed()
            left = left[ids]
        if not left.max(initial=-np.inf) > -np.inf:
            _refuse()
        ids, left = scratch.filter(self._filters, left, ids)
        # From the highest down, in float64: any temperature above 0 leaves finite scores.
        with np.errstate(over="ignore"):
            return ids, (left - left.max()).astype(np.float64) / self._params.temperature


def _refuse() -> NoReturn:
    raise NoTokenAllowed


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
