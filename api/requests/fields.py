"""What becomes of OpenAI's fields that no body here has: harmless, or refused by their names.

A harmless one changes nothing about the answer. The others are taken only with values that ask for
what happens anyway. A test holds the tables against the definitions of OpenAI's own client.
"""

from __future__ import annotations

from collections.abc import Mapping

Only = Mapping[str, tuple[object, ...]]

# Labels, hints and billing. A `prediction` can only make the same answer come sooner.
HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    }
)

# Of these {} asks for nothing.
MAY_BE_EMPTY = frozenset({"response_format", "stream_options"})

COMPLETION_ONLY: Only = {"echo": (False,), "suffix": ("",)}

CHAT_ONLY: Only = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"], []),
    "moderation": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

# No thoughts are summed up.
REASONING_HARMLESS = frozenset({"generate_summary", "summary", "context"})
REASONING_ONLY: Only = {"mode": ("standard",)}
TEXT_ONLY: Only = {"verbosity": ("medium",)}

# Nothing is stored, whether it may be or not, and the answer says so.
RESPONSES_HARMLESS = HARMLESS | {"store"}

RESPONSES_ONLY: Only = {
    "access_programs": ([],),
    "background": (False,),
    "background_options": ({},),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "max_tool_calls": (),
    "moderation": (),
    "previous_response_id": (),
    "prompt": (),
    "service_tier": ("auto", "default"),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncation": ("disabled",),
}

# Parts of a response that can be asked for; thoughts are never apart from the text, so never there.
RESPONSES_INCLUDE = ("message.output_text.logprobs", "reasoning.encrypted_content")

# No chat template here tells participants of one role apart by their names.
MESSAGE_HARMLESS = frozenset({"annotations", "name"})

MESSAGE_ONLY: Only = {
    "audio": (),
    "function_call": (),
    "tool_calls": ([],),
}

# What other servers and programs put beside a message's words: nothing, or more than words.
MESSAGE_ATTACHED: Only = dict.fromkeys(
    ("attachments", "experimental_attachments", "files", "images", "audios", "videos"), ()
)

# Variables of a chat template that hold what the request says elsewhere.
TEMPLATE_OWN = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
)

PART_HARMLESS = frozenset({"prompt_cache_breakpoint"})

# Padding against who counts the bytes of an encrypted stream: nothing here pads.
STREAM_ONLY: Only = {"include_obfuscation": (False,)}

# Every schema is kept to strictly, whatever its name.
SCHEMA_HARMLESS = frozenset({"name", "description", "strict"})

# How vLLM's writes JSON: here always in one line.
STRUCTURED_ONLY: Only = {
    "disable_any_whitespace": (True,),
    "disable_additional_properties": (False,),
    "disable_fallback": (True, False),
    "structural_tag": (),
    "whitespace_pattern": (),
}

# vLLM's own: a chat's tokens are those that its answer begins behind.
TOKENIZE_ONLY: Only = {
    "chat_template": (),
    "tools": ([],),
}
