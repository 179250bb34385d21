"""Tile instructions do what Intel's manual says: the processor's own, or the emulator's."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from tests.amx.tiles import Shape, Tiles, configuration

WHOLE = (16, 64)
EVERY = {"config": configuration(dict.fromkeys(range(8), WHOLE))}
COUNTING = np.arange(512, dtype="<u2").tobytes()  # a whole tile, each row different

# Ways to say that rows begin at a place, 64 bytes apart.
OPERANDS = [
    ("mov ${0}, %eax; mov $64, %ecx", "(%rax,%rcx,1)"),
    ("mov ${0}, %r8d; mov $16, %r9d", "(%r8,%r9,4)"),
    ("mov ${0}+16, %edi; mov $32, %r12d", "-16(%rdi,%r12,2)"),
    ("mov ${0}-4096, %r13d; mov $8, %ebp", "4096(%r13,%rbp,8)"),
    ("mov ${0}, %r13d; mov $64, %esi", "(%r13,%rsi,1)"),
    ("mov ${0}, %ebp; mov $64, %edx", "(%rbp,%rdx,1)"),
    ("mov ${0}-65536, %r12d; mov $64, %ebx", "65536(%r12,%rbx,1)"),
    ("mov $64, %r15d", "{0}(,%r15,1)"),
]


@pytest.mark.parametrize("load", ["tileloadd", "tileloaddt1"])
@pytest.mark.parametrize(("registers", "operand"), OPERANDS)
def test_operands_in_memory(tiles: Tiles, load: str, registers: str, operand: str) -> None:
    steps = f"""ldtilecfg config(%rip);
        {registers.format("a")}; {load} {operand.format("a")}, %tmm3;
        {registers.format("out")}; tilestored %tmm3, {operand.format("out")}"""
    ran = tiles.run({**EVERY, "a": COUNTING}, PROGRAM=steps)
    assert ran.code == 0
    assert ran.out[:1024] == COUNTING


def test_rows_on_the_stack(tiles: Tiles) -> None:
    """And rows that begin at different distances: the last row comes first in memory."""
    steps = """ldtilecfg config(%rip);
        sub $1024, %rsp; mov $a, %esi; mov %rsp, %rdi; mov $1024, %ecx; rep movsb;
        mov $64, %eax; tileloadd (%rsp,%rax,1), %tmm0; add $1024, %rsp;
        mov $-64, %rax; tilestored %tmm0, out+960(,%rax,1)"""
    ran = tiles.run({**EVERY, "a": COUNTING}, PROGRAM=steps)
    assert ran.code == 0
    assert rows(ran.out)[::-1] == rows(COUNTING)


def test_without_an_index_all_rows_are_the_first(tiles: Tiles) -> None:
    steps = """ldtilecfg config(%rip); mov $a, %ecx; tileloadd (%rcx), %tmm7;
        mov $64, %eax; tilestored %tmm7, out(,%rax,1)"""
    ran = tiles.run({**EVERY, "a": COUNTING}, PROGRAM=steps)
    assert ran.code == 0
    assert rows(ran.out) == rows(COUNTING)[:1] * 16


def test_only_the_configured_part_moves(tiles: Tiles) -> None:
    """5 rows of 12 bytes, from rows of 64 to rows of 32: what lies between stays."""
    steps = """ldtilecfg config(%rip); mov $64, %eax; tileloadd a(,%rax,1), %tmm1;
        mov $32, %eax; tilestored %tmm1, out(,%rax,1)"""
    ran = tiles.run({"config": configuration({1: (5, 12)}), "a": COUNTING}, PROGRAM=steps)
    assert ran.code == 0
    expected = b"".join(row[:12] + bytes(20) for row in rows(COUNTING)[:5])
    assert ran.out == expected.ljust(len(ran.out), b"\0")


def test_a_load_goes_on_where_it_was_interrupted(tiles: Tiles) -> None:
    steps = """ldtilecfg config(%rip); mov $64, %eax; tileloadd a(,%rax,1), %tmm1;
        tilestored %tmm1, out(,%rax,1)"""
    begun = configuration({1: WHOLE}, start_row=3)
    ran = tiles.run({"config": begun, "a": COUNTING}, PROGRAM=steps)
    assert ran.code == 0
    assert rows(ran.out) == [bytes(64)] * 3 + rows(COUNTING)[3:]


def rows(memory: bytes) -> list[bytes]:
    return [memory[start : start + 64] for start in range(0, 1024, 64)]


ASK = "; sttilecfg out(%rip)"


@pytest.mark.parametrize(
    ("program", "left"),
    [
        ("", bytes(64)),
        ("ldtilecfg config(%rip)", EVERY["config"]),
        ("ldtilecfg config(%rip); tilezero %tmm2", EVERY["config"]),
        ("ldtilecfg config(%rip); tilerelease", bytes(64)),
        ("ldtilecfg config(%rip); ldtilecfg a(%rip)", bytes(64)),
    ],
    ids=["unset", "set", "in use", "released", "palette 0"],
)
def test_the_configuration_can_be_asked(tiles: Tiles, program: str, left: bytes) -> None:
    ran = tiles.run(EVERY, PROGRAM=program + ASK)
    assert ran.code == 0
    assert ran.out[:64] == left


def test_tiles_are_zero_at_first_and_after_tilezero(tiles: Tiles) -> None:
    """A new configuration, even the same, clears them."""
    loaded = "ldtilecfg config(%rip); mov $64, %eax; tileloadd a(,%rax,1), %tmm4;"
    stored = "; tilestored %tmm4, out(,%rax,1)"
    for between, left in (
        ("nop", COUNTING),
        ("tilezero %tmm4", bytes(1024)),
        ("ldtilecfg config(%rip)", bytes(1024)),
    ):
        ran = tiles.run({**EVERY, "a": COUNTING}, PROGRAM=loaded + between + stored)
        assert (ran.code, ran.out[:1024]) == (0, left)


def test_each_thread_has_its_own(tiles: Tiles) -> None:
    """Linux gives a new thread its parent's configuration, and empty tiles."""
    ran = tiles.run(
        {**EVERY, "a": COUNTING, "b": configuration({4: (1, 4)})},
        PROGRAM="ldtilecfg config(%rip); mov $64, %eax; tileloadd a(,%rax,1), %tmm4",
        THREAD="""sttilecfg out+1024(%rip); mov $64, %eax; tilestored %tmm4, out+2048(,%rax,1);
            ldtilecfg b(%rip); tilezero %tmm4""",
        AFTERWARDS="mov $64, %eax; tilestored %tmm4, out(,%rax,1)",
    )
    assert ran.code == 0
    assert ran.out[:1024] == COUNTING
    assert ran.out[1024 : 1024 + 64] == EVERY["config"]
    assert ran.out[2048 : 2048 + 1024] == bytes(1024)


# ---- What a processor refuses ----


def changed(byte: int, value: int) -> bytes:
    config = bytearray(EVERY["config"])
    config[byte] = value
    return bytes(config)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(configuration({0: WHOLE}, palette=2), id="palette 2"),
        pytest.param(configuration({0: (17, 64)}), id="17 rows"),
        pytest.param(configuration({0: (16, 68)}), id="68 bytes"),
        pytest.param(configuration({0: (16, 0)}), id="rows without width"),
        pytest.param(configuration({0: (0, 64)}), id="width without rows"),
        pytest.param(configuration({8: WHOLE}), id="a ninth tile"),
        *(
            pytest.param(changed(byte, 1), id=f"reserved byte {byte}")
            for byte in (2, 15, 32, 47, 56)
        ),
    ],
)
def test_a_wrong_configuration_is_refused(tiles: Tiles, config: bytes) -> None:
    ran = tiles.run({"config": config}, PROGRAM="ldtilecfg config(%rip)")
    assert ran.code == -signal.SIGSEGV


@pytest.mark.parametrize(
    ("shapes", "instruction"),
    [
        pytest.param({}, "tilezero %tmm0", id="no tile at all"),
        pytest.param({0: WHOLE}, "tilezero %tmm1", id="another tile"),
        pytest.param({0: WHOLE}, "tileloadd a(,%rax,1), %tmm1", id="load of another tile"),
        pytest.param({0: WHOLE}, "tilestored %tmm1, out(,%rax,1)", id="store of another tile"),
        pytest.param({0: WHOLE, 1: WHOLE}, "tdpbssd %tmm2, %tmm1, %tmm0", id="product of another"),
        pytest.param(
            {0: (4, 64), 1: (5, 64), 2: WHOLE}, "tdpbssd %tmm2, %tmm1, %tmm0", id="rows of C and A"
        ),
        pytest.param(
            {0: (4, 32), 1: (4, 64), 2: WHOLE}, "tdpbusd %tmm2, %tmm1, %tmm0", id="width of C and B"
        ),
        pytest.param(
            {0: (4, 64), 1: (4, 32), 2: WHOLE}, "tdpbf16ps %tmm2, %tmm1, %tmm0", id="depth of A, B"
        ),
        pytest.param(
            {0: WHOLE, 1: WHOLE}, ".byte 0xC4, 0xE2, 0x73, 0x5E, 0xC1", id="one tile as A and B"
        ),  # tdpbssd %tmm1, %tmm1, %tmm0, which the assembler refuses
        pytest.param({0: WHOLE}, "tilerelease; tilezero %tmm0", id="released"),
        pytest.param({0: WHOLE}, "ud2", id="not of tiles"),
    ],
)
def test_an_instruction_without_its_tiles_is_illegal(
    tiles: Tiles, shapes: dict[int, Shape], instruction: str
) -> None:
    program = f"ldtilecfg config(%rip); mov $64, %eax; {instruction}"
    ran = tiles.run({"config": configuration(shapes)}, PROGRAM=program)
    assert ran.code == -signal.SIGILL


def test_tiles_without_permission_are_illegal(tiles: Tiles) -> None:
    """Linux wants to be asked before a process uses them; to configure them is free."""
    config = "ldtilecfg config(%rip)"
    assert tiles.run(EVERY, PROGRAM=config, WITHOUT_PERMISSION="").code == 0
    refused = tiles.run(EVERY, PROGRAM=f"{config}; tilezero %tmm0", WITHOUT_PERMISSION="")
    assert refused.code == -signal.SIGILL
