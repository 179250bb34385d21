"""Walk a draft tree with the target model's own tokens. Pure: sampling is handed in.

Every sampled token is emitted; while the tree holds it, the walk goes on behind it. So what comes
out is what plain decoding would have drawn, whatever was drafted. Typical acceptance (Cai et al.,
Medusa, 2024, 2.3.1) is the lossy alternative: a draft need only be plausible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_server.speculation.tree import DraftTree

TYPICAL_EPSILON, TYPICAL_DELTA = 0.09, 0.3


class Drawn(NamedTuple):
    """A token, the node it was drawn behind, and whether the tree had drafted it there."""

    node: int
    token: int
    from_draft: bool


def walk(tree: DraftTree, draw: Callable[[int], int]) -> Iterator[Drawn]:
    """From the root down: `draw(node)` gives the token behind a node; go on while it was drafted.

    A typical `draw` may give a child's token instead of a drawn one.
    """
    node: int | None = 0
    while node is not None:
        token = draw(node)
        child = tree.child(node, token)
        yield Drawn(node, token, child is not None)
        node = child


def typical_token(
    probabilities: NDArray[np.float64], ids: NDArray[np.int32], drafts: Sequence[int]
) -> int | None:
    """The first draft that is plausible: p > min(epsilon, delta * exp(-entropy)).

    `probabilities` of `ids` sum to 1: the target's distribution after filters and temperature.
    """
    if not drafts:
        return None
    positive = probabilities[probabilities > 0]
    entropy = -float((positive * np.log(positive)).sum())
    threshold = min(TYPICAL_EPSILON, TYPICAL_DELTA * np.exp(-entropy))
    for draft in drafts:
        if probabilities[ids == draft].sum() > threshold:
            return draft
    return None
