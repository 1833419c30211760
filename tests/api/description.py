"""`python -m tests.api.description`: renew the copy of the API's OpenAPI document."""

from __future__ import annotations

import json

from deploy.dev.processes import ROOT
from tests.api.harness import make_api

COPY = ROOT / "deploy" / "openapi.json"


def describe() -> str:
    """Return the document as the copy has it: sorted, so that a change is read as one."""
    return json.dumps(make_api().call("GET", "/v1/openapi.json").get_json(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    COPY.write_text(describe())
