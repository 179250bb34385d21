"""Requests to sequences: everything that can be refused is refused here, before a slot is taken.

Runs outside the engine thread: tokenizing and compiling a grammar must not hold up a step. Nor must
many of them at once, which would take interpreter and cores from it: one thread tokenizes, and one
compiles.
"""

from __future__ import annotations

import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

from model_server.contract.protocol import GenerateRequest
from model_server.engine.detokenizer import Detokenizer
from model_server.engine.prompt import PromptEncoder
from model_server.engine.sequence import Sequence
from model_server.errors import RequestError
from model_server.guide.compiler import Compiler
from model_server.llama.sampler import Sampler
from model_server.llama.vocab import Vocab


@dataclass(frozen=True)
class Intake:
    """Checks requests against one model and makes sequences of them."""

    vocab: Vocab
    prompts: PromptEncoder
    compiler: Compiler
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "prompts"))

    def close(self) -> None:
        """End what runs beside the engine."""
        self.pool.shutdown(cancel_futures=True)
        self.compiler.close()

    def executor(self, request: GenerateRequest) -> Executor:
        """Where to make its sequence."""
        return self.compiler.pool if request.sampling.shape else self.pool

    def make(self, request: GenerateRequest) -> Sequence:
        """A sequence ready to be scheduled. Raises RequestError."""
        self._check_tokens(request)
        prompt = self.prompts.encode(request)
        ends = [int(token) for token in self.vocab.end_tokens]
        guide = self.compiler.compile(request.sampling)
        sampler = Sampler(request.sampling, ends if request.ignore_eos else [], guide)
        sampler.see_prompt(prompt)
        sequence = Sequence(
            request=request,
            prompt=prompt,
            max_tokens=self.prompts.max_tokens(request, len(prompt)),
            sampler=sampler,
            detokenizer=Detokenizer(
                request.stop,
                # A shape says itself what the answer begins with.
                strip_space=self._begins_a_turn(request)
                and self.vocab.adds_space
                and guide is None,
                skip_chars=request.resume.num_chars if request.resume else 0,
            ),
            pieces=self.vocab.pieces,
            end_tokens=frozenset(
                [*request.stop_tokens, *self._stops(request), *([] if request.ignore_eos else ends)]
            ),
            arrived_s=time.monotonic(),
        )
        self._replay(sequence)
        return sequence

    def _begins_a_turn(self, request: GenerateRequest) -> bool:
        return request.messages is not None and not request.chat.continue_final_message

    def _stops(self, request: GenerateRequest) -> list[int]:
        """Tokens whose texts are stop strings: of control tokens no text is ever seen."""
        special = self.vocab.special_texts
        return [special[stop] for stop in request.stop if stop in special]

    def _check_tokens(self, request: GenerateRequest) -> None:
        sampling = request.sampling
        given = {
            "stop_tokens": request.stop_tokens,
            "logit_bias": list(sampling.logit_bias),
            "resume": request.resume.tokens if request.resume else [],
        }
        for name, tokens in given.items():
            self.prompts.refuse_unknown(name, tokens)
        if sampling.shape and request.ignore_eos:
            raise RequestError(
                "ignore_eos can't be combined with a grammar or another shape: when that is "
                "complete, only the end of the answer may follow",
                "ignore_eos",
            )

    def _replay(self, sequence: Sequence) -> None:
        """Take what an earlier attempt delivered, as if it had been decoded here."""
        resume = sequence.request.resume
        if resume is None:
            return
        if len(resume.tokens) > sequence.max_tokens:
            problem = f"resume has {len(resume.tokens)} tokens, at most {sequence.max_tokens}"
            raise RequestError(problem, "resume")
        for token in resume.tokens:
            if not sequence.sampler.allows(token):
                raise RequestError(f"resume has token {token}, which the grammar refuses", "resume")
            sequence.sampler.accept(token)
            sequence.accept(token)
            if sequence.finish_reason is not None:
                return
