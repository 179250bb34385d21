"""Makes sequences for tests that need no request to come over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from model_server.contract.protocol import GenerateRequest, Sampling
from model_server.engine.detokenizer import Detokenizer
from model_server.engine.sequence import Sequence
from model_server.guide.compiler import Compiler
from model_server.llama.sampler import Sampler
from model_server.llama.vocab import Vocab
from tests import vocabulary

MakeSequence = Callable[..., Sequence]
MakeSampler = Callable[..., Sampler]


def take(sequence: Sequence, tokens: list[int]) -> str:
    """Let a sequence accept tokens until it ends; the text that comes out."""
    texts = []
    for token in tokens:
        texts.append(sequence.accept(token))
        if sequence.finish_reason is not None:
            break
    return "".join(texts)


def sampler_maker(compiler: Compiler) -> MakeSampler:
    """Samplers of the protocol's fields, with their grammars compiled."""

    def make(banned: Iterable[int] = (), **fields: object) -> Sampler:
        params = Sampling.model_validate(fields)
        return Sampler(params, list(banned), compiler.compile(params))

    return make


def sequence_maker(vocab: Vocab, compiler: Compiler) -> MakeSequence:
    """Sequences of any prompt tokens and fields of a request, past all checks."""

    def make(
        prompt: list[int], max_tokens: int = 100, order: int = 0, **fields: object
    ) -> Sequence:
        request = GenerateRequest.model_validate({"id": "a", "prompt_tokens": prompt, **fields})
        return Sequence(
            request=request,
            prompt=prompt,
            max_tokens=max_tokens,
            sampler=Sampler(request.sampling, (), compiler.compile(request.sampling)),
            detokenizer=Detokenizer(request.stop),
            pieces=vocab.pieces,
            end_tokens=frozenset([vocabulary.EOS, *request.stop_tokens]),
            order=order,
        )

    return make
