"""What the description says about each kind of delivery."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from standardwebhooks import Webhook

from broker_api.schemas.events import FactSchema
from broker_api.webhook_description import KINDS
from broker_common.core.facts import Fact, FactKind, PoolFact, PoolFactKind
from broker_common.core.principals import Actor
from broker_common.core.sandbox import Status
from broker_common.core.webhook import TEST_KIND, Endpoint
from broker_common.core.webhook_payload import delivery_of
from broker_common.core.webhook_payload import test_of as try_of
from deploy.dev.processes import ROOT
from tests.api.description import faults_of, look_up, read_document
from tests.fakes import START

ALL = [*FactKind, *PoolFactKind]
ENDPOINT = Endpoint(
    endpoint_id="one", url="https://hooks.example.com/", kinds=("*",), secrets=(), created_at=START, created_by="anna"
)
GUIDE = (ROOT / "docs" / "webhooks.md").read_text()


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return read_document()


def fact_of(kind: FactKind | PoolFactKind) -> Fact | PoolFact:
    details = dict(KINDS[kind].details)
    if isinstance(kind, PoolFactKind):
        return PoolFact(kind=kind, fact_id="fact-1", at=START, principal="anna", details=details)
    return Fact(
        kind=kind,
        sandbox_id="2009521",
        version=START * 1000,
        at=START,
        principal="track",
        track_id="track-1",
        status=Status.ALLOCATED,
        details=details,
    )


def body_of(document: dict[str, Any], kind: str) -> dict[str, Any]:
    (content,) = document["webhooks"][kind]["post"]["requestBody"]["content"].values()
    found: dict[str, Any] = content
    return found


def test_the_description_has_every_kind_and_the_test_and_no_other(document: dict[str, Any]) -> None:
    assert set(document["webhooks"]) == {*ALL, TEST_KIND}


def test_every_kind_has_a_text(document: dict[str, Any]) -> None:
    for kind in ALL:
        operation = document["webhooks"][kind]["post"]
        assert operation["description"].startswith(KINDS[kind].meaning)
        assert operation["summary"].endswith(".")
        assert "`" not in operation["summary"]


@pytest.mark.parametrize("kind", [*ALL, TEST_KIND], ids=str)
def test_the_example_of_a_kind_is_as_its_schema_says(document: dict[str, Any], kind: str) -> None:
    body = body_of(document, kind)
    assert body["example"]["type"] == kind
    assert faults_of(document, body["schema"], body["example"]) == []
    assert faults_of(document, body["schema"], body["example"] | {"type": "other"}) != []


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_what_is_sent_is_as_the_schema_says_and_has_the_fields_of_the_example(
    document: dict[str, Any], kind: FactKind | PoolFactKind
) -> None:
    sent = json.loads(delivery_of(fact_of(kind), ENDPOINT, now=START).payload)
    body = body_of(document, kind)
    assert faults_of(document, body["schema"], sent) == []
    assert sent.keys() == body["example"].keys()
    assert sent["data"].keys() == body["example"]["data"].keys()
    assert sent["timestamp"] == "2025-06-15T15:06:40Z"


@pytest.mark.parametrize("kind", [FactKind.ALLOCATED, PoolFactKind.PAUSED])
def test_the_data_of_a_delivery_is_the_fact_as_the_feed_shows_it(kind: FactKind | PoolFactKind) -> None:
    fact = fact_of(kind)
    assert json.loads(delivery_of(fact, ENDPOINT, now=START).payload)["data"] == FactSchema().dump(fact)


def test_the_body_of_a_test_is_as_the_schema_says(document: dict[str, Any]) -> None:
    sent = json.loads(try_of(ENDPOINT, "test-1", by=Actor(principal="anna"), now=START).payload)
    assert faults_of(document, body_of(document, TEST_KIND)["schema"], sent) == []


def test_every_kind_is_described_with_the_headers_of_the_signature(document: dict[str, Any]) -> None:
    for item in document["webhooks"].values():
        headers = [look_up(document, each) for each in item["post"]["parameters"]]
        assert [each["name"] for each in headers] == ["webhook-id", "webhook-timestamp", "webhook-signature"]
        assert all(each["in"] == "header" and each["required"] for each in headers)


def test_every_operation_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    names = [item["post"]["operationId"] for item in document["webhooks"].values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_the_guide_for_receivers_has_every_kind_and_its_details(kind: FactKind | PoolFactKind) -> None:
    details = ", ".join(f"`{name}`" for name in sorted(KINDS[kind].details))
    assert f"| `{kind}` | {KINDS[kind].meaning} | {details} |" in GUIDE


def test_the_receiver_of_the_guide_takes_what_is_signed_once_and_refuses_the_rest() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    stored: list[tuple[str, Any]] = []
    names: dict[str, Any] = {"store": lambda kind, data: stored.append((kind, data))}
    exec(code, names)  # noqa: S102 - the guide's own code
    secret = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"
    delivery = delivery_of(fact_of(FactKind.ALLOCATED), ENDPOINT, now=START)
    now = datetime.now(UTC)
    headers = {
        "webhook-id": delivery.delivery_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(delivery.delivery_id, now, delivery.payload),
    }
    assert [names["receive"](secret, headers, delivery.payload) for _ in range(2)] == [204, 204]
    assert stored == [(FactKind.ALLOCATED, json.loads(delivery.payload)["data"])]
    assert names["receive"](secret, headers, delivery.payload.replace("track-1", "track-2")) == 400
    assert names["receive"](secret, headers | {"webhook-timestamp": str(START)}, delivery.payload) == 400
