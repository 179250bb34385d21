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

COMPLETION_ONLY: Only = {"echo": (False,), "suffix": ("",)}

CHAT_ONLY: Only = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

# No chat template here tells participants of one role apart by their names.
MESSAGE_HARMLESS = frozenset({"name"})

MESSAGE_ONLY: Only = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_calls": ([],),
}

PART_HARMLESS = frozenset({"prompt_cache_breakpoint"})

# Padding against who counts the bytes of an encrypted stream: nothing here pads.
STREAM_ONLY: Only = {"include_obfuscation": (False,)}

# Every schema is kept to strictly, whatever its name.
SCHEMA_HARMLESS = frozenset({"name", "description", "strict"})

# vLLM's own: a chat's tokens are those that its answer begins behind.
TOKENIZE_ONLY: Only = {
    "add_generation_prompt": (True,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "tools": ([],),
}
