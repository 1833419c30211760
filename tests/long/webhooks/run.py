"""Runs a broker whose webhooks go to receivers on loopback, while its processes are killed and Redis is emptied.

Nothing in the broker is set to go faster. So the receiver that fails does so at most once for a delivery: the second try
comes after 5 s, but a third one only after 5 min.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from redis import Redis

from deploy.dev.processes import wait_until
from tests.e2e.stack import Stack
from tests.webhook_receiver import Received, Receiver, receiving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    import requests

Fact = dict[str, Any]
Name = tuple[object, ...]

SETTINGS = {
    "POOL": "60",
    "MOCK_CSP_OTHERS": "0",
    "MOCK_CSP_DELETE_SECONDS": "0",
    "CLEANUP_INTERVAL_SEC": "2",
    "SYNC_INTERVAL_SEC": "86400",
    "RATE_LIMIT_RPS": "1000000",
    "RATE_LIMIT_BURST": "1000000",
    "REQUEST_DEADLINE_SEC": "10",
}
KINDS = {
    "healthy": ["sandbox.allocated", "sandbox.marked"],
    "fails half of the time": ["*"],
    "hangs": ["*"],
}
"""Which facts each receiver subscribes to."""
HANGS = "hangs"
_TRACKS = 6
_FACTS_OF_A_LIFE = 4
_QUIET_SEC = 240
"""Two windows of a try whose process was killed, a retry, and a minute more."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to do. `changes`: about how many facts tracks cause. `faults`: how many kills and lost Redises come meanwhile."""

    changes: int
    faults: int
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Story:
    """What has happened: the facts by the feed, what each receiver got, and the faults in words."""

    facts: Mapping[Name, Fact]
    receivers: Mapping[str, Receiver]
    active_from: int
    """The facts from here on must arrive."""
    faults: list[str] = field(default_factory=list)

    def expected(self, receiver: str) -> set[Name]:
        """Return the names of the facts that a receiver must get."""
        kinds = KINDS[receiver]
        return {
            name
            for name, fact in self.facts.items()
            if fact["at"] >= self.active_from and ("*" in kinds or fact["kind"] in kinds)
        }

    def delays(self, receiver: str) -> list[float]:
        """Return for each expected fact how many seconds after it its first delivery arrived, sorted."""
        first: dict[Name, float] = {}
        for each in self.receivers[receiver].received:
            first.setdefault(name_of(each.event["data"]), each.at)
        return sorted(first[name] - self.facts[name]["at"] for name in self.expected(receiver) if name in first)


def name_of(fact: Fact) -> Name:
    """Return what names a fact, as the feed's readers know it."""
    if fact["sandbox_id"] is None:
        return (fact["fact_id"],)
    return (fact["sandbox_id"], fact["version"], fact["kind"])


def find_faults(story: Story) -> list[str]:
    """Say in which way promise 10 was broken; empty if it was kept."""
    found = []
    for name, receiver in story.receivers.items():
        if receiver.forged:
            found.append(f"{name}: {len(receiver.forged)} deliveries do not verify")
        arrived = [each.event["data"] for each in receiver.received]
        made_up = [fact for fact in arrived if story.facts.get(name_of(fact)) != fact]
        if made_up:
            found.append(f"{name}: {len(made_up)} deliveries are of no fact, as {made_up[0]}")
        foreign = {fact["kind"] for fact in arrived} - set(KINDS[name]) if "*" not in KINDS[name] else set()
        if foreign:
            found.append(f"{name}: it was sent {foreign}, which it does not subscribe to")
        if name == HANGS:
            continue
        accepted = [name_of(each.event["data"]) for each in receiver.accepted]
        lost = story.expected(name) - set(accepted)
        if lost:
            found.append(f"{name}: {len(lost)} facts have not arrived, as {sorted(lost, key=str)[:3]}")
        found += [f"{name}: {words}" for words in _out_of_order(accepted)]
    return found


def repeated(receiver: Receiver) -> int:
    """Return how many deliveries arrived although the receiver had accepted them before."""
    return sum(times - 1 for times in Counter(each.id for each in receiver.accepted).values())


def describe(story: Story) -> str:
    """Describe a story by its figures."""
    lines = [f"{len(story.facts)} facts; faults: {', '.join(story.faults) or 'none'}"]
    for name, receiver in story.receivers.items():
        delays = story.delays(name)
        middle, last = (delays[len(delays) // 2], delays[-1]) if delays else (0.0, 0.0)
        lines.append(
            f"{name}: {len(story.expected(name))} facts to be told, {len(receiver.received)} deliveries, "
            f"{len(receiver.received) - len(receiver.accepted)} refused, {repeated(receiver)} accepted twice, "
            f"first try after {middle:.1f} s (median), {last:.1f} s (longest)"
        )
    return "\n".join(lines)


def run(order: Order, scratch: Path, say: Callable[[str], None], settings: Mapping[str, str] | None = None) -> Story:
    """Run a broker, and return what happened once each fact was told, or after four quiet minutes."""
    with ExitStack() as opened:
        stack = opened.enter_context(Stack(scratch, SETTINGS | dict(settings or {}), with_webhooks=True))
        assert wait_until(lambda: stack.run_job("sync")["state"] == "succeeded", 30)
        over = threading.Event()
        opened.callback(over.set)
        judges = {name: _judge(name, order.seed, over) for name in KINDS}
        receivers = {name: opened.enter_context(receiving(Receiver(judge=judge))) for name, judge in judges.items()}
        active_from = max(_register(stack, name, receiver) for name, receiver in receivers.items())
        assert wait_until(lambda: time.time() > active_from + 1, 60)
        faults: list[str] = []
        has_struck = threading.Event()
        with ThreadPoolExecutor(_TRACKS) as pool:
            lives = [pool.submit(_live, stack, number, order, has_struck) for number in range(_TRACKS)]
            try:
                _strike(stack, order, faults, say)
            finally:
                has_struck.set()
            for each in lives:
                each.result()
        say("the tracks are done")
        assert wait_until(lambda: stack.stats().get("pending_deletion") == 0, 120), stack.stats()
        story = Story(_read_feed(stack), receivers, active_from, faults)
        _await_deliveries(story)
        say("the receivers have all, or it is too late")
        return Story(_read_feed(stack), receivers, active_from, faults)


def _await_deliveries(story: Story) -> None:
    """Wait until all is told. Give up if for four minutes no receiver has accepted anything."""
    accepted = -1
    while accepted < (now := sum(len(each.accepted) for each in story.receivers.values())):
        accepted = now
        if wait_until(lambda: not find_faults(story), _QUIET_SEC):
            return


def _judge(name: str, seed: int, over: threading.Event) -> Callable[[Received], int]:
    rng, seen = random.Random(f"{seed} {name}"), set[str]()

    def accept(_: Received) -> int:
        return 204

    def fail_half(came: Received) -> int:
        time.sleep(rng.uniform(0, 0.05))  # so that kills find tries under way
        is_first = came.id not in seen
        seen.add(came.id)
        return 500 if is_first and rng.random() < 0.5 else 200

    def hang(_: Received) -> int:
        over.wait()
        return 500

    return {HANGS: hang, "fails half of the time": fail_half}.get(name, accept)


def _register(stack: Stack, name: str, receiver: Receiver) -> int:
    wanted = {"url": f"http://127.0.0.1:{receiver.port}/", "kinds": KINDS[name], "description": name}
    answer = stack.as_admin("POST", "/webhooks", json=wanted)
    assert answer.status_code == 201, answer.text
    receiver.secret = answer.json()["secret"]
    active_from: int = answer.json()["active_from"]
    return active_from


def _live(stack: Stack, number: int, order: Order, has_struck: threading.Event) -> None:
    """Allocate and give back, one sandbox after the other; slowly at the end, until all faults have struck."""
    usual = order.changes // _FACTS_OF_A_LIFE // _TRACKS + 1
    for life in count():
        if life >= usual and has_struck.wait(1):
            return
        track = f"track-{number}-{life}"
        given: list[str] = []

        def is_given(track: str = track, given: list[str] = given) -> bool:
            answer = stack.as_track(track, "POST", "/allocate")
            given[:] = [answer.json()["sandbox_id"]] if answer.status_code in {200, 201} else []
            return bool(given)

        assert wait_until(is_given, 120), "the pool is empty"
        path = f"/sandboxes/{given[0]}/mark-for-deletion"
        assert wait_until(lambda: stack.as_track(track, "POST", path).ok, 60)  # noqa: B023 - called before the next life
        time.sleep(0.05)


def _strike(stack: Stack, order: Order, faults: list[str], say: Callable[[str], None]) -> None:
    """Kill processes and empty Redis, one after the other, a few seconds apart."""
    kinds: list[tuple[str, Callable[[], None]]] = [
        (f"{name} killed", lambda name=name: _kill(stack, name))  # type: ignore[misc] # mypy does not see the default
        for name in ("worker-webhooks", "worker-jobs", "beat", "worker-webhooks")
    ]
    kinds.append(("Redis emptied", lambda: _empty_redis(stack)))
    rng = random.Random(order.seed)
    for number in range(order.faults):
        words, strike = kinds[number % len(kinds)]
        time.sleep(rng.uniform(1, 4))
        strike()
        faults.append(words)
        say(words)


def _kill(stack: Stack, name: str) -> None:
    stack.kill(name)
    stack.start(name)


def _empty_redis(stack: Stack) -> None:
    with Redis.from_url(stack.plan.env["REDIS_URL"]) as redis:
        redis.flushall()
    # Beat ends when its lock is lost, and a supervisor starts it again.
    if wait_until(lambda: not stack.is_running("beat"), 15):
        stack.start("beat")


def _read_feed(stack: Stack) -> dict[Name, Fact]:
    facts: dict[Name, Fact] = {}
    query: dict[str, Any] = {"since": 0, "limit": 100}
    while True:
        page = _answered(stack, "/events", query)
        facts |= {name_of(fact): fact for fact in page["events"]}
        if page["is_last"]:
            return facts
        query = {"after": page["cursor"], "limit": 100}


def _answered(stack: Stack, path: str, query: Mapping[str, Any]) -> Any:
    """Return an answer of the API; ask again while it refuses, as it may for seconds after a fault."""
    said: list[requests.Response] = []

    def is_answered() -> bool:
        said[:] = [stack.as_admin("GET", path, params=query)]
        return said[0].ok

    assert wait_until(is_answered, 60), said[0].text
    return said[0].json()


def _out_of_order(accepted: Iterable[Name]) -> list[str]:
    """Name the sandboxes of which an older fact was first accepted after a newer one."""
    versions: defaultdict[object, list[Any]] = defaultdict(list)
    for name in dict.fromkeys(accepted):
        if len(name) > 1:
            versions[name[0]].append(name[1])
    return [f"sandbox {sandbox}: {found}" for sandbox, found in versions.items() if found != sorted(found)]
