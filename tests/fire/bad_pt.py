"""Ways to spoil PyTorch's zip files, and pickles that would run code or fill the memory."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

Spoil = Callable[[bytes, random.Random], bytes]

_PICKLE = "archive/data.pkl"
_CALLS = (
    ("os", "system"), ("posix", "system"), ("builtins", "exec"), ("builtins", "eval"),
    ("subprocess", "Popen"), ("runpy", "run_path"), ("torch.storage", "_load_from_bytes"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"), ("collections", "OrderedDict.__init__"),
)  # fmt: skip


def canary(folder: Path) -> Path:
    """What code in a pickle would make, were it run in this folder."""
    return folder / "code-was-run"


def truncated(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(len(raw))]


def bits(raw: bytes, rng: random.Random) -> bytes:
    return _flipped(raw, rng, 0, len(raw))


def directory_bits(raw: bytes, rng: random.Random) -> bytes:
    """The zip's list of what it holds."""
    return _flipped(raw, rng, raw.index(b"PK\x01\x02"), len(raw))


def local_headers(raw: bytes, rng: random.Random) -> bytes:
    at = rng.choice([i for i in range(len(raw)) if raw.startswith(b"PK\x03\x04", i)])
    return _flipped(raw, rng, at, at + 30)


def pickle_bits(raw: bytes, rng: random.Random) -> bytes:
    """The pickle, with the zip right about it."""
    found = _pickle(raw)
    return _with_pickle(raw, _flipped(found, rng, 0, len(found)))


def pickle_cut(raw: bytes, rng: random.Random) -> bytes:
    found = _pickle(raw)
    return _with_pickle(raw, found[: rng.randrange(len(found))])


def pickle_numbers(raw: bytes, rng: random.Random) -> bytes:
    """Shapes, steps and places: huge, negative."""
    found = _pickle(raw)
    at = rng.choice([i for i, op in enumerate(found) if op in b"KMJ"])
    value = rng.choice((-1, -(2**31), 2**31 - 1, 2**40, 2**62, -(2**62), 2**64, 0))
    return _with_pickle(raw, found[:at] + pickle.dumps(value, 2)[2:-1] + found[at + 2 :])


def runs_code(raw: bytes, rng: random.Random) -> bytes:
    """Instead of the tensors, or before them."""
    module, name = rng.choice(_CALLS)
    code = b"touch code-was-run" if name == "system" else b"open('code-was-run', 'w')"
    call = f"c{module}\n{name}\n".encode() + b"(S'" + code.replace(b"'", b"\\'") + b"'\ntR"
    found = _pickle(raw)
    return _with_pickle(raw, rng.choice((call + b".", found[:2] + call + b"0" + found[2:])))


def builds_state(raw: bytes, rng: random.Random) -> bytes:
    """What a pickle may do to what is known: set attributes of a class or a call's result."""
    target = rng.choice((b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n"))
    state = b"}S'__class__'\nS'x'\nsb" if rng.random() < 0.5 else b"(S'a'\nI1\ntb"
    return _with_pickle(raw, rng.choice((target + state + b".", target + b")R" + state + b".")))


def fills_memory(raw: bytes, rng: random.Random) -> bytes:
    """A few bytes that stand for gigabytes."""
    huge = rng.choice((2**31 - 1, 2**28))
    forms = (
        b"\x80\x02Nr" + struct.pack("<I", huge) + b".",  # a memo of so many entries
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a.",  # bytes of that length
        b"\x80\x02\x8b" + struct.pack("<i", huge) + b"a.",  # an integer of that length
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",  # a frame of that length
        b"]" + b"(2" * 40 + b"l" * 40 + b".",
        b"(" * 1_000_000 + b".",
        b"(S'" + b"a" * 50 + b"'\n" + b"2t" * 100_000 + b".",
    )
    return _with_pickle(raw, rng.choice(forms))


def bomb(raw: bytes, rng: random.Random) -> bytes:
    """A pickle that is small only while it is compressed."""
    size = rng.choice((2**28, 2**30))
    text = b"\x80\x02X" + struct.pack("<I", size) + bytes(size) + b"."
    return _with_pickle(raw, text, zipfile.ZIP_DEFLATED)


def nested(raw: bytes, rng: random.Random) -> bytes:
    """Lists in lists, and entries of one name."""
    depth = rng.choice((1_000, 100_000, 1_000_000))
    return _with_pickle(raw, b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")


def keys(raw: bytes, rng: random.Random) -> bytes:
    """A key of pairs of pairs, which takes hours to hash."""
    key = b")" + b"2\x86" * rng.choice((30, 60, 1_000))
    return _with_pickle(
        raw, b"\x80\x02" + rng.choice((b"}", b"ccollections\nOrderedDict\n)R")) + key + b"Ns."
    )


WAYS: Mapping[str, Spoil] = {
    way.__name__: way
    for way in (
        *(truncated, bits, directory_bits, local_headers, pickle_bits, pickle_cut),
        *(pickle_numbers, runs_code, builds_state, fills_memory, bomb, nested, keys),
    )
}


def _pickle(raw: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return archive.read(_PICKLE)


def _with_pickle(raw: bytes, text: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            if name == _PICKLE:
                new.writestr(name, text, compression, 1)
            else:
                new.writestr(name, old.read(name))
    return out.getvalue()


def _flipped(raw: bytes, rng: random.Random, start: int, end: int) -> bytes:
    flipped = bytearray(raw)
    for _ in range(rng.choice((1, 1, 3, 30))):
        flipped[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(flipped)
