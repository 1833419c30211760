"""A broker in which each page of the console has something to show, with texts that an outsider chose."""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

from flask import url_for

from broker_common.core.jobs import JobState
from broker_common.core.overview import Breaker
from broker_common.core.principals import Actor
from broker_common.core.sandbox import Status
from broker_common.core.webhook import DeliveryState
from tests.api.harness import body_of, make_api, named_token
from tests.contract.webhooks import make_delivery, make_endpoint
from tests.fakes import START, make_reservation, make_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flask import Flask

    from tests.api.harness import Api

NO_PAGES = {
    *("static", "files.dark", "bootstrap.static", "prometheus_metrics", "health.healthz", "health.readyz"),
    # They lead to an issuer, and back.
    *("signin.begin", "signin.arrive"),
}
TOKENS = {name: f"token-of-{name}" for name in ("vera", "olga", "adam")}
"""Of a viewer, an operator and an admin."""
CUSTOMER_TOKEN = "token-of-the-customer's-tracks"
TEXTS = (
    *("sandbox name", "track", "lab", "customer", "key", "prefix", "reason", "error of a wipe", "error of a job"),
    *(
        "class",
        "note",
        "lab of a class",
        "names of a class",
        "webhook",
        "answer",
        "reason of the breaker",
        "reason to disable",
    ),
)
"""What people, tracks, the provider and other systems write, and pages show."""


def plain(what: str) -> str:
    """Return a harmless text."""
    return what.replace(" ", "-")


def planted(what: str) -> str:
    """Return a text that opens a dialog if a page writes it as markup. Names have at most 128 characters."""
    return f"<img src=x onerror=alert('{what}')>"


def make_filled_api(folder: Path, text: Callable[[str], str] = plain) -> Api:
    """Return an API with one of everything, with the people of `TOKENS`. `text` makes each of `TEXTS`."""
    tokens = folder / "tokens.toml"
    tokens.write_text(
        named_token("vera", TOKENS["vera"], "viewer", more=f'customer = "{text("customer")}"')
        + named_token("olga", TOKENS["olga"], "operator")
        + named_token("adam", TOKENS["adam"], "admin")
        + named_token("tracks", CUSTOMER_TOKEN, "track", more=f'customer = "{text("customer")}"')
    )
    tokens.chmod(0o600)
    api = make_api(BROKER_TOKENS_FILE=str(tokens))
    name = text("sandbox name")
    api.store.seed(
        make_sandbox("held", name=f"held {name}"),
        make_sandbox("given-back", name=f"given back {name}"),
        make_sandbox("free", name=f"free {name}"),
        make_sandbox(
            "failed", status=Status.DELETION_FAILED, dirty=True, name=name, deletion_last_error=text("error of a wipe")
        ),
    )
    _allocate(api, text)
    _book(api, text)
    _run_jobs(api, text)
    _register(api, text)
    return api


def _allocate(api: Api, text: Callable[[str], str]) -> None:
    def ask(track_id: str, prefix: str, status: int) -> Any:
        headers = {
            "Authorization": f"Bearer {CUSTOMER_TOKEN}",
            "X-Track-ID": track_id,
            "X-Instruqt-Track-ID": text("lab"),
            "Idempotency-Key": text("key"),
            "X-Sandbox-Name-Prefix": prefix,
            "Prefer": "wait=0",
        }
        return body_of(api.call("POST", "/v1/allocate", headers=headers), status)

    ask(text("track"), "held", 201)
    ask("another-track", "given back", 201)
    headers = {"Authorization": f"Bearer {CUSTOMER_TOKEN}", "X-Track-ID": "another-track"}
    body_of(api.call("POST", "/v1/sandboxes/given-back/mark-for-deletion", headers=headers), 200)
    ask(f"2 {text('track')}", text("prefix"), 202)
    body_of(api.admin("POST", "/v1/admin/sandboxes/free/quarantine", json={"reason": text("reason")}), 200)
    api.clock.advance(60)


def _book(api: Api, text: Callable[[str], str]) -> None:
    api.store.reservations["res-1"] = make_reservation(
        name=text("class"),
        count=1,
        prefix=text("names of a class"),
        track_names=(text("lab of a class"),),
        customer=text("customer"),
        note=text("note"),
    )


def _run_jobs(api: Api, text: Callable[[str], str]) -> None:
    api.queue.enqueue("sync", by=Actor(principal="olga", request_id="req-7"), flags={})
    api.queue.states, api.queue.error = deque([JobState.FAILED]), text("error of a job")
    api.breaker.now = Breaker(
        state="open", failures=5, reason=text("reason of the breaker"), open_until=api.clock.now() + 60
    )


def _register(api: Api, text: Callable[[str], str]) -> None:
    api.store.write_endpoint(None, make_endpoint(description=text("webhook")))
    api.store.write_endpoint(None, make_endpoint("off", disabled_at=START, disabled_reason=text("reason to disable")))
    tried = make_delivery(
        "held",
        2,
        fact_at=START,
        created_at=START,
        next_try_at=None,
        payload=json.dumps({"type": "sandbox.updated", "data": {"track_id": text("track")}}),
        state=DeliveryState.EXHAUSTED,
        tries=10,
        last_try_at=START,
        last_status=404,
        last_answer=text("answer"),
    )
    assert api.store.add_delivery(tried)


def values_of(api: Api) -> dict[str, Any]:
    """Return a value for each name that the console's routes have: the ids of what is there."""
    (delivery,) = (each for each in api.store.deliveries.values() if each.sandbox_id == "held")
    (place,) = body_of(api.admin("GET", "/v1/admin/waiting"), 200)["places"]
    return {
        "sandbox_id": "held",
        "act": "quarantine",
        "reservation_id": "res-1",
        "place_id": place["place_id"],
        "job_id": "job-1",
        "job": "sync",
        "operation": "cleanup",
        "which": "stale",
        "endpoint_id": "hook",
        "delivery_id": delivery.delivery_id,
        "filename": "console.css",
    }


def addresses_of(app: Flask, values: dict[str, Any], method: str = "GET") -> Iterator[tuple[str, str]]:
    """Yield the endpoint and an address of every route that takes this method."""
    for rule in app.url_map.iter_rules():
        if method in (rule.methods or ()):
            with app.test_request_context():
                yield (
                    rule.endpoint,
                    url_for(rule.endpoint, **{name: values[name] for name in rule.arguments & values.keys()}),
                )
