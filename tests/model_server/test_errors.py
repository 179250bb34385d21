from __future__ import annotations

import re

from model_server import errors
from model_server.errors import ModelServerError, PromptTooLong, RequestError, SettingError


def descendants(root: type[Exception]) -> list[type[Exception]]:
    return [error for child in root.__subclasses__() for error in (child, *descendants(child))]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert sorted(drawn) == sorted(error.__name__ for error in descendants(ModelServerError))


def test_every_request_error_has_a_client_status_and_a_code_of_its_own() -> None:
    kinds = [error for error in descendants(RequestError) if issubclass(error, RequestError)]
    assert all(400 <= kind.status < 500 for kind in kinds)
    assert len({kind.code for kind in kinds}) == len(kinds)


def test_a_prompt_too_long_names_the_field_that_can_change_it() -> None:
    error = PromptTooLong(100, "messages has 130", "messages")
    assert error.param == "messages"
    assert error.message == "This model's maximum context length is 100 tokens: messages has 130"


def test_a_setting_error_begins_with_the_setting() -> None:
    assert str(SettingError("N_PARALLEL", "is odd")) == "N_PARALLEL: is odd"
