from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.benchmarks import chats, peers, speculation, traffic
from tests.benchmarks.__main__ import options

PROMPTS = str(traffic.PROMPTS)


@pytest.mark.parametrize(
    ("parse", "wrong", "said"),
    [
        (peers.options, "--streams 0", "--streams: 0 is no whole number above 0"),
        (peers.options, "--type Q9_9", "--type: Q9_9 is none of F32, F16"),
        (peers.options, "--heads nobodys.json", "--heads: nobodys.json is neither"),
        (speculation.options, "--rounds -1", "--rounds: -1 is no whole number above 0"),
        (speculation.options, "--sides auto", "must begin with off"),
        (speculation.options, "--sides off atuo", "--sides has atuo"),
        (chats.options, f"{PROMPTS} --sides off ollama", "--sides has ollama"),
        (chats.options, f"{PROMPTS} --sides off auto auto", "names one twice"),
        (chats.options, "nothing.txt", "No such file"),
        (traffic.options, "--rate -1", "--rate: -1 is no number above 0"),
        (traffic.options, "--rate inf", "--rate: inf is no number above 0"),
        (traffic.options, "--clients 0", "--clients: 0 is no whole number above 0"),
        (traffic.options, "--rate 1 --url localhost:8000", "--url: localhost:8000 is no address"),
        (traffic.options, "--rate 1 --prompts nothing.txt", "No such file"),
        (options, "--prompts nothing.txt", "No such file"),
        (options, "--compare nothing.json", "nothing.json is no figures.json"),
    ],
)
def test_what_nobody_can_measure_is_a_usage_error(
    parse: Callable[[Sequence[str]], object],
    wrong: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(wrong.split())
    assert said in capsys.readouterr().err


def test_an_address_may_end_as_openais_clients_are_told() -> None:
    args = traffic.options(["--rate", "1", "--url", "http://127.0.0.1:8000/v1/"])
    assert args.url == "http://127.0.0.1:8000"
