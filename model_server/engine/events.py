"""What clients hear of their requests."""

from __future__ import annotations

from array import array
from hashlib import blake2b

from model_server.contract.protocol import Accepted, Done, Failed, Timings, Tokens
from model_server.engine.sequence import Sequence, Verified
from model_server.errors import EngineError, RequestError

TRY_AGAIN = 503


def accepted(sequence: Sequence, num_cached: int) -> Accepted:
    """The request will be answered; so many tokens of its prompt are computed already."""
    return Accepted(
        id=sequence.id,
        attempt=sequence.request.attempt,
        prompt_tokens=len(sequence.prompt),
        cached_tokens=num_cached,
        prompt_hash=blake2b(array("i", sequence.prompt), digest_size=12).hexdigest(),
    )


def added(result: Verified) -> Tokens:
    """What a step added to an answer."""
    return Tokens(
        id=result.sequence.id,
        ids=result.tokens,
        text=result.text,
        from_draft=result.from_draft if any(result.from_draft) else [],
        logprobs=result.logprobs,
        tree=result.tree,
    )


def failed(request_id: str, error: RequestError | EngineError) -> Failed:
    """What a client hears of a request that was refused, or failed for good."""
    if isinstance(error, EngineError):
        return Failed(id=request_id, status=500, code=error.code, message=str(error))
    return Failed(
        id=request_id,
        status=error.status,
        code=error.code,
        message=error.message,
        param=error.param,
    )


def gone(request_id: str) -> Failed:
    """The engine can't answer, but another may, or this one when it was started again."""
    message = "the engine has ended; the model server starts again"
    return Failed(id=request_id, status=TRY_AGAIN, code="engine", message=message)


def done(sequence: Sequence, now: float) -> Done:
    """What a client hears last of a request that went well."""
    admitted = now if sequence.admitted_s is None else sequence.admitted_s
    first = now if sequence.first_token_s is None else sequence.first_token_s
    assert sequence.finish_reason is not None
    return Done(
        id=sequence.id,
        finish_reason=sequence.finish_reason,
        matched_stop=sequence.matched_stop,
        prompt_tokens=len(sequence.prompt),
        cached_tokens=min(sequence.num_cached, len(sequence.prompt)),
        completion_tokens=sequence.num_answered,
        timings=Timings(
            queue_s=admitted - sequence.arrived_s,
            prefill_s=first - admitted,
            decode_s=now - first,
        ),
        speculation=sequence.draft_state.counts.stats,
        embedding=sequence.embedding,
    )
