"""Run the kernels' tests on a library compiled with sanitizers.

`python -m tests.benchmarks.sanitize [PYTEST ARGUMENTS]`: of addresses and of undefined behaviour.
The first finding ends the tests, with its place in the source.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from model_server.llama import backend
from model_server.tools import llama_source
from tests.benchmarks.files import CACHE, ROOT

BUILD = CACHE / "sanitized"
TESTS = "tests/model_server/kernels"
# Their subprocesses emulate AMX, with signals that sanitizers want for themselves.
LEFT_OUT = "--ignore=tests/model_server/kernels/test_tile_products.py"


def build() -> Path:
    """The library; compiled anew where its source has changed."""
    ggml = llama_source.unpacked(CACHE / "ggml", ("ggml/",)) / "ggml"
    options = {
        "SANITIZE": "address,undefined",
        "GGML_INCLUDE": ggml / "include",
        "GGML_SRC": ggml / "src",
        "GGML_LIB": backend.LIBRARIES,
    }
    told = [f"-D{name}={value}" for name, value in options.items()]
    source = ROOT / "model_server" / "kernels"
    subprocess.run(["cmake", "-S", source, "-B", BUILD, *told], check=True)
    subprocess.run(["cmake", "--build", BUILD, "-j", str(os.cpu_count())], check=True)
    return BUILD / "libmedusa-kernels.so"


def main() -> int:
    name = "python -m tests.benchmarks.sanitize"
    _, arguments = argparse.ArgumentParser(name, description=__doc__).parse_known_args()
    library = build()
    runtimes = [
        subprocess.check_output(["c++", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    environment = {
        "CPU_KERNELS_LIB": str(library),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps much to its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, "-m", "pytest", "-q", *(arguments or [TESTS, LEFT_OUT])]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode


if __name__ == "__main__":
    sys.exit(main())
