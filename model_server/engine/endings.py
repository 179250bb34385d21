"""The last events of requests: they went well, were refused, or failed."""

from __future__ import annotations

from model_server.contract.protocol import Done, Failed, Timings
from model_server.engine.sequence import Sequence
from model_server.errors import EngineError, RequestError


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
    )
