"""Ways to spoil a GGUF file, each a function of the file and a generator of random numbers."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping, Sequence

from tests.fire.gguf_layout import F32, STRING, U64, Field, Layout
from tests.fire.odd_values import (
    ARCHITECTURES,
    FLOATS,
    HUGE,
    MORE_KEYS,
    NOT_UTF8,
    NUM_GGML_TYPES,
    NUM_GGUF_TYPES,
    ODD,
    PRE_TOKENIZERS,
    TEMPLATES,
    TOKENIZERS,
    VALUES,
)

Spoil = Callable[[Layout, random.Random], bytes]


def truncated(file: Layout, rng: random.Random) -> bytes:
    bound = rng.choice((64, file.infos_start, file.data_start, len(file.raw)))
    return file.raw[: rng.randrange(bound)]


def header_bits(file: Layout, rng: random.Random) -> bytes:
    return _flipped(file, rng, 0, 24)


def metadata_bits(file: Layout, rng: random.Random) -> bytes:
    return _flipped(file, rng, 24, file.infos_start)


def tensor_info_bits(file: Layout, rng: random.Random) -> bytes:
    return _flipped(file, rng, file.infos_start, file.data_start)


def data_bits(file: Layout, rng: random.Random) -> bytes:
    return _flipped(file, rng, file.data_start, len(file.raw))


def counts(file: Layout, rng: random.Random) -> bytes:
    """Of tensors, keys, elements, letters: huge, or a little off."""
    each = rng.choice(_spread(file.counts, rng))
    now = int.from_bytes(file.raw[each.start : each.end], "little")
    return _put(file.raw, each, rng.choice((*HUGE, now - 1, now + 1, 2 * now, 0)))


def sizes(file: Layout, rng: random.Random) -> bytes:
    """Layers, heads, contexts, rotations: huge, zero, negative, no number."""
    return _odd_number(file, rng.choice(file.sizes), rng)


def token_values(file: Layout, rng: random.Random) -> bytes:
    """Kinds of tokens, and ids of those with a meaning."""
    return _odd_number(file, rng.choice(_spread(file.token_values or file.numbers, rng)), rng)


def vocabularies(file: Layout, rng: random.Random) -> bytes:
    """Texts of tokens and merges that say nothing, or what others say."""
    raw = file.raw
    for _ in range(rng.choice((1, 10, 1_000))):
        one = rng.choice(file.vocabulary or file.strings)
        text = bytes(rng.choice(b"\0 a\xff\xe2\n") for _ in range(one.size))
        raw = raw[: one.start] + text + raw[one.end :]
    return raw


def types(file: Layout, rng: random.Random) -> bytes:
    """Of values and tensors: another one, or none that there is."""
    each = rng.choice(file.types)
    known = NUM_GGML_TYPES if each.start >= file.infos_start else NUM_GGUF_TYPES
    return _put(file.raw, each, rng.choice((*range(known), *range(known), known + 1, 2**32 - 1)))


def extents(file: Layout, rng: random.Random) -> bytes:
    """Shapes of tensors."""
    each = rng.choice(file.extents)
    now = int.from_bytes(file.raw[each.start : each.end], "little")
    return _put(file.raw, each, rng.choice((*ODD, now + 32, now * 2, now // 2)))


def offsets(file: Layout, rng: random.Random) -> bytes:
    """Tensors over others, over the header, beyond the end, or of no whole number of steps."""
    raw = file.raw
    for each in rng.sample(file.offsets, min(len(file.offsets), rng.choice((1, 2, 99)))):
        other = rng.choice(file.offsets)
        found = int.from_bytes(raw[other.start : other.end], "little")
        beyond = 2**64 - file.data_start
        raw = _put(raw, each, rng.choice((found, found, found + 1, found - 32, beyond, *HUGE)))
    return raw


def not_utf8(file: Layout, rng: random.Random) -> bytes:
    """Names, keys and texts that are no text."""
    where = rng.choice((file.keys, file.names, file.strings))
    each = rng.choice([one for one in _spread(where, rng) if one.size])
    text = rng.choice(NOT_UTF8)[: each.size]
    at = each.start + rng.randrange(each.size - len(text) + 1)
    return file.raw[:at] + text + file.raw[at + len(text) :]


def duplicates(file: Layout, rng: random.Random) -> bytes:
    """Two keys, or two tensors, of one name."""
    where = rng.choice((file.keys, file.names))
    pairs = [(a, b) for a in where for b in where if a.size == b.size and a != b]
    if not pairs:
        return not_utf8(file, rng)
    one, other = rng.choice(pairs)
    return file.raw[: one.start] + file.raw[other.start : other.end] + file.raw[one.end :]


def missing(file: Layout, rng: random.Random) -> bytes:
    """A key or a tensor that must be there has another name."""
    each = rng.choice(rng.choice((file.keys, file.names)))
    at = each.start + rng.randrange(each.size)
    return file.raw[:at] + b"~" + file.raw[at + 1 :]


def long_names(file: Layout, rng: random.Random) -> bytes:
    """A key, a text or a name of many letters, and all behind it moved."""
    each = rng.choice(rng.choice((file.keys, file.names, file.strings[:20])))
    return _with_text(file, each, b"a" * rng.choice((0, 64, 65, 70_000, 2_000_000)))


def architectures(file: Layout, rng: random.Random) -> bytes:
    """Another kind of model, by its name alone or with its keys."""
    name = rng.choice(ARCHITECTURES)
    if rng.random() < 0.3:
        return _with_text(file, _value_of(file, "general.architecture"), name)
    renamed = file
    for i, key in enumerate(file.keys):
        if key.of.startswith("llama."):
            rest = key.of.removeprefix("llama").encode()
            renamed = Layout(_with_text(renamed, renamed.keys[i], name + rest))
    return _with_text(renamed, _value_of(renamed, "general.architecture"), name)


def tokenizers(file: Layout, rng: random.Random) -> bytes:
    """Another way to cut texts than the vocabulary was made for."""
    kind, pre = "tokenizer.ggml.model", "tokenizer.ggml.pre"
    if not any(each.of == kind for each in file.strings):
        return architectures(file, rng)
    if rng.random() < 0.5:
        return _with_text(file, _value_of(file, kind), rng.choice(TOKENIZERS))
    return _with_text(file, _value_of(file, pre), rng.choice(PRE_TOKENIZERS))


def more_keys(file: Layout, rng: random.Random) -> bytes:
    """What llama.cpp reads where it is there: of files in parts, of experts, of rotations."""
    name, kinds = rng.choice(MORE_KEYS)
    kind = rng.choice(kinds)
    key = struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + VALUES[kind](rng)
    return with_key(file, key)


def templates(file: Layout, rng: random.Random) -> bytes:
    """Templates of chats that don't end, fill the memory, or are none."""
    return with_template(file, rng.choice(TEMPLATES))


WAYS: Mapping[str, Spoil] = {
    way.__name__: way
    for way in (
        *(truncated, header_bits, metadata_bits, tensor_info_bits, data_bits, counts, sizes),
        *(token_values, vocabularies, types, extents, offsets, not_utf8, duplicates, missing),
        *(long_names, architectures, tokenizers, more_keys, templates),
    )
}


def _flipped(file: Layout, rng: random.Random, start: int, end: int) -> bytes:
    raw = bytearray(file.raw)
    for _ in range(rng.choice((1, 1, 3, 30))):
        raw[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(raw)


def _spread(fields: Sequence[Field], rng: random.Random) -> list[Field]:
    """Those of one owner, each owner as often: a vocabulary has thousands, the rest dozens."""
    of = rng.choice(sorted({each.of for each in fields}))
    return [each for each in fields if each.of == of]


def _odd_number(file: Layout, each: Field, rng: random.Random) -> bytes:
    if each.kind == F32:
        text = struct.pack("<f", rng.choice(FLOATS))
        return file.raw[: each.start] + text + file.raw[each.end :]
    return _put(file.raw, each, rng.choice(ODD))


def with_key(file: Layout, key: bytes) -> bytes:
    """With one key more, in front of the others."""
    return _moved(file, 24, 24, key, num_keys=1)


def with_template(file: Layout, text: bytes) -> bytes:
    """With another chat template."""
    key = "tokenizer.chat_template"
    if any(each.of == key for each in file.strings):
        return _with_text(file, _value_of(file, key), text)
    added = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<IQ", STRING, len(text))
    return with_key(file, added + text)


def _value_of(file: Layout, key: str) -> Field:
    return next(each for each in file.strings if each.of == key)


def _with_text(file: Layout, each: Field, text: bytes) -> bytes:
    return _moved(file, each.start - 8, each.end, struct.pack("<Q", len(text)) + text)


def _moved(file: Layout, start: int, end: int, text: bytes, num_keys: int = 0) -> bytes:
    """With something else at a place of the header, the weights where they belong behind it."""
    raw = file.raw[:start] + text + file.raw[end : file.data_start].rstrip(b"\0") + bytes(8)
    (found,) = struct.unpack_from("<Q", raw, 16)
    raw = raw[:16] + struct.pack("<Q", found + num_keys) + raw[24:]
    return (
        raw.ljust(Layout(raw).data_start, b"\0")[: Layout(raw).data_start]
        + file.raw[file.data_start :]
    )


def _put(raw: bytes, each: Field, value: int) -> bytes:
    limit = 1 << 8 * (each.size if each.kind != U64 else 8)
    return raw[: each.start] + (value % limit).to_bytes(each.size, "little") + raw[each.end :]
