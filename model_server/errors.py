"""Everything that can go wrong in the model server, each with the data a person needs.

ModelServerError
├── StartError              the process ends with exit code 1 and this one sentence
│   ├── SettingError        a setting is out of its limits
│   ├── BuildError          this build of llama.cpp fails on this processor
│   ├── ModelFileError      the GGUF can't be served
│   ├── HeadFileError       the file of Medusa heads can't be used with this base
│   ├── CheckpointError     a file of weights can't be converted
│   ├── DownloadError       a file can't be fetched
│   ├── NoSpaceError        the disk is too full to begin
│   ├── ConverterError      llama.cpp's own converter is missing or failed
│   └── PromptsError        heads can't be judged by these prompts
├── RequestError            one request is at fault; it becomes an `error` event
│   ├── PromptTooLong
│   ├── PromptRefused       empty, unknown tokens, no chat template, ...
│   ├── GrammarRefused
│   ├── GrammarTooSlow      its next token takes too much work: it is too large or ambiguous
│   └── NoTokenAllowed      grammar, bias and stop rules together leave nothing to draw
├── Unavailable             loading, draining or full: try again later (503)
└── EngineError             ours: a step failed; its requests come again, or end with 500
    └── LogitsError         not a number, or infinite
"""

from __future__ import annotations

from model_server import places


class ModelServerError(Exception):
    """Root of the tree."""


class StartError(ModelServerError):
    """The server can't start. The message is one sentence for a person."""


class SettingError(StartError):
    """A setting is out of its limits."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name


class BuildError(StartError):
    """This build of llama.cpp fails on this processor."""

    exit_code = 3  # of the process that tries it and finds it wrong

    def __init__(self, build: str, processor: str, problem: str) -> None:
        super().__init__(
            f"{build} fails on this processor ({processor}): {problem}; "
            f"build it here with {places.rebuild()}, or use another image"
        )


class ModelFileError(StartError):
    """The model file can't be served."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"MODEL_PATH {path}: {problem}")
        self.path, self.problem = path, problem


class HeadFileError(StartError):
    """The file of Medusa heads can't be used with this base."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"MEDUSA_PATH {path}: {problem}")
        self.path, self.problem = path, problem


class CheckpointError(StartError):
    """A file of weights can't be converted."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class DownloadError(StartError):
    """A file can't be fetched from its hub."""

    def __init__(self, file: str, problem: str) -> None:
        super().__init__(f"{file}: {problem}")
        self.file = file


class NoSpaceError(StartError):
    """The disk has less room than what is to be written takes."""

    def __init__(self, folder: str, needed: str, free: str) -> None:
        super().__init__(f"{folder}: {needed} of disk space are needed, {free} are free")
        self.folder = folder


class ConverterError(StartError):
    """llama.cpp's own converter can't be fetched, can't be installed, or failed."""


class PromptsError(StartError):
    """Heads can't be judged by these prompts."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"{source}: {problem}")
        self.source = source


class RequestError(ModelServerError):
    """A request that can't be served as it stands. Carries what an HTTP error needs."""

    status = 400
    code = "invalid_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class PromptTooLong(RequestError):
    """The prompt leaves no room in the context, for an answer where one is wanted."""

    code = "context_length_exceeded"

    def __init__(self, context_size: int, problem: str, param: str = "prompt") -> None:
        # Clients that know no codes look for OpenAI's words.
        known = f"This model's maximum context length is {context_size} tokens"
        super().__init__(f"{known}: {problem}", param)


class PromptRefused(RequestError):
    """The prompt can't be turned into tokens for this model."""

    code = "invalid_prompt"


class GrammarRefused(RequestError):
    """The grammar or JSON schema can't be used."""

    code = "invalid_grammar"


class NoTokenAllowed(RequestError):
    """Grammar, logit bias and ignore_eos leave no token that may follow."""

    code = "no_token_allowed"

    def __init__(self) -> None:
        super().__init__(
            "no token of the vocabulary may follow: grammar and logit_bias exclude all"
        )


class GrammarTooSlow(RequestError):
    """The grammar leaves so many ways open that following them holds up everyone else."""

    code = "grammar_too_slow"

    def __init__(self) -> None:
        super().__init__(
            "the grammar is too large or ambiguous: its next token takes too much work"
        )


class Unavailable(ModelServerError):
    """Not now: loading, draining, or too many requests waiting."""

    def __init__(self, reason: str, retry_after_s: int = 1) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class EngineError(ModelServerError):
    """A step failed in the middle. Of one request it is a 500."""

    code = "engine"


class LogitsError(EngineError):
    """Nothing can be drawn from what was computed."""

    code = "invalid_logits"

    def __init__(self) -> None:
        super().__init__(
            "its logits are not finite, so the file is damaged or the computation is wrong"
        )
