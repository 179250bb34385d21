"""The source of a chat template to what renders it, as `transformers` does."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model_server.errors import SettingError

# In front of what a template itself writes.
LABEL = "\uf8ff"


class GenerationTag(Extension):
    """Hugging Face's `{% generation %}`, which tells trainers what the assistant says."""

    tags = {"generation"}  # noqa: RUF012, as Jinja has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def compiled(source: str, labelled: re.Pattern[str] | None = None) -> jinja2.Template:
    """A template, sandboxed; with LABEL in front of what is `labelled` where it writes that.

    Raises SettingError.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        tree = environment.parse(source)
        if labelled is not None:
            _label(tree, labelled)
        return environment.from_string(tree)
    except jinja2.TemplateSyntaxError as error:
        problem = f"line {error.lineno}: {error.message}; name a Jinja file to use instead"
        raise SettingError("CHAT_TEMPLATE", problem) from None
    except Exception as error:  # nested too deeply for Jinja or for Python, and what else there is
        problem = f"can't be compiled: {error!r}; name a Jinja file to use instead"
        raise SettingError("CHAT_TEMPLATE", problem) from None


def _label(tree: nodes.Template, pattern: re.Pattern[str]) -> None:
    """In what is written, not in what is compared or split at."""
    waiting = [part for output in tree.find_all(nodes.Output) for part in output.nodes]
    while waiting:
        part = waiting.pop()
        if isinstance(part, nodes.TemplateData):
            part.data = pattern.sub(lambda found: LABEL + found.group(), part.data)
        elif isinstance(part, nodes.Const) and isinstance(part.value, str):
            part.value = pattern.sub(lambda found: LABEL + found.group(), part.value)
        elif isinstance(part, nodes.Add):
            waiting += [part.left, part.right]
        elif isinstance(part, nodes.Concat):
            waiting += part.nodes
        elif isinstance(part, nodes.CondExpr):
            waiting += [each for each in (part.expr1, part.expr2) if each is not None]
        elif isinstance(part, nodes.Filter) and part.node is not None:
            waiting.append(part.node)


def _to_json(value: Any, *, ensure_ascii: bool = False, **options: Any) -> str:
    """Not Jinja's own, which is made for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError(message)
