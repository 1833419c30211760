"""For any answer of the provider: no sandbox is changed that the answer does not validly name, and no job breaks.

hypothesis makes the answers, byte by byte; a bare socket sends them to the real client under the real use cases.
"""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker_common.adapters.redis_breaker import RedisBreaker
from broker_common.adapters.redis_slots import RedisSlots
from broker_common.core.errors import ListNotWhole, ProviderError, SyncBraked
from broker_common.core.sandbox import FREE, Sandbox, Status
from broker_common.core.telemetry import DeleteOutcome
from tests.fakes import BY, flat, make_sandbox
from tests.provider.conftest import client_of, connected
from tests.provider.test_csp_client import RawServer
from tests.world import World

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from redis import Redis

OWN_KEYS = {"slots": "any-answer:slots", "breaker": "any-answer:breaker"}
UNTOUCHABLE = frozenset({Status.ALLOCATED, Status.PENDING_DELETION})


def external_id(number: int) -> str:
    return f"identity/accounts/0b1f5cf8-6c3e-4f0e-9a53-{number:012d}"


def capitals(number: int) -> str:
    """Return an account's id as another writes the same uuid."""
    return external_id(number).replace("b1f5cf8", "B1F5CF8")


def account(number: int, **changes: Any) -> dict[str, Any]:
    """Return an entry of the list, as the provider makes them."""
    entry = {
        "account_type": "sandbox",
        "state": "active",
        "id": external_id(number),
        "name": f"lab-{number}",
        "csp_id": number,
        "sfdc_account_id": None,
    }
    return entry | changes


@dataclass(frozen=True, repr=False)
class Sent:
    """One answer: the bytes that go out before the connection is closed, and what they are meant to be."""

    raw: bytes
    status: int
    body: bytes
    is_whole: bool

    def __repr__(self) -> str:
        return f"Sent({self.raw[:500]!r}, body={self.body[:500]!r}, is_whole={self.is_whole})"

    @property
    def entries(self) -> list[dict[str, Any]]:
        """All that a list could be said to name."""
        try:
            found = json.loads(self.body)["results"]
        except (ValueError, TypeError, LookupError, RecursionError):
            return []
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def a_list(body: bytes) -> Sent:
    """Return a list as it should come."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return Sent(head.encode() + body, 200, body, is_whole=True)


# --- answers ---------------------------------------------------------------------------------------------------------

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=12)
    | st.sampled_from(["\ud800", "\u202e", "a\nb", "\x85", "\xa0\u200f", "=1+1", "x" * 300])
    | st.sampled_from(["active", "sandbox", "9" * 70, 10**400, external_id(3), "1", "..", "-5", -5, 2**70, "007"])
)
_JSON = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner))
_LINKS = st.sampled_from(
    [
        "/current_user/accounts",
        "/current_user/accounts?_offset=1",
        "?page=2",
        "http://127.0.0.1:1/current_user/accounts",
        "//example.invalid/",
        "http://[",
        "\ud800",
        "file:///etc/passwd",
        "http://user@127.0.0.1/",
        "#",
    ]
)

_LINK_HEADERS = _LINKS.map(lambda link: f'<{link}>; rel="next"'.encode("utf-8", "replace").decode("latin-1")) | (
    st.sampled_from(["<", ";;", "<>; rel=next", "a=b=c; rel"])
)


def _spoilt(entry: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Make an entry, with some of its fields of any type or missing."""
    changed = st.dictionaries(st.sampled_from(sorted(entry)), _JSON, max_size=2)
    missing = st.sets(st.sampled_from(sorted(entry)), max_size=1)
    return st.builds(
        lambda changes, gone: {name: value for name, value in (entry | changes).items() if name not in gone},
        changed,
        missing,
    )


_NUMBER = st.integers(1, 12)
_ENTRY = st.one_of(
    _NUMBER.map(account),
    _NUMBER.map(lambda number: account(number, name="renamed", sfdc_account_id="42", id=external_id(number + 100))),
    _NUMBER.flatmap(lambda number: _spoilt(account(number))),
    st.builds(account, _NUMBER, state=st.sampled_from(["disabled", "deleted"])),
    st.builds(account, _NUMBER, account_type=st.just("partner"), csp_id=_NUMBER | st.none()),
    st.builds(account, _NUMBER, id=_NUMBER.map(external_id) | _NUMBER.map(capitals)),
    st.builds(account, _NUMBER, csp_id=st.integers(11, 14)),
    _JSON,
)
_PAGING = st.dictionaries(
    st.sampled_from(["next", "links", "_links", "page", "total", "total_count", "_offset", "_limit", "total_pages"]),
    _JSON
    | _LINKS
    | st.integers(0, 20)
    | st.fixed_dictionaries({"next": _LINKS})
    | st.fixed_dictionaries({"page_token": _SCALARS, "offset": _SCALARS, "size": _SCALARS}),
    max_size=3,
)
_LIST = st.builds(lambda entries, paging: {"results": entries} | paging, st.lists(_ENTRY, max_size=12), _PAGING)


_FRAMINGS: dict[str, dict[str, str | None]] = {
    "longer": {"Content-Length": "1" + "0" * 30},
    "shorter": {"Content-Length": "1"},
    "negative": {"Content-Length": "-1"},
    "no number": {"Content-Length": "\xb2"},
    "two numbers": {"Content-Length": "1, 2"},
    "no length": {"Content-Length": None},
    "no gzip": {"Content-Encoding": "gzip"},
    "no deflate": {"Content-Encoding": "deflate"},
    "no coding": {"Content-Encoding": "x" * 100},
    "no chunks": {"Content-Length": None, "Transfer-Encoding": "chunked"},
    "cut": {},
    "whole": {},
}


@st.composite
def answers(draw: st.DrawFn, bodies: st.SearchStrategy[bytes], statuses: st.SearchStrategy[int]) -> Sent:
    """Draw an answer that is framed as it should be, or is not."""
    status, body = draw(statuses), draw(bodies)
    framing = draw(st.just("whole") | st.sampled_from(sorted(_FRAMINGS)))
    payload = gzip.compress(body) if (is_packed := draw(st.integers(0, 9)) == 9) else body
    headers: dict[str, str | None] = {
        "Content-Type": draw(st.sampled_from(["application/json", "text/html; charset=utf-16", "", "\xff"])),
        "Connection": "close",
        "Content-Length": str(len(payload)),
        "Content-Encoding": "gzip" if is_packed else None,
        "Link": draw(st.just(None) | _LINK_HEADERS),
    }
    headers |= _FRAMINGS[framing]
    if framing == "no chunks":
        payload = draw(st.sampled_from([b"zz\r\n", b"-5\r\n", b"f" * 22 + b"\r\n", b"5\r\n"])) + payload
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    raw = "\r\n".join([f"HTTP/1.1 {status} Reason", *lines, "", ""]).encode("latin-1") + payload
    if framing == "cut":
        raw = raw[: draw(st.integers(0, len(raw) - 1))]
    if framing == "shorter":
        body = b"" if is_packed else body[:1]
    if framing == "no length" and status == 204:
        body = b""
    # An answer without a length is whole if it says that closing ends it, and a wrong coding makes none shorter.
    is_whole = framing in {"whole", "no length", "no coding", "no gzip", "no deflate"} or (
        framing == "shorter" and payload != b""
    )
    return Sent(raw, status, body, is_whole)


_GARBAGE = st.binary(max_size=200).map(lambda raw: Sent(raw, 0, b"", is_whole=False))
_HTML = st.sampled_from(
    [b"<!DOCTYPE html><html><body>Sign in</body></html>", b"\xef\xbb\xbf <html>", b"<p>502 Bad Gateway</p>"]
)
_STATUS = st.sampled_from(
    [100, 101, 200, 201, 202, 203, 204, 205, 206, 226, 299, 300, 301, 302, 304, 307]
) | st.integers(400, 599)
_LIST_BODIES = st.one_of(
    _LIST.map(lambda answer: json.dumps(answer).encode()),
    _LIST.map(lambda answer: json.dumps(answer).encode("utf-16")),
    _LIST.map(lambda answer: json.dumps(answer).encode()[:-3]),
    _JSON.map(lambda answer: json.dumps(answer).encode()),
    st.builds(lambda name, value: json.dumps({name: value}).encode(), st.just("results"), _JSON),
    st.sampled_from([b"[", b'{"results":', b"9"]).map(lambda part: part * 20_000),
    st.sampled_from([b"\xff\xfe", b"", b'{"results": [NaN, 1e999]}']),
    _HTML,
)
_PLAIN_LISTS = st.lists(_ENTRY, min_size=3, max_size=12).map(
    lambda entries: a_list(json.dumps({"results": entries}).encode())
)
_SOUND_LISTS = st.lists(
    st.builds(account, _NUMBER, state=st.sampled_from(["active", "active", "disabled"])),
    min_size=3,
    unique_by=lambda entry: entry["csp_id"],
).map(lambda entries: a_list(json.dumps({"results": entries, "total": len(entries)}).encode()))
_LIST_ANSWERS = answers(_LIST_BODIES, st.just(200)) | answers(_LIST_BODIES, _STATUS) | _GARBAGE
_WORDS = st.dictionaries(
    st.sampled_from(["error", "errors", "success", "Error", "id"]),
    _JSON | st.just({"status": 200, "code": "OK"}),
    max_size=3,
)
_DELETE_BODIES = (
    st.just(b"")
    | _WORDS.map(lambda answer: json.dumps(answer).encode())
    | st.sampled_from([b'{"error": 1, "error": null}', b'{"success": false, "success": true}', b" ", b"{}", b'{"a": '])
    | _JSON.map(lambda answer: json.dumps(answer).encode())
    | st.binary(max_size=100)
    | _HTML
    | st.just(b"x").map(lambda part: part * 200_000)
)
_DELETE_ANSWERS = (
    answers(_DELETE_BODIES, st.sampled_from([200, 202, 204, 404])) | answers(_DELETE_BODIES, _STATUS) | _GARBAGE
)

# --- the broker ------------------------------------------------------------------------------------------------------


class Provider:
    """Sends the answers that a test scripts, one a request, the last one again and again."""

    def __init__(self) -> None:
        self._script: list[Sent] = []
        self._server = RawServer(self._answer)
        self.url = self._server.url
        self.close = self._server.close

    def say(self, *answers: Sent) -> None:
        self._script = list(answers)

    def _answer(self, connection: socket.socket, _request: str) -> None:
        answer = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        connection.sendall(answer.raw)


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()


@pytest.fixture(scope="module")
def shared_redis(redis_url: str) -> Iterator[Redis]:
    with connected(redis_url) as client:
        yield client


def make_world(provider: Provider, redis: Redis) -> World:
    """Make a broker with sandboxes in every state, whose breaker is closed."""
    redis.delete(*OWN_KEYS.values())
    world = World()
    slots = RedisSlots(redis, limit=10, lease_sec=60, key=OWN_KEYS["slots"])
    breaker = RedisBreaker(redis, threshold=5, timeout_sec=60, trial_sec=60, key=OWN_KEYS["breaker"])
    real = client_of(provider.url, redis=redis, read_timeout=2, slots=slots, breaker=breaker)
    world.provider = real  # type: ignore[assignment] # in the fake's place
    world.start()
    now = world.clock.now()
    times: dict[str, Any] = {"allocated_at": now, "expires_at": now + 3600}
    of_status: dict[Status, dict[str, Any]] = {
        Status.ALLOCATED: {
            "allocated_to_track": "track-1",
            "idempotency_key": "track-1",
            "lease_id": "lease-1",
            **times,
        },
        Status.RESERVED: {"reservation_id": "res-1"},
        Status.PENDING_DELETION: {"last_track_id": "track-0", "last_lease_id": "lease-0", "next_attempt_at": now},
    }
    for number, status in enumerate([Status.AVAILABLE] * 4 + list(Status), start=1):
        world.memory.seed(
            make_sandbox(
                str(number),
                status=status,
                name=f"lab-{number}",
                external_id=external_id(number),
                dirty=status not in {*FREE, Status.DELETED},
                **of_status.get(status, {}),
            )
        )
    return world


def describes(entry: dict[str, Any], sandbox: Sandbox) -> bool:
    """Tell whether an entry of a list says of an account what a record now says."""
    csp_id = entry.get("csp_id")
    return (
        entry.get("account_type") == "sandbox"
        and entry.get("state") == "active"
        and not isinstance(csp_id, bool)
        and str(csp_id) == sandbox.sandbox_id
        and str(entry.get("id")).lower() == sandbox.external_id
        and says(entry.get("name"), sandbox.name, else_=sandbox.sandbox_id)
        and says(entry.get("sfdc_account_id"), sandbox.sfdc_account_id, else_=None)
    )


def says(label: Any, read: str | None, *, else_: str | None) -> bool:
    """Tell whether a label was read as it is, except for characters that cannot be written."""
    is_label = isinstance(label, (str, int, float)) and not isinstance(label, bool) and label != ""
    if not is_label or read is None:
        return not is_label and read == else_
    pairs = zip(str(label)[:256], read, strict=True)
    return all(now == was or (now == "�" and not was.isprintable()) for was, now in pairs)


def has_id(entry: dict[str, Any], sandbox: Sandbox) -> bool:
    """Tell whether an entry has a sandbox's id."""
    csp_id = entry.get("csp_id")
    return not isinstance(csp_id, bool) and str(csp_id) == sandbox.sandbox_id


def may_be(entry: dict[str, Any], sandbox: Sandbox) -> bool:
    """Tell whether an entry has a sandbox's id or account."""
    account_id = entry.get("id")
    return has_id(entry, sandbox) or (isinstance(account_id, str) and account_id.lower() == sandbox.account_key)


def is_other(entry: dict[str, Any]) -> bool:
    """Tell whether an entry says in plain words that its account is no active sandbox."""
    kind, state = entry.get("account_type"), entry.get("state")
    return (isinstance(kind, str) and kind != "sandbox") or (isinstance(state, str) and state != "active")


@pytest.mark.timeout(300)
@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(
    script=st.lists(_PLAIN_LISTS | _SOUND_LISTS, min_size=1, max_size=1)
    | st.lists(_LIST_ANSWERS, min_size=1, max_size=3)
)
@example(script=[a_list(json.dumps({"results": [account(99)]}).encode() + b" " * (64 * 2**20))])
@example(script=[a_list(json.dumps({"results": [account(number) for number in range(1, 12)]}).encode())])
@example(script=[a_list(json.dumps({"results": [account(1)], "next": "http://["}).encode())])
@example(script=[a_list(gzip.compress(b"0" * 10**6)[:-1])])
@example(script=[a_list(json.dumps({"results": [account(1), account(2), account(3) | {"account_type": ""}]}).encode())])
def test_no_list_changes_what_it_does_not_validly_name(
    provider: Provider, shared_redis: Redis, script: list[Sent]
) -> None:
    world = make_world(provider, shared_redis)
    before, claims_before = world.memory.dump()
    provider.say(*script)
    is_whole = False
    try:
        world.syncer.run(by=BY)
        is_whole = True
    except (SyncBraked, ListNotWhole):
        pass
    except ProviderError:
        assert world.memory.dump() == (before, claims_before)
    after, claims_after = world.memory.dump()
    named = [entry for sent in script if sent.status == 200 and sent.is_whole for entry in sent.entries]
    assert claims_after == claims_before
    for sandbox_id, was in before.items():
        now = after.get(sandbox_id)
        if now == was:
            continue
        assert was.status not in UNTOUCHABLE, (was, now)
        if now is not None and any(describes(entry, now) for entry in named):
            continue
        mine = [entry for entry in named if may_be(entry, was)]
        if now is not None and was.dirty and any(not is_other(entry) for entry in mine):
            # Its account is listed as active, though the provider answered its delete with 404.
            assert (was.status, now.status) == (Status.STALE, Status.PENDING_DELETION), (was, now)
            continue
        # It is out of service, after a list that was whole: no entry has it as a sandbox, or only with the account of
        # another record. Nothing is forgotten that any entry has.
        assert is_whole, (was, now)
        if now is not None and now.status is Status.STALE:
            accounts = [each.account_key for each in before.values() if each.sandbox_id != sandbox_id]
            active = [entry for entry in mine if has_id(entry, was) and not is_other(entry)]
            assert all(str(entry.get("id")).lower() in accounts for entry in active), (was, now)
        else:
            assert now is None or now.status is Status.DELETED, (was, now)
            assert mine == [], (was, now)
    if is_whole:
        ids = [(str(entry.get("csp_id")), str(entry.get("id")).lower()) for entry in named]
        assert len(set(ids)) == len(ids), "no list is whole in which an entry stands twice"
    keys = [each.account_key for each in after.values()]
    assert len(set(keys)) == len(keys), "one account has one record"
    assert not [
        each for each in after.values() if each.sandbox_id in before and before[each.sandbox_id].dirty > each.dirty
    ]
    for sandbox_id in after.keys() - before.keys():
        assert any(describes(entry, after[sandbox_id]) for entry in named), after[sandbox_id]
        labels = after[sandbox_id].name + (after[sandbox_id].sfdc_account_id or "")
        assert not any(unicodedata.category(each) in {"Cc", "Cs", "Zl", "Zp"} for each in labels), labels
        assert re.fullmatch("[A-Za-z0-9_][A-Za-z0-9._-]*", sandbox_id)


def is_object(body: bytes) -> bool:
    """Tell whether a body is a JSON object."""
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def is_plain_yes(body: bytes) -> bool:
    """Tell whether a body is empty, or an object that nobody could read an error from."""
    if not body:
        return True
    answer = json.loads(body) if is_object(body) else {"error": "it is no object"}
    success = answer.get("success", True)
    return not answer.keys() & {"error", "errors", "Error"} and (success is True or isinstance(success, dict))


def test_a_page_that_repeats_an_entry_in_the_place_of_a_used_sandbox_forgets_nothing(
    provider: Provider, shared_redis: Redis
) -> None:
    world = make_world(provider, shared_redis)
    (tombstone,) = (each for each in world.memory.dump()[0].values() if each.status is Status.DELETED)
    tombstone = replace(tombstone, dirty=True)
    world.memory.seed(tombstone)
    missing = int(tombstone.sandbox_id)
    numbers = [number for number in range(1, 12) if number != missing][:9]
    pages = [[*numbers[:5]], [numbers[4], *numbers[5:]]]
    for _ in range(2):
        provider.say(
            *(
                a_list(json.dumps({"results": [*map(account, page)], "_offset": at, "_limit": 5, "total": 10}).encode())
                for at, page in zip((0, 5), pages, strict=True)
            )
        )
        with pytest.raises(ListNotWhole, match="9 of its 10 entries"):
            world.syncer.run(by=BY, force=True)
    provider.say(a_list(json.dumps({"results": [*map(account, range(1, 12))], "total": 11}).encode()))
    world.syncer.run(by=BY)
    assert world.record(tombstone.sandbox_id) == tombstone


@pytest.mark.timeout(300)
@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(sent=_DELETE_ANSWERS)
@example(sent=Sent(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: -1\r\n\r\n", 200, b"", is_whole=False))
def test_only_a_wipe_that_was_confirmed_makes_a_sandbox_available(
    provider: Provider, shared_redis: Redis, sent: Sent
) -> None:
    world = make_world(provider, shared_redis)
    before, claims_before = world.memory.dump()
    (due,) = world.cleaner.find_due()
    provider.say(sent)
    ended = world.cleaner.delete_sandbox(due, by=BY)
    after, claims_after = world.memory.dump()
    assert claims_after == claims_before
    assert {id_ for id_ in after if after[id_] != before[id_]} == {due}
    now = after[due]
    if now.status is Status.AVAILABLE:
        assert sent.is_whole and sent.status in {200, 204} and is_plain_yes(sent.body), (sent, now)  # noqa: PT018 - all show the answer
    assert now.dirty == (ended.outcome is not DeleteOutcome.DELETED)
    if now.status is Status.STALE:
        assert sent.is_whole and sent.status in {202, 404}, (sent, now)  # noqa: PT018 - both show the answer
        assert is_plain_yes(sent.body) if sent.status == 202 else is_object(sent.body), (sent, now)
    if now.status is Status.DELETION_FAILED:
        assert sent.status < 300 or 400 <= sent.status < 500, (sent, now)
    assert now.status in {Status.AVAILABLE, Status.STALE, Status.DELETION_FAILED, Status.PENDING_DELETION}


@pytest.mark.parametrize(("status", "body"), [(200, b""), (204, b""), (200, b"{}")])
def test_a_wipe_that_is_plainly_confirmed_makes_it_available(
    provider: Provider, shared_redis: Redis, status: int, body: bytes
) -> None:
    world = make_world(provider, shared_redis)
    (due,) = world.cleaner.find_due()
    head = b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    provider.say(Sent(head + body, status, body, is_whole=True))
    assert world.cleaner.delete_sandbox(due, by=BY).outcome is DeleteOutcome.DELETED
    assert world.record(due) == replace(world.record(due), status=Status.AVAILABLE, dirty=False)


def test_a_wipe_after_a_success_that_said_no_waits_for_a_sync(provider: Provider, shared_redis: Redis) -> None:
    world = make_world(provider, shared_redis)
    (due,) = world.cleaner.find_due()
    provider.say(a_list(b'{"error": [{"message": "The account is locked."}]}'), a_list(b"{}"))
    assert world.cleaner.delete_sandbox(due, by=BY).outcome is DeleteOutcome.WILL_RETRY
    refused = world.record(due)
    assert (refused.status, refused.dirty, flat(refused).deletion_retry_count) == (Status.PENDING_DELETION, True, 1)
    assert "The account is locked." in str(flat(refused).deletion_last_error)
    world.clock.advance(7200)
    assert world.cleaner.delete_sandbox(due, by=BY).outcome is DeleteOutcome.DELETED
    assert (world.record(due).status, world.record(due).dirty) == (Status.STALE, False)
