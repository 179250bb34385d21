"""The prompt around a gap, in the order that models which fill gaps were trained with, as
llama-server writes it: other files' text, what is before, what is behind, and then the gap's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from model_server.contract.protocol import Infill, Snippet
from model_server.llama.vocab import Vocab

# llama-server's, where a model has no token between files, and the names it gives.
SEPARATOR = "\n\n--- snippet ---\n\n"
REPOSITORY, THIS_FILE = "myproject\n", "filename\n"
# Of the room for what is around the gap; other files have what these leave.
_SHARE_BEFORE = 3 / 4


def tokens(vocab: Vocab, before: str, infill: Infill, room: int | None) -> list[int]:
    """Tokens without BOS, at most `room`, which leaves away what is farthest from the gap."""
    named, behind = vocab.infill, infill.suffix
    extra: Sequence[Snippet] = infill.extra
    if room is not None:  # no more text than could fit is tokenized
        num_chars = room * vocab.longest_piece_bytes
        before, behind = before[-num_chars:], behind[:num_chars]
        extra = _nearest(extra, num_chars)
    left, right, others = vocab.tokenize(before), vocab.tokenize(behind), _others(vocab, extra)
    if room is not None:
        room = max(room - 3, 0)
        num_before = min(len(left), max(int(room * _SHARE_BEFORE), room - len(right)))
        num_behind = min(len(right), room - num_before)
        left, right = left[len(left) - num_before :], right[:num_behind]
        others = others[max(len(others) - (room - num_before - num_behind), 0) :]
    return [*others, named["pre"], *left, named["suf"], *right, named["mid"]]


def _nearest(extra: Sequence[Snippet], num_chars: int) -> Sequence[Snippet]:
    """The last ones, as many as have so many characters in all."""
    lengths = accumulate(len(each.text) + len(each.filename) for each in reversed(extra))
    count = sum(length <= num_chars for length in lengths)
    return extra[len(extra) - count :]


def _others(vocab: Vocab, extra: Sequence[Snippet]) -> list[int]:
    """What is known of the repository."""
    named = vocab.infill
    made = [named["rep"], *vocab.tokenize(REPOSITORY)] if "rep" in named else []
    for snippet in extra:
        if "sep" in named:
            made += [named["sep"], *vocab.tokenize(f"{snippet.filename}\n")]
        else:
            made += vocab.tokenize(SEPARATOR)
        made += vocab.tokenize(snippet.text)
    return [*made, named["sep"], *vocab.tokenize(THIS_FILE)] if "sep" in named else made
