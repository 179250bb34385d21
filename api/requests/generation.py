"""How tokens are drawn, what their text looks like and when it ends, the same for every endpoint,
under the names of OpenAI, llama-server and vLLM; and what OpenAI's share.
"""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from api.errors import InvalidRequest
from api.requests.body import MAX_CHOICES, Body, Source, TokenId, check_tokens
from api.requests.refusal import refusal
from api.requests.values import Int, TopK, bounded, check_bytes, stops
from model_server.contract.protocol import (
    MAX_SEED,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    SHAPES,
    GenerateRequest,
    Info,
    Sampling,
    Speculation,
)

ANY_OBJECT = {"type": "object"}


def _parsed(schema: object) -> object:
    """vLLM takes a schema as text, too."""
    try:
        return json.loads(schema) if isinstance(schema, str) else schema
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None


Schema = Annotated[dict[str, Any], AfterValidator(bounded)]
SchemaOrText = Annotated[
    Schema, BeforeValidator(_parsed, json_schema_input_type=dict[str, Any] | str)
]
Grammar = Annotated[str, Field(min_length=1), AfterValidator(check_bytes)]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(min_length=1, fail_fast=True),
    AfterValidator(lambda texts: check_bytes("".join(texts)) and texts),
]


class JsonSchemaFormat(Body, fates="schema"):
    json_schema: Schema = Field(alias="schema", description="What the answer keeps to.")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"] = Field(description="What comes.")
    json_schema: JsonSchemaFormat | None = Field(None, description="Of type json_schema.")
    object_schema: Schema | None = Field(None, alias="schema", description="Of a json_object.")

    @model_validator(mode="after")
    def _schema_is_there(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type json_schema, and is needed there")
        if self.object_schema is not None and self.type != "json_object":
            raise ValueError("schema belongs to type json_object")
        return self

    def schema_of_answer(self) -> dict[str, Any] | None:
        if self.json_schema is not None:
            return self.json_schema.json_schema
        return (self.object_schema or ANY_OBJECT) if self.type == "json_object" else None


class StructuredOutputs(Body, fates="structured"):
    """vLLM's: one of these."""

    json_: SchemaOrText | None = Field(None, alias="json", description="A JSON schema.")
    regex: Grammar | None = Field(None, description="Of the whole answer.")
    choice: Choices | None = Field(None, description="Texts, one of them.")
    grammar: Grammar | None = Field(None, description="GBNF, or Lark.")
    json_object: bool = Field(False, description="Any JSON object.")


StopString = Annotated[str, Field(max_length=MAX_STOP_CHARS)]
SomeStops = Annotated[list[StopString | None], Field(max_length=MAX_STOP_STRINGS)]
Stops = Annotated[
    list[StopString],
    Field(fail_fast=True),
    BeforeValidator(stops, json_schema_input_type=StopString | SomeStops),
]
# Fields as the wire contract has them: default, bounds and description are said there.
WIRE: Any = {**Sampling.model_fields, **Speculation.model_fields}


class SpeculationBody(Body, Speculation):
    """auto: as many drafts as pay; off: plain decoding; chain: each head's best candidate only;
    tree: drafts in every step. The text is the same whichever it is, unless acceptance is typical.
    """

    max_tokens_per_step: Int = WIRE["max_tokens_per_step"]


class GenerationBody(Body, fates="generation"):
    """How tokens are drawn and when they end, the same for every endpoint."""

    may_be_empty = frozenset({"grammar", "logit_bias"})

    temperature: float = WIRE["temperature"]
    top_p: float = WIRE["top_p"]
    top_k: TopK = WIRE["top_k"]
    min_p: float = WIRE["min_p"]
    repeat_penalty: float = WIRE["repeat_penalty"]
    presence_penalty: float = WIRE["presence_penalty"]
    frequency_penalty: float = WIRE["frequency_penalty"]
    logit_bias: Annotated[
        dict[Annotated[int, Field(strict=False)], float], Field(fail_fast=True)
    ] = WIRE["logit_bias"]
    seed: Int | None = Field(None, ge=-(2**63), le=MAX_SEED, description="Same seed, same text.")
    stop: Stops = Field(
        default_factory=list,
        max_length=MAX_STOP_STRINGS,
        description="A string, or a list of strings, that end the text.",
    )
    stop_token_ids: list[TokenId] = Field(
        [], max_length=MAX_STOP_STRINGS, fail_fast=True, description="Tokens that end the text."
    )
    ignore_eos: bool = Field(False, description="Go on after the model's own end.")
    speculation: SpeculationBody = Field(default_factory=SpeculationBody, description="Drafting.")
    stream: bool = Field(False, description="Answer with server-sent events.")
    # At most one of all these shapes the answer.
    json_schema: Schema | None = Field(None, description="JSON schema that the answer keeps to.")
    grammar: Grammar | None = Field(
        None, description="GBNF grammar of the answer, whose root rule is `root`, or a Lark one."
    )
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's shapes.")
    guided_json: SchemaOrText | None = Field(None, description="vLLM's older json_schema.")
    guided_regex: Grammar | None = Field(None, description="Regular expression of the answer.")
    guided_choice: Choices | None = Field(None, description="The answer is one of these texts.")
    guided_grammar: Grammar | None = Field(None, description="vLLM's older grammar.")

    @model_validator(mode="after")
    def _belong_together(self) -> GenerationBody:
        if self.speculation.show_tree and not self.stream:
            name = "speculation.show_tree"
            raise InvalidRequest(f"{name} needs stream to be true.", name)
        shapes = [name for name, _, value in self._shapes() if value is not None]
        if len(shapes) > 1:
            raise InvalidRequest(f"{shapes[0]} and {shapes[1]} exclude each other.", shapes[0])
        return self

    @property
    def names(self) -> dict[str, str]:
        """Fields as they were given, by the wire's names where these are others."""
        shapes = {kind: name for name, kind, value in self._shapes() if value is not None}
        return {"stop_tokens": "stop_token_ids", **shapes}

    def requests(self, request_id: str, info: Info) -> list[GenerateRequest]:
        """One request for each prompt and choice, in the order of the choices' indices."""
        check_tokens("stop_token_ids", self.stop_token_ids, info)
        check_tokens("logit_bias", self.logit_bias, info)
        sources, num_choices = self._sources(info), getattr(self, "n", 1)
        total = len(sources) * num_choices
        if total > MAX_CHOICES:
            raise InvalidRequest(f"prompts x n is limited to {MAX_CHOICES}, got {total}.", "n")
        # As is asked for, else as the model's file says, else as OpenAI.
        drawing = self.model_dump(include=Sampling.model_fields.keys() - {"seed", *SHAPES})
        own = drawing.keys() & info.sampling.keys() - self.model_fields_set
        drawing |= {name: info.sampling[name] for name in own}
        drawing |= {kind: value for _, kind, value in self._shapes() if value is not None}
        requests: list[GenerateRequest] = []
        try:
            for source in sources:
                seed = secrets.randbits(63) if self.seed is None else self.seed % 2**64
                for choice in range(num_choices):
                    made = GenerateRequest(
                        id=f"{request_id}-{len(requests)}",
                        sampling=Sampling(**drawing, seed=seed, choice=choice),
                        stop=list(self.stop),
                        stop_tokens=self.stop_token_ids,
                        ignore_eos=self.ignore_eos,
                        speculation=Speculation(**self.speculation.model_dump()),
                        **source,
                    )
                    requests.append(made)
        except ValidationError as error:
            raise refusal(error.errors()) from None
        return requests

    def _sources(self, info: Info) -> list[Source]:
        """What each endpoint says in its own way: what to continue, how far, with which figures."""
        raise NotImplementedError

    def _shapes(self) -> list[tuple[str, str, Any]]:
        """Name of each field, the wire's name of what it holds, and its value."""
        vllm = self.structured_outputs or StructuredOutputs()
        any_object = ANY_OBJECT if vllm.json_object else None
        return [
            ("json_schema", "json_schema", self.json_schema),
            ("grammar", "grammar", self.grammar),
            ("guided_json", "json_schema", self.guided_json),
            ("guided_regex", "regex", self.guided_regex),
            ("guided_choice", "choices", self.guided_choice),
            ("guided_grammar", "grammar", self.guided_grammar),
            ("structured_outputs.json", "json_schema", vllm.json_),
            ("structured_outputs.regex", "regex", vllm.regex),
            ("structured_outputs.choice", "choices", vllm.choice),
            ("structured_outputs.grammar", "grammar", vllm.grammar),
            ("structured_outputs.json_object", "json_schema", any_object),
        ]


class StreamOptions(Body, fates="stream"):
    include_usage: bool = Field(False, description="End with a chunk that counts tokens.")


class OpenAIBody(GenerationBody):
    """What OpenAI's share beyond sampling."""

    may_be_empty = GenerationBody.may_be_empty | {"stream_options"}  # {} asks for nothing

    model: str = Field("", description="Any name; the answer tells the model served.")
    stream_options: StreamOptions = Field(
        default_factory=StreamOptions, description="What a stream ends with."
    )

    @model_validator(mode="after")
    def _fields_that_belong_together(self) -> OpenAIBody:
        if self.stream_options.include_usage and not self.stream:
            raise InvalidRequest("stream_options needs stream to be true.", "stream_options")
        return self


class ChoicesBody(OpenAIBody):
    """And what completions and chats have, and responses have not."""

    may_be_empty = OpenAIBody.may_be_empty | {"response_format"}

    n: Int = Field(1, ge=1, le=MAX_CHOICES, description="Choices for each prompt.")
    response_format: ResponseFormat | None = Field(None, description="text, JSON, or a schema.")

    def _shapes(self) -> list[tuple[str, str, Any]]:
        form = self.response_format
        schema = None if form is None else form.schema_of_answer()
        return [*super()._shapes(), ("response_format", "json_schema", schema)]
