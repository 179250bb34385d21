"""docs/FIELDS.md is the table of the code, and every row holds over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from api.requests.body import FATES, Body, Fate, read
from api.requests.chat import ChatBody
from api.requests.completion import CompletionBody, GenerateBody
from model_server.contract.protocol import GenerateRequest
from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway
from tests.structure import fields as printed
from tests.structure.modules import ROOT

pytestmark = pytest.mark.anyio

PATHS: dict[str, tuple[type[Body], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatBody, {"messages": [{"role": "user", "content": "a"}]}),
    "/v1/completions": (CompletionBody, {"prompt": "a"}),
    "/generate": (GenerateBody, {"prompt": "a"}),
}
ALIASES: dict[str, Any] = {"max_tokens": 2, "stop": ["x"], "guided_regex": "a+"}
NOBODYS = {"what": "nobody asks for"}


def test_the_document_is_the_code() -> None:
    text = (ROOT / "docs" / "FIELDS.md").read_text()
    assert text[text.index("## OpenAI") :] == printed.tables(), (
        "print the tables: python -m tests.structure.fields"
    )


def test_each_row_says_why_and_none_is_in_two_tables() -> None:
    unsaid = [name for name, fate in FATES["generation"].items() if len(fate.why or fate.ours) < 4]
    assert unsaid == []
    assert sum(map(len, printed.GROUPS.values())) == len(FATES["generation"])
    assert len(FATES["others"]) > 80


@pytest.mark.parametrize("table", FATES)
def test_what_every_table_says_is_of_its_kind(table: str) -> None:
    for fate in FATES[table].values():
        assert fate.ignored == "any" or isinstance(fate.ignored, list | tuple)
        assert bool(fate.why) != bool(fate.ours)
        assert not (fate.ours and fate.ignored)
        assert (type(fate.why), type(fate.ours)) == (str, str)


@pytest.mark.parametrize(
    "entry",
    [
        {"why": "b"},
        {"fields": "a", "why": "b", "ingored": "any"},
        {"fields": ["a"], "ours": "b"},
        {"like": "later"},
        "a",
    ],
)
def test_an_entry_that_is_none_is_not_read(entry: Any) -> None:
    wrong: list[Any] = [{"fields": "x", "why": "y"}, entry]
    with pytest.raises((TypeError, AttributeError, KeyError)):
        read({"first": [], "wrong": wrong, "later": []})


def test_what_entries_say() -> None:
    first: list[dict[str, Any]] = [{"fields": "a b", "why": "c"}, {"fields": "d", "ours": "e"}]
    then: list[dict[str, Any]] = [{"like": "first"}, {"fields": "b", "why": "f", "ignored": [1]}]
    then += [{"fields": "d", "why": "g", "ignored": "any"}]
    tables = read({"first": first, "then": then})
    assert tables["first"]["d"] == Fate(ours="e")
    assert tables["then"] == {"a": Fate("c"), "b": Fate("f", [1]), "d": Fate("g", "any")}


def rows(body: type[Body]) -> dict[str, Fate]:
    """Those that the body has no field of its own for."""
    own = {field.alias or name for name, field in body.model_fields.items()}
    return {name: fate for name, fate in body.fates.items() if name not in own}


async def _post(client: httpx.AsyncClient, path: str, field: dict[str, Any]) -> httpx.Response:
    body = PATHS[path][1] | {"seed": 1} | field
    answer = await client.post(path, json=body)
    assert answer.status_code in (200, 400), answer.text
    return answer


def _asked(server: ScriptedServer) -> GenerateRequest:
    """What the model server was asked last, but for its id."""
    return server.requests[-1].model_copy(update={"id": "any"})


@pytest.mark.parametrize("path", PATHS)
async def test_every_row_over_http(server: ScriptedServer, path: str) -> None:
    async with gateway(server, max_wait_time=0.001) as client:
        await _post(client, path, {})
        plain = _asked(server)
        for name, fate in rows(PATHS[path][0]).items():
            if fate.ours:
                await _post(client, path, {fate.ours: ALIASES[fate.ours]})
                wanted = _asked(server)
                assert wanted != plain
                accepted = await _post(client, path, {name: ALIASES[fate.ours]})
                assert (accepted.status_code, _asked(server)) == (200, wanted), name
                both = {name: ALIASES[fate.ours], fate.ours: ALIASES[fate.ours]}
                error = (await _post(client, path, both)).json()["error"]
                assert "give one of them" in error["message"]
                assert error["param"] == name
                continue
            for value in (NOBODYS,) if fate.ignored == "any" else fate.ignored:
                accepted = await _post(client, path, {name: value})
                assert (accepted.status_code, _asked(server)) == (200, plain), (name, value)
            if fate.ignored != "any":
                error = (await _post(client, path, {name: NOBODYS})).json()["error"]
                assert (error["param"], error["code"]) == (name, "unsupported_parameter")
                assert fate.why in error["message"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_field_in_no_table_is_unknown(server: ScriptedServer, path: str) -> None:
    async with gateway(server) as client:
        error = (await _post(client, path, {"temprature": 1})).json()["error"]
    assert (error["param"], error["code"]) == ("temprature", "unknown_parameter")
