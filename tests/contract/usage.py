"""The promises of every `SandboxStore` about the lines of ended leases; see `suite`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.adapters import dynamo_base
from broker_common.adapters.dynamo_items import claim_key
from broker_common.core.lease import end
from broker_common.core.policy import Policy, RecyclePolicy
from broker_common.core.pool import quarantine
from broker_common.core.sandbox import DeletionReason, Sandbox, Status
from broker_common.core.store import Conflict
from broker_common.core.usage import UsageLine
from broker_common.core.utc import DAY_SEC
from broker_common.core.wipe import begin_attempt, confirm_wipe, retry_deletion
from tests.contract.suite import add_new, at_once, extending, refused, take
from tests.fakes import BY, START

if TYPE_CHECKING:
    from broker_common.core.store import SandboxStore

POLICY = Policy()
ENDED_AT = START + 60
WIPED_AT = ENDED_AT + 9
MIDNIGHT = START - START % DAY_SEC + DAY_SEC
ENDINGS = (DeletionReason.MARKED, DeletionReason.RELEASED, DeletionReason.EXPIRED)


def lines_of(
    store: SandboxStore, *, since: int = START - 9 * DAY_SEC, until: int = START + 9 * DAY_SEC
) -> list[UsageLine]:
    """Return the lines of a time in the order of their leases' ids; by default those of all tests."""
    return sorted(store.read_usage(since=since, until=until), key=lambda line: line.lease_id)


def give_back(
    store: SandboxStore, held: Sandbox, *, at: int = ENDED_AT, reason: DeletionReason = DeletionReason.MARKED
) -> Sandbox:
    """End the lease of a sandbox."""
    change = end(held, reason=reason, by=BY, now=at)
    store.commit(change)
    return change.result


def wipe(store: SandboxStore, sandbox: Sandbox, *, at: int = WIPED_AT, policy: Policy = POLICY) -> Sandbox:
    """Have the wipe of a sandbox confirmed."""
    tried = begin_attempt(sandbox, attempt_id=f"attempt-{at}", by=BY, now=at, policy=policy)
    wiped = confirm_wipe(tried.result, accepted_only=False, order=5, by=BY, now=at, policy=policy)
    store.commit(tried)
    store.commit(wiped)
    return wiped.result


def lease_that_ended(store: SandboxStore, sandbox_id: str, *, at: int = ENDED_AT, **claim: Any) -> Sandbox:
    """Add a sandbox, lease it and end the lease."""
    held, _ = take(store, add_new(store, sandbox_id), f"track-{sandbox_id}", lease_id=f"lease-{sandbox_id}", **claim)
    return give_back(store, held, at=at)


class UsageContract:
    """The promises to a single caller."""

    @pytest.mark.parametrize("ending", ENDINGS)
    @pytest.mark.parametrize("known", [{}, {"track_name": "intro", "customer": "acme"}], ids=["nothing", "all"])
    def test_a_lease_that_ends_gets_one_line(
        self, store: SandboxStore, ending: DeletionReason, known: dict[str, Any]
    ) -> None:
        held, claim = take(store, add_new(store), **known)
        assert lines_of(store) == []
        give_back(store, held, reason=ending)
        lease_id = claim.lease.lease_id
        line = UsageLine(lease_id=lease_id, allocated_at=START, ended_at=ENDED_AT, ending=ending, **known)
        assert lines_of(store) == [line]

    def test_a_lease_that_goes_on_has_no_line(self, store: SandboxStore) -> None:
        held, _ = take(store, add_new(store))
        longer = extending(held)
        store.commit(longer)
        store.commit(quarantine(longer.result, reason="slow", by=BY, now=START + 70))
        assert lines_of(store) == []

    def test_the_customer_of_a_lease_is_known_as_long_as_the_lease(self, store: SandboxStore) -> None:
        held, claim = take(store, add_new(store), customer="acme")
        assert store.get_claim("track-1", "track-1") == claim
        found = store.get(held.sandbox_id)
        assert found is not None
        assert found.lease == claim.lease
        wiped = wipe(store, give_back(store, held))
        again = store.get(held.sandbox_id)
        assert again == wiped
        assert again.last_lease is not None
        assert again.last_lease.customer == "acme"
        taken, _ = take(store, wiped, "track-2")
        assert store.get(held.sandbox_id) == taken
        assert taken.lease is not None
        assert taken.lease.customer is None

    def test_a_lease_has_its_line_though_its_claim_is_another_s(self, store: SandboxStore) -> None:
        beside = add_new(store, "beside", status=Status.ALLOCATED)
        take(store, add_new(store, "other"))
        give_back(store, beside)
        assert [line.lease_id for line in lines_of(store)] == ["lease-1"]

    def test_who_ends_a_lease_second_writes_no_line(self, store: SandboxStore) -> None:
        held, _ = take(store, add_new(store))
        give_back(store, held)
        expired = end(held, reason=DeletionReason.EXPIRED, by=BY, now=ENDED_AT + DAY_SEC)
        assert refused(store, expired) is not None
        assert [line.ending for line in lines_of(store)] == [DeletionReason.MARKED]

    @pytest.mark.parametrize("recycle", RecyclePolicy)
    @pytest.mark.parametrize("cool_down_sec", [0, 30])
    def test_the_wipe_after_a_lease_is_noted_in_its_line(
        self, store: SandboxStore, recycle: RecyclePolicy, cool_down_sec: int
    ) -> None:
        ended = lease_that_ended(store, "7", at=MIDNIGHT - 1)
        (line,) = lines_of(store)
        policy = replace(POLICY, recycle=recycle, cool_down_sec=cool_down_sec)
        wipe(store, ended, at=MIDNIGHT + 5, policy=policy)
        assert lines_of(store) == [replace(line, wiped_at=MIDNIGHT + 5)]

    def test_a_wipe_that_an_operator_repeats_leaves_the_time_of_the_first(self, store: SandboxStore) -> None:
        flagged = quarantine(lease_that_ended(store, "7"), reason="slow", by=BY, now=ENDED_AT)
        store.commit(flagged)
        retried = retry_deletion(wipe(store, flagged.result), by=BY, now=WIPED_AT + 100)
        store.commit(retried)
        wipe(store, retried.result, at=WIPED_AT + 200)
        assert [line.wiped_at for line in lines_of(store)] == [WIPED_AT]

    def test_a_wipe_makes_no_line_for_a_lease_that_an_earlier_release_ended(self, store: SandboxStore) -> None:
        last: dict[str, Any] = {
            "last_lease_id": "lease-0",
            "last_track_id": "track-0",
            "allocated_at": START,
            "track_name": "intro",
        }
        pending = add_new(store, status=Status.PENDING_DELETION, dirty=True, deletion_requested_at=ENDED_AT, **last)
        assert wipe(store, pending).status is Status.AVAILABLE
        assert lines_of(store) == []

    def test_a_sandbox_that_no_track_has_held_is_wiped_without_a_line(self, store: SandboxStore) -> None:
        for number, asked in enumerate((None, ENDED_AT)):
            pending = {"dirty": True, "deletion_requested_at": asked}
            wipe(store, add_new(store, f"sbx-{number}", status=Status.PENDING_DELETION, **pending))
        assert lines_of(store) == []

    @pytest.mark.many_calls
    def test_lines_are_read_from_a_time_on_and_before_another(self, store: SandboxStore) -> None:
        ends = {f"{number:02}": MIDNIGHT + (number - 3) * DAY_SEC // 2 for number in range(7)}
        for sandbox_id, at in ends.items():
            lease_that_ended(store, sandbox_id, at=at)
        assert [line.ended_at for line in lines_of(store)] == list(ends.values())
        for since in ends.values():
            for until in (*ends.values(), MIDNIGHT + 1):
                found = [line.ended_at for line in lines_of(store, since=since, until=until)]
                assert found == [at for at in ends.values() if since <= at < until]

    @pytest.mark.many_calls
    def test_the_lines_of_a_day_go_past_a_page(self, store: SandboxStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dynamo_base, "PAGE", 7)
        for number in range(30):
            lease_that_ended(store, f"{number:02}")
        assert [line.lease_id for line in lines_of(store)] == [f"lease-{number:02}" for number in range(30)]


class ConcurrentUsageContract(UsageContract):
    """The promises to callers at the same time."""

    def test_of_all_who_end_a_lease_at_once_one_writes_its_line(self, store: SandboxStore) -> None:
        for round_ in range(10):
            sandbox_id = f"sbx-{round_}"
            held, _ = take(store, add_new(store, sandbox_id), f"track-{round_}", lease_id=f"lease-{round_}")
            changes = [
                end(held, reason=reason, by=BY, now=MIDNIGHT + number * DAY_SEC)
                for number, reason in enumerate(ENDINGS)
            ]

            def commit(change: Any) -> bool:
                try:
                    store.commit(change)
                except Conflict:
                    return False
                return True

            won = at_once([partial(commit, change) for change in changes])
            assert won.count(True) == 1
            line = next(each for each in lines_of(store) if each.lease_id == f"lease-{round_}")
            assert line.ending is ENDINGS[won.index(True)]
        assert len(lines_of(store)) == 10


class UsageTableContract:
    """What the store on DynamoDB promises of its lines."""

    @staticmethod
    def _lines(store: Any) -> list[Any]:
        return [item for item in store.items() if item["PK"]["S"].startswith("USAGE#")]

    def test_a_line_is_kept_for_a_day_longer_than_facts_also_if_only_its_wipe_wrote_it(self, store: Any) -> None:
        kept = store.another(history_days=200_000)
        ended = lease_that_ended(kept, "7", at=MIDNIGHT)
        (item,) = self._lines(store)
        assert (item["PK"]["S"], item["SK"]["S"]) == ("USAGE#2025-06-16", "lease-7")
        for _ in range(2):
            (item,) = self._lines(store)
            assert int(item["ttl"]["N"]) == MIDNIGHT + 200_001 * DAY_SEC
            if "wiped_at" not in item:
                store.client.delete_item(TableName=store.table, Key={name: item[name] for name in ("PK", "SK")})
                wipe(kept, ended, at=MIDNIGHT + 9)
        assert "ended_at" not in item

    def test_a_line_is_in_no_index(self, store: Any) -> None:
        lease_that_ended(store, "7")
        (item,) = self._lines(store)
        assert not {"status_key", "status_order"} & item.keys()

    @pytest.mark.parametrize(
        ("update", "value"),
        [
            ("SET ending = :new", {"S": "sung"}),
            ("REMOVE allocated_at", None),
            ("SET ended_at = :new", {"S": "late"}),
            ("SET wiped_at = :new", {"N": "-1"}),
            ("SET #schema = :new", {"N": "3"}),
        ],
    )
    def test_a_line_that_cannot_be_read_is_left_out_and_keeps_its_sandbox_from_nothing(
        self, store: Any, update: str, value: Any
    ) -> None:
        ended, other = lease_that_ended(store, "7"), lease_that_ended(store, "8")
        (item,) = (each for each in self._lines(store) if each["SK"]["S"] == "lease-7")
        store.by_hand({name: item[name] for name in ("PK", "SK")}, update, **({"new": value} if value else {}))
        assert [line.lease_id for line in lines_of(store)] == ["lease-8"]
        for each in (ended, other):
            assert wipe(store, each).status is Status.AVAILABLE
        assert [line.lease_id for line in lines_of(store)] == ["lease-8"]

    def test_a_customer_that_an_earlier_release_left_in_a_record_is_not_that_of_the_next_lease(
        self, store: Any
    ) -> None:
        held, claim = take(store, add_new(store, "7"), lease_id="lease-7")
        store.by_hand(
            {"PK": {"S": "SBX#7"}, "SK": {"S": "META"}},
            "SET customer = :customer, customer_lease_id = :lease",
            customer={"S": "acme"},
            lease={"S": "lease-6"},
        )
        assert store.get("7") == held
        give_back(store, held)
        assert [line.customer for line in lines_of(store)] == [None]
        assert claim.lease.customer is None

    def test_a_lease_that_an_earlier_release_began_has_its_line(self, store: Any) -> None:
        held, _ = take(store, add_new(store, "7"))
        store.by_hand(claim_key("track-1", "track-1"), "REMOVE customer")
        give_back(store, held)
        assert [(line.ended_at, line.customer) for line in lines_of(store)] == [(ENDED_AT, None)]
