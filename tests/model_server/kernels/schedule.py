"""Random steps of several requests in one pool of cells, as the engine makes them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from tests.model_server.kernels.masks import Mask


@dataclass(frozen=True)
class Row:
    """A token behind others: the cells of all of them, its own last."""

    request: _Request
    path: tuple[int, ...]
    cells: tuple[int, ...]


@dataclass(eq=False)
class _Request:
    tokens: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)


class Schedule:
    """Requests come, are prefilled in chunks, draft trees, are cut short, share prefixes and go."""

    def __init__(self, num_cells: int, max_length: int, rng: random.Random) -> None:
        self._num_cells = num_cells
        self._max_length = max_length
        self._rng = rng
        self._requests: list[_Request] = []
        self._tokens = count(rng.randrange(1_000))

    def next_rows(self) -> list[Row]:
        """Rows of every request that has room, in any order of requests."""
        rng = self._rng
        while len(self._requests) < rng.randint(1, 3):
            self._requests.append(self._arrival())
        free = sorted(set(range(self._num_cells)) - self._used())
        rng.shuffle(free)
        rows: list[Row] = []
        for request in rng.sample(self._requests, len(self._requests)):
            room = min(len(free), self._max_length - len(request.tokens))
            num_rows = min(room, rng.choice([1, 2, 4, 8, 16, 32]))
            kind = self._chunk if rng.random() < 0.5 else self._tree
            rows += kind(request, [free.pop() for _ in range(num_rows)])
        return rows

    def mask(self, rows: Sequence[Row]) -> Mask:
        mask = np.zeros((len(rows), self._num_cells), bool)
        for number, row in enumerate(rows):
            mask[number, list(row.cells)] = True
        return mask

    def commit(self, rows: Sequence[Row]) -> None:
        """Each request accepts the path to one of its rows, or nothing; some end."""
        for request in list(self._requests):
            own = [row for row in rows if row.request is request]
            if own and self._rng.random() < 0.9:
                accepted = self._rng.choice(own)
                request.tokens, request.cells = list(accepted.path), list(accepted.cells)
            if self._rng.random() < 0.2 or len(request.tokens) == self._max_length:
                self._requests.remove(request)

    def _arrival(self) -> _Request:
        """New, or with a prefix of another, whose cells it shares."""
        if self._requests and self._rng.random() < 0.5:
            other = self._rng.choice(self._requests)
            length = self._rng.randint(0, len(other.tokens))
            return _Request(other.tokens[:length], other.cells[:length])
        return _Request()

    def _used(self) -> set[int]:
        return {cell for request in self._requests for cell in request.cells}

    def _chunk(self, request: _Request, cells: Sequence[int]) -> list[Row]:
        rows = []
        path, seen = tuple(request.tokens), tuple(request.cells)
        for cell in cells:
            path, seen = (*path, next(self._tokens)), (*seen, cell)
            rows.append(Row(request, path, seen))
        return rows

    def _tree(self, request: _Request, cells: Sequence[int]) -> list[Row]:
        """Breadth first: children come after their parents."""
        rows = self._chunk(request, cells[:1])
        for cell in cells[1:]:
            parent = self._rng.choice(rows)
            path = (*parent.path, next(self._tokens))
            rows.append(Row(request, path, (*parent.cells, cell)))
        return rows
