"""Markdown as nodes: what it becomes, where each piece stands in the source, what stays text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from api.admission.keys import new_key
from api.markdown import MAX_CHARS, MAX_HIGHLIGHTED_CHARS, _tokens, nodes
from tests.api.scripted_server import ScriptedServer
from tests.api.serving import gateway

ANSWER = """# A *title*

Text with **bold**, `code` and 🦙 [a link](https://example.org).

1. one

   ```python
   def f(): return "x"
   ```

2. two

| a | b |
|---|---|
| 1 | 2 |
"""


def walk(made: Any) -> Iterator[Any]:
    for node in made:
        yield node
        yield from walk(node.get("children", []))


def tags(markdown: str) -> list[str]:
    return [node["tag"] for node in walk(nodes(markdown)) if "tag" in node]


def text(markdown: str) -> str:
    return "".join(node.get("text", "") for node in walk(nodes(markdown)))


def test_an_answer_becomes_elements() -> None:
    made = tags(ANSWER)
    for tag in ("h1", "em", "p", "strong", "code", "a", "ol", "li", "pre", "table", "th", "td"):
        assert tag in made
    assert "bold" in text(ANSWER)
    assert "**" not in text(ANSWER)


def test_every_piece_knows_its_place() -> None:
    units = ANSWER.encode("utf-16-le")
    leaves = [node for node in walk(nodes(ANSWER)) if node.get("text", "").strip()]
    assert len(leaves) > 15
    for leaf in leaves:
        begin, end = 2 * leaf["at"], 2 * leaf["at"] + len(leaf["text"].encode("utf-16-le"))
        assert units[begin:end].decode("utf-16-le") == leaf["text"]
    places = [leaf["at"] for leaf in leaves]
    assert places == sorted(places)


def test_code_is_highlighted_by_the_language_it_names() -> None:
    kinds = {node["text"]: node.get("kind") for node in walk(nodes(ANSWER)) if "text" in node}
    assert (kinds["def"], kinds["f"], kinds['"x"']) == ("keyword", "name", "string")
    code = [node for node in walk(nodes("```nonsense\nif\n```")) if "text" in node]
    assert code == [{"text": "if", "at": 12}]


@pytest.mark.parametrize(
    "markup",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "a <b onclick='x'>b</b>",
        "[a](javascript:alert(1))",
        "[a](data:text/html,x)",
        "[a](vbscript:x)",
    ],
)
def test_markup_stays_text(markup: str) -> None:
    assert tags(markup) == ["p"]
    assert text(markup) == markup


def test_a_picture_is_a_link() -> None:
    made = nodes("![a cat](https://example.org/cat.png)")[0]
    assert made == {
        "tag": "p",
        "children": [
            {
                "tag": "a",
                "href": "https://example.org/cat.png",
                "children": [{"text": "a cat", "at": 2}],
            }
        ],
    }


@pytest.mark.parametrize(
    "half", ["**bo", "```py\nx =", "| a |", "[x](", "- ", "", "> " * 50, "\r\n"]
)
def test_half_an_answer_is_no_problem(half: str) -> None:
    assert isinstance(nodes(half), list)


@pytest.mark.parametrize(
    "language", ["console", "pycon", "bash", "sql", "html", "ini", "diff", "yaml", "python"]
)
@pytest.mark.parametrize(
    "code", ["$ ls", "$ ls\nfoo", ">>> 1\n1", "a\n\n", "", "  x\r\n y", "\ufeffa"]
)
def test_no_code_is_lost_by_highlighting(language: str, code: str) -> None:
    """Lexers of consoles see no last line that has no end."""
    assert text(f"```{language}\n{code}\n```") == code.replace("\r\n", "\n")


def nested(levels: int) -> str:
    items = "".join(f"{'  ' * each}- item {each}\n" for each in range(levels))
    return f"{items}\n- back\n\nafter\n\n{'> ' * 2 * levels}quoted\n\nlast"


@pytest.mark.parametrize("levels", range(7, 14))
def test_nothing_is_lost_however_deep_it_is_nested(levels: int) -> None:
    """The parser alone would drop all that stands behind its last level."""
    made, words = nodes(nested(levels)), [str(each) for each in range(levels)]
    assert [
        word for word in [*words, "back", "after", "quoted", "last"] if word not in str(made)
    ] == []
    for node, word in ((made[0], "back"), (made[1], "after"), (made[-1], "last")):
        assert word in str(node), "it stands where it stood"
    assert made[1]["tag"] == made[-1]["tag"] == "p"
    deepest = [node for node in walk(made[:1]) if node.get("tag") == "pre"]
    assert bool(deepest) == (levels > 9)


def test_nothing_is_lost_of_quotes_in_quotes() -> None:
    assert len(text(">" * MAX_CHARS)) > MAX_CHARS - 100


HOSTILE = (
    " ",
    "\n",
    '"',
    "'",
    "a",
    '"a"',
    '" \n',
    "(",
    "/*",
    "//",
    "<",
    "<!--",
    "{",
    "[",
    "\\",
    "`",
    "#",
    "$",
    "- ",
    "a:",
    "=",
    "x = ",
    "a(",
    "<a ",
    "{{",
    '"""',
    "@",
    "%",
    "&",
    "-",
    "<<",
    "1",
    "a b(",
    "a::",
    "r#",
    "<?",
)


@pytest.mark.parametrize(
    "language",
    [
        "bash",
        "bat",
        "c",
        "c#",
        "c++",
        "css",
        "dart",
        "diff",
        "docker",
        "elixir",
        "go",
        "graphql",
        "haskell",
        "html",
        "ini",
        "json",
        "java",
        "js",
        "julia",
        "kotlin",
        "lua",
        "make",
        "nginx",
        "php",
        "perl",
        "powershell",
        "python",
        "pycon",
        "r",
        "ruby",
        "rust",
        "sql",
        "scala",
        "swift",
        "toml",
        "ts",
        "xml",
        "yaml",
        "console",
    ],
)
def test_what_is_highlighted_takes_no_longer_than_it_may(language: str) -> None:
    """Seconds of a processor, for any text: others wait for this one."""
    assert _tokens("warm up", language), "it is not among them"
    for piece in HOSTILE:
        code = (piece * MAX_HIGHLIGHTED_CHARS)[:MAX_HIGHLIGHTED_CHARS]
        started = time.thread_time()
        _tokens(code, language)
        assert time.thread_time() - started < 2.0, piece


@pytest.mark.parametrize("language", ["systemd", "lilypond", "nonsense"])
def test_languages_whose_lexers_may_take_minutes_stay_plain(language: str) -> None:
    [code] = [node for node in walk(nodes(f"```{language}\n{' ' * 5_000}x\n```")) if "text" in node]
    assert "kind" not in code


def test_of_many_blocks_the_first_are_highlighted() -> None:
    block = f"```py\n{'if x: pass' * 100}\n```\n"
    kinds = ["kind" in str(node) for node in nodes(block * 5)]
    assert kinds == [True] * 3 + [False] * 2


@pytest.mark.anyio
async def test_the_page_asks_for_it(server: ScriptedServer) -> None:
    async with gateway(server, rate_limit_requests=1, max_in_flight=1) as client:
        for _ in range(3):  # neither of the limits counts it
            answer = await client.post("/page/markdown", json={"text": "*a*"})
            assert answer.json()["nodes"][0]["children"][0]["tag"] == "em"
        large = await client.post("/page/markdown", json={"text": "a" * (MAX_CHARS + 1)})
        document = (await client.get("/openapi.json")).json()
    assert large.status_code == 400
    assert "50000" in large.json()["error"]["message"]
    assert "/page/markdown" not in document["paths"]


@pytest.mark.anyio
async def test_it_needs_the_key_where_there_are_keys(server: ScriptedServer, tmp_path: Any) -> None:
    key, line = new_key("ann")
    (tmp_path / "keys").write_text(line)
    given = {"authorization": f"Bearer {key}"}
    async with gateway(server, api_keys_file=tmp_path / "keys") as client:
        for headers, status in (({}, 401), (given, 200)):
            answer = await client.post("/page/markdown", json={"text": "a"}, headers=headers)
            assert answer.status_code == status
