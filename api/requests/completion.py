"""Bodies with a prompt: of /v1/completions, /generate, /infill and /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictStr, model_validator

from api.errors import InvalidRequest
from api.requests import fields
from api.requests.body import Body, Source
from api.requests.openai import OpenAIBody
from api.requests.prompts import Prompt, parse_prompts, parse_text
from api.requests.shape import ShapedBody
from api.requests.values import Int, MaxTokens, NumLogprobs
from model_server.contract.protocol import (
    MAX_LOGPROBS,
    MAX_SNIPPETS,
    GenerateRequest,
    Infill,
    Info,
    Pooling,
    Snippet,
)

ParseSpecial = Annotated[
    StrictBool, Field(description="Texts of special tokens in `prompt` become these tokens.")
]


class CompletionBody(OpenAIBody):
    prompt: Prompt
    suffix: StrictStr = Field(
        "", description="Text behind the gap that the answer fills, for models that can."
    )
    parse_special: ParseSpecial = True
    max_tokens: MaxTokens = Field(
        16, ge=1, description="Longest answer; -1: all there is room for."
    )
    best_of: Int | None = Field(None, description="Only the same as n.")
    logprobs: NumLogprobs = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Alternatives to report for each token."
    )

    @model_validator(mode="after")
    def _best_of_is_n(self) -> CompletionBody:
        if self.best_of not in (None, self.n):
            raise InvalidRequest(
                f"best_of other than n ({self.n}) is not supported, got {self.best_of}.", "best_of"
            )
        return self

    def _sources(self, info: Info) -> list[Source]:
        if not self.suffix:
            return parse_prompts(self.prompt, info, parse_special=self.parse_special)
        texts = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InvalidRequest("suffix needs prompt to be text, or a list of texts.", "suffix")
        infill = Infill(suffix=parse_text(self.suffix, "suffix", info))
        return [{"prompt": parse_text(each, "prompt", info), "infill": infill} for each in texts]

    def _max_tokens(self) -> int | None:
        return self.max_tokens

    def _logprobs(self) -> int | None:
        return self.logprobs


class GenerateBody(ShapedBody):
    """One prompt, one answer, every setting by its plain name."""

    prompt: StrictStr = Field(description="The text to continue.")
    parse_special: ParseSpecial = True
    max_tokens: MaxTokens = Field(
        256, ge=1, description="Longest answer; -1: all there is room for."
    )

    def _sources(self, info: Info) -> list[Source]:
        return parse_prompts(self.prompt, info, parse_special=self.parse_special)

    def _max_tokens(self) -> int | None:
        return self.max_tokens


def _snippets(value: object) -> object:
    """Editors put more beside a text: when it was seen, say."""
    known = Snippet.model_fields.keys()
    if not isinstance(value, list):
        return value
    return [
        {k: each[k] for k in each.keys() & known} if isinstance(each, dict) else each
        for each in value
    ]


class InfillBody(GenerateBody):
    """llama-server's, for editors: what is far from the gap goes where it does not fit."""

    fates = fields.INFILL

    prompt: StrictStr = Field("", description="Text between input_prefix and the gap.")
    input_prefix: StrictStr = Field("", description="Text before the gap.")
    input_suffix: StrictStr = Field("", description="Text behind the gap.")
    input_extra: Annotated[list[Snippet], BeforeValidator(_snippets)] = Field(
        default_factory=list,
        max_length=MAX_SNIPPETS,
        description="Texts of other files, the nearest last.",
    )

    def _sources(self, info: Info) -> list[Source]:
        infill = Infill(suffix=self.input_suffix, extra=self.input_extra, trims=True)
        return [{"prompt": self.input_prefix + self.prompt, "infill": infill}]


class EmbeddingsBody(Body):
    fates = fields.EMBEDDINGS
    stream: ClassVar[bool] = False

    input: Prompt
    model: StrictStr = Field("", description="Any name; the answer tells the model served.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="Numbers, or their float32 (little endian) in base64."
    )
    pooling: Pooling = Field(
        "mean", description="The mean of all tokens' states, or the last token's."
    )

    def requests(self, request_id: str, info: Info) -> list[GenerateRequest]:
        """One request for each input, in their order."""
        sources = parse_prompts(self.input, info, "input", pooling=self.pooling)
        return [
            GenerateRequest(id=f"{request_id}-{i}", **source) for i, source in enumerate(sources)
        ]
