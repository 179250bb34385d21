"""Markdown of an answer as nodes, of which the page makes elements: markup in it stays text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate, groupby
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.tree import SyntaxTreeNode
from pygments import lex
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, Operator, String, Text, _TokenType
from pygments.util import ClassNotFound

MAX_CHARS = 50_000  # a twentieth of a second; at the worst, a second
MAX_HIGHLIGHTED_CHARS = 3_000  # of one text; time grows with the square in some lexers
MAX_LEVELS = 20  # a list is two, a quote is one
# Pygments' lexers whose time is known (others take minutes for what somebody may think of).
_LEXERS = re.compile(
    r"Bash( Session)?|Batchfile|C|C#|C\+\+|CSS|Dart|Diff|Docker|Elixir|Go|GraphQL|Haskell|HTML|INI"
    r"|JSON|Java|JavaScript|Julia|Kotlin|Lua|Makefile|Nginx configuration file|PHP|Perl|PowerShell"
    r"|Python( console session)?|Ruby|Rust|S|SQL|Scala|Swift|TOML|TypeScript|XML|YAML"
)


def _too_deep(state: StateBlock, line: int, end: int, silent: bool) -> bool:
    """As it stands, as code of no language; the parser itself would drop it, and all behind it."""
    if silent or state.level < MAX_LEVELS:
        return False
    filled = (each for each in range(line, end) if not state.isEmpty(each))
    state.line = next((each for each in filled if 0 <= state.sCount[each] < state.blkIndent), end)
    text = state.getLines(line, state.line, state.blkIndent, keepLastLF=False)
    state.push("code_block", "code", 0).content = text.rstrip()
    return True


_OPTIONS = {"html": False, "maxNesting": MAX_LEVELS + 2}
_MARKDOWN = MarkdownIt("commonmark", _OPTIONS).enable(["table", "strikethrough"])
_MARKDOWN.block.ruler.before("table", "too_deep", _too_deep)
_KINDS: dict[str, tuple[_TokenType, ...]] = {
    "comment": (Comment,),
    "keyword": (Keyword, Operator.Word, Name.Tag),
    "string": (String,),
    "number": (Number,),
    "name": (Name.Function, Name.Class, Name.Decorator, Name.Attribute),
}

# A leaf has its `text`; `at`, where that begins in the Markdown, in UTF-16 units as browsers count;
# and the `kind` of code that it is. An element has `tag` and `children`, and what its tag asks for.
Node = dict[str, Any]


def nodes(markdown: str) -> list[Node]:
    """CommonMark with tables and strikethrough, code highlighted."""
    return list(_NodeReader(markdown).children(SyntaxTreeNode(_MARKDOWN.parse(markdown))))


class _NodeReader:
    """Walks the tree and the source together: what was drafted is known by its place there."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lines = [0, *accumulate(len(line) + 1 for line in source.split("\n"))]
        self._units = [0, *accumulate(1 + (char > "\uffff") for char in source)]
        self._at, self._end = 0, len(source)
        self._to_highlight = MAX_HIGHLIGHTED_CHARS

    def children(self, node: SyntaxTreeNode) -> Iterator[Node]:
        for child in node.children:
            if child.map:
                first, last = (min(line, len(self._lines) - 1) for line in child.map)
                self._at, self._end = max(self._at, self._lines[first]), self._lines[last]
            yield from self._nodes(child)

    def _nodes(self, node: SyntaxTreeNode) -> Iterator[Node]:
        kind = node.type
        if kind in ("fence", "code_block"):
            yield self._code_block(node)
        elif kind == "text":
            yield self._leaf(node.content)
        elif kind == "code_inline":
            yield {"tag": "code", "children": [self._leaf(node.content)]}
        elif kind == "softbreak":
            yield {"text": "\n"}
        elif kind in ("link", "image"):
            yield self._link(node)
        elif node.tag and not node.hidden:
            yield self._element(node)
        else:
            yield from self.children(node)

    def _element(self, node: SyntaxTreeNode) -> Node:
        element: Node = {"tag": node.tag, "children": list(self.children(node))}
        if "start" in node.attrs:
            element["start"] = int(node.attrs["start"])
        return element

    def _link(self, node: SyntaxTreeNode) -> Node:
        """A picture is a link to it: the page loads nothing from elsewhere."""
        href = str(node.attrs.get("href") or node.attrs.get("src") or "")
        children = list(self.children(node)) or [self._leaf(node.content or href)]
        return {"tag": "a", "href": href, "children": children}

    def _code_block(self, node: SyntaxTreeNode) -> Node:
        language = next(iter(node.info.split()), "")
        if node.type == "fence" and node.map:
            self._at = self._lines[min(node.map[0] + 1, len(self._lines) - 1)]
        code = self._leaf(node.content.removesuffix("\n"))
        self._to_highlight -= len(code["text"])
        leaves = list(self._highlighted(code, language)) if self._to_highlight >= 0 else [code]
        return {"tag": "pre", "language": language, "children": leaves}

    def _highlighted(self, code: Node, language: str) -> Iterator[Node]:
        """The code as leaves, one for each run of the same kind."""
        has_place = "at" in code
        self._at -= len(code["text"]) if has_place else 0
        tokens = _tokens(code["text"], language) or [(Text, code["text"])]
        for kind, run in groupby(tokens, lambda token: _kind(token[0])):
            text = "".join(value for _, value in run)
            leaf: Node = {"text": text, "kind": kind} if kind else {"text": text}
            yield leaf | self._leaf(text) if has_place else leaf

    def _leaf(self, text: str) -> Node:
        """With its place, unless the source spells it otherwise."""
        at = self._source.find(text, self._at, self._end)
        if at < 0:
            return {"text": text}
        self._at = at + len(text)
        return {"text": text, "at": self._units[at]}


def _tokens(text: str, language: str) -> list[tuple[_TokenType, str]]:
    """Of a language in _LEXERS; none where they would not be all of the text, as it stands."""
    with suppress(ClassNotFound):
        lexer = get_lexer_by_name(language, stripnl=False)
        if _LEXERS.fullmatch(lexer.name):
            tokens = list(lex(f"{text}\n", lexer))  # lexers of consoles see no line without an end
            if "".join(value for _, value in tokens) == f"{text}\n":
                kind, last = tokens.pop()
                return [*tokens, (kind, last.removesuffix("\n"))]
    return []


def _kind(token: _TokenType) -> str:
    return next((name for name, kinds in _KINDS.items() if any(token in one for one in kinds)), "")
