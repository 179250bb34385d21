"""Which attention a context gets: that of the kernels of our own, or llama.cpp's."""

from __future__ import annotations

from dataclasses import replace

from model_server import logs
from model_server.errors import StartError
from model_server.llama import kernels
from model_server.llama.batch import LlamaBatch
from model_server.llama.context import Context, ContextOptions
from model_server.llama.model import Model


def open_context(model: Model, options: ContextOptions, objection: str = "") -> Context:
    """With the kernels' attention where it can be had and none objects to it. Raises StartError."""
    context = None
    problem = objection or _objection(model, options)
    if not problem:
        kernels.take_attention(True)
        context = _tried(Context(model, likely(model, options)))
        problem = "" if context else f"not for the attention of {model.architecture} models like it"
    if context:
        logs.say.info("attention by kernels of our own, %s", kernels.instructions())
        return context
    kernels.take_attention(False)
    logs.say.info("attention by llama.cpp: %s", problem)
    return Context(model, options)


def likely(model: Model, options: ContextOptions, objection: str = "") -> ContextOptions:
    """The options of the context that will be opened, as far as can be known before."""
    if objection or _objection(model, options):
        return options
    # By itself llama.cpp turns flash attention off where it lands on another device.
    return replace(options, flash_attention="on", own_attention=True)


def _objection(model: Model, options: ContextOptions) -> str:
    """Why llama.cpp's attention it must be; empty where nothing speaks against ours."""
    if model.uses_gpu:
        return "the model is on the GPU"
    if options.flash_attention == "off":
        return "FLASH_ATTENTION=off"
    types = {options.kv_type_k, options.kv_type_v}
    if not types <= set(kernels.KV_TYPES):
        return f"KV_CACHE_TYPE is none of {', '.join(kernels.KV_TYPES)}"
    try:
        return "" if kernels.instructions() != "none" else "the processor has no AVX2"
    except StartError as error:
        return str(error)


def _tried(context: Context) -> Context | None:
    """The context, if its attention lands on the kernels: llama.cpp decides when it decodes."""
    before = kernels.num_attentions()
    batch = LlamaBatch(1)
    batch.add(0, 0, [0], output=True)
    try:
        context.decode(batch)
        context.clear()
    except BaseException:
        context.close()
        raise
    if kernels.num_attentions() > before:
        return context
    context.close()
    return None
