"""A prompt as files have it, one a line: plain text, or JSON with `prompt` or `messages`."""

from __future__ import annotations

import json

from pydantic import ValidationError

from model_server.contract.protocol import GenerateRequest, Message
from model_server.engine.prompt import PromptEncoder
from model_server.errors import PromptsError, RequestError


def encode(line: str, encoder: PromptEncoder, place: str) -> list[int]:
    """Its tokens. Raises PromptsError, which names the `place`.

    Plain text is what a user says where the model has a chat template, else where an answer begins.
    Blanks around it are none of it.
    """
    try:
        return encoder.encode(_request(line.strip(), can_chat=encoder.can_chat))
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise PromptsError(place, f"{where}{first['msg']}") from None
    except (ValueError, RecursionError, RequestError) as error:
        raise PromptsError(place, str(error)) from None


def _request(line: str, *, can_chat: bool) -> GenerateRequest:
    if line.startswith("{"):
        fields = json.loads(line)
        wanted = {name: fields[name] for name in ("prompt", "messages") if name in fields}
        return GenerateRequest(id="prompt", **wanted)
    if can_chat:
        return GenerateRequest(id="prompt", messages=[Message(role="user", content=line)])
    return GenerateRequest(id="prompt", prompt=line)
