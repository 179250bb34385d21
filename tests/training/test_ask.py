"""Prompts that a model asks itself: behind its template's opening of the user's turn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from model_server.contract.protocol import GenerateRequest, Message
from model_server.engine.prompt import PromptEncoder
from model_server.errors import StartError
from model_server.llama.context import ContextOptions
from model_server.llama.model import Model
from model_server.training import ask
from model_server.training.lanes import Lanes, Wanted, Written, _choose, _Lane
from tests import twin

TEMPLATE = "{% for m in messages %}USER {{ m.content }} END{% endfor %}"


@pytest.fixture
def model(twin_path: Path) -> Model:
    return Model(twin_path, 0)


def encode(encoder: PromptEncoder, said: str) -> list[int]:
    message = Message(role="user", content=said)
    return encoder.encode(GenerateRequest(id="1", messages=[message]))


def test_the_users_turn_is_what_comes_before_any_word(model: Model) -> None:
    encoder = PromptEncoder(model.vocab, TEMPLATE, 256)
    beginning = ask.user_turn(encoder)
    assert len(beginning) > 0
    for said in ("anything", "0", "?!"):
        tokens = encode(encoder, said)
        assert tokens[: len(beginning)] == beginning
        assert len(tokens) > len(beginning)


def test_a_base_without_template_can_not_ask(model: Model) -> None:
    with pytest.raises(StartError, match="--ask needs a chat template"):
        ask.user_turn(PromptEncoder(model.vocab, None, 256))


def test_lanes_write_what_the_model_would_say_alone(model: Model) -> None:
    """More texts than lanes, of all lengths: each gets its own answer, and a state a token."""
    prompts = [twin.prompt(3 + seed % 5, seed) for seed in range(20)]
    lanes = Lanes(model, ContextOptions(3 * 256, 3, 1))
    found = dict(lanes.write([Wanted(prompt, 7 + i % 4) for i, prompt in enumerate(prompts)]))
    read = {i: lanes.read([*prompts[i], *found[i].tokens[1:]]) for i in (0, 19)}
    lanes.close()
    assert sorted(found) == list(range(20))
    for i, prompt in enumerate(prompts):
        walk = twin.answer(prompt, 7 + i % 4)
        assert found[i].tokens == [prompt[-1], *walk]
        assert len(found[i].states) == len(walk)
    for i, whole in read.items():
        for at, state in enumerate(found[i].states, len(prompts[i]) - 1):
            assert state == pytest.approx(whole.states[at], abs=1e-3)


def test_drawn_texts_differ_by_their_seed_only(model: Model) -> None:
    prompt = twin.prompt(4, 1)
    lanes = Lanes(model, ContextOptions(2 * 256, 2, 1))
    wanted = [Wanted(prompt, 20, temperature=30.0, seed=seed) for seed in (5, 6, 5)]
    found = dict(lanes.write(wanted))
    lanes.close()
    assert found[0].tokens == found[2].tokens != found[1].tokens


def test_a_token_without_a_chance_is_never_drawn() -> None:
    """Of 50,000 in each of 1,000 draws: noise in float32 let one win in every 170th."""
    logits = np.full(50_000, -100, np.float32)
    logits[7] = 100
    wanted = Wanted([1], 1, temperature=1.0)
    for seed in range(1_000):
        noise = np.random.default_rng(seed)
        assert _choose(logits, _Lane(0, wanted, Written([1]), 0, noise)) == 7


class Counted(Lanes):
    """Lanes without a model: the text of seed n is n modulo 4, and behind `most` comes Ctrl-C."""

    def __init__(self, model: Model, most: int = 99) -> None:
        self.vocab, self.most, self.seeds = model.vocab, most, list[int]()

    def write(self, wanted: Sequence[Wanted]) -> Iterator[tuple[int, Written]]:
        for place in range(len(wanted))[::-1]:
            if len(self.seeds) == self.most:
                raise KeyboardInterrupt
            self.seeds.append(wanted[place].seed)
            text = self.vocab.tokenize(str(wanted[place].seed % 4))
            yield place, Written([1, *text, 1], ended=True)


def test_an_interrupted_asking_goes_on(model: Model, tmp_path: Path) -> None:
    asking = ask.Asking(6, 10, tmp_path / "kept")
    first, second = Counted(model, most=4), Counted(model)
    with pytest.raises(KeyboardInterrupt):
        ask.ask(asking, first, [1], model.vocab)
    asking.kept.write_text(asking.kept.read_text()[:-2])  # the last was cut short
    assert ask.ask(asking, second, [1], model.vocab) == ["2", "3", "0", "1"]
    assert (first.seeds, second.seeds) == ([15, 14, 13, 12], [12, 11, 10])
    assert ask.ask(asking, Counted(model, most=0), [1], model.vocab) == ["2", "3", "0", "1"]


def test_asked_prompts_are_kept_as_chats(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    ask.save(path, ["one", "two\nlines \u00fc"])
    said = [json.loads(line)["messages"][0]["content"] for line in path.read_text().splitlines()]
    assert said == ["one", "two\nlines \u00fc"]
