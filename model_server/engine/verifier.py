"""Walks a decoded draft tree with a request's own sampler, and says what came of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.contract.protocol import PositionLogprobs, ShownTree, TokenLogprob
from model_server.engine.plan import DecodeTree
from model_server.engine.sequence import Sequence, Verified
from model_server.errors import RequestError
from model_server.llama.sampler import TokenDataArray
from model_server.llama.vocab import Vocab
from model_server.sampling import log_softmax, top_ids
from model_server.speculation.verify import Drawn, typical_token, walk

Logits = NDArray[np.float32]


class Verifier:
    """A vocabulary and scratch space for one engine thread."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._scratch = TokenDataArray(vocab.size)

    def verify(self, decoded: DecodeTree, logits: Logits) -> Verified:
        """Draw behind the root, and on while the tree holds what was drawn.

        `logits`: (nodes, vocabulary). The sequence takes the tokens, and its stop rules end the
        walk.
        """
        sequence = decoded.sequence
        drawn: list[Drawn] = []
        texts: list[str] = []
        error: RequestError | None = None
        try:
            for each in walk(decoded.tree, lambda node: self._draw(decoded, node, logits[node])):
                drawn.append(each)
                texts.append(sequence.accept(each.token))
                if sequence.finish_reason is not None:
                    break
        except RequestError as problem:
            error = problem
        nodes, tokens, from_draft = map(list, zip(*drawn, strict=True)) if drawn else ([0], [], [])
        return Verified(
            sequence,
            tokens,
            "".join(texts),
            nodes,
            from_draft,
            self._logprobs(sequence, logits, drawn),
            error,
            tree=self._shown(decoded, drawn),
        )

    def _draw(self, decoded: DecodeTree, node: int, logits: Logits) -> int:
        """The token behind a node, which the sampler has accepted. Raises RequestError."""
        sampler, position = decoded.sequence.sampler, decoded.sequence.num_answered
        token = self._plausible_draft(decoded, node, logits)
        if token is None:
            token = sampler.sample(logits, position, self._scratch)
        sampler.accept(token)
        return token

    def _plausible_draft(self, decoded: DecodeTree, node: int, logits: Logits) -> int | None:
        """With typical acceptance, a draft that may stand in for a drawn token."""
        if decoded.sequence.request.speculation.acceptance != "typical":
            return None
        sampler, tree = decoded.sequence.sampler, decoded.tree
        drafts = [tree.tokens[child] for child in tree.children[node]]
        ids, probabilities = sampler.distribution(logits, self._scratch)
        return typical_token(probabilities, ids, drafts)

    def _logprobs(
        self, sequence: Sequence, logits: Logits, drawn: list[Drawn]
    ) -> list[PositionLogprobs] | None:
        count = sequence.request.logprobs
        if count is None:
            return None
        return [report(self._vocab, logits[each.node], each.token, count) for each in drawn]

    def _shown(self, decoded: DecodeTree, drawn: list[Drawn]) -> ShownTree | None:
        if not decoded.sequence.request.speculation.show_tree:
            return None
        tree = decoded.tree
        children = (tree.child(each.node, each.token) for each in drawn)
        return ShownTree(
            token_ids=tree.tokens,
            texts=[_text(self._vocab, token) for token in tree.tokens],
            parents=tree.parents,
            probabilities=[round(probability, 4) for probability in tree.probabilities],
            accepted=[child for child in children if child is not None],
        )


def _text(vocab: Vocab, token: int) -> str:
    return vocab.piece(token, special=True).decode(errors="replace")


def report(vocab: Vocab, logits: Logits, token: int, count: int) -> PositionLogprobs:
    """Log probabilities of the drawn token and of the `count` most likely ones."""
    values = log_softmax(logits)

    def entry(of: int) -> TokenLogprob:
        piece = vocab.piece(of, special=True)
        return TokenLogprob(
            id=of,
            text=piece.decode(errors="replace"),
            bytes=list(piece),
            logprob=max(float(values[of]), -1e9),
        )

    top = [entry(other) for other in top_ids(logits, count)]
    is_shown = bool(vocab.pieces[token])
    return PositionLogprobs(**entry(token).model_dump(), top=top, is_shown=is_shown)
