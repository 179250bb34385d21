"""The wire contract between the gateway and the model server: requests down, events up.

`POST /batch` takes a Batch and answers `application/x-ndjson`, one event a line, multiplexed by
request id; an empty line says that it is still there. Both tiers speak in these words, so this
folder imports nothing of either.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

HEARTBEAT_S = 2.0  # a batch's answer has an empty line where there was no event for so long
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1_000
MAX_LOGPROBS = 20
MAX_BATCH_REQUESTS = 256
MAX_GRAMMAR_BYTES = 65_536
MAX_SNIPPETS = 1_024
MAX_SEED = 2**64 - 1
SHAPES = ("json_schema", "grammar", "regex", "choices")  # of an answer: at most one of them
PROMPTS = ("prompt", "prompt_tokens", "messages")  # of a request: one of them

FinishReason = Literal["stop", "length"]
Pooling = Literal["mean", "last"]


def _encodable(text: str) -> str:
    text.encode()  # JSON may hold lone surrogates, which are no text
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Bias = Annotated[float, Field(ge=-1_000, le=1_000)]


class Wire(BaseModel):
    """Strict and immutable: a field the other tier does not know is a bug, never a silent drop."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class Message(Wire):
    """One turn of a chat, in the roles that chat templates know."""

    role: Literal["system", "user", "assistant"]
    content: Text
    reasoning_content: Text | None = Field(None, description="What the assistant thought before.")


class ChatOptions(Wire):
    """How messages become a prompt."""

    add_generation_prompt: bool = Field(True, description="End where the assistant speaks next.")
    continue_final_message: bool = Field(False, description="End behind the last message's words.")
    variables: dict[str, Any] = Field({}, description="What the template is told beside messages.")


class Sampling(Wire):
    """How a token is drawn. Filters run in the order top_k, top_p, min_p, temperature."""

    temperature: float = Field(1.0, ge=0, le=10, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Of the likeliest that sum up to it; 1: off.")
    top_k: int = Field(0, ge=0, le=2**31 - 1, description="0 keeps the whole vocabulary.")
    min_p: float = Field(0.0, ge=0, le=1, description="Of the likeliest's probability; 0: off.")
    repeat_penalty: float = Field(1.0, ge=0.01, le=10, description="Over the last 64 tokens.")
    presence_penalty: float = Field(0.0, ge=-10, le=10, description="Over the answer.")
    frequency_penalty: float = Field(0.0, ge=-10, le=10, description="Over the answer.")
    seed: int = Field(0, ge=0, le=MAX_SEED)
    choice: int = Field(0, ge=0, le=2**32 - 1, description="Index of the choice, keys the noise.")
    logit_bias: dict[int, Bias] = Field({}, max_length=1_024, description="Added, by token id.")
    json_schema: dict[str, Any] | None = None
    grammar: Text | None = Field(None, description="GBNF, whose root rule is `root`, or Lark.")
    regex: Text | None = Field(None, description="Of the whole answer.")
    choices: list[Text] | None = Field(None, min_length=1, description="Texts, one of them.")

    @property
    def shape(self) -> str | None:
        """The field that shapes the answer."""
        return next((name for name in SHAPES if getattr(self, name) is not None), None)

    @model_validator(mode="after")
    def _one_shape(self) -> Sampling:
        if sum(getattr(self, name) is not None for name in SHAPES) > 1:
            raise ValueError(f"{', '.join(SHAPES)} exclude each other")
        return self


class Speculation(Wire):
    """How a request may be drafted ahead. Only typical acceptance changes the text."""

    mode: Literal["auto", "off", "chain", "tree"] = Field(
        "auto", description="auto: what pays; off: none; chain, tree: at least one draft a step."
    )
    acceptance: Literal["exact", "typical"] = Field(
        "exact", description="typical: lossy (Medusa paper, 2.3.1); drafts need only be plausible."
    )
    max_tokens_per_step: int = Field(0, ge=0, le=2**31 - 1, description="Drafts and one; 0: any.")
    show_tree: bool = Field(False, description="A stream carries the draft tree of every step.")


class Resume(Wire):
    """What an earlier attempt already delivered: the next one starts behind it."""

    tokens: list[int] = Field(default_factory=list)
    num_chars: int = Field(0, ge=0, description="Characters of text already delivered.")


class Snippet(Wire, extra="ignore"):
    """Text of another file. Editors put more beside it: when it was seen, say."""

    text: Text = Field("", description="What stands in it, or in a part of it.")
    filename: Text = Field("tmp", description="Its name.")


class Infill(Wire):
    """The prompt is what stands before the gap that is to be filled; this is around it."""

    suffix: Text = Field(description="What stands behind the gap.")
    extra: list[Snippet] = Field([], max_length=MAX_SNIPPETS, description="Farthest first.")
    trims: bool = Field(False, description="What is far from the gap goes where it doesn't fit.")


class GenerateRequest(Wire):
    """One prompt, one answer. Exactly one of prompt, prompt_tokens and messages is given."""

    id: Text = Field(min_length=1, max_length=128)
    attempt: int = Field(1, ge=1)
    prompt: Text | None = None
    prompt_tokens: list[int] | None = None
    messages: list[Message] | None = None
    chat: ChatOptions = ChatOptions()
    parse_special: bool = Field(False, description="Special tokens' texts in `prompt` are tokens.")
    infill: Infill | None = Field(None, description="`prompt` comes before a gap.")
    pooling: Pooling | None = Field(None, description="The prompt's embedding is asked for.")
    max_tokens: int | None = Field(None, ge=1, description="At most the rest of the context.")
    sampling: Sampling = Field(default_factory=Sampling)
    stop: list[Text] = Field(default_factory=list, max_length=MAX_STOP_STRINGS)
    stop_tokens: list[int] = Field(default_factory=list, max_length=MAX_STOP_STRINGS)
    ignore_eos: bool = False
    speculation: Speculation = Field(default_factory=Speculation)
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="Alternatives a token.")
    resume: Resume | None = None
    prefix_owner: Text = Field(
        "", max_length=128, description="Computed prefixes are shared with the same owner's alone."
    )
    trace: dict[str, Text] = Field({}, max_length=16, description="The caller's: traceparent, ...")

    @model_validator(mode="after")
    def _one_prompt(self) -> GenerateRequest:
        if sum(getattr(self, name) is not None for name in PROMPTS) != 1:
            raise ValueError(f"give exactly one of {', '.join(PROMPTS)}")
        return self


class Batch(Wire):
    """A unit of transport: its requests are admitted, finished and cancelled one by one."""

    id: Text = Field(min_length=1, max_length=128)
    requests: list[GenerateRequest] = Field(min_length=1, max_length=MAX_BATCH_REQUESTS)

    @model_validator(mode="after")
    def _own_ids(self) -> Batch:
        if len({request.id for request in self.requests}) < len(self.requests):
            raise ValueError("every request needs an id of its own")
        return self


class TokenLogprob(Wire):
    """Log probability of a token under the model's own distribution, before any filter."""

    id: int
    text: str
    bytes: list[int]
    logprob: float


class PositionLogprobs(TokenLogprob):
    """The emitted token and the most likely ones at its position, best first."""

    top: list[TokenLogprob] = Field(default_factory=list)
    is_shown: bool = Field(True, description="False for a control token: no part of the text.")


class Accepted(Wire):
    """The request passed every check and holds a slot, or waits for one."""

    event: Literal["accepted"] = "accepted"
    id: str
    attempt: int = 1
    prompt_tokens: int
    cached_tokens: int = Field(0, description="Prompt tokens already in the KV cache.")
    prompt_hash: str = Field("", description="Of the prompt's token ids; a resume needs the same.")


class Started(Wire):
    """The request has a slot. Until then whatever ends the model server was not its doing."""

    event: Literal["started"] = "started"
    id: str


class ShownTree(Wire):
    """A step's draft tree, one entry a node, parents first. Node 0 is the text's last token."""

    token_ids: list[int]
    texts: list[str]
    parents: list[int] = Field(description="Index of each node's parent; the root's is -1.")
    probabilities: list[float] = Field(description="That all tokens down to the node will come.")
    accepted: list[int] = Field(description="Nodes whose tokens came, from the root's child down.")


class Tokens(Wire):
    """What one step added. `text` may lag behind `ids`: UTF-8 and stop strings are held back."""

    event: Literal["token"] = "token"
    id: str
    ids: list[int]
    text: str
    from_draft: list[bool] = Field(default_factory=list, description="One a token; empty: none.")
    logprobs: list[PositionLogprobs] | None = None
    tree: ShownTree | None = Field(None, description="The step's, where `show_tree` asks for it.")


class Timings(Wire):
    """Where a request's time went inside the model server, in seconds."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class SpeculationStats(Wire):
    """What drafting did for one request. Names are those of vLLM's metrics.speculative_decoding."""

    mean_acceptance_length: float = Field(description="Tokens a step, the sampled one included.")
    draft_acceptance_rate: float = Field(description="Accepted draft tokens of those drafted.")
    acceptance_histogram: list[int] = Field(description="[j]: steps that accepted j draft tokens.")
    num_accepted_tokens_per_pos: list[int] = Field(description="[j]: steps that accepted draft j.")
    num_spec_steps: int = Field(description="Steps that drafted at all.")
    num_draft_tokens: int = Field(description="Tokens drafted, over all these steps.")
    num_accepted_draft_tokens: int = Field(description="Of these, tokens that came.")


class Done(Wire):
    """The last event of a request that went well."""

    event: Literal["done"] = "done"
    id: str
    finish_reason: FinishReason
    matched_stop: str | int | None = Field(None, description="Stop string or token that ended it.")
    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int
    timings: Timings = Field(default_factory=Timings)
    speculation: SpeculationStats | None = Field(None, description="None: nothing was drafted.")
    embedding: str | None = Field(None, description="For `pooling`: float32 of length 1, base64.")


class Failed(Wire):
    """The last event of a request that failed. `status` is the HTTP status it stands for."""

    event: Literal["error"] = "error"
    id: str
    status: int = Field(ge=400, le=599)
    code: str = Field(description="Short machine-readable name, e.g. context_length_exceeded.")
    message: str
    param: str | None = Field(None, description="The request's field at fault.")


Event = Annotated[Accepted | Started | Tokens | Done | Failed, Field(discriminator="event")]

# Ids never come again: they are kept out of the parser's cache of strings.
EVENTS = TypeAdapter[Event](Event, config=ConfigDict(**Wire.model_config, cache_strings="keys"))


class Info(Wire):
    """`GET /info`: the model and its limits. The gateway reads them here and keeps no copies."""

    model_id: str = Field(description="Same id: same weights, tokenizer and numeric mode.")
    model_name: str = Field(description="What clients call it by; no spaces.")
    title: str = Field("", description="Its name as people know it.")
    created: int = Field(description="When the server started, seconds since the epoch.")
    build: str
    context_size: int = Field(description="Prompt plus answer of one request, in tokens.")
    slots: int
    kv_cache_tokens: int
    vocab_size: int
    longest_piece_bytes: int = Field(description="Longest text of one token, in bytes.")
    chat: bool = Field(description="Whether messages are accepted.")
    sampling: dict[str, float] = Field({}, description="The file's own defaults, by our names.")
    exact: bool
    cpu_kernels: dict[str, str] = Field({}, description="What own kernels do, by instructions.")
    max_step_ms: float
    heads: int = Field(0, description="Medusa heads loaded.")
    medusa_mode: Literal["auto", "off", "chain", "tree"] = "auto"
    warnings: list[str] = Field(default_factory=list, description="What an operator should see.")
