"""The client to copy, `deploy/examples/track.py`, against a real API, and through a proxy that loses answers."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import requests
from werkzeug.serving import make_server

from broker_api.app import create_app
from broker_common.adapters.system_clock import SystemClock
from broker_common.settings import Process, Settings
from deploy.dev.processes import wait_until
from deploy.examples.track import (
    Broker,
    BrokerError,
    DurationLimit,
    Forbidden,
    InvalidRequest,
    LeaseLost,
    LeaseMismatch,
    NoSandboxesAvailable,
    NotTheBroker,
    ReservationNotFound,
    ReservationNotOpen,
    Sandbox,
    TryLater,
    Unauthorized,
)
from tests.api.harness import ADMIN_TOKEN, ENVIRONMENT, TRACK_TOKEN, FakeQueue, FakeRateLimit, make_services
from tests.fakes import MemoryStore, RecordingRecorder, make_sandbox
from tests.http_server import Handler, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOUR = 3600


@dataclass
class Proxy:
    """Passes requests on to an API, but handles those to the paths in `faults` as their next fault says.

    A fault is a status, which is answered instead of the API, "lost": the API's answer is not passed on, or "broken":
    only its beginning is.
    """

    api_url: str
    url: str = ""
    faults: dict[str, deque[int | str]] = field(default_factory=dict)
    retry_after: str | None = "0"
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """Each request's method and path, headers and body."""

    def fail(self, path: str, *faults: int | str) -> None:
        self.faults[path] = deque(faults)

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]

    def calls(self, path: str) -> list[tuple[dict[str, str], bytes]]:
        return [(headers, body) for asked, headers, body in self.asked if asked.endswith(path)]

    def handle(self, handler: Handler) -> None:
        body = handler.read_body() if "Content-Length" in handler.headers else b""
        self.asked.append((f"{handler.command} {handler.path}", dict(handler.headers.items()), body))
        due = next((self.faults[end] for end in self.faults if handler.path.endswith(end) and self.faults[end]), None)
        fault = due.popleft() if due else None
        if isinstance(fault, int):
            handler.answer(fault, b"<html>", **({"Retry_After": self.retry_after} if self.retry_after else {}))
            return
        answer = requests.request(
            handler.command, self.api_url + handler.path, headers=dict(handler.headers.items()), data=body, timeout=40
        )
        if fault == "lost":
            return
        handler.send_response_only(answer.status_code)
        for name in ("Retry-After", "Date", "Idempotent-Replayed"):
            if name in answer.headers:
                handler.send_header(name, answer.headers[name])
        handler.send_header("Content-Length", str(len(answer.content)))
        handler.end_headers()
        handler.wfile.write(answer.content[: 5 if fault == "broken" else None])


@dataclass
class World:
    """An API, its store, and a proxy before it."""

    store: MemoryStore
    proxy: Proxy
    broker: Broker

    def free(self, sandbox_id: str) -> str:
        """Add a free sandbox, and return the prefix that only its name has."""
        self.store.seed(make_sandbox(sandbox_id, name=f"{sandbox_id}."))
        return f"{sandbox_id}."

    def status(self, sandbox_id: str) -> str:
        found = self.store.get(sandbox_id)
        assert found is not None
        return str(found.status)

    def end_of(self, sandbox_id: str) -> int:
        found = self.store.get(sandbox_id)
        assert found is not None
        assert found.lease is not None
        return found.lease.expires_at

    def waiting(self) -> list[str]:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        places = requests.get(f"{self.proxy.api_url}/v1/admin/waiting", headers=headers, timeout=10).json()["places"]
        return [each["track_id"] for each in places]

    def release(self, sandbox: Sandbox) -> None:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        path = f"{self.proxy.api_url}/v1/admin/sandboxes/{sandbox.sandbox_id}/release"
        requests.post(path, headers=headers, json={"lease_id": sandbox.lease_id}, timeout=10).raise_for_status()


@contextmanager
def proxied(api_url: str) -> Iterator[Proxy]:
    proxy = Proxy(api_url)

    class Proxies(Handler):
        def reply(self) -> None:
            proxy.handle(self)

    with serving(Proxies) as server:
        proxy.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield proxy


@pytest.fixture(scope="module")
def api() -> Iterator[tuple[str, MemoryStore]]:
    """Yield the address of an API whose clock is the real one, and its store."""
    clock, settings = SystemClock(), Settings.from_env(ENVIRONMENT, process=Process.API)
    store = MemoryStore(clock)
    services = make_services(store, clock, FakeQueue(), RecordingRecorder(), settings, FakeRateLimit())
    server = make_server("127.0.0.1", 0, create_app(settings, services), threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", store
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def world(api: tuple[str, MemoryStore]) -> Iterator[World]:
    url, store = api
    with proxied(url) as proxy:
        yield World(store, proxy, Broker(proxy.url, TRACK_TOKEN, patience=5))


class Clock:
    """The module `time` of a machine whose clock is an hour late. A sleep only moves `monotonic` on."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def time(self) -> float:
        return time.time() - HOUR

    def monotonic(self) -> float:
        return sum(self.pauses)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("deploy.examples.track.time", clock)
    return clock


def test_a_sandbox_is_held_during_the_block_and_given_back_at_its_end(world: World) -> None:
    prefix = world.free("whole")
    with world.broker.sandbox("track-whole", prefix=prefix) as sandbox:
        assert (sandbox.sandbox_id, sandbox.name, sandbox.external_id) == ("whole", "whole.", "uuid-whole")
        assert world.status("whole") == "allocated"
        assert sandbox.expires_at == world.end_of("whole")
    assert world.status("whole") == "pending_deletion"
    (_, body), *more = world.proxy.calls("/mark-for-deletion")
    assert (body.decode(), more) == (f'{{"lease_id": "{sandbox.lease_id}"}}', [])


class Failed(Exception):
    pass


@pytest.mark.parametrize("error", [Failed, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_gives_the_sandbox_back_too(world: World, error: type[BaseException]) -> None:
    name = f"raises-{error.__name__}"
    with pytest.raises(error), world.broker.sandbox(name, prefix=world.free(name)):
        raise error
    assert world.status(name) == "pending_deletion"


def test_what_is_asked_for_reaches_the_broker(world: World) -> None:
    prefix = world.free("asked")
    with world.broker.sandbox("track-asked", prefix=prefix, duration=HOUR, lab="the-lab", key="second") as sandbox:
        assert sandbox.answer["track_name"] == "the-lab"
        assert sandbox.expires_at - sandbox.answer["allocated_at"] == HOUR
    headers, _ = world.proxy.calls("/allocate")[0]
    assert headers["Idempotency-Key"] == "second"
    assert "Prefer" not in headers


def test_a_class_s_reservation_is_named(world: World) -> None:
    with pytest.raises(ReservationNotFound) as raised, world.broker.sandbox("track-class", reservation_id="res-9"):
        pass
    assert raised.value.code == "RESERVATION_NOT_FOUND"


@pytest.mark.parametrize("fault", ["lost", "broken"])
def test_an_allocate_whose_answer_is_lost_is_sent_again_as_it_was_and_gets_the_same_sandbox(
    world: World, fault: str
) -> None:
    prefix, spare = world.free(f"{fault}-allocate"), world.free(f"{fault}-allocate-spare")
    world.proxy.fail("/allocate", fault)
    with world.broker.sandbox(f"track-{fault}", prefix=f"{fault}-allocate", duration=HOUR, key="k") as sandbox:
        held = [each.sandbox_id for each in world.broker.held(f"track-{fault}")]
        assert held == [sandbox.sandbox_id]
    assert sorted(map(world.status, (prefix[:-1], spare[:-1]))) == ["available", "pending_deletion"]
    first, again = world.proxy.calls("/allocate")
    assert first == again
    assert first[0]["Idempotency-Key"] == "k"


@pytest.mark.parametrize("call", ["/extend", "/mark-for-deletion"])
def test_an_extension_and_a_mark_whose_answers_are_lost_are_sent_again(world: World, call: str) -> None:
    name = f"again-{call[1:5]}"
    world.proxy.fail(call, "lost", 503)
    with world.broker.sandbox(name, prefix=world.free(name)) as sandbox:
        end = sandbox.extend(5 * HOUR)
        assert end == sandbox.expires_at == world.end_of(name)
    assert world.status(name) == "pending_deletion"
    first, *more = world.proxy.calls(call)
    assert more == [first] * 2


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_an_answer_that_is_no_final_one_is_asked_for_again(world: World, status: int) -> None:
    name = f"later-{status}"
    world.proxy.fail("/allocate", status)
    with world.broker.sandbox(name, prefix=world.free(name)):
        pass
    assert len(world.proxy.calls("/allocate")) == 2


def test_a_call_is_repeated_only_after_the_seconds_of_retry_after_and_not_by_all_at_once(
    world: World, late: Clock
) -> None:
    world.proxy.retry_after = "3"
    for track in "ab":
        world.proxy.fail("/sandboxes", 503)
        assert world.broker.held(track) == []
    first, second = late.pauses
    assert 3 <= min(first, second) < max(first, second) <= 4


def test_without_retry_after_each_pause_is_longer(world: World, late: Clock) -> None:
    world.proxy.retry_after = None
    world.proxy.fail("/sandboxes", *[503] * 5)
    assert Broker(world.proxy.url, TRACK_TOKEN, patience=99).held("track-longer") == []
    assert [longest / 2 <= each <= longest for each, longest in zip(late.pauses, (1, 2, 4, 8, 8), strict=True)] == [
        True
    ] * 5


def test_a_retry_after_that_is_longer_than_the_patience_is_not_waited_for(world: World, late: Clock) -> None:
    world.proxy.retry_after = "6"
    world.proxy.fail("/sandboxes", 429)
    with pytest.raises(TryLater) as raised:
        world.broker.held("track")
    assert (raised.value.status, late.pauses) == (429, [])


def test_a_wait_in_line_ends_with_the_sandbox_that_comes_free(world: World) -> None:
    tracks = ("track-first", "track-second")
    prefix = world.free("comes-free")
    got: list[str] = []

    def wait() -> None:
        with world.broker.sandbox("track-second", wait=30, prefix=prefix) as sandbox:
            got.append(sandbox.sandbox_id)

    with world.broker.sandbox(tracks[0], prefix=prefix):
        second = threading.Thread(target=wait)
        second.start()
        assert wait_until(lambda: "track-second" in world.waiting(), 10)
        world.store.seed(make_sandbox("comes-free-too", name=f"{prefix}2"))
        second.join(20)
    assert got == ["comes-free-too"]
    assert world.status("comes-free-too") == "pending_deletion"
    assert "DELETE /v1/waiting" not in world.proxy.paths()


def test_a_wait_that_is_over_gives_its_place_up_and_says_where_it_stood(world: World) -> None:
    began = time.monotonic()
    with (
        pytest.raises(NoSandboxesAvailable) as raised,
        world.broker.sandbox("track-over", wait=1, prefix="none-", key="k"),
    ):
        pass
    assert 1 <= time.monotonic() - began < 5
    assert (raised.value.code, raised.value.details["position"]) == ("NO_SANDBOXES_AVAILABLE", 1)
    assert "202 waiting" in str(raised.value)
    assert "track-over" not in world.waiting()
    (headers, _), *more = world.proxy.calls("/waiting")
    assert (headers["Idempotency-Key"], more) == ("k", [])


def test_without_wait_an_empty_pool_is_said_at_once(world: World) -> None:
    with pytest.raises(NoSandboxesAvailable) as raised, world.broker.sandbox("track-at-once", prefix="none-"):
        pass
    assert (raised.value.status, "next_due_at" in raised.value.details) == (409, True)
    assert world.proxy.paths() == ["POST /v1/allocate"]


def interrupt(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """Call, and interrupt it once, after its first request and before its answer is seen."""
    send = requests.Session.request
    has_interrupted = threading.Event()

    def interrupted(session: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
        answer = send(session, method, url, **options)
        # The proxy passes requests on by the same function.
        if url.startswith(world.proxy.url) and not has_interrupted.is_set():
            has_interrupted.set()
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(requests.Session, "request", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call()


def test_an_interrupted_wait_gives_its_place_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(lambda: world.broker.allocate("track-stopped", wait=1, prefix="none-"), monkeypatch, world)
    assert world.proxy.paths() == ["POST /v1/allocate", "DELETE /v1/waiting"]
    assert "track-stopped" not in world.waiting()


def test_an_interrupted_allocate_gives_back_what_it_may_have_got(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = world.free("unseen")

    def hold() -> None:
        with world.broker.sandbox("track-unseen", prefix=prefix):
            raise AssertionError("it was interrupted before")

    interrupt(hold, monkeypatch, world)
    assert world.status("unseen") == "pending_deletion"


def test_an_allocate_that_gets_no_answer_in_time_gives_back_what_it_may_have_got(world: World) -> None:
    prefix = world.free("no-answer")
    impatient = Broker(world.proxy.url, TRACK_TOKEN, patience=0)
    world.proxy.fail("/allocate", "lost")
    with pytest.raises(TryLater) as raised, impatient.sandbox("track-no-answer", prefix=prefix):
        pass
    assert (raised.value.status, raised.value.code) == (None, "")
    assert world.status("no-answer") == "pending_deletion"


def test_a_refused_allocate_is_not_sent_again(world: World) -> None:
    with pytest.raises(InvalidRequest) as raised, world.broker.sandbox("track-refused", prefix="x" * 200):
        pass
    assert list(raised.value.details) == ["X-Sandbox-Name-Prefix"]
    assert raised.value.status == 400
    assert raised.value.request_id
    assert raised.value.request_id in str(raised.value)
    assert raised.value.message in str(raised.value)
    assert len(world.proxy.asked) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *(("FORBIDDEN", Forbidden), ("RESERVATION_NOT_OPEN", ReservationNotOpen), ("DURATION_LIMIT", DurationLimit)),
        *(("LEASE_MISMATCH", LeaseMismatch), ("OF_A_LATER_RELEASE", BrokerError)),
    ],
)
def test_an_error_s_type_follows_its_code(code: str, kind: type[BrokerError]) -> None:
    class Refuses(Handler):
        def reply(self) -> None:
            self.answer(409, b'{"error":{"code":"%b","message":"m","details":{"opens_at":7}}}' % code.encode())

    with serving(Refuses) as server, pytest.raises(BrokerError) as raised:
        Broker(f"http://127.0.0.1:{server.server_port}/v1", "t").held("track")
    assert type(raised.value) is kind
    assert (raised.value.code, raised.value.details) == (code, {"opens_at": 7})


def test_a_wrong_token_is_an_error_of_its_own(world: World) -> None:
    with pytest.raises(Unauthorized):
        Broker(world.proxy.url, "wrong").held("track")


@pytest.mark.parametrize("status", [200, 301, 404])
def test_an_answer_of_something_else_is_not_taken_for_the_broker_s(world: World, status: int) -> None:
    world.proxy.fail("/allocate", status)
    with pytest.raises(NotTheBroker), world.broker.sandbox("track-foreign"):
        pass


def test_an_extension_never_shortens_and_tells_the_limit(world: World) -> None:
    with world.broker.sandbox("track-extends", prefix=world.free("extends")) as sandbox:
        first = sandbox.expires_at
        assert sandbox.extend(60) == first == sandbox.expires_at
        longer = sandbox.extend(5 * HOUR)
        assert abs(longer - sandbox.now() - 5 * HOUR) < 5
        with pytest.raises(DurationLimit) as raised:
            sandbox.extend(9 * HOUR)
        assert raised.value.details == {"latest_expires_at": sandbox.answer["allocated_at"] + 8 * HOUR}
        assert sandbox.expires_at == longer == world.end_of("extends")


def threads_that_keep() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("keeps sandbox")]


def test_a_lease_is_extended_while_the_block_runs(world: World) -> None:
    with world.broker.sandbox("track-kept", prefix=world.free("kept"), duration=300, keep=HOUR) as sandbox:
        assert wait_until(lambda: sandbox.expires_at > sandbox.now() + HOUR - 10, 10)
        assert sandbox.expires_at == world.end_of("kept")
        assert threads_that_keep() == ["keeps sandbox kept"]
        assert sandbox.not_kept is None
    assert threads_that_keep() == []
    assert len(world.proxy.calls("/extend")) == 1
    assert world.status("kept") == "pending_deletion"


def test_a_lease_that_lasts_long_enough_is_not_extended(world: World) -> None:
    with world.broker.sandbox("track-long", prefix=world.free("long"), keep=HOUR) as sandbox:
        sandbox.extend(5 * HOUR)
    assert len(world.proxy.calls("/extend")) == 1


def test_extension_goes_on_to_the_limit_and_says_so(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with world.broker.sandbox("track-limit", prefix=world.free("limit"), duration=300, keep=9 * HOUR) as sandbox:
        assert wait_until(lambda: sandbox.not_kept is not None, 10)
        assert wait_until(lambda: threads_that_keep() == [], 10)
        assert sandbox.expires_at == sandbox.answer["allocated_at"] + 8 * HOUR == world.end_of("limit")
    assert isinstance(sandbox.not_kept, DurationLimit)
    (said,) = [each.message for each in caplog.records if each.name == "sandbox_broker"]
    assert said.startswith("sandbox limit is no longer extended: 409 DURATION_LIMIT")


def test_a_lease_that_an_operator_ends_is_no_longer_extended_and_the_block_ends_quietly(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.proxy.fail("/extend", "lost", 503)
    with world.broker.sandbox("track-ended", prefix=world.free("ended"), duration=300, keep=HOUR) as sandbox:
        assert wait_until(lambda: len(world.proxy.calls("/extend")) == 1, 10)
        world.release(sandbox)
        assert wait_until(lambda: sandbox.not_kept is not None, 10)
    assert isinstance(sandbox.not_kept, LeaseLost)
    assert threads_that_keep() == []


class Ticks:
    """A broker whose leases last a second longer with each extension, and that refuses some."""

    def __init__(self, *refused: int) -> None:
        self.refused = refused
        self.asked: list[str] = []
        self.began = int(time.time())

    def answer(self, handler: Handler) -> None:
        self.asked.append(handler.path)
        handler.read_body()
        extensions = sum(path.endswith("/extend") for path in self.asked)
        if handler.path.endswith("/extend") and extensions in self.refused:
            handler.answer(403, b'{"error":{"code":"FORBIDDEN","message":"m"}}')
            return
        body = f'{{"sandbox_id":"s","lease_id":"l","expires_at":{self.began + 1 + extensions}}}'
        handler.answer(200, body.encode())


def test_extension_is_repeated_as_time_goes_by_also_after_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    ticks = Ticks(1)

    class Ticking(Handler):
        def reply(self) -> None:
            if self.command == "POST" and self.path.endswith("/allocate"):
                self.headers.add_header("Content-Length", "0")
            ticks.answer(self)

    with serving(Ticking) as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        with Broker(url, "t").sandbox("track", keep=2) as sandbox:
            assert wait_until(lambda: sandbox.expires_at >= ticks.began + 4, 10)
    assert any("will be tried again: 403 FORBIDDEN" in each.message for each in caplog.records)


def test_an_end_of_the_block_does_not_wait_for_an_extension_that_is_to_be_repeated(world: World) -> None:
    world.proxy.retry_after = "4"
    world.proxy.fail("/extend", *[503] * 9)
    with world.broker.sandbox("track-quick", prefix=world.free("quick"), duration=300, keep=HOUR):
        assert wait_until(lambda: len(world.proxy.calls("/extend")) == 1, 10)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert threads_that_keep() == []
    assert world.status("quick") == "pending_deletion"


def test_keep_must_be_positive(world: World) -> None:
    with pytest.raises(ValueError, match="keep"), world.broker.sandbox("track-keep", keep=0):
        pass
    assert world.proxy.asked == []


def test_a_sandbox_that_cannot_be_given_back_in_time_is_an_error_of_the_block_s_end(world: World) -> None:
    impatient = Broker(world.proxy.url, TRACK_TOKEN, patience=2)
    world.proxy.fail("/mark-for-deletion", *[503] * 99)
    ends = []
    with pytest.raises(TryLater) as raised, impatient.sandbox("track-stays", prefix=world.free("stays")):
        ends.append(time.monotonic())
    assert time.monotonic() - ends[0] < 4
    assert raised.value.status == 503
    assert len(world.proxy.calls("/mark-for-deletion")) > 1
    assert world.status("stays") == "allocated"


def test_a_sandbox_that_cannot_be_given_back_does_not_hide_the_block_s_own_error(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    impatient = Broker(world.proxy.url, TRACK_TOKEN, patience=0)
    world.proxy.fail("/mark-for-deletion", 503)
    with pytest.raises(Failed), impatient.sandbox("track-hides", prefix=world.free("hides")):
        raise Failed
    (said,) = [each for each in caplog.records if each.name == "sandbox_broker"]
    assert (said.levelno, "sandbox hides is not given back" in said.message) == (logging.WARNING, True)


def test_a_sandbox_may_be_given_back_before_the_end_of_the_block(world: World) -> None:
    with world.broker.sandbox("track-early", prefix=world.free("early")) as sandbox:
        assert sandbox.give_back()
        assert world.status("early") == "pending_deletion"


def test_a_clock_that_is_wrong_does_not_make_leases_longer_or_shorter(world: World, late: Clock) -> None:
    with world.broker.sandbox("track-clock", prefix=world.free("clock")) as sandbox:
        assert abs(sandbox.extend(5 * HOUR) - time.time() - 5 * HOUR) < 5
