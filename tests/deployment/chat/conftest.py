import pytest

from tests.api.scripted_server import ScriptedServer


@pytest.fixture
def server() -> ScriptedServer:
    """A model server that counts to max_tokens."""
    return ScriptedServer()
