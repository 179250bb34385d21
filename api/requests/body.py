"""What every request body has in common: known fields only, and how tokens are drawn."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StrictBool,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from api.errors import InvalidRequest
from api.requests import fields
from api.requests.document import with_fates
from api.requests.fields import Fate, Fates
from api.requests.refusal import printable, refusal, shown
from api.requests.values import Int, TopK, is_empty, stops
from model_server.contract.protocol import (
    MAX_SEED,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    GenerateRequest,
    Info,
    Sampling,
    Speculation,
)

MAX_CHOICES = 128
EMPTIES: tuple[object, ...] = ("", [], {})

Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
StopString = Annotated[str, Field(strict=True, max_length=MAX_STOP_CHARS)]
SomeStops = Annotated[list[StopString | None], Field(max_length=MAX_STOP_STRINGS)]
Stops = Annotated[
    list[StopString],
    Field(fail_fast=True),
    BeforeValidator(stops, json_schema_input_type=StopString | SomeStops),
]
TokenId = Annotated[Int, Field(ge=0)]
Source = dict[str, Any]  # the one field of GenerateRequest that says what to continue


def wire(name: str) -> Any:
    """A field as the wire contract has it: default, bounds and description are said there."""
    return Sampling.model_fields[name]


class Body(BaseModel):
    """Null means not given. A field that cannot be honoured is refused by its name."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    # What becomes of fields that are none of the body's, and fields of which "", [] and {} mean the
    # default.
    fates: ClassVar[Fates] = {}
    may_be_empty: ClassVar[frozenset[str]] = frozenset()
    # Whether fields that nobody here knows are ignored: what is replayed came from any server.
    tolerant: ClassVar[bool] = False
    place: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if not cls._is_default(name, value)}
        for name in given.keys() - _known(cls):
            value, fate = given.pop(name), cls.fates.get(name)
            if fate and fate.ours in _known(cls) and fate.ours not in given:
                given[fate.ours] = value
            elif not cls._is_ignored(value, fate):
                raise cls._refusal(name, value, fate)
        return given

    @classmethod
    def _is_ignored(cls, value: object, fate: Fate | None) -> bool:
        if cls.tolerant and (fate is None or is_empty(value)):
            return True
        return fate is not None and (fate.values is None or value in fate.values)

    @classmethod
    def _is_default(cls, name: str, value: object) -> bool:
        return value is None or (name in cls.may_be_empty and value in EMPTIES)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        schema = with_fates(schema, cls.fates)
        if cls.tolerant:
            return {**schema, "additionalProperties": True}
        for name in cls.may_be_empty & schema["properties"].keys():
            known = schema["properties"][name]
            schema["properties"][name] = {"anyOf": [known, {"enum": list(EMPTIES)}]}
        return schema

    @classmethod
    def _refusal(cls, name: str, value: object, fate: Fate | None) -> InvalidRequest:
        param = cls.place + printable(name)
        if fate is None:
            return InvalidRequest(f"Unknown field {param}.", param, "unknown_parameter")
        if fate.ours in _known(cls):
            return InvalidRequest(f"{param} is {fate.why}: give one of them.", param)
        message = f"{param} is not supported, got {shown(value)}: {fate.why}."
        return InvalidRequest(message, param, "unsupported_parameter")


@cache
def _known(body: type[Body]) -> frozenset[str]:
    """Fields by the names that clients give them."""
    return frozenset(field.alias or name for name, field in body.model_fields.items())


class SpeculationBody(Body, Speculation):
    """auto: as many drafts as pay; off: plain decoding; chain: each head's best candidate only;
    tree: drafts in every step. The text is the same whichever it is, unless acceptance is typical.
    """

    model_config = ConfigDict(strict=True)
    place: ClassVar[str] = "speculation."

    max_tokens_per_step: Int = Speculation.model_fields["max_tokens_per_step"]  # type: ignore[assignment]


class GenerationBody(Body):
    """How tokens are drawn and when they end, the same for every endpoint."""

    fates = fields.GENERATION
    may_be_empty = frozenset({"grammar", "logit_bias"})

    temperature: Finite = wire("temperature")
    top_p: Finite = wire("top_p")
    top_k: TopK = wire("top_k")
    min_p: Finite = wire("min_p")
    repeat_penalty: Finite = wire("repeat_penalty")
    presence_penalty: Finite = wire("presence_penalty")
    frequency_penalty: Finite = wire("frequency_penalty")
    logit_bias: Annotated[dict[int, Finite], Field(fail_fast=True)] = wire("logit_bias")
    seed: Int | None = Field(
        None, ge=-(2**63), le=MAX_SEED, description="The same seed draws the same text."
    )
    stop: Stops = Field(
        default_factory=list,
        max_length=MAX_STOP_STRINGS,
        description="A string, or a list of strings, that end the text.",
    )
    stop_token_ids: list[TokenId] = Field(
        default_factory=list,
        max_length=MAX_STOP_STRINGS,
        fail_fast=True,
        description="Tokens that end the text.",
    )
    ignore_eos: StrictBool = Field(False, description="Go on after the model's own end.")
    speculation: SpeculationBody = Field(
        default_factory=SpeculationBody, description="How the answer may be drafted ahead."
    )
    stream: StrictBool = Field(False, description="Answer with server-sent events.")

    @model_validator(mode="after")
    def _trees_need_a_stream(self) -> GenerationBody:
        if self.speculation.show_tree and not self.stream:
            name = "speculation.show_tree"
            raise InvalidRequest(f"{name} needs stream to be true.", name)
        return self

    def requests(self, request_id: str, info: Info) -> list[GenerateRequest]:
        """One request for each prompt and choice, in the order of the choices' indices."""
        self._check_ids(info)
        sources, num_choices = self._sources(info), self._num_choices()
        total = len(sources) * num_choices
        if total > MAX_CHOICES:
            raise InvalidRequest(f"prompts x n is limited to {MAX_CHOICES}, got {total}.", "n")
        try:
            return [
                self._request(
                    f"{request_id}-{i * num_choices + choice}",
                    source,
                    self._drawing(info.sampling),
                    seed=seed,
                    choice=choice,
                )
                for i, source in enumerate(sources)
                for seed in [self._seed()]
                for choice in range(num_choices)
            ]
        except ValidationError as error:
            raise refusal(error.errors()) from None

    def _sources(self, info: Info) -> list[Source]:
        raise NotImplementedError

    def _num_choices(self) -> int:
        return 1

    def _max_tokens(self) -> int | None:
        raise NotImplementedError

    def _logprobs(self) -> int | None:
        return None

    def _shape(self) -> dict[str, Any]:
        """The wire's field that shapes the answer, if one does, and its value."""
        return {}

    def _seed(self) -> int:
        return secrets.randbits(63) if self.seed is None else self.seed % 2**64

    def _drawing(self, defaults: Mapping[str, float]) -> dict[str, Any]:
        """How tokens are drawn: as is asked for, else as the model's file says, else as OpenAI."""
        own = {name: defaults[name] for name in defaults.keys() - self.model_fields_set}
        return {name: own.get(name, getattr(self, name)) for name in _sampled()}

    def _request(
        self, request_id: str, source: Source, given: Mapping[str, Any], *, seed: int, choice: int
    ) -> GenerateRequest:
        return GenerateRequest(
            id=request_id,
            max_tokens=self._max_tokens(),
            sampling=Sampling(**given, **self._shape(), seed=seed, choice=choice),
            stop=list(self.stop),
            stop_tokens=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            speculation=Speculation(**self.speculation.model_dump()),
            logprobs=self._logprobs(),
            **source,
        )

    def _check_ids(self, info: Info) -> None:
        check_tokens("stop_token_ids", self.stop_token_ids, info)
        check_tokens("logit_bias", self.logit_bias, info)


@cache
def _sampled() -> frozenset[str]:
    """Fields that a body and the wire's Sampling have in common, but the seed."""
    return frozenset(Sampling.model_fields.keys() & GenerationBody.model_fields.keys() - {"seed"})


def check_tokens(field: str, ids: Any, info: Info) -> None:
    """Every id is one of the model's tokens."""
    for token in ids:
        if not 0 <= token < info.vocab_size:
            raise InvalidRequest(
                f"{field}: token ids go from 0 to {info.vocab_size - 1}, got {token}.", field
            )


def check_prompt_bytes(field: str, num_bytes: int, info: Info) -> None:
    """No text this long can fit: every token is at most longest_piece_bytes long."""
    limit = info.context_size * info.longest_piece_bytes
    if num_bytes > limit:
        raise InvalidRequest(
            f"{field}: {num_bytes} bytes cannot fit the model's context of {info.context_size} "
            f"tokens, which hold at most {limit} bytes.",
            field,
            "context_length_exceeded",
        )
