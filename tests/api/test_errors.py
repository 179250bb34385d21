import pytest

from api import errors
from api.errors import GatewayError, InvalidRequest, Refused, TooManyInFlight, translate


def leaves(error: type[GatewayError]) -> set[type[GatewayError]]:
    below = [leaves(each) for each in error.__subclasses__()]
    return set().union(*below) if below else {error}


def test_every_error_is_translated() -> None:
    assert leaves(GatewayError) == set(errors.STATUS)


def test_the_docstring_draws_the_whole_tree() -> None:
    assert errors.__doc__ is not None
    for error in errors.STATUS:
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
    problem = translate(Refused(status, "context_length_exceeded", "Too long.", "prompt"))
    assert (problem.status, problem.code) == (status, "context_length_exceeded")
    assert problem.param == "prompt"


def test_too_many_says_when_to_come_back() -> None:
    problem = translate(TooManyInFlight(4, 4))
    assert (problem.status, problem.headers) == (429, {"retry-after": "1"})
    assert problem.type == "rate_limit_error"


def test_an_unknown_error_is_a_bug_and_tells_nothing() -> None:
    problem = translate(KeyError("secret"))
    assert problem.status == 500
    assert "This is a bug" in problem.message
    assert "secret" not in problem.message
