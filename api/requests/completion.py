"""Bodies with a prompt: of /v1/completions, /generate, /infill and /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, TypeAdapter, WithJsonSchema, model_validator

from api.errors import InvalidRequest
from api.requests.body import MAX_CHOICES, Body, Source, check_tokens, parse_text, too_long
from api.requests.generation import ChoicesBody, GenerationBody
from api.requests.refusal import shown
from api.requests.values import ALL, Int, MaxTokens, NumLogprobs, whole
from model_server.contract.protocol import (
    MAX_LOGPROBS,
    MAX_SNIPPETS,
    GenerateRequest,
    Infill,
    Info,
    Pooling,
    Snippet,
)

_Text = Annotated[str, Field(min_length=1)]
_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_Many = Annotated[list[_Text], Field(min_length=1)] | Annotated[list[_Ids], Field(min_length=1)]
Prompt = Annotated[
    Any,
    WithJsonSchema(TypeAdapter(_Text | _Ids | _Many).json_schema()),
    Field(description="Text, token ids, or a list of either."),
]


def parse_prompts(
    prompt: object, info: Info, field: str = "prompt", **beside: object
) -> list[Source]:
    """One source for each prompt, with what is `beside` it; the first that is no prompt is refused
    by its place.
    """
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > MAX_CHOICES:
            raise InvalidRequest(f"{field}: at most {MAX_CHOICES}, got {len(prompt)}.", field)
        sources = [_parse(each, f"{field}[{i}]", info) for i, each in enumerate(prompt)]
    else:
        sources = [_parse(prompt, field, info)]
    return [{**source, **beside} for source in sources]


def _parse(prompt: object, field: str, info: Info) -> Source:
    param = field.partition("[")[0]
    if prompt == "" or prompt == []:
        raise InvalidRequest(f"{field} is empty; it needs at least one token.", param)
    if isinstance(prompt, str):
        return {"prompt": parse_text(prompt, field, info)}
    if not isinstance(prompt, list):
        message = f"a string, a list of token ids, or a list of either, got {shown(prompt)}"
        raise InvalidRequest(f"{field} should be {message}.", param, "invalid_type")
    if len(prompt) > info.context_size:
        raise too_long(field, str(len(prompt)), info)
    if set(map(type, prompt)) - {int}:  # a bool is an int to isinstance
        prompt = list(map(whole, prompt))
        for i, token in enumerate(prompt):
            if type(token) is not int:
                message = f"{field}[{i}] should be a token id, got {shown(token)}."
                raise InvalidRequest(message, param, "invalid_type")
    check_tokens(field, prompt, info)
    return {"prompt_tokens": prompt}


ParseSpecial = Annotated[
    bool, Field(description="Texts of special tokens in `prompt` become these tokens.")
]


class CompletionBody(ChoicesBody):
    prompt: Prompt
    suffix: str = Field("", description="Text behind the gap to fill, if the model can.")
    parse_special: ParseSpecial = True
    max_tokens: MaxTokens = Field(16, ge=1, description="Longest answer; -1: as long as fits.")
    best_of: Int | None = Field(None, description="Only the same as n.")
    logprobs: NumLogprobs = Field(None, ge=0, le=MAX_LOGPROBS, description="Alternatives a token.")

    @model_validator(mode="after")
    def _best_of_is_n(self) -> CompletionBody:
        if self.best_of not in (None, self.n):
            message = f"best_of must be n ({self.n}) or left out, got {shown(self.best_of)}."
            raise InvalidRequest(message, "best_of")
        return self

    def _sources(self, info: Info) -> list[Source]:
        beside: Source = {"max_tokens": self.max_tokens, "logprobs": self.logprobs}
        if not self.suffix:
            beside["parse_special"] = self.parse_special
            return parse_prompts(self.prompt, info, **beside)
        texts = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InvalidRequest("suffix needs prompt to be text, or a list of texts.", "suffix")
        infill = Infill(suffix=parse_text(self.suffix, "suffix", info))
        field = "prompt[{}]" if texts is self.prompt else "prompt"
        prompts = [parse_text(each, field.format(i), info) for i, each in enumerate(texts)]
        return [{"prompt": each, "infill": infill, **beside} for each in prompts]


class GenerateBody(GenerationBody):
    """One prompt, one answer, every setting by its plain name."""

    prompt: str = Field(description="The text to continue.")
    parse_special: ParseSpecial = True
    max_tokens: MaxTokens = Field(256, ge=1, description="Longest answer; -1: as long as fits.")

    def _sources(self, info: Info) -> list[Source]:
        beside: Source = {"max_tokens": self.max_tokens, "parse_special": self.parse_special}
        return parse_prompts(self.prompt, info, **beside)


class InfillBody(GenerateBody, fates="infill"):
    """llama-server's, for editors: what is far from the gap goes where it does not fit."""

    max_tokens: Annotated[
        MaxTokens,
        AfterValidator(lambda count: 1 if count == 0 else count),
        WithJsonSchema({"type": "integer", "minimum": ALL}),
    ] = Field(None, ge=0, description="-1, none: as long as fits. 0 is 1: to read ahead of time.")
    prompt: str = Field("", description="Text between input_prefix and the gap.")
    input_prefix: str = Field("", description="Text before the gap.")
    input_suffix: str = Field("", description="Text behind the gap.")
    input_extra: list[Snippet] = Field([], max_length=MAX_SNIPPETS, description="The nearest last.")

    @property
    def names(self) -> dict[str, str]:
        return {**super().names, "suffix": "input_suffix"}

    def _sources(self, info: Info) -> list[Source]:
        infill = Infill(suffix=self.input_suffix, extra=self.input_extra, trims=True)
        prompt = self.input_prefix + self.prompt
        return [{"prompt": prompt, "infill": infill, "max_tokens": self.max_tokens}]


class EmbeddingsBody(Body, fates="embeddings"):
    stream: ClassVar[bool] = False
    names: ClassVar[dict[str, str]] = {"prompt": "input"}

    input: Prompt
    model: str = Field("", description="Any name; the answer tells the model served.")
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: of float32.")
    pooling: Pooling = Field("mean", description="Mean of all tokens' states, or the last one's.")

    def requests(self, request_id: str, info: Info) -> list[GenerateRequest]:
        """One request for each input, in their order."""
        sources = parse_prompts(self.input, info, "input", pooling=self.pooling)
        return [
            GenerateRequest(id=f"{request_id}-{i}", **source) for i, source in enumerate(sources)
        ]
