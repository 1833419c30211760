"""The API's OpenAPI document, as tests read it. `python -m tests.api.description` writes its copy again."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped] # it ships no types

from deploy.dev.processes import ROOT
from tests.api.harness import body_of, make_api

COPY = ROOT / "deploy" / "openapi.json"
_VERBS = {"get", "post", "put", "patch", "delete"}


def read_document() -> dict[str, Any]:
    """Return the document as it is served."""
    return body_of(make_api().call("GET", "/v1/openapi.json"))


def describe() -> str:
    """Return the text of the copy. It is sorted, so that a diff shows only what changed."""
    return json.dumps(read_document(), indent=1, sort_keys=True) + "\n"


def look_up(document: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """Return `described`, or the part of the document that its `$ref` names."""
    place: Any = document
    for step in described.get("$ref", "#").split("/")[1:]:
        place = place[step]
    return place if "$ref" in described else described


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return every call by verb and path. Parameters of its path are added to its own, and references are resolved."""
    return {
        (verb, path): item[verb]
        | {
            "parameters": [
                look_up(document, each) for each in [*item.get("parameters", ()), *item[verb].get("parameters", ())]
            ],
            "responses": {status: look_up(document, each) for status, each in item[verb]["responses"].items()},
        }
        for path, item in document["paths"].items()
        for verb in item
        if verb in _VERBS
    }


def faults_of(document: dict[str, Any], schema: dict[str, Any], example: Any) -> list[str]:
    """Return why `example` does not fit `schema`; empty if it fits."""
    validator = Draft202012Validator(schema | {"components": document["components"]})
    return [error.message for error in validator.iter_errors(example)]


if __name__ == "__main__":
    COPY.write_text(describe())
