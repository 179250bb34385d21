"""Bodies that /docs offers: short ones, that suit a small model."""

from __future__ import annotations

from typing import Any

STORY = "Once upon a time, in a small village by the sea,"
QUESTION = [{"role": "user", "content": "What is a black hole?"}]


def _example(summary: str, **body: Any) -> dict[str, Any]:
    return {"summary": summary, "value": body}


COMPLETION: dict[str, Any] = {
    "greedy": _example("Continue a text", prompt=STORY, max_tokens=48, temperature=0),
    "stream": _example("As a stream", prompt=STORY, max_tokens=48, temperature=0, stream=True),
    "choices": _example(
        "Two choices for each of two prompts, drawn with a seed",
        prompt=["The sun is", "The moon is"],
        n=2,
        max_tokens=24,
        temperature=0.8,
        seed=7,
    ),
    "stop": _example(
        "Until the sentence ends", prompt=STORY, max_tokens=96, temperature=0, stop=["."]
    ),
    "plain": _example(
        "Without drafts: the same text, to compare",
        prompt=STORY,
        max_tokens=48,
        temperature=0,
        speculation={"mode": "off"},
    ),
}
CHAT: dict[str, Any] = {
    "question": _example(
        "A question (needs a model with a chat template)",
        messages=QUESTION,
        max_tokens=128,
        temperature=0,
    ),
    "stream": _example(
        "As a stream, with token counts",
        messages=QUESTION,
        max_tokens=128,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ),
    "typical": _example(
        "Drafts need only be plausible: faster, and no longer exact",
        messages=QUESTION,
        max_tokens=128,
        temperature=0.7,
        speculation={"acceptance": "typical"},
    ),
}
RESPONSES: dict[str, Any] = {
    "question": _example(
        "A question (needs a model with a chat template)",
        input="What is a black hole?",
        max_output_tokens=128,
        temperature=0,
    ),
    "stream": _example(
        "As a stream of typed events",
        instructions="Answer in one sentence.",
        input=QUESTION,
        max_output_tokens=128,
        temperature=0,
        stream=True,
    ),
}
GENERATE: dict[str, Any] = {
    "tree": _example(
        "Draft trees that give at most four tokens a step",
        prompt=STORY,
        max_tokens=48,
        temperature=0,
        speculation={"mode": "tree", "max_tokens_per_step": 4},
    ),
    "greedy": _example("Continue a text", prompt=STORY, max_tokens=48, temperature=0),
    "stream": _example("As a stream", prompt=STORY, max_tokens=48, temperature=0, stream=True),
    "sampled": _example(
        "Every setting of the draw",
        prompt=STORY,
        max_tokens=48,
        temperature=0.8,
        top_p=0.95,
        top_k=40,
        min_p=0.05,
        repeat_penalty=1.1,
        seed=7,
    ),
}
TOKENIZE: dict[str, Any] = {
    "prompt": _example("A prompt", prompt=STORY),
    "chat": _example(
        "A chat, spelled out (needs a model with a chat template)",
        messages=QUESTION,
        return_token_strs=True,
    ),
}
DETOKENIZE: dict[str, Any] = {
    "some": _example("Some tokens", tokens=[50, 60, 70]),
    "none": _example("No tokens are no text", tokens=[]),
}
