from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llguidance import LLParserLimits

from model_server.contract.protocol import Done, Failed, GenerateRequest, Sampling
from model_server.engine.verifier import report
from model_server.guide import compiler
from model_server.llama.sampler import Sampler, TokenDataArray
from model_server.llama.vocab import Vocab
from tests import twin
from tests.model_server.engine.stack import Layout, stack
from tests.vocabulary import EOS

GREEDY = {"temperature": 0}


@pytest.mark.parametrize("length", [1, 2, 9, 200])
def test_the_known_answer_comes_out(twin_path: Path, length: int) -> None:
    with stack(twin_path) as made:
        prompt = twin.prompt(length)
        made.submit("a", prompt, max_tokens=20, sampling=GREEDY)
        made.run()
        assert made.answer("a") == twin.answer(prompt, 20)


def test_company_changes_no_answer(twin_path: Path) -> None:
    with stack(twin_path) as made:
        prompts = {str(i): twin.prompt(5 + 13 * i, seed=i) for i in range(8)}
        for name, prompt in prompts.items():
            made.submit(name, prompt, max_tokens=10 + int(name), sampling=GREEDY)
        made.run()
        for name, prompt in prompts.items():
            assert made.answer(name) == twin.answer(prompt, 10 + int(name))
        assert made.num_leaks() == 0


def test_draws_are_keyed_by_the_position_in_the_answer(twin_path: Path, vocab: Vocab) -> None:
    prompt = twin.prompt(30)
    params = Sampling(seed=5, temperature=2.0, choice=3)
    with stack(twin_path) as made:
        made.submit("a", prompt, max_tokens=20, sampling=params.model_dump(), ignore_eos=True)
        made.run()
        tokens = made.answer("a")
    sampler, scratch = Sampler(params, banned=[EOS]), TokenDataArray(vocab.size)
    before = [prompt[-1], *tokens[:-1]]
    logits = [twin.logits(token).astype(np.float32) for token in before]
    assert tokens == [sampler.sample(row, i, scratch) for i, row in enumerate(logits)]


def test_the_prompt_counts_for_the_repeat_penalty(twin_path: Path) -> None:
    last = twin.prompt(5)[-1]
    likeliest = twin.answer([last], 1)[0]
    with stack(twin_path) as made:
        for name, penalty in (("free", 1), ("bound", 10)):
            sampling = {**GREEDY, "repeat_penalty": penalty}
            made.submit(name, [1, likeliest, last], max_tokens=1, sampling=sampling)
        made.run()
        assert made.answer("free") == [likeliest] != made.answer("bound")


def test_a_stuck_grammar_ends_its_request_alone(twin_path: Path) -> None:
    with stack(twin_path) as made:
        prompt = twin.prompt(5)
        asked = GenerateRequest(id="stuck", prompt_tokens=prompt, sampling=Sampling(choices=["a"]))
        stuck = made.intake.make(asked)
        stuck.sampler = Sampler(
            asked.sampling, banned=[EOS], guide=made.intake.compiler.compile(asked.sampling)
        )
        made.submit_made(stuck)
        made.submit("other", prompt, max_tokens=9, sampling=GREEDY)
        made.run()
        failed = made.ending("stuck")
        assert isinstance(failed, Failed)
        assert (failed.status, failed.code) == (400, "no_token_allowed")
        assert made.text("stuck") == "a"
        assert made.answer("other") == twin.answer(prompt, 9)
        assert made.num_leaks() == 0


def test_a_grammar_that_takes_too_much_work_ends_its_request_alone(
    twin_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "LIMITS", LLParserLimits(max_items_in_row=30))
    many = {"type": "object", "properties": {f"p{i}": {} for i in range(50)}, "required": ["p9"]}
    with stack(twin_path) as made:
        prompt = twin.prompt(5)
        made.submit("slow", prompt, sampling={"json_schema": many})
        made.submit("other", prompt, max_tokens=9, sampling=GREEDY)
        made.run()
        failed = made.ending("slow")
        assert isinstance(failed, Failed)
        assert (failed.status, failed.code) == (400, "grammar_too_slow")
        assert made.answer("other") == twin.answer(prompt, 9)
        assert made.num_leaks() == 0


def test_logprobs_are_of_the_models_own_distribution(vocab: Vocab) -> None:
    logits = np.zeros(vocab.size, np.float32)
    logits[[300, 301, EOS]] = 3, 2, 1
    expected = logits - np.log(np.exp(logits).sum())
    found = report(vocab, logits, 301, 3)
    assert found.id == 301
    assert found.logprob == pytest.approx(expected[301])
    assert [top.id for top in found.top] == [300, 301, EOS]
    assert found.top[2].text == "</s>"
    assert bytes(found.top[0].bytes).decode() == found.top[0].text
    assert found.is_shown
    assert not report(vocab, logits, EOS, 0).is_shown


def test_logprobs_come_one_a_token(twin_path: Path) -> None:
    with stack(twin_path) as made:
        made.submit("a", twin.prompt(5), max_tokens=4, logprobs=2, sampling=GREEDY)
        made.run()
        events = made.steps("a")
        for event in events:
            assert event.logprobs is not None
            assert [entry.id for entry in event.logprobs] == event.ids
            assert len(event.logprobs[0].top) == 2


def test_a_full_pool_puts_back_and_loses_nothing(twin_path: Path) -> None:
    with stack(twin_path, Layout(num_cells=64)) as made:
        prompts = {str(i): twin.prompt(12, seed=i) for i in range(6)}
        for name, prompt in prompts.items():
            made.submit(name, prompt, max_tokens=30, sampling=GREEDY)
        made.run()
        assert made.scheduler.num_preemptions > 0
        for name, prompt in prompts.items():
            assert made.answer(name) == twin.answer(prompt, 30)
            done = made.ending(name)
            assert isinstance(done, Done)
            assert done.cached_tokens <= done.prompt_tokens
        assert made.num_leaks() == 0


def test_prompt_and_answer_may_fill_the_context_and_the_pool(twin_path: Path) -> None:
    with stack(twin_path, Layout(num_cells=64, num_slots=1)) as made:
        for name, length in (("long", 63), ("short", 1)):
            made.submit(name, twin.prompt(length), sampling={**GREEDY, "seed": 1}, ignore_eos=True)
            made.run()
            done = made.ending(name)
            assert isinstance(done, Done)
            assert done.completion_tokens == 64 - length
            assert done.finish_reason == "length"
