"""What OpenAPI says of endpoints beside the fields of their bodies."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from model_server.contract.protocol import SpeculationStats

# What it is; schemas; responses by path; refusals of whatever takes a body, by status; which paths
# stream; and an event of a stream: OpenAPI 3.1 has no word for it, and tools read it like this.
ANSWERS: dict[str, Any] = json.loads(Path(__file__).with_name("answers.json").read_text("utf-8"))
# Bodies by path: short ones, that suit a small model.
EXAMPLES: dict[str, Any] = json.loads(Path(__file__).with_name("examples.json").read_text("utf-8"))


class DocumentedApp(FastAPI):
    """FastAPI knows what bodies it takes; what it answers is said here."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        schemas = document["components"]["schemas"] | ANSWERS["schemas"]
        schemas["SpeculationStats"] = SpeculationStats.model_json_schema()
        document["components"]["schemas"] = dict(sorted(schemas.items()))
        for path, operations in document["paths"].items():
            for operation in operations.values():
                responses = operation["responses"]
                responses.pop("4XX", None)
                responses |= deepcopy(ANSWERS["responses"].get(path, {}))
                if "requestBody" in operation:
                    responses |= ANSWERS["refusals"]
                    asked = operation["requestBody"]["content"]["application/json"]
                    asked["examples"] = EXAMPLES[path]
                if path in ANSWERS["streams"]:
                    responses["200"]["content"]["text/event-stream"] = {"schema": ANSWERS["event"]}
        return document
