"""The check of promise 10 finds each way to break it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.long.webhooks.run import KINDS, Story, describe, find_faults, name_of, repeated
from tests.webhook_receiver import Received, Receiver

Fact = dict[str, Any]
NAMES = ("healthy", "fails half of the time")


def fact(sandbox_id: str, version: int, kind: str = "sandbox.allocated", at: int = 100) -> Fact:
    return {"sandbox_id": sandbox_id, "version": version, "kind": kind, "at": at, "fact_id": None}


FACTS = [fact("1", 5), fact("1", 6, "sandbox.marked"), fact("2", 3), fact("2", 4, "sandbox.wiped")]


def came(told: Fact, status: int = 200) -> Received:
    body = json.dumps({"type": told["kind"], "data": told}).encode()
    return Received(str(name_of(told)), body, {}, told["at"] + 1.5, status)


def story(*, facts: list[Fact] = FACTS, active_from: int = 50, **received: list[Received]) -> Story:
    """Make a story in which each receiver gets what it subscribes to, except those that are given by name."""
    usual = {
        name: [came(each) for each in facts if "*" in KINDS[name] or each["kind"] in KINDS[name]] for name in NAMES
    }
    receivers = {name: Receiver(received=received.get(name, usual[name])) for name in NAMES}
    return Story({name_of(each): each for each in facts}, receivers, active_from)


def test_a_promise_that_is_kept_is_no_fault() -> None:
    assert find_faults(story()) == []


def test_what_a_receiver_refused_and_then_accepted_is_no_fault() -> None:
    first = FACTS[0]
    kept = story(healthy=[came(first, 500), came(first), came(first), came(FACTS[2]), came(FACTS[1])])
    assert find_faults(kept) == []
    assert repeated(kept.receivers["healthy"]) == 1
    assert "healthy: 3 facts to be told, 5 deliveries, 1 refused, 1 accepted twice, first try after 1.5 s" in describe(
        kept
    )


@pytest.mark.parametrize(
    ("received", "words"),
    [
        ([FACTS[0], FACTS[1]], "healthy: 1 facts have not arrived"),
        ([FACTS[1], FACTS[0], FACTS[2]], "healthy: sandbox 1: [6, 5]"),
        ([*FACTS[:3], fact("9", 1)], "healthy: 1 deliveries are of no fact"),
        ([*FACTS[:3], {**FACTS[0], "at": 101}], "healthy: 1 deliveries are of no fact"),
        (FACTS, "healthy: it was sent {'sandbox.wiped'}, which it does not subscribe to"),
    ],
)
def test_each_broken_promise_is_found(received: list[Fact], words: str) -> None:
    (found,) = find_faults(story(healthy=[came(each) for each in received]))
    assert found.startswith(words)


def test_a_fact_that_was_only_refused_has_not_arrived() -> None:
    (found,) = find_faults(story(healthy=[came(FACTS[0], 500), came(FACTS[1]), came(FACTS[2])]))
    assert found.startswith("healthy: 1 facts have not arrived")


def test_a_delivery_that_does_not_verify_is_found() -> None:
    broken = story()
    broken.receivers["healthy"].forged.append(came(FACTS[0]))
    assert find_faults(broken) == ["healthy: 1 deliveries do not verify"]


def test_what_happened_before_the_endpoint_was_active_may_be_missing() -> None:
    early = [fact("0", 1, at=10), *FACTS]
    assert find_faults(story(facts=early, healthy=[came(each) for each in FACTS[:3]])) == []
