"""What becomes of fields that a body has not under this name: OpenAI's, and those of vLLM,
llama-server, Ollama, LiteLLM, TGI and their clients. docs/FIELDS.md shows them.

A field is ignored only where that can't change what the answer means. OpenAI's are held against the
definitions of its own client by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Fate(NamedTuple):
    """`values` are ignored: they ask for what happens anyway; None: all of them. What is not is
    refused with `why`, which says what to do instead. `ours`: the field that means the same.
    """

    values: tuple[object, ...] | None = ()
    why: str = ""
    ours: str = ""


Fates = Mapping[str, Fate]


def _ignored(why: str, names: str) -> dict[str, Fate]:
    return dict.fromkeys(names.split(), Fate(None, why))


def _another_name(ours: str, names: str) -> dict[str, Fate]:
    return dict.fromkeys(names.split(), Fate((), f"another name of {ours}", ours))


def _refused(why: str, names: str) -> dict[str, Fate]:
    return dict.fromkeys(names.split(), Fate((), why))


# Parts of a response that can be asked for; thoughts are never apart from the text, so never there.
RESPONSES_INCLUDE = ("message.output_text.logprobs", "reasoning.encrypted_content")

# Variables of a chat template that hold what the request says elsewhere.
TEMPLATE_OWN = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
)

# Of these {} asks for nothing.
MAY_BE_EMPTY = frozenset({"response_format", "stream_options"})

_LABELS = _ignored("a label, a hint or billing", "metadata safety_identifier user") | _ignored(
    "can only make the same answer come sooner",
    "prediction prompt_cache_key prompt_cache_options prompt_cache_retention",
)
_NO_TOOLS = {
    **_ignored("no tools are called", "parallel_tool_calls"),
    "tool_choice": Fate(("none", "auto"), "no tools are called"),
    "tools": Fate(([],), "no tools are called; describe them in messages"),
}
_AUTO = {"service_tier": Fate(("auto", "default"), "there is one tier")}

OPENAI: Fates = {
    **_LABELS,
    **_NO_TOOLS,
    **_AUTO,
    **_another_name("max_tokens", "max_completion_tokens"),
    **_refused("answers are text alone", "audio web_search_options moderation"),
    "best_of": Fate((1,), "use n"),
    "echo": Fate((False,), "the prompt is not repeated"),
    "function_call": Fate(("none", "auto"), "no tools are called"),
    "functions": Fate(([],), "no tools are called; describe them in messages"),
    "modalities": Fate((["text"], []), "answers are text alone"),
    "model": Fate(None, "one model is served"),
    "n": Fate((1,), "use /v1/completions or /v1/chat/completions"),
    "store": Fate((False,), "nothing is stored"),
    "stream_options": Fate(None, "the last event counts tokens anyway"),
    "suffix": Fate(("",), "use /v1/completions"),
    "verbosity": Fate(("medium",), "say it in messages"),
}

_ONLY_1 = Fate((1,), "it is not among the ways tokens are drawn")
_ONLY_0 = Fate((0,), "it is not among the ways tokens are drawn")
_TOP = "give its fields at the top of the body"

VLLM: Fates = {
    **_ignored("no special tokens are in the text", "spaces_between_special_tokens"),
    **_ignored("who waits for a slot is served in turn", "priority"),
    **_ignored("see the x-request-id header", "request_id"),
    **_ignored("one way of keeping to a shape is here", "guided_decoding_backend"),
    **_ignored("nothing is cut off", "truncation_side"),
    **_refused("use /v1/chat/completions", "reasoning_effort chat_template_kwargs"),
    **_refused("use /v1/chat/completions", "add_generation_prompt continue_final_message"),
    **_refused("use logit_bias", "allowed_token_ids"),
    **_refused("the operator sets CHAT_TEMPLATE", "chat_template"),
    **_refused("put them into messages", "documents"),
    **_refused("prompts are text, or token ids", "prompt_embeds"),
    **_refused("prompts are not cut: send a shorter one", "truncate_prompt_tokens"),
    **_refused("prompts share what is cached of them", "cache_salt"),
    **_refused("use max_tokens", "thinking_token_budget"),
    **_refused("only of the answer: use logprobs", "prompt_logprobs logprob_token_ids"),
    **_refused("use guided_regex or grammar", "guided_whitespace_pattern structural_tag"),
    **_refused("use repeat_penalty", "repetition_detection"),
    "add_special_tokens": Fate((True,), "BOS comes first where the model wants it"),
    "bad_words": Fate(([],), "use logit_bias"),
    "early_stopping": Fate((False,), "beams are not searched"),
    "include_reasoning": Fate((True,), "thoughts are in the text"),
    "include_stop_str_in_output": Fate((False,), "add it behind the text"),
    "kv_transfer_params": Fate(({},), "the cache stays here"),
    "length_penalty": Fate((1,), "beams are not searched"),
    "logits_processors": Fate(([],), "use logit_bias"),
    "mm_processor_kwargs": Fate(({},), "answers are to text alone"),
    "min_tokens": Fate((0,), "use ignore_eos with max_tokens"),
    "repetition_penalty": Fate((1,), "use repeat_penalty, which looks at the last 64 tokens"),
    "response_role": Fate(("assistant",), "it is the assistant who answers"),
    "return_token_ids": Fate((False,), "streams have token_ids; or use /tokenize"),
    "return_tokens_as_token_ids": Fate((False,), "streams have token_ids; or use /tokenize"),
    "skip_special_tokens": Fate((True,), "special tokens are not shown"),
    "use_beam_search": Fate((False,), "beams are not searched"),
    "vllm_xargs": Fate(({},), _TOP),
}

LLAMA_SERVER: Fates = {
    **_another_name("max_tokens", "n_predict"),
    **_ignored("what is cached changes no answer", "cache_prompt n_cache_reuse id_slot n_keep"),
    **_ignored("drafts change no answer", "speculative.n_max speculative.n_min speculative.p_min"),
    **_ignored("of a way to draw that is off", "mirostat_tau mirostat_eta dynatemp_exponent"),
    **_ignored("of a way to draw that is off", "dry_base dry_allowed_length xtc_threshold"),
    **_ignored("of a way to draw that is off", "dry_penalty_last_n dry_sequence_breakers"),
    **_ignored("no tools are called", "parse_tool_calls"),
    **_refused("top_k, top_p, min_p, temperature is the order", "samplers"),
    "dry_multiplier": _ONLY_0,
    "dynatemp_range": _ONLY_0,
    "image_data": Fate(([],), "answers are to text alone"),
    "lora": Fate(([],), "one model is served"),
    "min_keep": _ONLY_0,
    "mirostat": _ONLY_0,
    "n_indent": Fate((0,), "use stop"),
    "n_probs": Fate((0,), "use logprobs"),
    "post_sampling_probs": Fate((False,), "use logprobs"),
    "reasoning_format": Fate(("none", "auto"), "thoughts are in the text"),
    "repeat_last_n": Fate((64,), "the last 64 tokens are looked at"),
    "response_fields": Fate(([],), "the whole answer comes"),
    "return_progress": Fate((False,), "use stream"),
    "return_tokens": Fate((False,), "streams have token_ids; or use /tokenize"),
    "t_max_predict_ms": Fate((0, -1), "use max_tokens, or close the connection"),
    "t_max_prompt_ms": Fate((0, -1), "close the connection"),
    "tfs_z": _ONLY_1,
    "thinking_forced_open": Fate((False,), "use continue_final_message"),
    "timings_per_token": Fate((False,), "/generate has timings"),
    "top_n_sigma": Fate((-1, 0), "it is not among the ways tokens are drawn"),
    "typical_p": _ONLY_1,
    "xtc_probability": _ONLY_0,
}

OLLAMA: Fates = {
    **_another_name("max_tokens", "num_predict"),
    **_ignored("the model stays loaded, as its operator has it", "keep_alive num_ctx num_gpu"),
    **_ignored("how it is computed is its operator's", "num_thread num_batch num_keep use_mmap"),
    **_refused(_TOP, "options parameters"),
    **_refused("use response_format or json_schema", "format"),
    **_refused("use reasoning_effort or chat_template_kwargs", "think enable_thinking thinking"),
    **_refused("use messages of /v1/chat/completions", "system context template"),
    "images": Fate(([],), "answers are to text alone"),
}

LITELLM: Fates = {
    **_ignored("a label", "tags litellm_metadata litellm_session_id litellm_trace_id session_id"),
    **_ignored("of a proxy's own", "drop_params allowed_openai_params num_retries fallbacks"),
    **_ignored("answers are not kept, so never stale", "cache caching"),
    "guardrails": Fate(([],), "no guardrails are here"),
}

TGI: Fates = {
    **_another_name("max_tokens", "max_new_tokens"),
    **_another_name("stop", "stop_sequences"),
    **_another_name("guided_regex", "regex"),
    **_refused("use prompt", "inputs"),
    **_refused("use grammar", "ebnf"),
    **_refused("prompts are not cut: send a shorter one", "truncate"),
    **_refused("one model is served", "adapter_id lora_path"),
    "decoder_input_details": Fate((False,), "only of the answer: use logprobs"),
    "details": Fate((False,), "use logprobs"),
    "do_sample": Fate((True,), "use temperature 0"),
    "min_new_tokens": Fate((0,), "use ignore_eos with max_tokens"),
    "return_full_text": Fate((False,), "the prompt is not repeated"),
    "top_n_tokens": Fate((0,), "use logprobs"),
    "watermark": Fate((False,), "texts are not marked"),
}

OTHERS: Fates = {**VLLM, **LLAMA_SERVER, **OLLAMA, **LITELLM, **TGI}
# Of chats, completions and /generate; a body's own fields come first.
GENERATION: Fates = {**OPENAI, **OTHERS}

# Nothing is stored, whether it may be or not, and the answer says so.
RESPONSES: Fates = {
    **_LABELS,
    **_NO_TOOLS,
    **_AUTO,
    **_ignored("nothing is stored", "store"),
    **_refused("send the whole conversation as input", "conversation previous_response_id prompt"),
    **_refused("answers are text alone", "image moderation"),
    **_refused("no tools are called", "max_tool_calls"),
    "access_programs": Fate(([],), "no tools are called"),
    "background": Fate((False,), "the answer comes at once"),
    "background_options": Fate(({},), "the answer comes at once"),
    "context_management": Fate(([],), "send the whole conversation as input"),
    "truncation": Fate(("disabled",), "prompts are not cut: send a shorter one"),
}
# No thoughts are summed up.
REASONING: Fates = {
    **_ignored("thoughts are not summed up", "generate_summary summary context"),
    "mode": Fate(("standard",), "there is one mode"),
}
TEXT: Fates = {"verbosity": OPENAI["verbosity"]}

# What other programs put beside a message's words.
ATTACHED = frozenset(
    ["attachments", "experimental_attachments", "files", "images", "audios", "videos"]
)
MESSAGE: Fates = {
    **_ignored("no chat template here tells people of one role apart", "annotations name"),
    **_refused("messages are text alone", f"audio {' '.join(sorted(ATTACHED))}"),
    **_refused("no tools are called", "function_call"),
    "tool_calls": Fate(([],), "no tools are called"),
}
PART: Fates = _ignored("what is cached changes no answer", "prompt_cache_breakpoint")
# Padding against who counts the bytes of an encrypted stream.
STREAM: Fates = {"include_obfuscation": Fate((False,), "nothing here pads")}
SCHEMA: Fates = _ignored("every schema is kept to strictly", "name description strict")
# How vLLM's writes JSON: here always in one line.
STRUCTURED: Fates = {
    **_refused("use regex or grammar", "structural_tag whitespace_pattern"),
    "disable_any_whitespace": Fate((True,), "JSON is in one line"),
    "disable_additional_properties": Fate((False,), "say it in the schema"),
    "disable_fallback": Fate((True, False), "there is no other way to fall back to"),
}
# vLLM's own: a chat's tokens are those that its answer begins behind.
TOKENIZE: Fates = {
    "chat_template": VLLM["chat_template"],
    "tools": _NO_TOOLS["tools"],
}
