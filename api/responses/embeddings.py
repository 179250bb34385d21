"""Answers of /v1/embeddings."""

from __future__ import annotations

from array import array
from base64 import b64decode
from typing import Literal

from typing_extensions import TypedDict

from api.request import Choice, ClientRequest
from api.requests.completion import EmbeddingsBody
from api.responses.format import Format, Json
from api.responses.openai import Usage, usage
from model_server.contract.protocol import Info


class Embedding(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(TypedDict):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class EmbeddingsFormat(Format):
    def __init__(self, request: ClientRequest, info: Info, body: EmbeddingsBody) -> None:
        super().__init__(request, info)
        self._as_text = body.encoding_format == "base64"

    def whole(self) -> Json:
        choices = self.request.choices
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": each.index, "embedding": self._vector(each)}
                for each in choices
            ],
            "model": self.info.model_name,
            "usage": usage(choices),
        }

    def _vector(self, choice: Choice) -> list[float] | str:
        encoded = choice.end.embedding
        assert encoded is not None, "it was asked for. This is a bug."
        return encoded if self._as_text else array("f", b64decode(encoded)).tolist()
