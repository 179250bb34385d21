"""What a GGUF file may state that no good one does."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping

from tests.fire.gguf_layout import BOOL, F32, I32, STRING, U8, U16, U32

HUGE = (
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**61,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
ODD = (0, 1, 2, 3, 255, 2**15, *HUGE)
FLOATS = (0.0, -1.0, 1e38, 1e-45, float("nan"), float("inf"), -float("inf"))
NOT_UTF8 = (
    b"\xff",
    b"\xc3\x28",
    b"\xe2\x82",
    b"\xf0\x9f\x98",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\0",
)
ARCHITECTURES = (
    *(b"qwen2", b"qwen3", b"mistral3", b"gemma2", b"phi3", b"falcon", b"bloom", b"gpt2", b"mamba"),
    *(b"t5", b"bert", b"clip", b"rwkv6", b"deepseek2", b"llama4", b"mpt", b"starcoder2", b"", b"?"),
)
TOKENIZERS = (
    b"llama",
    b"bert",
    b"t5",
    b"rwkv",
    b"plamo2",
    b"none",
    b"no_vocab",
    b"gpt2",
    b"",
    b"?",
)
PRE_TOKENIZERS = (
    *(b"default", b"llama3", b"qwen2", b"falcon", b"gpt-2", b"deepseek-llm", b"tekken", b"gpt-4o"),
    *(b"bloom", b"chameleon", b"superbpe", b"kimi-k2", b"viking", b"poro-chat", b"", b"?"),
)
MORE_KEYS = tuple(
    (name, kinds)
    for kinds, names in {
        (U16, U32, BOOL): (
            b"split.count",
            b"split.no",
            b"split.tensors.count",
            b"general.alignment",
        ),
        (U32, I32, F32): (
            *(b"llama.expert_count", b"llama.expert_used_count", b"llama.vocab_size"),
            *(b"llama.attention.key_length", b"llama.attention.value_length"),
            *(
                b"llama.attention.sliding_window",
                b"llama.pooling_type",
                b"llama.tensor_data_layout",
            ),
            *(b"llama.rope.scaling.original_context_length", b"llama.rope.scaling.factor"),
            *(b"llama.nextn_predict_layers", b"llama.leading_dense_block_count"),
            *(b"tokenizer.ggml.unknown_token_id", b"tokenizer.ggml.eot_token_id"),
            *(b"tokenizer.ggml.padding_token_id", b"general.sampling.temp"),
        ),
        (STRING, BOOL): (
            *(
                b"llama.rope.scaling.type",
                b"llama.attention.causal",
                b"llama.use_parallel_residual",
            ),
            *(b"tokenizer.ggml.remove_extra_whitespaces", b"tokenizer.ggml.precompiled_charsmap"),
            *(b"tokenizer.ggml.add_space_prefix", b"general.name", b""),
        ),
    }.items()
    for name in names
)
VALUES: Mapping[int, Callable[[random.Random], bytes]] = {
    U8: lambda rng: bytes([rng.randrange(256)]),
    BOOL: lambda rng: bytes([rng.randrange(3)]),
    U16: lambda rng: struct.pack("<H", rng.choice((0, 1, 2, 3, 9, 65_535))),
    U32: lambda rng: struct.pack("<I", rng.choice(ODD) % 2**32),
    I32: lambda rng: struct.pack("<I", rng.choice(ODD) % 2**32),
    F32: lambda rng: struct.pack("<f", rng.choice(FLOATS)),
    STRING: lambda rng: (
        struct.pack("<Q", 4) + rng.choice((b"yarn", b"none", b"\xff\0\xc3(", b"long"))
    ),
}
TEMPLATES = (
    b"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    b"{% for a in range(99999) %}{% for b in range(99999) %}aaaaaaaa{% endfor %}{% endfor %}",
    b"{{ 'a' * 99999999999 }}", b"{{ 9 ** 9 ** 9 }}", b"{{ '%99999999999d' % 1 }}",
    b"{{ ''.__class__.__mro__ }}",
    b"{{ cycler.__init__.__globals__.os.system('touch code-was-run') }}",
    b"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", b"{{", b"{% if %}", b"{% include 'x' %}",
    b"(" * 3_000, b"{{" + b"(" * 3_000 + b")" * 3_000 + b"}}", b"{{ raise_exception('x') }}",
    b"{% if 1 %}" * 200 + b"{% endif %}" * 200, b"{{ messages * 9999999999 }}", b"\xff",
)  # fmt: skip
NUM_GGUF_TYPES, NUM_GGML_TYPES = 13, 45
