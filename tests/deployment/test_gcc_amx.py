"""deployment/gcc-amx.h: with it a tile configuration on the stack arrives whole, without it not."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from model_server.tools import llama_source
from tests.amx.tiles import SOURCES, Ran, Tiles, configuration
from tests.deployment.programs import tool
from tests.structure.modules import ROOT

HEADER = ROOT / "deployment" / "gcc-amx.h"
MENDED = (f"-include{HEADER}",)
LANGUAGES = ("c", "c++")

# Both in configuration.cpp and in llama.cpp's ggml_tile_config_init.
NARROW = {0: (8, 64), 1: (8, 64), 2: (16, 32), 3: (16, 32)}
WHOLE = configuration({**dict.fromkeys(range(8), (16, 64)), **NARROW})
ROWS_OF_TILE_7 = bytes([16])


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Tiles:
    return Tiles(tmp_path_factory.mktemp("tiles"))


@pytest.fixture(scope="module")
def llama_function(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What configures the tiles in the llama.cpp that is installed: a structure and a function."""
    folder = tmp_path_factory.mktemp("llama.cpp")
    name = llama_source.requirement().replace("-", "_").replace("==", "-")
    if not (llama_source.CACHE / f"{name}.tar.gz").exists():
        pytest.skip(f"needs llama.cpp's source: {name}.tar.gz in {llama_source.CACHE}")
    path = "ggml/src/ggml-cpu/amx/mmq.cpp"
    text = (llama_source.unpacked(folder / "source", (path,)) / path).read_text()
    parts = (r"struct tile_config_t\s*{", r"inline void ggml_tile_config_init\(void\)\s*{")
    found = [re.search(rf"^{part}.*?^}};?$", text, re.MULTILINE | re.DOTALL) for part in parts]
    assert all(found), f"{path} is no longer what {HEADER.name} speaks of: can the header go?"
    function = folder / "function.inc"
    function.write_text("\n".join(each[0] for each in found if each))
    return function


def compiled(tiles: Tiles, language: str, *options: str) -> Ran:
    """How the program ends and what it says. Optimised: only then stores are dropped."""
    source = SOURCES / "configuration.cpp"
    return tiles.execute(tiles.compile(source, "-O3", "-mamx-tile", f"-x{language}", *options))


def skip_unless_gcc_is_wrong() -> None:
    compiler = tool("gcc", "cc") or "none"
    options = ["-mamx-tile", "-include", "immintrin.h", "-E", "-xc", "/dev/null"]
    done = subprocess.run([compiler, *options], capture_output=True, text=True)
    if '"ldtilecfg' not in done.stdout:
        pytest.skip(f"_tile_loadconfig of {compiler} is a builtin that knows its size")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_configuration_arrives_whole(tiles: Tiles, language: str) -> None:
    assert compiled(tiles, language, *MENDED) == Ran(0, WHOLE + ROWS_OF_TILE_7)


def test_that_of_llama_cpp_arrives_whole(tiles: Tiles, llama_function: Path) -> None:
    source = f'-DSOURCE="{llama_function}"'
    assert compiled(tiles, "c++", source, *MENDED) == Ran(0, WHOLE + ROWS_OF_TILE_7)


@pytest.mark.parametrize("language", LANGUAGES)
def test_without_the_header_the_tiles_are_illegal(tiles: Tiles, language: str) -> None:
    """No size of any tile was stored. What _tile_storeconfig gives is not believed either."""
    skip_unless_gcc_is_wrong()
    palette_only = bytes([1]).ljust(64, b"\0")
    assert compiled(tiles, language) == Ran(-signal.SIGILL, palette_only + b"\0")


def test_llama_cpp_still_needs_the_header(tiles: Tiles, llama_function: Path) -> None:
    skip_unless_gcc_is_wrong()
    ran = compiled(tiles, "c++", f'-DSOURCE="{llama_function}"')
    assert ran.out[:64] != WHOLE, f"llama.cpp is mended: {HEADER.name} can go"
    assert ran.code == -signal.SIGILL


@pytest.mark.parametrize("options", [(), ("-mamx-tile",)], ids=["baseline", "AMX"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_warning_comes_from_the_header(
    tiles: Tiles, tmp_path: Path, language: str, options: tuple[str, ...]
) -> None:
    """It is in every file of llama.cpp's, which are compiled with many warnings."""
    (tmp_path / "empty").write_text("typedef int something;\n")
    warnings = "-Wall -Wextra -Wpedantic -Wcast-qual -Wshadow -Wunused-function -Werror"
    standard = "-std=c11" if language == "c" else "-std=c++17"
    command = [*options, *warnings.split(), standard, "-c", f"-x{language}", *MENDED]
    tiles.compile(tmp_path / "empty", *command)
