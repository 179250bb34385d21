"""What one fault costs: the requests that caused it, and nobody else."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_server.contract.protocol import Accepted, Done, Event, Failed, GenerateRequest
from model_server.engine.engine import Engine
from model_server.engine.plan import DecodeTree
from model_server.engine.sequence import Verified
from model_server.engine.suspects import Suspects
from model_server.engine.verifier import Logits
from model_server.errors import EngineError
from model_server.metrics import ModelServerMetrics
from tests import twin
from tests.model_server.drafters import MakeDrafter, drafts, plain
from tests.model_server.engine.faults import GREEDY, Client, plant, spoil
from tests.model_server.engine.stack import Layout, RecordingVerifier, Stack, stack
from tests.model_server.sequences import MakeSequence

NUM_TOKENS = 20
PROMPTS = {name: twin.prompt(10 + i, seed=i) for i, name in enumerate("abcdef")}
LONG = 60  # positions that only the request that is to blame has


def expected(name: str, num_tokens: int = NUM_TOKENS) -> list[int]:
    return twin.answer(PROMPTS[name], num_tokens)


@pytest.fixture(params=[plain, drafts(mode="tree")], ids=["plain", "trees"])
def made(request: pytest.FixtureRequest, twin_path: Path) -> Iterator[Stack]:
    make: MakeDrafter = request.param
    with stack(twin_path, Layout(num_slots=4), make) as opened:
        yield opened


def test_a_step_that_fails_once_costs_nobody_an_answer(
    made: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(made)
    plant(made, monkeypatch, lambda _, number: number == 9)
    for name, prompt in PROMPTS.items():
        client.send(name, prompt, NUM_TOKENS)
    client.finish()
    assert {name: made.answer(name) for name in PROMPTS} == {n: expected(n) for n in PROMPTS}
    assert {name: made.text(name) for name in PROMPTS} == {
        name: twin.text(expected(name)) for name in PROMPTS
    }
    assert max(client.attempts.values()) == 2
    assert client.attempts["e"] == client.attempts["f"] == 1  # there are four slots: they waited
    assert made.num_leaks() == 0


def test_those_that_ran_are_told_to_try_again_and_those_that_waited_stay(
    made: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, prompt in PROMPTS.items():
        made.submit(name, prompt, max_tokens=NUM_TOKENS, sampling=GREEDY)
    for _ in range(12):
        made.engine.step()
    with monkeypatch.context() as patch:
        plant(made, patch, lambda _positions, number: number == 1)
        made.engine.step()
    for name in "abcd":
        failed = made.ending(name)
        assert isinstance(failed, Failed)
        assert (failed.status, failed.code) == (503, "engine")
        assert failed.message.startswith("llama_decode of ")
    assert [type(event) for event in made.events["e"]] == [Accepted]
    made.run()
    assert (made.answer("e"), made.answer("f")) == (expected("e"), expected("f"))
    assert made.num_leaks() == 0


def test_one_that_makes_steps_fail_ends_alone(made: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(made)
    plant(made, monkeypatch, lambda positions, _: max(positions) >= LONG)
    client.send("poison", twin.prompt(LONG + 20), 5)
    for name, prompt in PROMPTS.items():
        client.send(name, prompt, NUM_TOKENS)
    client.finish()
    failed = made.ending("poison")
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (500, "engine")
    assert client.attempts.pop("poison") == 2
    assert {name: made.answer(name) for name in PROMPTS} == {n: expected(n) for n in PROMPTS}
    assert max(client.attempts.values()) <= 2
    assert made.num_leaks() == 0


def test_two_that_fail_only_together_are_kept_apart(
    made: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets on alone, so neither is to blame."""
    client = Client(made)
    plant(made, monkeypatch, lambda positions, _: sum(p >= LONG for p in positions) > 1)
    pair = {name: twin.prompt(LONG - 2, seed=seed) for seed, name in enumerate("ab")}
    for name, prompt in pair.items():
        client.send(name, prompt, 8)
    client.finish()
    for name, prompt in pair.items():
        assert made.answer(name) == twin.answer(prompt, 8)


def test_an_engine_that_can_compute_nothing_ends(
    made: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everyone is told to try elsewhere, at once, those too who come later."""
    crashed = threading.Event()
    engine = Engine(made.scheduler, made.runner, ModelServerMetrics(), crashed.set)
    sizes = plant(made, monkeypatch, lambda *_: True)
    heard: queue.Queue[list[Event]] = queue.Queue()
    for name, prompt in PROMPTS.items():
        request = GenerateRequest(id=name, prompt_tokens=prompt)
        engine.submit(made.intake.make(request), heard.put)
    engine.start()
    assert crashed.wait(10)
    engine.stop()
    assert len(sizes) <= 3  # two of theirs and one of nobody's
    request = GenerateRequest(id="late", prompt_tokens=PROMPTS["a"])
    engine.submit(made.intake.make(request), heard.put)
    events = [event for _ in range(heard.qsize()) for event in heard.get()]
    ended = {event.id: event.status for event in events if isinstance(event, Failed)}
    assert ended == dict.fromkeys((*PROMPTS, "late"), 503)


def test_what_one_request_raises_ends_that_one_alone(
    made: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(self: RecordingVerifier, decoded: DecodeTree, logits: Logits) -> Verified:
        if decoded.sequence.id == "b" and decoded.sequence.num_answered > 3:
            raise ZeroDivisionError
        return checked(self, decoded, logits)

    checked = RecordingVerifier.verify
    monkeypatch.setattr(RecordingVerifier, "verify", verify)
    client = Client(made)
    for name, prompt in PROMPTS.items():
        client.send(name, prompt, NUM_TOKENS)
    client.finish()
    failed = made.ending("b")
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (500, "engine")
    for name in "acdef":
        assert (made.answer(name), client.attempts[name]) == (expected(name), 1)
    assert made.num_leaks() == 0


@pytest.mark.parametrize("part", ["schedule", "update"])
def test_what_nobody_foresaw_costs_nobody_an_answer(
    made: Stack, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """The ledger was left in the middle of something: nothing in it is believed."""
    calls: list[object] = []
    works = getattr(made.scheduler, part)

    def fails_once(*args: object) -> object:
        calls.append(args)
        result = works(*args)
        return 1 // 0 if len(calls) == 9 else result

    monkeypatch.setattr(made.scheduler, part, fails_once)
    client = Client(made)
    for name, prompt in PROMPTS.items():
        client.send(name, prompt, NUM_TOKENS)
    client.finish()
    assert {name: made.answer(name) for name in PROMPTS} == {n: expected(n) for n in PROMPTS}
    assert [client.attempts[name] for name in PROMPTS] == [2, 2, 2, 2, 1, 1]
    assert made.num_leaks() == 0


def test_logits_that_are_no_numbers_end_their_request_alone(
    twin_path: Path, tmp_path: Path
) -> None:
    """A token whose embedding is no number, in one prompt of several."""
    seen = {token for name in PROMPTS for token in (*PROMPTS[name], *expected(name))}
    rotten = max(set(range(3, twin.TINY.vocab_size)) - seen)
    path = spoil(twin_path, tmp_path / "rotten.gguf", "token_embd.weight", rotten)
    with stack(path, Layout(num_slots=8)) as made:
        client = Client(made)
        for name, prompt in PROMPTS.items():
            client.send(name, prompt, NUM_TOKENS)
        for _ in range(3):
            made.engine.step()
        client.send("rotten", [*PROMPTS["a"][:9], rotten, 5], 5)
        client.finish()
        failed = made.ending("rotten")
        assert isinstance(failed, Failed)
        assert (failed.status, failed.code) == (500, "invalid_logits")
        assert {name: made.answer(name) for name in PROMPTS} == {n: expected(n) for n in PROMPTS}
        assert set(map(type, (made.ending(name) for name in PROMPTS))) == {Done}
        assert made.num_leaks() == 0


def test_only_so_many_are_remembered(make_sequence: MakeSequence) -> None:
    suspects, error = Suspects(), EngineError("a step failed")
    for number in range(3_000):
        sequence = make_sequence([1, 2], id=str(number))
        suspects.look_at(sequence)
        suspects.judge(sequence, error, alone=False)
    assert len(suspects._failures) == 1_024
    last = make_sequence([1, 2], id="2999")
    suspects.look_at(last)
    assert last.apart
