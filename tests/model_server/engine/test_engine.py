from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_server.contract.protocol import (
    Accepted,
    Done,
    Event,
    GenerateRequest,
    Started,
    Tokens,
)
from model_server.engine.engine import Engine
from model_server.engine.startup import Served
from model_server.metrics import ModelServerMetrics
from tests import twin
from tests.model_server.engine.stack import Layout, Stack, stack

GREEDY = {"temperature": 0}
PROMPT = twin.prompt(20)


@pytest.fixture
def made(twin_path: Path) -> Iterator[Stack]:
    with stack(twin_path, Layout(num_slots=2)) as opened:
        yield opened


def test_events_come_in_order(made: Stack) -> None:
    made.submit("a", PROMPT, max_tokens=3, sampling=GREEDY)
    made.run()
    kinds = [type(event) for event in made.events["a"]]
    assert kinds == [Accepted, Started, Tokens, Tokens, Tokens, Done]
    assert made.text("a") == twin.text(twin.answer(PROMPT, 3))
    done = made.ending("a")
    assert isinstance(done, Done)
    assert (done.prompt_tokens, done.completion_tokens) == (20, 3)
    assert min(done.timings.model_dump().values()) >= 0


def test_acceptance_is_told_before_a_slot_is_free(made: Stack) -> None:
    for name in "abc":
        made.submit(name, PROMPT, max_tokens=50, sampling=GREEDY)
    made.engine.step()
    assert [type(event) for event in made.events["c"]] == [Accepted]
    made.run()
    assert [type(event) for event in made.events["c"][:3]] == [Accepted, Started, Tokens]


def test_a_cached_prompt_is_reported(made: Stack) -> None:
    for name in "ab":
        made.submit(name, PROMPT, max_tokens=5, sampling=GREEDY)
        made.run()
    accepted, done = made.events["b"][0], made.ending("b")
    assert isinstance(accepted, Accepted)
    assert isinstance(done, Done)
    assert accepted.cached_tokens == done.cached_tokens == 19


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
def test_cancelling_frees_everything_in_any_state(made: Stack, num_steps: int) -> None:
    for name in "abc":
        made.submit(name, twin.prompt(30), max_tokens=50, sampling=GREEDY)
    for _ in range(num_steps):
        made.engine.step()
    for name in ("c", "a", "a", "nobody", "b"):
        made.engine.cancel(name)
    made.engine.step()
    assert made.engine.num_unfinished == 0
    assert made.num_leaks() == 0


def test_cancelling_before_submitting_changes_nothing(made: Stack) -> None:
    made.engine.cancel("a")
    made.submit("a", PROMPT, max_tokens=2, sampling=GREEDY)
    made.run()
    assert isinstance(made.ending("a"), Done)


def test_a_known_id_replaces_the_request_that_has_it(made: Stack) -> None:
    made.submit("a", PROMPT, max_tokens=50, sampling=GREEDY)
    made.engine.step()
    other = twin.prompt(5, seed=9)
    made.submit("a", other, attempt=2, max_tokens=4, sampling=GREEDY)
    made.events.clear()
    made.run()
    assert made.answer("a") == twin.answer(other, 4)
    assert made.num_leaks() == 0


@pytest.mark.parametrize("num_done", [0, 3, 7])
def test_a_resumed_answer_goes_on_where_it_was(made: Stack, num_done: int) -> None:
    answer = twin.answer(PROMPT, 7)
    made.submit("first", PROMPT, max_tokens=7, sampling=GREEDY)
    made.run()
    shown = twin.text(answer[:num_done])
    resume = {"tokens": answer[:num_done], "num_chars": len(shown)}
    made.submit("a", PROMPT, max_tokens=7, sampling=GREEDY, resume=resume)
    made.run()
    assert made.answer("a") == answer[num_done:]
    assert shown + made.text("a") == twin.text(answer)
    done = made.ending("a")
    assert isinstance(done, Done)
    assert done.completion_tokens == 7
    assert done.cached_tokens <= done.prompt_tokens
    counted = made.engine._metrics.registry.get_sample_value(
        "medusa_server_prefix_cache_hits_total"
    )
    assert counted == done.cached_tokens


def test_many_requests_leave_nothing_behind(made: Stack) -> None:
    for i in range(60):
        made.submit(str(i), twin.prompt(5 + i % 40, seed=i % 7), max_tokens=4, sampling=GREEDY)
        made.engine.step()
    made.run()
    assert made.scheduler.kv.num_seqs_held <= 60
    assert made.num_leaks() == 0


def test_a_crash_reaches_the_process_even_if_no_client_can_be_told(
    made: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed = threading.Event()
    engine = Engine(made.scheduler, made.runner, ModelServerMetrics(), crashed.set)

    def sink(_events: list[Event]) -> None:
        raise RuntimeError("the client's loop is closed")

    monkeypatch.setattr(threading, "excepthook", lambda _args: None)
    engine.start()
    engine.submit(made.intake.make(GenerateRequest(id="a", prompt_tokens=PROMPT)), sink)
    assert crashed.wait(10)
    engine.stop()


def test_threads_may_submit_and_cancel_at_once(served: Served) -> None:
    """Eight threads, half of whose requests are cancelled; the others get the known answer."""
    wrong: list[str] = []

    def client(number: int) -> None:
        for turn in range(6):
            prompt = twin.prompt(10 + turn, seed=number)
            heard: queue.Queue[list[Event]] = queue.Queue()
            request = GenerateRequest.model_validate(
                {"id": f"{number}-{turn}", "prompt_tokens": prompt, "max_tokens": 15,
                 "sampling": GREEDY}
            )  # fmt: skip
            served.engine.submit(served.intake.make(request), heard.put)
            if turn % 2:
                served.engine.cancel(request.id)
                continue
            events: list[Event] = []
            while not (events and isinstance(events[-1], Done)):
                events += heard.get(timeout=20)
            got = [token for e in events if isinstance(e, Tokens) for token in e.ids]
            if got != twin.answer(prompt, 15):
                wrong.append(request.id)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_stopping_an_engine_that_never_started_is_harmless(made: Stack) -> None:
    made.engine.stop()
