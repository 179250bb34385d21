"""The page at /: who gets it, and what its files may hold."""

import re

import pytest

from api.routes.ops import FOLDER, wants_page
from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway

pytestmark = pytest.mark.anyio

MAX_SCRIPT_LINES = 1_171
MAX_FILE_LINES = 300
CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
SCRIPTS = sorted(FOLDER.glob("*.js"))
TEXTS = [*SCRIPTS, *FOLDER.glob("*.css"), FOLDER / "index.html", FOLDER / "icon.svg"]


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        (CHROME, True),
        ("text/html", True),
        ("TEXT/HTML; charset=utf-8", True),
        ("text/html;q=0.9, application/json;q=0.5", True),
        ("text/html;q=0", False),
        ("text/html;q=0.5, application/json", False),
        ("text/html, application/json", False),
        ("text/html;q=much", False),
        ("application/json", False),
        ("*/*", False),
        ("text/*", False),
        ("", False),
    ],
)
async def test_who_names_html_above_json_gets_the_page(
    accept: str, page: bool, server: ScriptedServer
) -> None:
    assert wants_page(accept) == page
    async with gateway(server) as client:
        answer = await client.get("/", headers={"accept": accept})
    assert answer.status_code == 200
    assert answer.headers["vary"] == "accept"
    kind = "text/html; charset=utf-8" if page else "application/json"
    assert answer.headers["content-type"] == kind


async def test_json_says_what_the_page_needs(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        await client.get("/v1/models")
        ready = (await client.get("/")).json()
    async with gateway(ScriptedServer(), model_server_urls="http://nowhere.invalid") as client:
        down = (await client.get("/")).json()
    assert (ready["ready"], ready["reason"], ready["chat"], ready["slots"]) == (True, None, True, 8)
    assert (ready["model"], ready["name"]) == ("scripted", "scripted")
    assert (down["ready"], down["chat"], down["slots"]) == (False, None, None)
    assert "http://nowhere.invalid" in down["reason"]


async def test_the_page_may_load_from_its_own_server_only(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        page = await client.get("/", headers={"accept": CHROME})
        script = await client.get("/static/app.js")
    for answer in (page, script):
        policy = answer.headers["content-security-policy"].split("; ")
        assert policy[0] == "default-src 'self'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert script.headers["content-type"].startswith(("text/javascript", "application/javascript"))


async def test_files_that_have_not_changed_are_not_sent_again(server: ScriptedServer) -> None:
    async with gateway(server) as client:
        for path in ("/", "/static/style.css"):
            first = await client.get(path, headers={"accept": CHROME})
            tag = {"accept": CHROME, "if-none-match": first.headers["etag"]}
            again = await client.get(path, headers=tag)
            assert first.headers["cache-control"] == "no-cache"
            assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["", "nothing.js", "../app.py", "%2e%2e/app.py", "..%2fapp.py"])
async def test_nothing_else_is_served(path: str, server: ScriptedServer) -> None:
    async with gateway(server) as client:
        answer = await client.get(f"/static/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


async def test_every_file_that_is_named_is_there(server: ScriptedServer) -> None:
    named = set(re.findall(r'(?:src|href)="(static/[^"]+)"', (FOLDER / "index.html").read_text()))
    for script in SCRIPTS:
        named |= {f"static/{name}" for name in re.findall(r'from "\./(.+)"', script.read_text())}
    assert {f"static/{script.name}" for script in SCRIPTS} <= named
    async with gateway(server) as client:
        for path in named:
            assert (await client.get(f"/{path}")).status_code == 200, path


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_no_file_asks_for_anything_elsewhere(path: str) -> None:
    text = (FOLDER / path).read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text)


def test_markup_is_made_of_nodes_and_nothing_is_inline() -> None:
    for script in SCRIPTS:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(",
            script.read_text(),
        ), script.name
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)|javascript:", page)


def test_the_scripts_stay_small() -> None:
    lines = [len(path.read_text().splitlines()) for path in SCRIPTS]
    assert max(lines) < MAX_FILE_LINES
    assert sum(lines) < MAX_SCRIPT_LINES
