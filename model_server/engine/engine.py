"""The engine thread: inbox, step, events out. It alone touches the llama.cpp context."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq

from model_server.contract.protocol import Event, Started
from model_server.engine.events import accepted, added, done, failed, gone
from model_server.engine.plan import Plan
from model_server.engine.runner import Runner
from model_server.engine.scheduler import Scheduler
from model_server.engine.sequence import Sequence, Sink, Verified
from model_server.engine.suspects import Suspects
from model_server.errors import EngineError, LogitsError
from model_server.metrics import ModelServerMetrics, RequestPart, StepRecord
from model_server.speculation.tree import DraftTree

log = logging.getLogger(__name__)

# A busy Python thread beside the decode threads costs a step up to 3 times its length; giving the
# interpreter back sooner than the default 5 ms takes that away.
_SWITCH_INTERVAL_S = 0.0005


class Engine:
    """Continuous batching. `submit` and `cancel` may be called from any thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        metrics: ModelServerMetrics,
        on_crash: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_crash` is called once, when no step can succeed any more."""
        self.scheduler = scheduler
        self._on_crash = on_crash
        self._runner = runner
        self._metrics = metrics
        self._wakeup = threading.Condition()
        # Requests, and ids to cancel, in the order they came: an id may be used again.
        self._inbox: deque[Sequence | str] = deque()
        self._live: dict[str, Sequence] = {}
        self._events: dict[Sink, list[Event]] = {}
        self._suspects = Suspects()
        self._involved: list[Sequence] = []
        self._failed_before = False
        self._num_submitted = 0
        self._num_preemptions = 0
        self._record = StepRecord()
        self._stopping = self.has_ended = False
        self.num_steps = 0
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        metrics.running.set_function(lambda: len(scheduler.running))
        metrics.waiting.set_function(lambda: len(scheduler.waiting))
        metrics.kv_usage.set_function(lambda: scheduler.kv.usage)
        metrics.head_accuracy.set_function(lambda: scheduler.drafter.alarm.share)

    def start(self) -> None:
        """Begin stepping."""
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._thread.start()

    def stop(self) -> None:
        """End after the step in hand. What still runs is not answered."""
        with self._wakeup:
            self._stopping = True
            self._wakeup.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, sequence: Sequence, sink: Sink) -> None:
        """Queue a request; its events go to `sink`. A known id replaces the request that has it."""
        sequence.sink = sink
        if not self._post(sequence):
            sink([gone(sequence.id)])

    def cancel(self, request_id: str) -> None:
        """Drop a request between steps, whatever it is doing. Unknown ids are ignored."""
        self._post(request_id)

    def _post(self, item: Sequence | str) -> bool:
        with self._wakeup:
            if not self.has_ended:
                self._inbox.append(item)
                self._wakeup.notify()
            return not self.has_ended

    @property
    def num_unfinished(self) -> int:
        """Requests submitted and not ended."""
        return len(self._live) + len(self._inbox)

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._inbox) or self.scheduler.has_work

    def step(self) -> None:
        """Take the inbox, compute one step, hand its events out."""
        started = time.perf_counter()
        self._take_inbox()
        if self.scheduler.has_work:
            self._record = StepRecord()
            try:
                plan = self._advance()
            except EngineError as error:
                self._interrupt(self._involved, error)
            except Exception:
                log.exception("a step failed. This is a bug.")
                self._interrupt(self.scheduler.running, EngineError("a step failed"))
            else:
                self._failed_before = False
                self._observe(plan, time.perf_counter() - started)
        self._flush()

    def _loop(self) -> None:
        while True:
            with self._wakeup:
                while not (self._stopping or self.is_busy):
                    self._wakeup.wait()
                if self._stopping:
                    return
            try:
                self.step()
                self.num_steps += 1
            except Exception:
                log.exception("the engine ends: no step can succeed any more")
                self._crash()
                return

    def _crash(self) -> None:
        """Tell everyone to try again: elsewhere, or here when the process was started again."""
        try:
            with self._wakeup:
                self.has_ended = True
                arrived = [item for item in self._inbox if isinstance(item, Sequence)]
                self._inbox.clear()
            for sequence in (*self._live.values(), *arrived):
                self._emit(sequence, gone(sequence.id))
            self._flush()
        finally:
            self._on_crash()

    def _advance(self) -> Plan:
        """One step. Raises EngineError when what was computed for `_involved` is lost."""
        plan = self.scheduler.schedule()
        self._note_admissions(plan)
        self._involved = plan.sequences
        results = self._runner.run(plan)
        self._runner.apply(self.scheduler.update(plan, results))
        for decoded, result in zip(plan.decode, results, strict=True):
            self._count(decoded.tree, result)
            self._emit(result.sequence, *self._heard(result))
            if result.error is not None or result.sequence.finish_reason is not None:
                self._end(result.sequence, keep=not isinstance(result.error, EngineError))
        if any(isinstance(result.error, LogitsError) for result in results):
            self._clean()
        return plan

    def _count(self, tree: DraftTree, result: Verified) -> None:
        part = RequestPart(
            len(result.tokens), tree.num_nodes - 1, tree.num_leaves, sum(result.from_draft)
        )
        self._record.parts.append(part)
        counts = result.sequence.draft_state.counts
        counts.add(part.num_drafts, max(tree.depths), part.num_accepted)

    def _heard(self, result: Verified) -> list[Event]:
        """What the client hears of a step."""
        sequence = result.sequence
        now = time.monotonic()
        events: list[Event] = []
        if result.tokens:
            if sequence.first_token_s is None:
                sequence.first_token_s = now
                self._metrics.ttft.observe(now - sequence.arrived_s)
            else:
                self._record.waits_s.append(now - sequence.last_token_s)
            sequence.last_token_s = now
            events.append(added(result))
        if result.error is not None:
            events.append(failed(sequence.id, result.error))
        elif sequence.finish_reason is not None:
            self._metrics.finished.labels(sequence.finish_reason).inc()
            self._metrics.e2e.observe(now - sequence.arrived_s)
            events.append(done(sequence, now))
        return events

    def _observe(self, plan: Plan, step_s: float) -> None:
        """Tell the metrics and the draft policy how long a step took, and where."""
        times, record = self._runner.times, self._record
        record.step_s, record.computed_s = step_s, times.decode_s + times.heads_s
        record.num_preemptions = self.scheduler.num_preemptions - self._num_preemptions
        self._num_preemptions = self.scheduler.num_preemptions
        self._metrics.note_step(record)
        self.scheduler.drafter.policy.note_step(
            step_s,
            None if plan.prefill else step_s - record.computed_s,
            plain=plan.is_plain,
            exploration_s=times.heads_s if plan.heads.explores else 0.0,
        )

    def _take_inbox(self) -> None:
        if not self._inbox:
            return
        with self._wakeup:
            arrived = list(self._inbox)
            self._inbox.clear()
        for item in arrived:
            if isinstance(item, Sequence):
                self._admit(item)
            elif item in self._live:
                self._abort(item)

    def _abort(self, request_id: str) -> None:
        self._metrics.finished.labels("abort").inc()
        self._end(self._live[request_id])

    def _admit(self, sequence: Sequence) -> None:
        if sequence.id in self._live:
            self._abort(sequence.id)
        self._num_submitted += 1
        sequence.order = self._num_submitted
        self._live[sequence.id] = sequence
        reusable = sequence.prompt if sequence.reusable else []
        num_cached = self.scheduler.kv.match(reusable, sequence.owner)
        self._emit(sequence, accepted(sequence, num_cached))
        if sequence.finish_reason is not None:  # a resumed answer that was already complete
            self._emit(sequence, done(sequence, time.monotonic()))
            self._end(sequence)
            return
        self._suspects.look_at(sequence)
        self.scheduler.add(sequence)

    def _note_admissions(self, plan: Plan) -> None:
        now = time.monotonic()
        for sequence in plan.sequences:
            if sequence.admitted_s is None:
                sequence.admitted_s = now
                self._metrics.queue.observe(now - sequence.arrived_s)
                self._metrics.prompt_tokens.inc(len(sequence.prompt))
                # Of an answer that is resumed, tokens of its own may be cached, too.
                self._metrics.cached_tokens.inc(min(sequence.num_cached, len(sequence.prompt)))
                self._emit(sequence, Started(id=sequence.id))

    def _end(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Free all that a request holds, but `keep` its prefix cached."""
        self._runner.apply(self.scheduler.remove(sequence, keep=keep))
        sequence.sampler.close()
        del self._live[sequence.id]

    def _interrupt(self, involved: Seq[Sequence], error: EngineError) -> None:
        """A step failed: those in it end, to come back or for good, and what they computed goes.

        A second one in a row ends all that run. Where nobody runs any more, a row of no request
        shows whether any step can succeed. Raises EngineError when none can.
        """
        involved = self.scheduler.running if self._failed_before else involved
        involved = list(dict.fromkeys(involved))
        log.error("%s; %d requests were in this step", error, len(involved))
        if len(involved) == len(self.scheduler.running):
            self._runner.apply(self.scheduler.reset())
        for sequence in involved:
            event = self._suspects.judge(sequence, error, alone=len(involved) == 1)
            self._emit(sequence, event)
            self._end(sequence, keep=False)
        if isinstance(error, LogitsError):
            self._clean()
        self._failed_before = bool(self.scheduler.running)
        if not self._failed_before:
            self._runner.context.prove()
        if not involved:  # nobody could be to blame
            raise error

    def _clean(self) -> None:
        """Have all that run computed again. Attention without flash multiplies what is no number by
        0 for rows that must not see it, and that is no number either.
        """
        self._runner.apply(self.scheduler.start_over())
        self._runner.context.clear(data=True)

    def _emit(self, sequence: Sequence, *events: Event) -> None:
        assert sequence.sink is not None, "it was never submitted. This is a bug."
        self._events.setdefault(sequence.sink, []).extend(events)

    def _flush(self) -> None:
        for sink, events in self._events.items():
            sink(events)
        self._events.clear()
