"""From settings to the context's layout: its size, its pool, its threads."""

from __future__ import annotations

from model_server.config import ModelServerSettings
from model_server.errors import SettingError
from model_server.llama import backend
from model_server.llama.context import MAX_SEQS, ContextOptions
from model_server.llama.model import Model

_DEFAULT_CONTEXT = 4_096


def context_options(settings: ModelServerSettings, context_size: int) -> ContextOptions:
    """The context's layout. Raises SettingError where settings contradict each other."""
    num_cells = settings.kv_cache_tokens or 2 * context_size
    if num_cells < context_size:
        problem = f"{num_cells} is less than the context of {context_size} tokens"
        raise SettingError("KV_CACHE_TOKENS", problem)
    flash = settings.flash_attention
    kv_type_k = kv_type_v = settings.kv_cache_type
    if settings.exact is True:
        _refuse_inexact(settings)
        flash, kv_type_k, kv_type_v = "on", "f16", "bf16"
    elif flash == "off" and kv_type_v == "q8_0":
        raise SettingError("KV_CACHE_TYPE", "q8_0 needs FLASH_ATTENTION=on")
    return ContextOptions(num_cells, MAX_SEQS, num_threads(settings), kv_type_k, kv_type_v, flash)


def _refuse_inexact(settings: ModelServerSettings) -> None:
    """Raises SettingError for what EXACT=true would have to overrule."""
    if settings.flash_attention == "off":
        problem = "true needs flash attention, so it contradicts FLASH_ATTENTION=off"
    elif settings.kv_cache_type != "f16":
        problem = f"true keeps K in f16, so it contradicts KV_CACHE_TYPE={settings.kv_cache_type}"
    else:
        return
    raise SettingError("EXACT", f"{problem}; leave one of them out")


def num_threads(settings: ModelServerSettings) -> int:
    if settings.n_threads:
        return settings.n_threads
    cores = backend.physical_cores()
    return cores - 1 if settings.gateway_is_local and cores > 2 else cores


def choose_context_size(settings: ModelServerSettings, model: Model) -> int:
    wanted = settings.model_context_size or min(model.context_size, _DEFAULT_CONTEXT)
    if wanted > model.context_size:
        problem = f"{wanted} is more than the {model.context_size} tokens the model was made for"
        raise SettingError("MODEL_CONTEXT_SIZE", problem)
    return wanted
