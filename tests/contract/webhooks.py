"""What every store promises of webhooks: endpoints, the facts that were not told yet, and deliveries."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker_common.core.errors import InvalidInput
from broker_common.core.facts import Fact, FactKind, PoolFact, PoolFactKind
from broker_common.core.lease import candidate_of, end
from broker_common.core.pool import mark_stale, restore
from broker_common.core.sandbox import DeletionReason
from broker_common.core.store import Allocated, Conflict, Pause, Pauses
from broker_common.core.webhook import Delivery, DeliveryState, Endpoint, Secret
from tests.fakes import (
    BY,
    START,
    add_of,
    change_of,
    make_account,
    make_claim,
    make_reservation,
    make_sandbox,
    removal_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker_common.core.store import SandboxStore

FAR = 10**11
"""A time for which no engine removes a record while a test runs."""
_ids = count()
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_TIME = st.integers(0, 2**40)


def make_endpoint(endpoint_id: str = "hook", **changes: Any) -> Endpoint:
    """Return an endpoint that wants every kind of fact."""
    values: dict[str, Any] = {
        "endpoint_id": endpoint_id,
        "url": f"https://{endpoint_id}.example/in",
        "kinds": ("*",),
        "secrets": (Secret(value="whsec_secret"),),
        "created_at": START - 3600,
        "created_by": "admin",
    }
    return Endpoint(**{**values, **changes})


def make_delivery(sandbox_id: str | None = "7", version: int = 1, **changes: Any) -> Delivery:
    """Return a delivery to the endpoint `hook` that is due at `FAR` and as many seconds as its version."""
    kind = changes.get("kind", "sandbox.updated" if sandbox_id else "pool.paused")
    values: dict[str, Any] = {
        "endpoint_id": "hook",
        "delivery_id": f"{sandbox_id}:{version}:{kind.replace('.', '_')}" if sandbox_id else f"pool-{version}",
        "kind": kind,
        "sandbox_id": sandbox_id,
        "version": version,
        "payload": "{}",
        "fact_at": FAR,
        "created_at": FAR,
        "next_try_at": FAR + version,
    }
    return Delivery(**{**values, **changes})


def delivered(delivery: Delivery, at: int = FAR) -> Delivery:
    return replace(
        delivery,
        state=DeliveryState.DELIVERED,
        tries=delivery.tries + 1,
        next_try_at=None,
        last_try_at=at,
        last_status=200,
        last_answer="ok",
        delivered_at=at,
    )


def exhausted(delivery: Delivery, at: int = FAR) -> Delivery:
    return replace(delivery, state=DeliveryState.EXHAUSTED, tries=10, next_try_at=None, last_try_at=at)


def add(store: SandboxStore, *deliveries: Delivery) -> None:
    for each in deliveries:
        assert store.add_delivery(each)


def pool_fact(fact_id: str = "one", at: int = START) -> PoolFact:
    return PoolFact(kind=PoolFactKind.PAUSED, fact_id=fact_id, at=at, principal="op", details={"operation": "sync"})


def untold(store: SandboxStore) -> list[Fact | PoolFact]:
    return store.find_untold(limit=100)


def tell_all(store: SandboxStore) -> None:
    for fact in untold(store):
        store.told(fact)


def lives(store: SandboxStore, sandbox_id: str, *, began: int = START) -> list[Fact]:
    """Add a sandbox, have it held and given back; return its facts."""
    sandbox = make_sandbox(sandbox_id, version=began * 1000, updated_at=began)
    added = add_of(sandbox)
    store.commit(added)
    claim = make_claim(sandbox, f"track-of-{sandbox_id}", allocated_at=began)
    answer = store.allocate(candidate_of(sandbox), claim, by=BY, token=f"hook-token-{next(_ids)}")
    assert answer == Allocated()
    held = store.get(sandbox_id)
    assert held is not None
    ended = end(held, reason=DeletionReason.MARKED, by=BY, now=began + 10)
    store.commit(ended)
    history = store.read_history(sandbox_id, limit=10, cursor=None).facts
    assert [fact.kind for fact in history] == [FactKind.MARKED, FactKind.ALLOCATED, FactKind.ADDED]
    return list(reversed(history))


def listed(store: SandboxStore, state: DeliveryState | None, *, limit: int = 2) -> list[Delivery]:
    """Return all deliveries to the endpoint `hook`, page by page."""
    page = store.list_deliveries("hook", state=state, limit=limit, cursor=None)
    found = [*page.deliveries]
    while page.cursor is not None:
        assert len(page.deliveries) <= limit
        page = store.list_deliveries("hook", state=state, limit=limit, cursor=page.cursor)
        found += page.deliveries
    return found


def by_name(facts: Iterable[Fact | PoolFact]) -> list[Fact | PoolFact]:
    return sorted(facts, key=repr)


@st.composite
def endpoints(draw: st.DrawFn) -> Endpoint:
    secrets = st.builds(Secret, value=_TEXT, valid_until=st.none() | _TIME)
    return Endpoint(
        endpoint_id=f"hook-{next(_ids)}",
        url=draw(_TEXT),
        kinds=tuple(draw(st.lists(_TEXT, max_size=3))),
        description=draw(st.none() | _TEXT),
        secrets=tuple(draw(st.lists(secrets, max_size=2))),
        version=draw(_TIME),
        created_at=draw(_TIME),
        created_by=draw(_TEXT),
        failing_since=draw(st.none() | _TIME),
        probe_at=draw(st.none() | _TIME),
        disabled_at=draw(st.none() | _TIME),
        disabled_reason=draw(st.none() | _TEXT),
    )


class WebhookContract:
    """The promises of every store to a single caller, about webhooks."""

    # -- endpoints

    @given(endpoint=endpoints())
    @settings(
        deadline=None,
        derandomize=True,
        max_examples=25,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    def test_every_field_of_an_endpoint_survives_storage(self, store: SandboxStore, endpoint: Endpoint) -> None:
        store.write_endpoint(None, endpoint)
        assert store.read_endpoint(endpoint.endpoint_id) == endpoint
        assert store.read_endpoints() == [endpoint]
        store.write_endpoint(endpoint, None)
        assert store.read_endpoints() == []

    def test_endpoints_are_added_changed_and_removed_each_also_when_it_is_sent_again(self, store: SandboxStore) -> None:
        first, second = make_endpoint("one"), make_endpoint("two")
        for each in (first, first, second):
            store.write_endpoint(None, each)
        changed = replace(first, version=2, kinds=("sandbox.allocated",), description="new")
        for _ in range(2):
            store.write_endpoint(first, changed)
        assert sorted(store.read_endpoints(), key=lambda each: each.endpoint_id) == [changed, second]
        for _ in range(2):
            store.write_endpoint(changed, None)
        assert store.read_endpoints() == [second]
        assert store.read_endpoint("one") is None

    @pytest.mark.parametrize(
        "current",
        [
            {"version": 2},
            {"failing_since": START},
            {"probe_at": START},
            {"disabled_at": START, "disabled_reason": "failed"},
        ],
    )
    def test_an_endpoint_that_another_writer_has_changed_stays_as_it_is(
        self, store: SandboxStore, current: dict[str, Any]
    ) -> None:
        known = make_endpoint()
        there = replace(known, **current)
        store.write_endpoint(None, there)
        for after in (replace(known, version=9), None):
            with pytest.raises(Conflict):
                store.write_endpoint(known, after, fact=pool_fact("not told"))
        with pytest.raises(Conflict):
            store.write_endpoint(None, known)
        assert store.read_endpoint("hook") == there
        assert untold(store) == []

    def test_an_endpoint_that_is_gone_is_not_changed(self, store: SandboxStore) -> None:
        with pytest.raises(Conflict):
            store.write_endpoint(make_endpoint(), make_endpoint(version=2))
        assert store.read_endpoints() == []

    def test_an_endpoint_is_changed_together_with_its_fact(self, store: SandboxStore) -> None:
        endpoint = make_endpoint()
        store.write_endpoint(None, endpoint)
        disabled = replace(endpoint, disabled_at=START, disabled_reason="it is gone")
        store.write_endpoint(endpoint, disabled, fact=pool_fact("off"))
        assert store.read_endpoint("hook") == disabled
        assert untold(store) == [pool_fact("off")]
        assert list(store.read_feed(since=0, cursor=None, limit=10).facts) == [pool_fact("off")]

    # -- untold facts

    def test_without_an_endpoint_every_fact_counts_as_told(self, store: SandboxStore) -> None:
        lives(store, "7")
        store.record(pool_fact())
        assert (untold(store), store.oldest_untold()) == ([], None)

    def test_while_there_is_an_endpoint_each_fact_is_untold_until_it_is_told(self, store: SandboxStore) -> None:
        store.write_endpoint(None, make_endpoint())
        facts = lives(store, "7")
        assert untold(store) == facts
        for _ in range(2):
            store.told(facts[0])
        assert untold(store) == facts[1:]
        for fact in facts[1:]:
            store.told(fact)
        assert (untold(store), store.oldest_untold()) == ([], None)

    @pytest.mark.many_calls
    def test_each_kind_of_write_leaves_its_fact_untold_once_also_when_it_is_sent_again(
        self, store: SandboxStore
    ) -> None:
        store.write_endpoint(None, make_endpoint())
        sandbox = make_sandbox("7")
        stale = mark_stale(sandbox, by=BY, now=START, last_seen=None)
        restored = restore(stale.result, make_account("7"), order=5, by=BY, now=START + 1)
        moved = change_of(
            restored.result, replace(restored.result, external_id="uuid-new", version=restored.result.version + 1)
        )
        changes = [add_of(sandbox), stale, restored, moved, removal_of(moved.result)]
        for change in changes:
            for _ in range(2):
                store.commit(change)
        many = [add_of(make_sandbox(f"sbx-{number}")) for number in range(25)]
        store.commit(*many)
        class_ = make_reservation()
        paused = Pauses(sync=Pause(by="op", since=START))
        for _ in range(2):
            store.record(pool_fact("recorded"))
            store.set_pauses(Pauses(), paused, pool_fact("paused"))
        store.write_reservation(None, class_, version=0, fact=pool_fact("booked"))
        store.mark_opened(replace(class_, opened_at=START), pool_fact("opened"))
        expected: list[Fact | PoolFact] = [
            *(change.fact for change in (*changes, *many) if change.fact),
            *map(pool_fact, ("recorded", "paused", "booked", "opened")),
        ]
        assert by_name(untold(store)) == by_name(expected)
        assert [fact for fact in untold(store) if isinstance(fact, Fact) and fact.sandbox_id == "7"] == [
            change.fact for change in changes
        ]

    def test_a_write_that_does_not_hold_leaves_nothing_untold(self, store: SandboxStore) -> None:
        first = make_sandbox("7")
        store.commit(add_of(first))
        store.write_endpoint(None, make_endpoint())
        with pytest.raises(Conflict):
            store.commit(add_of(make_sandbox("7", version=5)))
        with pytest.raises(Conflict):
            store.commit(mark_stale(replace(first, version=9), by=BY, now=START, last_seen=None))
        with pytest.raises(Conflict):
            store.set_pauses(Pauses(sync=Pause()), Pauses(sync=None, expire=Pause()), pool_fact("no"))
        assert untold(store) == []

    def test_facts_of_a_time_without_an_endpoint_are_never_untold_and_those_between_stay_so(
        self, store: SandboxStore
    ) -> None:
        lives(store, "before")
        endpoint = make_endpoint()
        store.write_endpoint(None, endpoint)
        between = lives(store, "between")
        store.write_endpoint(endpoint, None)
        lives(store, "after")
        assert untold(store) == between
        tell_all(store)
        assert untold(store) == []

    @pytest.mark.many_calls
    def test_untold_facts_come_in_the_order_of_versions_and_a_few_of_them_are_the_first(
        self, store: SandboxStore
    ) -> None:
        store.write_endpoint(None, make_endpoint())
        expected = {f"sbx-{number}": lives(store, f"sbx-{number}", began=START + number) for number in range(5)}
        for limit in range(1, 16):
            found = store.find_untold(limit=limit)
            assert 1 <= len(found) <= limit
            for sandbox_id, facts in expected.items():
                of_it = [fact for fact in found if isinstance(fact, Fact) and fact.sandbox_id == sandbox_id]
                assert of_it == facts[: len(of_it)]
        told = 0
        while page := store.find_untold(limit=2):
            for fact in page:
                store.told(fact)
            told += len(page)
        assert told == 15

    def test_the_oldest_untold_fact_is_known_by_its_time(self, store: SandboxStore) -> None:
        store.write_endpoint(None, make_endpoint())
        for at in (START + 50, START + 20, START + 90):
            store.record(pool_fact(f"at {at}", at=at))
        assert store.oldest_untold() == START + 20
        store.told(pool_fact(f"at {START + 20}", at=START + 20))
        assert store.oldest_untold() == START + 50

    def test_history_and_feed_show_a_fact_whether_it_was_told_or_not(self, store: SandboxStore) -> None:
        store.write_endpoint(None, make_endpoint())
        facts = lives(store, "7")
        store.told(facts[0])
        assert list(store.read_history("7", limit=9, cursor=None).facts) == facts[::-1]
        assert list(store.read_feed(since=0, cursor=None, limit=9).facts) == facts
        first = store.read_feed(since=0, cursor=None, limit=1)
        tell_all(store)
        assert list(store.read_feed(since=0, cursor=first.cursor, limit=9).facts) == facts[1:]

    def test_facts_whose_sandbox_was_removed_are_told_too(self, store: SandboxStore) -> None:
        store.write_endpoint(None, make_endpoint())
        sandbox = make_sandbox("7")
        store.commit(add_of(sandbox))
        store.commit(removal_of(sandbox))
        assert [fact.kind for fact in untold(store)] == [FactKind.ADDED, FactKind.REMOVED]

    # -- deliveries

    @pytest.mark.parametrize(
        "delivery",
        [
            make_delivery(),
            make_delivery(None, 5),
            make_delivery(None, 6, delivery_id="test.5.of.dots", kind="test"),
            make_delivery("with:5:dots. and #", 2**45, payload='{"é": "\\u00fc\n"}', attempt_id="a", tries=3),
            delivered(make_delivery("7", 3)),
            replace(exhausted(make_delivery("7", 4)), last_status=None, last_answer="timed out"),
        ],
    )
    def test_every_field_of_a_delivery_survives_storage(self, store: SandboxStore, delivery: Delivery) -> None:
        add(store, delivery)
        assert store.read_delivery("hook", delivery.delivery_id) == delivery
        assert store.read_delivery("other", delivery.delivery_id) is None
        assert store.read_delivery("hook", f"{delivery.delivery_id}x") is None
        assert listed(store, delivery.state) == [delivery]

    def test_a_delivery_is_added_once_for_each_endpoint(self, store: SandboxStore) -> None:
        first = make_delivery()
        add(store, first, replace(first, endpoint_id="other"))
        sent = delivered(first)
        store.write_delivery(first, sent)
        assert not store.add_delivery(first)
        assert store.read_delivery("hook", first.delivery_id) == sent
        assert store.read_delivery("other", first.delivery_id) == replace(first, endpoint_id="other")

    def test_due_are_the_pending_ones_whose_time_has_come_the_earliest_first(self, store: SandboxStore) -> None:
        first, second, third = (make_delivery(None, version) for version in (1, 2, 3))
        add(store, third, first, second, replace(first, endpoint_id="other", next_try_at=FAR))
        add(store, delivered(make_delivery("7", 1)), exhausted(make_delivery("7", 2)))
        assert store.read_due_deliveries("hook", until=FAR, limit=10) == []
        assert store.read_due_deliveries("hook", until=FAR + 2, limit=10) == [first, second]
        assert store.read_due_deliveries("hook", until=2**60, limit=10) == [first, second, third]
        assert store.read_due_deliveries("hook", until=FAR + 9, limit=1) == [first]
        later = replace(first, next_try_at=FAR + 7)
        store.write_delivery(first, later)
        assert store.read_due_deliveries("hook", until=FAR + 9, limit=10) == [second, third, later]

    @pytest.mark.many_calls
    def test_more_are_due_than_fit_into_a_page(self, store: SandboxStore) -> None:
        many = [make_delivery(f"sbx-{number}", number) for number in range(1, 121)]
        add(store, *many)
        assert store.read_due_deliveries("hook", until=FAR + 500, limit=110) == many[:110]

    def test_pending_of_a_sandbox_are_those_after_the_last_that_has_ended(self, store: SandboxStore) -> None:
        assert store.read_pending("hook", "7") == []
        first, second, third, fourth = (make_delivery("7", version) for version in (9, 10, 11, 100))
        add(store, fourth, second, first, third)
        add(store, make_delivery("77"), make_delivery("7#0", 1), make_delivery("7.7", 5), make_delivery(None, 4))
        add(store, replace(first, endpoint_id="hook2"))
        assert store.read_pending("hook", "7") == [first, second, third, fourth]
        assert store.read_pending("hook", "7#0") == [make_delivery("7#0", 1)]
        store.write_delivery(first, delivered(first))
        assert store.read_pending("hook", "7") == [second, third, fourth]
        store.write_delivery(second, exhausted(second))
        assert store.read_pending("hook", "7") == [third, fourth]
        store.write_delivery(delivered(first), replace(first, next_try_at=FAR + 99))
        assert store.read_pending("hook", "7") == [third, fourth]
        store.write_delivery(third, delivered(third))
        store.write_delivery(fourth, delivered(fourth))
        assert store.read_pending("hook", "7") == []

    def test_many_may_be_pending_for_one_sandbox(self, store: SandboxStore) -> None:
        many = [make_delivery("7", version) for version in range(1, 41)]
        add(store, *many)
        assert store.read_pending("hook", "7") == many

    @pytest.mark.parametrize(
        "current",
        [
            {"tries": 1},
            {"next_try_at": FAR + 60},
            {"attempt_id": "theirs"},
            {"last_try_at": FAR + 5},
            {"state": DeliveryState.DELIVERED, "delivered_at": FAR, "next_try_at": None},
        ],
    )
    def test_a_delivery_that_another_writer_has_changed_stays_as_it_is(
        self, store: SandboxStore, current: dict[str, Any]
    ) -> None:
        known = make_delivery()
        there = replace(known, **current)
        add(store, there)
        with pytest.raises(Conflict):
            store.write_delivery(known, replace(known, attempt_id="mine"))
        assert store.read_delivery("hook", known.delivery_id) == there

    def test_a_delivery_that_is_gone_is_not_written(self, store: SandboxStore) -> None:
        with pytest.raises(Conflict):
            store.write_delivery(make_delivery(), delivered(make_delivery()))
        assert listed(store, None) == []

    def test_the_same_change_of_a_delivery_may_be_sent_again(self, store: SandboxStore) -> None:
        known = make_delivery()
        add(store, known)
        taken = replace(known, attempt_id="mine", next_try_at=FAR + 60)
        for _ in range(2):
            store.write_delivery(known, taken)
        for _ in range(2):
            store.write_delivery(taken, delivered(taken))
        assert store.read_delivery("hook", known.delivery_id) == delivered(taken)

    @pytest.mark.parametrize("limit", [1, 2, 50])
    def test_deliveries_are_listed_by_state_page_by_page(self, store: SandboxStore, limit: int) -> None:
        waiting = [make_delivery("7", version) for version in range(1, 4)]
        sent = [delivered(make_delivery("8", version), at=FAR + version) for version in range(1, 5)]
        given_up = [exhausted(make_delivery("9", version), at=FAR + version) for version in range(1, 3)]
        add(store, *waiting, *sent, *given_up, replace(sent[0], endpoint_id="other"))
        assert listed(store, DeliveryState.PENDING, limit=limit) == waiting[::-1]
        assert listed(store, DeliveryState.DELIVERED, limit=limit) == sent[::-1]
        assert listed(store, DeliveryState.EXHAUSTED, limit=limit) == given_up[::-1]
        assert listed(store, None, limit=limit) == [*waiting[::-1], *sent[::-1], *given_up[::-1]]

    def test_a_cursor_that_no_such_listing_gave_is_refused(self, store: SandboxStore) -> None:
        add(store, *[make_delivery("7", version) for version in range(1, 5)])
        cursor = store.list_deliveries("hook", state=DeliveryState.PENDING, limit=1, cursor=None).cursor
        of_feed = store.read_feed(since=0, cursor=None, limit=1).cursor
        assert cursor is not None
        for bad in ("", "nonsense", "é", "=" * 8, cursor[: len(cursor) // 2], "A" + cursor, of_feed):
            with pytest.raises(InvalidInput, match="cursor"):
                store.list_deliveries("hook", state=DeliveryState.PENDING, limit=1, cursor=bad)
        with pytest.raises(InvalidInput, match="cursor"):
            store.list_deliveries("hook", state=DeliveryState.EXHAUSTED, limit=1, cursor=cursor)
        with pytest.raises(InvalidInput, match="cursor"):
            store.list_deliveries("other", state=DeliveryState.PENDING, limit=1, cursor=cursor)
