import pytest

from api.admission.rates import Admission
from api.metrics import GatewayMetrics
from api.request import ClientRequest
from api.requests.completion import GenerateBody
from api.responses.generate import GenerateFormat
from model_server.contract.protocol import GenerateRequest
from tests.api.scripted_server import INFO, token


def test_flags_that_do_not_match_their_tokens_are_a_bug() -> None:
    request = GenerateRequest(id="a", prompt="a")
    opened = ClientRequest("a", [request], Admission(""), GatewayMetrics())
    event = token(request, 0).model_copy(update={"from_draft": [True, False]})
    form = GenerateFormat(opened, INFO, GenerateBody(prompt="a"))
    with pytest.raises(AssertionError, match="one flag"):
        list(form.chunks(opened.choices[0], event))
