import pytest

from api.errors import TooManyInFlight
from api.limits import Permits


def test_permits_are_counted_and_come_back() -> None:
    permits = Permits(3)
    permits.take(2)
    permits.take(1)
    with pytest.raises(TooManyInFlight, match=r"3 answers .* limit is 3"):
        permits.take(1)
    permits.give_back(2)
    permits.take(2)


def test_a_refusal_takes_nothing() -> None:
    permits = Permits(3)
    permits.take(2)
    with pytest.raises(TooManyInFlight):
        permits.take(2)
    assert permits.in_flight == 2


def test_a_request_larger_than_the_limit_passes_alone() -> None:
    permits = Permits(2)
    permits.take(5)
    with pytest.raises(TooManyInFlight):
        permits.take(1)
    permits.give_back(5)
    assert permits.in_flight == 0
