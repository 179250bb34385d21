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


def _ignored(why: str, names: str) -> Fates:
    return dict.fromkeys(names.split(), Fate(None, why))


def _only(values: tuple[object, ...], why: str, names: str) -> Fates:
    return dict.fromkeys(names.split(), Fate(values, why))


def _refused(why: str, names: str) -> Fates:
    return _only((), why, names)


def _another_name(ours: str, names: str) -> Fates:
    return dict.fromkeys(names.split(), Fate((), f"another name of {ours}", ours))


# Parts of a response that can be asked for; thoughts are never apart from the text, so never there.
RESPONSES_INCLUDE = ("message.output_text.logprobs", "reasoning.encrypted_content")

# Variables of a chat template that hold what the request says elsewhere.
TEMPLATE_OWN = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
)

# Of these {} asks for nothing.
MAY_BE_EMPTY = frozenset({"response_format", "stream_options"})

_UNCUT = "prompts are not cut: send a shorter one"
_NO_TOOLS = "no tools are called"
_TEXT = "answers are text, and to text alone"
_CACHED = "what is cached changes no answer"
_STORED = "send the whole conversation as input"
_AS_BEAMS = "beams are not searched"
_NO_WAY = "it is not among the ways tokens are drawn"

_EVERYWHERE: Fates = {
    **_ignored("a label, a hint or billing", "metadata safety_identifier user"),
    **_ignored(_CACHED, "prompt_cache_key prompt_cache_options prompt_cache_retention"),
    **_ignored("can only make the same answer come sooner", "prediction"),
    **_ignored(_NO_TOOLS, "parallel_tool_calls"),
    **_only(("none", "auto"), _NO_TOOLS, "tool_choice"),
    **_only(([],), _NO_TOOLS, "tools"),
    **_only(("auto", "default"), "there is one tier", "service_tier"),
    **_refused(_TEXT, "moderation"),
}

OPENAI: Fates = {
    **_EVERYWHERE,
    **_another_name("max_tokens", "max_completion_tokens"),
    **_refused(_TEXT, "audio web_search_options"),
    **_ignored("one model is served", "model"),
    **_ignored("the last event counts tokens anyway", "stream_options"),
    **_only((1,), "use n", "best_of"),
    **_only((1,), "use /v1/completions or /v1/chat/completions", "n"),
    **_only((False,), "the prompt is not repeated", "echo"),
    **_only((False,), "nothing is stored", "store"),
    **_only(("",), "use /v1/completions", "suffix"),
    **_only(("none", "auto"), _NO_TOOLS, "function_call"),
    **_only(([],), _NO_TOOLS, "functions"),
    **_only((["text"], []), _TEXT, "modalities"),
    **_only(("medium",), "say it in messages", "verbosity"),
}

# Of vLLM and SGLang, llama-server, Ollama, LiteLLM, TGI.
OTHERS: Fates = {
    **_another_name("max_tokens", "n_predict num_predict max_new_tokens"),
    **_another_name("stop", "stop_sequences"),
    **_another_name("guided_regex", "regex"),
    **_ignored("a label", "litellm_metadata litellm_session_id litellm_trace_id session_id tags"),
    **_ignored("see the x-request-id header", "request_id"),
    **_ignored("who waits for a slot is served in turn", "priority"),
    **_ignored("no special tokens are in the text", "spaces_between_special_tokens"),
    **_ignored("nothing is cut off", "truncation_side"),
    **_ignored("there is one way of keeping to a shape", "guided_decoding_backend"),
    **_ignored(_NO_TOOLS, "parse_tool_calls"),
    **_ignored(_CACHED, "cache_prompt n_cache_reuse id_slot n_keep num_keep cache caching"),
    **_ignored("drafts change no answer", "speculative.n_max speculative.n_min speculative.p_min"),
    **_ignored("it is off", "dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers"),
    **_ignored("it is off", "mirostat_tau mirostat_eta dynatemp_exponent xtc_threshold"),
    **_ignored("the operator's", "keep_alive num_ctx num_gpu num_thread num_batch use_mmap"),
    **_ignored("of a proxy's own", "drop_params allowed_openai_params num_retries fallbacks"),
    **_only((0,), _NO_WAY, "dry_multiplier dynatemp_range min_keep mirostat xtc_probability"),
    **_only((1,), _NO_WAY, "tfs_z typical_p"),
    **_only((-1, 0), _NO_WAY, "top_n_sigma"),
    **_only((True,), "use temperature 0", "do_sample"),
    **_only((1,), "use repeat_penalty, which looks at the last 64 tokens", "repetition_penalty"),
    **_only((64,), "the last 64 tokens are looked at", "repeat_last_n"),
    **_only((1,), _AS_BEAMS, "length_penalty"),
    **_only((False,), _AS_BEAMS, "early_stopping use_beam_search"),
    **_only((0,), "use ignore_eos with max_tokens", "min_tokens min_new_tokens"),
    **_only((0,), "use stop", "n_indent"),
    **_only((0, -1), "use max_tokens, or close the connection", "t_max_predict_ms t_max_prompt_ms"),
    **_only((False,), "add it behind the text", "include_stop_str_in_output"),
    **_only((True,), "special tokens are not shown", "skip_special_tokens"),
    **_only((True,), "BOS comes first where the model wants it", "add_special_tokens"),
    **_only((True,), "thoughts are in the text", "include_reasoning"),
    **_only(("none", "auto"), "thoughts are in the text", "reasoning_format"),
    **_only((False,), "use continue_final_message", "thinking_forced_open"),
    **_only(("assistant",), "it is the assistant who answers", "response_role"),
    **_only((0,), "use logprobs", "n_probs top_n_tokens"),
    **_only((False,), "use logprobs", "details post_sampling_probs decoder_input_details"),
    **_only((False,), "use stream", "return_token_ids return_tokens return_tokens_as_token_ids"),
    **_only((False,), "use stream", "return_progress"),
    **_only((False,), "/generate has timings", "timings_per_token"),
    **_only((False,), "the prompt is not repeated", "return_full_text"),
    **_only((False,), "texts are not marked", "watermark"),
    **_only(([],), "the whole answer comes", "response_fields"),
    **_only(([],), "use logit_bias", "bad_words logits_processors"),
    **_only(([],), "one model is served", "lora"),
    **_only(([],), "nobody guards here", "guardrails"),
    **_only(([],), _TEXT, "image_data images"),
    **_only(({},), _TEXT, "mm_processor_kwargs"),
    **_only(({},), "the cache stays here", "kv_transfer_params"),
    **_refused("give its fields at the top of the body", "options parameters vllm_xargs"),
    **_refused("use /v1/chat/completions", "reasoning_effort chat_template_kwargs"),
    **_refused("use /v1/chat/completions", "add_generation_prompt continue_final_message"),
    **_refused("use messages of /v1/chat/completions", "system context template"),
    **_refused("the operator sets CHAT_TEMPLATE", "chat_template"),
    **_refused("put them into messages", "documents"),
    **_refused("use prompt", "inputs"),
    **_refused("prompts are text, or token ids", "prompt_embeds"),
    **_refused(_UNCUT, "truncate_prompt_tokens truncate"),
    **_refused("API keys share nothing unless SHARED_PREFIXES is set", "cache_salt"),
    **_refused("use reasoning_effort or chat_template_kwargs", "think enable_thinking thinking"),
    **_refused("use max_tokens", "thinking_token_budget"),
    **_refused("only of the answer: use logprobs", "prompt_logprobs logprob_token_ids"),
    **_refused("use logit_bias", "allowed_token_ids"),
    **_refused("use response_format or json_schema", "format"),
    **_refused("use guided_regex or grammar", "guided_whitespace_pattern structural_tag ebnf"),
    **_refused("use repeat_penalty", "repetition_detection"),
    **_refused("top_k, top_p, min_p, temperature is the order", "samplers"),
    **_refused("one model is served", "adapter_id lora_path"),
}
# Of chats, completions and /generate; a body's own fields come first.
GENERATION: Fates = {**OPENAI, **OTHERS}
# What an editor hopes for: an answer may be longer than with llama-server, and come later.
INFILL: Fates = {
    **GENERATION,
    **_ignored("a hint", "samplers n_indent t_max_prompt_ms t_max_predict_ms response_fields"),
}
EMBEDDINGS: Fates = {
    **_EVERYWHERE,
    **{name: OTHERS[name] for name in ("keep_alive", "priority", "add_special_tokens")},
    **_only((2,), "vectors have length 1", "embd_normalize"),
    **_only((True,), "vectors have length 1", "normalize"),
    **_refused("vectors are as long as the model's states", "dimensions"),
    **_refused(_UNCUT, "truncate_prompt_tokens truncate"),
}
# Nothing is stored, whether it may be or not, and the answer says so.
RESPONSES: Fates = {
    **_EVERYWHERE,
    **_ignored("nothing is stored", "store"),
    **_refused(_STORED, "conversation previous_response_id prompt"),
    **_refused(_TEXT, "image"),
    **_refused(_NO_TOOLS, "max_tool_calls"),
    **_only(([],), _NO_TOOLS, "access_programs"),
    **_only(([],), _STORED, "context_management"),
    **_only((False,), "the answer comes at once", "background"),
    **_only(({},), "the answer comes at once", "background_options"),
    **_only(("disabled",), _UNCUT, "truncation"),
}
REASONING: Fates = {
    **_ignored("thoughts are not summed up", "generate_summary summary context"),
    **_only(("standard",), "there is one mode", "mode"),
}
TEXT: Fates = _only(("medium",), "say it in messages", "verbosity")
# What other programs put beside a message's words.
ATTACHED: Fates = _refused(_TEXT, "attachments experimental_attachments files images audios videos")
MESSAGE: Fates = {
    **ATTACHED,
    **_ignored("no chat template here tells people of one role apart", "annotations name"),
    **_refused(_TEXT, "audio"),
    **_refused(_NO_TOOLS, "function_call"),
    **_only(([],), _NO_TOOLS, "tool_calls"),
}
PART: Fates = _ignored(_CACHED, "prompt_cache_breakpoint")
# Padding against who counts the bytes of an encrypted stream.
STREAM: Fates = _only((False,), "nothing here pads", "include_obfuscation")
SCHEMA: Fates = _ignored("every schema is kept to strictly", "name description strict")
STRUCTURED: Fates = {
    **_refused("use regex or grammar", "structural_tag whitespace_pattern"),
    **_only((True,), "JSON is in one line", "disable_any_whitespace"),
    **_only((False,), "say it in the schema", "disable_additional_properties"),
    **_only((True, False), "there is no other way to fall back to", "disable_fallback"),
}
# A chat's tokens are those that its answer begins behind.
TOKENIZE: Fates = {
    **_refused("the operator sets CHAT_TEMPLATE", "chat_template"),
    **_only(([],), _NO_TOOLS, "tools"),
}
