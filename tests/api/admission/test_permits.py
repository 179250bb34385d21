import pytest

from api.admission.permits import Permits
from api.errors import GatewayError


def refuses(error: GatewayError) -> bool:
    return error.code == "too_many_in_flight"


def test_permits_are_counted_and_come_back() -> None:
    permits = Permits(3)
    with permits.taken(1):
        with (
            permits.taken(2),
            pytest.raises(GatewayError, check=refuses, match=r"3 answers .* limit is 3"),
            permits.taken(1),
        ):
            pass
        with permits.taken(2):
            assert permits.in_flight == 3


def test_a_refusal_takes_nothing() -> None:
    permits = Permits(3)
    with permits.taken(2):
        with pytest.raises(GatewayError, check=refuses), permits.taken(2):
            pass
        assert permits.in_flight == 2


def test_a_request_larger_than_the_limit_passes_alone() -> None:
    permits = Permits(2)
    with permits.taken(5), pytest.raises(GatewayError, check=refuses), permits.taken(1):
        pass
    assert permits.in_flight == 0


def test_what_fails_inside_gives_back() -> None:
    permits = Permits(1)
    with pytest.raises(ZeroDivisionError), permits.taken(1):
        raise ZeroDivisionError
    assert permits.in_flight == 0
