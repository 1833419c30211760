"""Webhook endpoints: who is told what, by which secrets, and what is sent again."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from standardwebhooks import Webhook

from broker_common.core.deadline import deadline_in
from broker_common.core.endpoints import (
    MAX_SECRETS,
    OLD_SECRET_SEC,
    EndpointChange,
    Endpoints,
    WantedEndpoint,
)
from broker_common.core.errors import (
    ClockWrong,
    DeliveryNotFound,
    InvalidInput,
    InvalidTransition,
    StoreUnavailable,
    UpgradeUnfinished,
    VersionMismatch,
    WebhookLimit,
    WebhookNotFound,
)
from broker_common.core.facts import Fact, FactKind, PoolFact, PoolFactKind
from broker_common.core.guard import Guard
from broker_common.core.schema import Upgrade
from broker_common.core.store import Conflict
from broker_common.core.webhook import MAX_ENDPOINTS, DeliveryState, Endpoint
from broker_common.core.webhook_payload import delivery_of
from broker_common.core.webhook_url import AllowedUrls
from tests.fakes import BY, START, FakeClock, FakeTableMemory, Fault, FlakyStore, MemoryStore, RecordingRecorder

if TYPE_CHECKING:
    from broker_common.core.webhook import Delivery

URL = "https://hooks.example.com/broker?of=acme"
DAY = 24 * 3600
KEPT_DAYS = 30


class Office:
    """Endpoints with everything that they need; each test has its own."""

    def __init__(self, *, hosts: tuple[str, ...] = (), loopback: bool = False, threads: int = 1) -> None:
        self.clock = FakeClock()
        self.memory = MemoryStore(self.clock)
        self.flaky = FlakyStore(self.memory)
        rng = Random(1)
        self.endpoints = Endpoints(
            records=self.flaky,
            reports=self.flaky,
            guard=Guard(
                store=self.memory, memory=FakeTableMemory(), recorder=RecordingRecorder(), clock=self.clock, rng=rng
            ),
            clock=self.clock,
            rng=rng,
            random_bytes=rng.randbytes,
            allowed=AllowedUrls(hosts=hosts, loopback=loopback),
            history_days=KEPT_DAYS,
            threads=threads,
        )

    def create(self, **different: Any) -> Endpoint:
        return self.endpoints.create(WantedEndpoint(**{"url": URL, "kinds": ("*",), **different}), by=BY)

    def change(self, endpoint: Endpoint, **changes: Any) -> Endpoint:
        return self.endpoints.change(endpoint.endpoint_id, EndpointChange(**changes), version=endpoint.version, by=BY)

    def end(self, delivery: Delivery, state: DeliveryState = DeliveryState.EXHAUSTED) -> Delivery:
        """Let a delivery end, after some tries."""
        current = self.memory.deliveries[delivery.endpoint_id, delivery.delivery_id]
        ended = replace(
            current, state=state, tries=9, next_try_at=None, last_try_at=START, last_status=500, last_answer="busy"
        )
        self.memory.write_delivery(current, ended)
        return ended

    def by_another(self, endpoint: Endpoint, **changes: Any) -> None:
        """Let another writer change an endpoint, just before the next write."""

        def act() -> None:
            current = self.memory.endpoints[endpoint.endpoint_id]
            self.memory.write_endpoint(current, replace(current, **changes))

        self.flaky.just_before("write_endpoint", act)

    def tell(self, how_many: int = 1, *, at: int = START, kind: FactKind = FactKind.ADDED) -> list[Fact]:
        """Write facts that were told before."""
        facts = [
            Fact(kind=kind, sandbox_id=f"s-{number}", version=at * 1000, at=at, principal="somebody")
            for number in range(how_many)
        ]
        self.memory.facts += facts
        return facts


@pytest.fixture
def office() -> Office:
    return Office()


# -- register


def test_an_endpoint_is_registered_as_it_is_asked_for(office: Office) -> None:
    made = office.create(kinds=("sandbox.allocated", "pool.paused"), description="the console")
    assert (made.url, made.kinds, made.description) == (URL, ("sandbox.allocated", "pool.paused"), "the console")
    assert (made.version, made.created_at, made.created_by) == (1, START, "somebody")
    assert (made.failing_since, made.disabled_at) == (None, None)
    assert office.endpoints.list() == [made] == [office.endpoints.get(made.endpoint_id)]


def test_a_secret_has_32_random_bytes_and_is_one_that_the_library_of_receivers_takes(office: Office) -> None:
    secrets = [office.create().secrets for _ in range(2)]
    assert secrets[0] != secrets[1]
    for (secret,) in secrets:
        assert secret.valid_until is None
        prefix, _, encoded = secret.value.partition("_")
        assert (prefix, len(base64.b64decode(encoded, validate=True))) == ("whsec", 32)
        Webhook(secret.value)


def test_no_secret_is_in_a_repr(office: Office) -> None:
    made = office.create()
    rotated = office.endpoints.rotate_secret(made.endpoint_id)
    for secret in rotated.secrets:
        assert secret.value not in f"{made!r} {rotated!r} {rotated.secrets!r}"


def test_endpoints_are_listed_with_the_oldest_first(office: Office) -> None:
    made = []
    for _ in range(5):
        made.append(office.create())
        office.clock.advance(1)
    office.memory.endpoints = dict(reversed(office.memory.endpoints.items()))
    assert office.endpoints.list() == made


def test_one_more_endpoint_than_there_may_be_is_refused(office: Office) -> None:
    made = [office.create() for _ in range(MAX_ENDPOINTS)]
    with pytest.raises(WebhookLimit, match="20 endpoints already"):
        office.create()
    office.endpoints.remove(made[0].endpoint_id)
    office.create()


def test_two_that_register_the_last_endpoint_at_once_do_not_both_get_it(office: Office) -> None:
    for _ in range(MAX_ENDPOINTS - 1):
        office.create()
    theirs: list[Endpoint] = []
    office.flaky.just_before("write_endpoint", lambda: theirs.append(office.create()))
    with pytest.raises(WebhookLimit):
        office.create()
    assert len(office.memory.endpoints) == MAX_ENDPOINTS
    assert theirs[0].endpoint_id in office.memory.endpoints


@pytest.mark.parametrize("upgraded", [0, Upgrade.LINE])
def test_nothing_is_registered_before_the_upgrade_is_finished(office: Office, upgraded: int) -> None:
    office.memory.upgraded = upgraded
    with pytest.raises(UpgradeUnfinished):
        office.create()


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "https://hooks.example.com:8443/a/b?c=d&e=%20f",
        "HTTPS://Hooks.Example.COM./",
        "https://xn--bcher-kva.example/",
        "https://93.184.216.34/",
        "https://[2606:2800:220:1:248:1893:25c8:1946]/",
        f"https://hooks.example.com/{'a' * 1974}",
    ],
)
def test_these_urls_may_be_registered(office: Office, url: str) -> None:
    assert office.create(url=url).url == url


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "must be a URL"),
        ("hooks.example.com", "must name a host"),
        ("https://", "must name a host"),
        ("https:///path", "must name a host"),
        ("https://?query", "must name a host"),
        ("https://.example.com/", "must name a host"),
        ("https://a..example.com/", "must name a host"),
        ("https://-a.example.com/", "must name a host"),
        (f"https://{'a' * 64}.example.com/", "must name a host"),
        ("https://a_b.example.com/", "must name a host"),
        ("https://2130706433/", "must name a host"),
        ("https://127.1/", "must name a host"),
        ("https://0x7f.0.0.0x1/", "must name a host"),
        ("https://[::1/", "must be a URL"),
        ("https://[fe80::1%25eth0]/", "must be on a public address"),
        ("https://hooks.example.com:0/", "must be a URL"),
        ("https://hooks.example.com:99999/", "must be a URL"),
        ("https://hooks.example.com:https/", "must be a URL"),
        ("http://hooks.example.com/", "must begin with https://"),
        ("ftp://hooks.example.com/", "must begin with https://"),
        ("file://hooks.example.com/etc/passwd", "must begin with https://"),
        ("https://anna@hooks.example.com/", "must not have a user or password"),
        ("https://anna:word@hooks.example.com/", "must not have a user or password"),
        ("https://@hooks.example.com/", "must not have a user or password"),
        ("https://hooks.example.com/#part", "must be a URL"),
        ("https://hooks.example.com/a b", "must be a URL"),
        ("https://hooks.example.com/a\tb", "must be a URL"),
        ("https://hooks.example.com/\n", "must be a URL"),
        ("https://hooks.example.com\r\nHost: other/", "must be a URL"),
        ("https://hooks.example.com/\x00", "must be a URL"),
        ("https://hooks.example.com\\@other.example/", "must be a URL"),
        ("https://bücher.example/", "must be a URL"),
        (f"https://hooks.example.com/{'a' * 1975}", "must be a URL of at most 2000 characters"),
        ("https://127.0.0.1/", "must be on a public address"),
        ("https://localhost/", "must be on a public address"),
        ("https://10.0.0.5/", "must be on a public address"),
        ("https://169.254.169.254/latest/meta-data/", "must be on a public address"),
        ("https://0.0.0.0/", "must be on a public address"),
        ("https://[::1]/", "must be on a public address"),
        ("https://[::ffff:10.0.0.5]/", "must be on a public address"),
        ("https://[fd00::5]/", "must be on a public address"),
    ],
)
def test_these_urls_may_not_and_the_answer_names_the_field_without_the_url(
    office: Office, url: str, problem: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        office.create(url=url)
    assert refused.value.message.startswith(f"url: {problem}")
    assert refused.value.details == {"url": [refused.value.message.removeprefix("url: ")]}
    assert "word" not in refused.value.message.replace("password", "")
    assert office.memory.endpoints == {}


def test_hosts_of_the_setting_may_be_anywhere_and_need_no_tls() -> None:
    office = Office(hosts=("hooks.internal", "10.0.0.5", "localhost"))
    for url in ("http://hooks.internal:8080/", "https://HOOKS.internal./", "http://10.0.0.5/", "http://localhost/"):
        assert office.create(url=url).url == url
    for url in ("http://other.internal/", "http://10.0.0.6/", "http://127.0.0.1/", "ftp://hooks.internal/"):
        with pytest.raises(InvalidInput):
            office.create(url=url)


def test_in_development_endpoints_may_be_on_this_machine() -> None:
    office = Office(loopback=True)
    for url in ("http://127.0.0.1:9999/", "http://localhost/", "https://[::1]/", "http://127.8.9.10/"):
        assert office.create(url=url).url == url
    for url in ("http://10.0.0.5/", "http://hooks.example.com/"):
        with pytest.raises(InvalidInput):
            office.create(url=url)


BAD_KINDS = [
    ((), "must not be empty"),
    (("sandbox.lost",), "must each be '*' or the name of a kind"),
    (("",), "must each be '*' or the name of a kind"),
    (("sandbox.added", "sandbox.added"), "must have each kind once"),
    (("*", "sandbox.added"), "must be '*' alone"),
]


@pytest.mark.parametrize(("kinds", "problem"), BAD_KINDS)
def test_kinds_that_make_no_sense_are_refused(office: Office, kinds: tuple[str, ...], problem: str) -> None:
    made = office.create()
    with pytest.raises(InvalidInput, match=f"^kinds: {re.escape(problem)}"):
        office.create(kinds=kinds)
    with pytest.raises(InvalidInput, match=f"^kinds: {re.escape(problem)}"):
        office.change(made, kinds=kinds)
    assert office.endpoints.list() == [made]


def test_an_endpoint_may_want_tests_alone(office: Office) -> None:
    made = office.create(kinds=("test",))
    assert made.kinds == ("test",)


# -- change and remove


def test_only_what_is_named_is_changed_and_the_version_grows(office: Office) -> None:
    made = office.create(description="the console")
    changed = office.change(made, kinds=("sandbox.allocated",))
    assert changed == replace(made, kinds=("sandbox.allocated",), version=2)
    assert office.change(changed, description="") == replace(changed, description=None, version=3)
    assert office.endpoints.get(made.endpoint_id).version == 3


def test_a_change_by_an_older_version_is_refused(office: Office) -> None:
    made = office.create()
    office.change(made, description="first")
    with pytest.raises(VersionMismatch) as refused:
        office.change(made, description="second")
    assert refused.value.details == {"version": 2}
    assert office.endpoints.get(made.endpoint_id).description == "first"


def test_a_change_that_loses_to_another_change_is_refused(office: Office) -> None:
    made = office.create()
    office.by_another(made, description="theirs", version=2)
    with pytest.raises(VersionMismatch):
        office.change(made, description="ours")


def test_a_change_is_made_although_the_broker_notes_a_failure_at_the_same_time(office: Office) -> None:
    made = office.create()
    office.by_another(made, failing_since=START)
    changed = office.change(made, description="ours")
    assert (changed.description, changed.failing_since) == ("ours", START)


def test_a_bad_url_changes_nothing(office: Office) -> None:
    made = office.create()
    with pytest.raises(InvalidInput, match=r"^url: "):
        office.change(made, url="http://hooks.example.com/")
    assert office.endpoints.get(made.endpoint_id) == made


def test_an_endpoint_whose_url_is_no_longer_allowed_can_still_be_disabled(office: Office) -> None:
    made = office.create()
    now_refused = replace(made, url="http://hooks.internal/")
    office.memory.write_endpoint(made, now_refused)
    assert office.change(now_refused, enabled=False).disabled_at == START


def test_a_new_url_begins_without_failures(office: Office) -> None:
    made = office.create()
    failing = replace(made, failing_since=START)
    office.memory.write_endpoint(made, failing)
    assert office.change(failing, url=URL).failing_since == START
    assert office.change(replace(failing, version=2), url=f"{URL}&v=2").failing_since is None


def test_an_endpoint_is_disabled_and_enabled_by_hand(office: Office) -> None:
    made = office.create()
    office.clock.advance(5)
    disabled = office.change(made, enabled=False)
    assert (disabled.disabled_at, disabled.disabled_reason) == (START + 5, "disabled by somebody")
    office.clock.advance(5)
    assert office.change(disabled, enabled=False).disabled_at == START + 5
    enabled = office.change(replace(disabled, version=3), enabled=True)
    assert (enabled.disabled_at, enabled.disabled_reason) == (None, None)
    assert office.change(enabled, enabled=True).disabled_at is None


def test_an_endpoint_that_the_broker_disabled_is_enabled_without_its_failures(office: Office) -> None:
    made = office.create()
    dead = replace(made, failing_since=START - 5 * DAY, disabled_at=START, disabled_reason="it failed for five days")
    office.memory.write_endpoint(made, dead)
    assert office.change(dead, enabled=True) == replace(made, version=2)


def test_a_removed_endpoint_is_gone(office: Office) -> None:
    made = office.create()
    office.by_another(made, failing_since=START)
    office.endpoints.remove(made.endpoint_id)
    assert office.endpoints.list() == []
    for call in (office.endpoints.get, office.endpoints.remove, office.endpoints.rotate_secret):
        with pytest.raises(WebhookNotFound):
            call(made.endpoint_id)
    with pytest.raises(WebhookNotFound):
        office.change(made, enabled=True)
    with pytest.raises(WebhookNotFound):
        office.endpoints.test(made.endpoint_id, by=BY)


@pytest.mark.parametrize("fault", [Fault.LOST_AFTER, Fault.LOST_BEFORE])
def test_a_write_whose_answer_is_lost_leaves_one_whole_endpoint_or_none(office: Office, fault: Fault) -> None:
    office.flaky.fail("write_endpoint", fault)
    with pytest.raises(StoreUnavailable):
        office.create()
    assert len(office.memory.endpoints) == (fault is Fault.LOST_AFTER)


def test_a_change_gives_up_at_its_deadline(office: Office) -> None:
    made = office.create()
    office.flaky.fail("write_endpoint", *[Conflict("busy", current=None)] * 100)
    with deadline_in(1, office.clock), pytest.raises(StoreUnavailable, match="being changed by others"):
        office.change(made, description="ours")


# -- secrets


def test_a_rotation_gives_a_new_secret_and_the_old_one_signs_for_a_day(office: Office) -> None:
    made = office.create()
    rotated = office.endpoints.rotate_secret(made.endpoint_id)
    new, old = rotated.secrets
    assert new.value != made.secrets[0].value
    assert new.valid_until is None
    assert old == replace(made.secrets[0], valid_until=START + OLD_SECRET_SEC)
    assert rotated.version == 2


def test_a_second_rotation_keeps_the_secret_that_a_receiver_may_still_have(office: Office) -> None:
    made = office.create()
    office.endpoints.rotate_secret(made.endpoint_id)
    office.clock.advance(3600)
    _, second, first = office.endpoints.rotate_secret(made.endpoint_id).secrets
    assert second.valid_until == START + 3600 + OLD_SECRET_SEC
    assert first == replace(made.secrets[0], valid_until=START + OLD_SECRET_SEC)


def test_secrets_that_sign_no_more_are_forgotten(office: Office) -> None:
    made = office.create()
    office.endpoints.rotate_secret(made.endpoint_id)
    office.clock.advance(OLD_SECRET_SEC)
    assert len(office.endpoints.rotate_secret(made.endpoint_id).secrets) == 2


def test_few_secrets_sign_at_once(office: Office) -> None:
    made = office.create()
    for _ in range(2 * MAX_SECRETS):
        rotated = office.endpoints.rotate_secret(made.endpoint_id)
    assert len(rotated.secrets) == len({each.value for each in rotated.secrets}) == MAX_SECRETS


def test_two_rotations_at_once_lose_no_secret(office: Office) -> None:
    made = office.create()
    office.flaky.just_before("write_endpoint", lambda: office.endpoints.rotate_secret(made.endpoint_id))
    assert len(office.endpoints.rotate_secret(made.endpoint_id).secrets) == 3


# -- test and retry


def test_a_test_is_a_delivery_that_is_due_at_once(office: Office) -> None:
    made = office.create(kinds=("sandbox.added",))
    delivery = office.endpoints.test(made.endpoint_id, by=BY)
    assert (delivery.kind, delivery.sandbox_id, delivery.next_try_at) == ("test", None, START)
    assert office.memory.read_due_deliveries(made.endpoint_id, until=START, limit=10) == [delivery]
    assert office.endpoints.test(made.endpoint_id, by=BY).delivery_id != delivery.delivery_id


def test_a_delivery_that_has_ended_is_sent_again_with_all_its_tries(office: Office) -> None:
    made = office.create()
    delivery = office.endpoints.test(made.endpoint_id, by=BY)
    for state in (DeliveryState.EXHAUSTED, DeliveryState.DELIVERED):
        office.end(delivery, state)
        office.clock.advance(60)
        again = office.endpoints.retry(made.endpoint_id, delivery.delivery_id)
        assert (again.state, again.tries, again.next_try_at) == (DeliveryState.PENDING, 0, office.clock.now())
        assert (again.payload, again.last_answer) == (delivery.payload, "busy")
        assert office.endpoints.delivery(made.endpoint_id, delivery.delivery_id) == again


def let_wait(office: Office, delivery: Delivery, **different: Any) -> Delivery:
    waiting = replace(delivery, tries=3, next_try_at=office.clock.now() + 1800, **different)
    office.memory.write_delivery(delivery, waiting)
    return waiting


def add_of_sandbox(office: Office, endpoint: Endpoint, *, version: int) -> Delivery:
    fact = Fact(kind=FactKind.ADDED, sandbox_id="s-1", version=version, at=START, principal="somebody")
    delivery = delivery_of(fact, endpoint, now=office.clock.now())
    assert office.memory.add_delivery(delivery)
    return delivery


def test_a_delivery_that_waits_for_its_next_try_can_be_sent_now_with_all_its_tries(office: Office) -> None:
    made = office.create()
    for delivery in (office.endpoints.test(made.endpoint_id, by=BY), add_of_sandbox(office, made, version=1)):
        let_wait(office, delivery)
        again = office.endpoints.retry(made.endpoint_id, delivery.delivery_id)
        assert (again.state, again.tries, again.next_try_at) == (DeliveryState.PENDING, 0, office.clock.now())


def test_a_delivery_that_waits_for_an_older_one_of_its_sandbox_is_not_sent_before_it(office: Office) -> None:
    made = office.create()
    first, second = (let_wait(office, add_of_sandbox(office, made, version=version)) for version in (1, 2))
    with pytest.raises(InvalidTransition, match=f"retry '{first.delivery_id}'"):
        office.endpoints.retry(made.endpoint_id, second.delivery_id)


def test_what_waits_for_a_delivery_is_due_with_it(office: Office) -> None:
    made = office.create()
    first, second, third = (let_wait(office, add_of_sandbox(office, made, version=version)) for version in (1, 2, 3))
    office.endpoints.retry(made.endpoint_id, first.delivery_id)
    for each in (second, third):
        assert office.memory.deliveries[made.endpoint_id, each.delivery_id].next_try_at == office.clock.now()


def test_a_delivery_for_which_nothing_waits_is_sent_now_although_a_newer_one_has_ended(office: Office) -> None:
    made = office.create()
    first, second = (add_of_sandbox(office, made, version=version) for version in (1, 2))
    office.end(second)
    let_wait(office, first)
    assert office.endpoints.retry(made.endpoint_id, first.delivery_id).next_try_at == office.clock.now()


def test_a_delivery_is_not_sent_again_while_it_is_sent(office: Office) -> None:
    made = office.create()
    delivery = office.endpoints.test(made.endpoint_id, by=BY)
    let_wait(office, delivery, attempt_id="one")
    with pytest.raises(InvalidTransition, match="is pending"):
        office.endpoints.retry(made.endpoint_id, delivery.delivery_id)


def test_a_delivery_that_is_due_is_not_sent_again(office: Office) -> None:
    made = office.create()
    delivery = office.endpoints.test(made.endpoint_id, by=BY)
    with pytest.raises(InvalidTransition, match="is pending"):
        office.endpoints.retry(made.endpoint_id, delivery.delivery_id)


def test_of_two_retries_at_once_one_is_refused(office: Office) -> None:
    made = office.create()
    delivery = office.endpoints.test(made.endpoint_id, by=BY)
    office.end(delivery)

    def be_first() -> None:
        office.clock.advance(1)
        office.endpoints.retry(made.endpoint_id, delivery.delivery_id)

    office.flaky.just_before("write_delivery", be_first)
    with pytest.raises(InvalidTransition):
        office.endpoints.retry(made.endpoint_id, delivery.delivery_id)


def test_deliveries_that_do_not_exist_or_belong_to_another_endpoint_are_not_found(office: Office) -> None:
    made, other = office.create(), office.create()
    delivery = office.endpoints.test(made.endpoint_id, by=BY)
    for endpoint, name in ((made, "none"), (made, ""), (other, delivery.delivery_id)):
        with pytest.raises(DeliveryNotFound):
            office.endpoints.retry(endpoint.endpoint_id, name)
    with pytest.raises(WebhookNotFound):
        office.endpoints.delivery("none", delivery.delivery_id)


def test_deliveries_are_listed_by_state_page_after_page(office: Office) -> None:
    made, other = office.create(), office.create()
    deliveries = [office.endpoints.test(made.endpoint_id, by=BY) for _ in range(5)]
    office.end(deliveries[0])

    def read(state: DeliveryState | None, cursor: str | None = None, of: Endpoint = made) -> Any:
        return office.endpoints.deliveries(of.endpoint_id, state=state, limit=3, cursor=cursor)

    first = read(DeliveryState.PENDING)
    rest = read(DeliveryState.PENDING, first.cursor)
    assert (len(first.deliveries), len(rest.deliveries), rest.cursor) == (3, 1, None)
    assert {each.delivery_id for each in first.deliveries + rest.deliveries} == {
        each.delivery_id for each in deliveries[1:]
    }
    assert [each.delivery_id for each in read(DeliveryState.EXHAUSTED).deliveries] == [deliveries[0].delivery_id]
    for state, cursor, of in ((None, first.cursor, made), (DeliveryState.PENDING, first.cursor, other)):
        with pytest.raises(InvalidInput):
            read(state, cursor, of)
    with pytest.raises(WebhookNotFound):
        office.endpoints.deliveries("none", state=None, limit=3, cursor=None)


# -- replay


def replay_all(office: Office, endpoint: Endpoint, since: int = START - DAY) -> tuple[int, int]:
    """Replay to the end, as a client does; return how many deliveries it made pending, and by how many calls."""
    cursor, replayed = None, 0
    for calls in count(1):
        done = office.endpoints.replay(endpoint.endpoint_id, since=since, cursor=cursor)
        replayed += done.replayed
        cursor = done.cursor
        if cursor is None:
            return replayed, calls
    raise AssertionError


def test_a_replay_tells_a_new_endpoint_the_past(office: Office) -> None:
    office.tell(3, at=START - 2 * DAY)
    facts = office.tell(5, at=START - DAY)
    made = office.create()
    assert replay_all(office, made) == (5, 1)
    pending = office.memory.read_due_deliveries(made.endpoint_id, until=START, limit=100)
    assert {each.sandbox_id for each in pending} == {fact.sandbox_id for fact in facts}
    assert {each.fact_at for each in pending} == {START - DAY}


def test_a_replay_sends_only_the_kinds_of_the_endpoint(office: Office) -> None:
    office.tell(2)
    office.memory.facts.append(PoolFact(kind=PoolFactKind.PAUSED, fact_id="fact-1", at=START, principal="anna"))
    made = office.create(kinds=("pool.paused",))
    assert replay_all(office, made) == (1, 1)
    assert [each.kind for each in office.memory.deliveries.values()] == ["pool.paused"]


def test_a_replay_sends_again_what_has_ended_and_leaves_what_is_pending(office: Office) -> None:
    office.tell(3)
    made = office.create()
    replay_all(office, made)
    delivered, exhausted, pending = office.memory.deliveries.values()
    office.end(delivered, DeliveryState.DELIVERED)
    office.end(exhausted)
    assert replay_all(office, made) == (2, 1)
    assert list(office.memory.deliveries.values())[2] == pending
    assert {each.state for each in office.memory.deliveries.values()} == {DeliveryState.PENDING}


def test_a_long_replay_is_done_by_calls_of_bounded_length(office: Office) -> None:
    office.tell(6000, at=START - 3600)
    made = office.create()

    def slow(method: str) -> None:
        if method == "read_feed":
            office.clock.advance(1)

    office.flaky.before_call = slow
    started = office.clock.monotonic()
    first = office.endpoints.replay(made.endpoint_id, since=START - DAY)
    assert office.clock.monotonic() - started < 15
    assert first.cursor is not None
    assert first.replayed == 1000
    replayed, calls = 0, 0
    cursor: str | None = first.cursor
    while cursor is not None:
        done = office.endpoints.replay(made.endpoint_id, since=START - DAY, cursor=cursor)
        replayed, calls, cursor = replayed + done.replayed, calls + 1, done.cursor
    assert first.replayed + replayed == len(office.memory.deliveries) == 6000
    assert calls == 5


def test_a_replay_ends_well_before_the_deadline_of_its_call(office: Office) -> None:
    office.tell(1000)
    made = office.create()
    office.flaky.before_call = lambda method: office.clock.advance(1.0 if method == "read_feed" else 0)
    with deadline_in(4, office.clock):
        assert office.endpoints.replay(made.endpoint_id, since=START).replayed == 200


@pytest.mark.parametrize("fault", [Fault.LOST_AFTER, Fault.LOST_BEFORE, Fault.REFUSED])
def test_a_replay_that_dies_in_the_middle_and_is_repeated_loses_nothing(office: Office, fault: Fault) -> None:
    office.tell(250)
    made = office.create()
    office.flaky.fail("add_delivery", *[None] * 130, fault)
    with pytest.raises(StoreUnavailable):
        replay_all(office, made)
    assert 0 < len(office.memory.deliveries) < 250
    replay_all(office, made)
    assert len(office.memory.deliveries) == 250


def test_a_replay_makes_no_delivery_of_a_sandbox_whose_older_one_could_not_be_made() -> None:
    office = Office(threads=2)
    for second in range(2):
        office.tell(at=START + second)
    made = office.create()
    office.flaky.fail("add_delivery", Fault.REFUSED)
    with pytest.raises(StoreUnavailable):
        replay_all(office, made)
    assert not office.memory.deliveries


def test_a_replay_goes_on_although_a_delivery_changes_meanwhile(office: Office) -> None:
    (fact,) = office.tell()
    made = office.create()
    replay_all(office, made)
    office.end(next(iter(office.memory.deliveries.values())))
    office.flaky.fail("write_delivery", Conflict("busy", current=None))
    assert replay_all(office, made) == (1, 1)
    office.end(next(iter(office.memory.deliveries.values())))
    office.flaky.just_before("read_delivery", office.memory.deliveries.clear)  # its time to be kept has just ended
    assert replay_all(office, made) == (1, 1)
    assert [each.sandbox_id for each in office.memory.deliveries.values()] == [fact.sandbox_id]


@pytest.mark.parametrize(
    ("since", "problem"),
    [
        (START + 1, "must not be in the future"),
        (START - START % DAY - KEPT_DAYS * DAY - 1, "must not be longer ago than facts are kept: 30 days"),
    ],
)
def test_a_replay_from_the_future_or_from_before_the_kept_facts_is_refused(
    office: Office, since: int, problem: str
) -> None:
    made = office.create()
    with pytest.raises(InvalidInput) as refused:
        office.endpoints.replay(made.endpoint_id, since=since)
    assert refused.value.message == f"since: {problem}"
    for kept in (START, START - START % DAY - KEPT_DAYS * DAY):
        office.endpoints.replay(made.endpoint_id, since=kept)


def test_a_replay_that_began_in_time_goes_on_after_midnight(office: Office) -> None:
    office.tell(1000)
    made = office.create()
    office.flaky.before_call = lambda _: office.clock.advance(2)
    since = START - START % DAY - KEPT_DAYS * DAY
    cursor = office.endpoints.replay(made.endpoint_id, since=since).cursor
    assert cursor is not None
    office.clock.advance(DAY)
    office.endpoints.replay(made.endpoint_id, since=since, cursor=cursor)


def test_a_cursor_of_another_replay_is_refused(office: Office) -> None:
    office.tell(1000)
    made, other = office.create(), office.create()
    office.flaky.before_call = lambda _: office.clock.advance(2)
    cursor = office.endpoints.replay(made.endpoint_id, since=START).cursor
    assert cursor is not None
    deep = base64.urlsafe_b64encode(b"[" * 100_000).decode()
    for endpoint, since, given in (
        (other, START, cursor),
        (made, START - 1, cursor),
        (made, START, cursor[:-4]),
        *((made, START, each) for each in ("", "none", "e30=", "W10=", deep)),
    ):
        with pytest.raises(InvalidInput, match=r"^cursor: "):
            office.endpoints.replay(endpoint.endpoint_id, since=since, cursor=given)


def test_an_unknown_endpoint_or_an_unfinished_upgrade_has_no_replay(office: Office) -> None:
    with pytest.raises(WebhookNotFound):
        office.endpoints.replay("none", since=START)
    made = office.create()
    office.memory.upgraded = 0
    office.clock.advance(5)
    with pytest.raises(UpgradeUnfinished):
        office.endpoints.replay(made.endpoint_id, since=START)


def test_a_process_whose_clock_is_wrong_changes_nothing(office: Office) -> None:
    made = office.create()
    delivery = office.endpoints.test(made.endpoint_id, by=BY)
    office.memory._clock = FakeClock(START + DAY)
    office.clock.advance(5)
    name = made.endpoint_id
    calls = (
        office.create,
        lambda: office.change(made, enabled=False),
        lambda: office.endpoints.remove(name),
        lambda: office.endpoints.rotate_secret(name),
        lambda: office.endpoints.test(name, by=BY),
        lambda: office.endpoints.retry(name, delivery.delivery_id),
        lambda: office.endpoints.replay(name, since=START),
    )
    for call in calls:
        with pytest.raises(ClockWrong):
            call()
    assert office.endpoints.list() == [made]
