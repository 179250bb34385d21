import ast
from collections.abc import Iterator

import pytest

from api import errors
from api.errors import GatewayError, InvalidRequest, translate
from tests.structure.modules import modules


def tree(error: type[GatewayError]) -> list[type[GatewayError]]:
    return [error, *(each for below in error.__subclasses__() for each in tree(below))]


def codes() -> Iterator[str]:
    """The codes with which errors are made, anywhere in the gateway, but those of fields."""
    names = {each.__name__ for each in tree(GatewayError)} - {"InvalidRequest"}
    for module in (each for each in modules() if each.tier == "api"):
        for node in ast.walk(ast.parse(module.path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = ast.unparse(node.func)
                if called in names or (
                    called == "super().__init__" and module.name == "api.errors"
                ):
                    yield str(node.args[0].value)


def test_every_error_is_translated() -> None:
    assert set(codes()) == set(errors.STATUS)


def test_the_docstring_draws_the_whole_tree() -> None:
    assert errors.__doc__ is not None
    for error in tree(GatewayError):
        assert error.__name__ in errors.__doc__


def test_an_invalid_request_names_the_field() -> None:
    problem = translate(InvalidRequest("top_p is 7.", "top_p"))
    assert problem.status == 400
    assert problem.body["error"] == {
        "message": "top_p is 7.",
        "type": "invalid_request_error",
        "param": "top_p",
        "code": "invalid_value",
    }


@pytest.mark.parametrize("status", [400, 413, 429, 500])
def test_a_model_servers_refusal_keeps_its_status(status: int) -> None:
    problem = translate(GatewayError("context_length_exceeded", "Too long.", "prompt", status))
    assert (problem.status, problem.code) == (status, "context_length_exceeded")
    assert problem.param == "prompt"


def test_too_many_says_when_to_come_back() -> None:
    problem = translate(GatewayError("too_many_in_flight", "Too many.", retry_after_s=0.4))
    assert (problem.status, problem.headers) == (429, {"retry-after": "1"})
    assert problem.body["error"]["type"] == "rate_limit_error"


def test_an_unknown_error_is_a_bug_and_tells_nothing() -> None:
    problem = translate(KeyError("secret"))
    assert problem.status == 500
    assert "This is a bug" in str(problem)
    assert "secret" not in str(problem.body)
