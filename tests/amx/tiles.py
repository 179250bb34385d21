"""Programs that use AMX tiles: the processor's own where it has them, else the emulator's."""

from __future__ import annotations

import platform
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deployment.programs import tool

SOURCES = Path(__file__).parent
_PLACES = {"config": 0, "a": 1024, "b": 2048, "c": 3072}  # as program.c lays them out
_OUT = 4096

Shape = tuple[int, int]  # rows, and bytes in each of them


def processor_flags() -> set[str]:
    """What Linux says that this processor can; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {
        flag for line in lines if line.startswith("flags") for flag in line.split(":")[1].split()
    }


def are_native() -> bool:
    return {"amx_tile", "amx_int8", "amx_bf16"} <= processor_flags()


def configuration(shapes: Mapping[int, Shape], *, palette: int = 1, start_row: int = 0) -> bytes:
    """The 64 bytes that LDTILECFG takes, with these tiles in use."""
    rows, widths = ([shapes.get(tile, (0, 0))[part] for tile in range(16)] for part in (0, 1))
    return struct.pack("<BB14x16H16B", palette, start_row, *widths, *rows)


@dataclass(frozen=True)
class Ran:
    """How a program ended, and what it wrote: program.c the memory `out`, if it came so far."""

    code: int
    out: bytes


class Tiles:
    """Compiles programs in `folder` and runs them; skips the test where that can't be done."""

    def __init__(self, folder: Path) -> None:
        if platform.system() != "Linux" or platform.machine() != "x86_64":
            pytest.skip(f"AMX is for x86-64; this is {platform.system()} on {platform.machine()}")
        compiler = tool("gcc", "cc")
        if compiler is None:
            pytest.skip("needs a C compiler: apt install gcc")
        self._folder, self._compiler = folder, compiler
        self._programs: dict[tuple[str, ...], Path] = {}
        self.environment = {} if are_native() else {"LD_PRELOAD": str(self._emulator())}

    def _emulator(self) -> Path:
        options = ("-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared")
        return self.compile(SOURCES / "emulator.c", *options, "-ftls-model=initial-exec")

    def compile(self, source: Path, *options: str) -> Path:
        """The program, or the library, made of one source file."""
        target = self._folder / f"{source.stem}-{len(self._programs)}"
        key = (str(source), *options)
        if key not in self._programs:
            command = [self._compiler, "-pthread", *options, str(source), "-o", str(target), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True)
            if "no such instruction" in done.stderr or "unrecognized command" in done.stderr:
                pytest.skip(f"{self._compiler} and its assembler are older than AMX")
            assert done.returncode == 0, done.stderr
            self._programs[key] = target
        return self._programs[key]

    def run(self, memory: Mapping[str, bytes], **macros: str) -> Ran:
        """What program.c does with this memory and these macros, PROGRAM first of all."""
        defined = [f'-D{name}="{" ".join(text.split())}"' for name, text in macros.items()]
        content = bytearray(_OUT)
        for name, given in memory.items():
            content[_PLACES[name] : _PLACES[name] + len(given)] = given
        binary = self.compile(SOURCES / "program.c", "-O1", "-no-pie", "-fno-pie", *defined)
        ran = self.execute(binary, bytes(content))
        return Ran(ran.code, ran.out[_OUT:])

    def execute(self, binary: Path, given: bytes = b"") -> Ran:
        """Run a program, with the emulator where that is needed."""
        done = subprocess.run([binary], input=given, capture_output=True, env=self.environment)
        return Ran(done.returncode, done.stdout)
