"""Where each field of a GGUF file lies, so that one of them can be spoiled."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import cached_property

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # gguf_type: bytes
U8, U16, U32, I32, F32, BOOL, STRING, U64 = 0, 2, 4, 5, 6, 7, 8, 10
_ARRAY = 9


@dataclass(frozen=True)
class Field:
    """`kind`: a number's gguf_type, or that of the bytes of a string. `of`: whose it is."""

    kind: int
    start: int
    size: int
    of: str

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass
class Layout:
    """Fields by what they mean, in the order of the file."""

    raw: bytes
    counts: list[Field] = field(default_factory=list)  # of tensors, keys, elements, letters
    types: list[Field] = field(default_factory=list)  # of values and tensors
    strings: list[Field] = field(default_factory=list)  # keys, values, names
    numbers: list[Field] = field(default_factory=list)  # values
    extents: list[Field] = field(default_factory=list)  # numbers of dimensions, and these
    offsets: list[Field] = field(default_factory=list)
    keys: list[Field] = field(default_factory=list)
    names: list[Field] = field(default_factory=list)
    infos_start: int = 0
    data_start: int = 0

    def __post_init__(self) -> None:
        self._at = 8
        num_tensors, num_keys = (self._number(self.counts, U64, "header") for _ in range(2))
        for _ in range(num_keys):
            key = self._string(self.keys)
            self._value(self._number(self.types, U32, key), key)
        self.infos_start = self._at
        for _ in range(num_tensors):
            name = self._string(self.names)
            for _ in range(self._number(self.extents, U32, name)):
                self._number(self.extents, U64, name)
            self._number(self.types, U32, name)
            self._number(self.offsets, U64, name)
        self.data_start = -(-self._at // 32) * 32

    @cached_property
    def vocabulary(self) -> list[Field]:
        """Texts of tokens and merges."""
        return [each for each in self.strings if each.of.endswith((".tokens", ".merges"))]

    @cached_property
    def token_values(self) -> list[Field]:
        """Kinds and scores of tokens, and ids of those with a meaning."""
        return [each for each in self.numbers if each.of.startswith("tokenizer.")]

    @cached_property
    def sizes(self) -> list[Field]:
        """Numbers that say what is computed."""
        return [each for each in self.numbers if not each.of.startswith("tokenizer.")]

    def _value(self, kind: int, key: str) -> None:
        if kind == STRING:
            self._string(self.strings, key)
        elif kind == _ARRAY:
            of = self._number(self.types, U32, key)
            for _ in range(self._number(self.counts, U64, key)):
                self._value(of, key)
        else:
            self._number(self.numbers, kind, key)

    def _number(self, into: list[Field], kind: int, of: str) -> int:
        into.append(Field(kind, self._at, _SIZES[kind], of))
        self._at += _SIZES[kind]
        return int.from_bytes(self.raw[self._at - _SIZES[kind] : self._at], "little")

    def _string(self, into: list[Field], of: str = "") -> str:
        (size,) = struct.unpack_from("<Q", self.raw, self._at)
        text = self.raw[self._at + 8 : self._at + 8 + size].decode(errors="replace")
        self.counts.append(Field(U64, self._at, 8, of or text))
        into.append(Field(STRING, self._at + 8, size, of or text))
        self._at += 8 + size
        return text
