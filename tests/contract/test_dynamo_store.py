"""The DynamoDB store keeps the stores' contract on every engine that speaks DynamoDB's API here."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from functools import cache
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from moto import mock_aws

from broker_common.adapters.dynamo_fields import encode
from broker_common.adapters.dynamo_items import COUNTS_KEY, claim_key, sandbox_key
from broker_common.adapters.dynamo_places import encode_place, place_key
from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_table import LAYOUT_KEY, create_table, has_ttl, table_definition
from broker_common.adapters.dynamo_transport import make_client
from broker_common.adapters.system_clock import SystemClock
from broker_common.core import schema
from broker_common.core.errors import InvalidInput, LayoutMismatch, UnreadableRecord
from broker_common.core.facts import FactKind
from broker_common.core.lease import begin, candidate_of, claim_on
from broker_common.core.samples import PoolLevel
from broker_common.core.sandbox import ORDER_LIMIT, Status
from broker_common.core.store import (
    AllocateAnswer,
    Allocated,
    CandidateGone,
    ClaimHeld,
    Conflict,
    CountRecord,
    Joined,
    Pause,
    Pauses,
    PlaceHeld,
    Unreadable,
    Watermark,
)
from broker_common.core.telemetry import AllocateOutcome
from broker_common.core.webhook import DeliveryState
from tests.backends import moto_client
from tests.contract.facts import CHANGES, COOLED, TRIED, FactContract, feed, history, life, pool_fact
from tests.contract.line import FAR, ConcurrentLineContract, LineContract, make_place, wait
from tests.contract.samples import NOON, hold, level_fact, read_all, sample
from tests.contract.suite import (
    COUNT,
    ConcurrentStoreContract,
    StoreContract,
    add_all,
    add_new,
    extending,
    fresh_token,
    take,
)
from tests.contract.usage import ConcurrentUsageContract, UsageContract, UsageTableContract
from tests.contract.webhooks import lives, make_endpoint
from tests.fakes import BY, START, FakeClock, RecordingRecorder, TimelessStore, add_of, make_claim, make_sandbox
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.adapters.dynamo_fields import Item
    from broker_common.core.facts import Change
    from broker_common.core.line import Place
    from broker_common.core.sandbox import Sandbox

_tables = count()
KEPT_DAYS = 100_000
"""How long facts are kept here: DynamoDB Local removes what its time is over for, and the tests' time has long passed."""
_DAY_SEC = 24 * 3600
POINTER = claim_key("track-1", "track-1")


class Spoilable(DynamoStore):
    """A store whose table a test can look at, and change as a hand or a later release would."""

    def __init__(self, client: DynamoDBClient, table_name: str, **options: Any) -> None:
        super().__init__(client, table_name, **options)
        self.client: Any = client
        self.table = table_name
        self._options = options

    def another(self, *, client: Any = None, **options: Any) -> DynamoStore:
        """Return a store on the same table that differs in these options."""
        given = {**self._options, "rng": Random(f"another on {self.table}"), **options}
        return DynamoStore(client or self.client, self.table, **given)

    def spoil(self, sandbox_id: str) -> None:
        self.by_hand(sandbox_key(sandbox_id), "REMOVE created_at")

    def spoil_claim(self, track_id: str, idempotency_key: str) -> None:
        self.by_hand(claim_key(track_id, idempotency_key), "REMOVE expires_at")

    def spoil_place(self, place_id: str) -> None:
        self.by_hand(place_key(place_id), "REMOVE joined_at")

    def lose_reservation(self, reservation_id: str) -> None:
        self.client.delete_item(TableName=self.table, Key={**LAYOUT_KEY, "SK": {"S": f"RESERVATION#{reservation_id}"}})

    def by_hand(self, key: Item, update: str, **values: Item) -> None:
        request: Item = {"TableName": self.table, "Key": key, "UpdateExpression": update}
        if values:
            request["ExpressionAttributeValues"] = {f":{name}": value for name, value in values.items()}
        if names := re.findall(r"#\w+", update):
            request["ExpressionAttributeNames"] = {name: name[1:] for name in names}
        self.client.update_item(**request)

    def items(self) -> list[Item]:
        """Return every item of the table."""
        found: list[Item] = self.client.scan(TableName=self.table, ConsistentRead=True)["Items"]
        return found

    def item(self, sandbox_id: str) -> Item:
        """Return the item of a sandbox."""
        found: Item = self.client.get_item(TableName=self.table, Key=sandbox_key(sandbox_id))["Item"]
        return found


def empty_store(client: DynamoDBClient, *, shards: int = 4) -> Iterator[Spoilable]:
    """Yield a store on a table of its own, which is dropped afterwards."""
    name = f"pool-{next(_tables)}"
    create_table(client, name, shards=shards)
    yield Spoilable(
        client,
        name,
        clock=SystemClock(),
        rng=Random(name),
        recorder=RecordingRecorder(),
        shards=shards,
        history_days=KEPT_DAYS,
    )
    client.delete_table(TableName=name)


class TableContract:
    """What the store on DynamoDB promises of its table."""

    # -- when facts are removed

    def test_facts_and_what_is_left_of_a_removed_sandbox_are_kept_for_their_time_and_all_else_for_ever(
        self, store: Spoilable
    ) -> None:
        life(store, "7")
        take(store, add_new(store))
        store.record_accounts(make_sandbox())
        store.write_watermark(Watermark(START, 1))
        store.set_pauses(Pauses(), Pauses(sync=Pause(by="op", since=START)), pool_fact("one"))
        store.write_counts(CountRecord(turn="one", count=COUNT, counter="ann"), instead_of=None)
        kept = {}
        for item in store.items():
            is_told = item["SK"]["S"].startswith("FACT#") or item["PK"]["S"].startswith("POOLFACTS#")
            if item["PK"]["S"].startswith("USAGE#"):
                continue
            if is_told or item["SK"]["S"] == "REMOVED":
                kept[item["PK"]["S"], item["SK"]["S"]] = int(item["ttl"]["N"]) - KEPT_DAYS * _DAY_SEC
            else:
                assert "ttl" not in item
        at = [fact.at for fact in history(store, "7")]
        assert sorted(when for (pk, _), when in kept.items() if pk == "SBX#7") == sorted([*at, at[0]])
        assert [when for (pk, _), when in kept.items() if pk.startswith("POOLFACTS#")] == [START]

    def test_samples_are_kept_for_thirty_days_from_their_minute_on(self, store: Spoilable) -> None:
        store.write_sample(sample(NOON))
        store.add_allocates(NOON + 60, {AllocateOutcome.SUCCESS: 1})
        until = {int(item["ttl"]["N"]) for item in store.items() if item["PK"]["S"].startswith("SAMPLES#")}
        assert until == {NOON + 30 * _DAY_SEC, NOON + 60 + 30 * _DAY_SEC}

    # -- cursors

    @pytest.mark.parametrize(
        ("call", "content"),
        [
            ("list_sandboxes", ["available", "available#0", ["\ud800", 1]]),
            ("read_history", ["history", "SBX#7", "FACT#\ud800"]),
            ("read_feed", ["feed", 0, [["1", "\ud800", "FACT#"], None, None, None]]),
            ("list_archived", ["reservations", "RESERVATION#\ud800", "1"]),
            ("list_deliveries", ["deliveries", "delivery#hook", ["\ud800", "1"]]),
            ("read_history", ["history", "SBX#7", "FACT#" + "x" * 1020]),
            ("read_feed", ["feed", 0, [["1", "SBX#7", "x" * 1025], None, None, None]]),
            ("list_archived", ["reservations", "x" * 1025, "1"]),
            ("list_deliveries", ["deliveries", "delivery#hook", ["é" * 513, "1"]]),
        ],
    )
    def test_a_cursor_with_half_a_character_or_too_long_a_key_is_refused(
        self, store: Spoilable, call: str, content: list[Any]
    ) -> None:
        cursor = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
        given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
            "list_sandboxes": ((Status.AVAILABLE,), {}),
            "read_history": (("7",), {}),
            "read_feed": ((), {"since": 0}),
            "list_archived": ((), {}),
            "list_deliveries": (("hook",), {"state": DeliveryState.PENDING}),
        }
        args, options = given[call]
        with pytest.raises(InvalidInput, match="cursor"):
            getattr(store, call)(*args, **options, limit=2, cursor=cursor)

    # -- untold facts

    @pytest.mark.parametrize(("name", "value"), [("version", {"S": "one"}), ("at", {"N": str(2**52)})])
    def test_untold_facts_that_cannot_be_read_are_in_no_other_fact_s_way(
        self, store: Spoilable, name: str, value: Item
    ) -> None:
        store.write_endpoint(None, make_endpoint())
        for number in range(3):
            lives(store, f"bad-{number}", began=START + number)
        for item in store.items():
            if item["SK"]["S"].startswith("FACT#"):
                store.by_hand({name: item[name] for name in ("PK", "SK")}, f"SET #{name} = :value", value=value)
        good = lives(store, "good", began=START + 60)
        assert store.find_untold(limit=2) == good[:2]

    # -- the records of the job watch

    @pytest.mark.parametrize(
        ("update", "value"),
        [("SET waiting = :value", {"S": "many"}), ("SET #schema = :value", encode(schema.KNOWN + 1))],
    )
    def test_a_sample_that_cannot_be_read_is_left_out_and_the_others_are_shown(
        self, store: Spoilable, update: str, value: Item
    ) -> None:
        for at in (NOON, NOON + 60):
            store.write_sample(sample(at))
        (key,) = [{name: each[name] for name in ("PK", "SK")} for each in store.items() if each["SK"]["S"] == "12:00"]
        store.by_hand(key, update, value=value)
        assert [each.at for each in read_all(store)] == [NOON + 60]

    def test_a_sample_of_a_later_release_is_left_as_it_is(self, store: Spoilable) -> None:
        store.write_sample(sample(NOON))
        (key,) = [{name: each[name] for name in ("PK", "SK")} for each in store.items() if each["SK"]["S"] == "12:00"]
        store.by_hand(key, "SET #schema = :value", value=encode(schema.KNOWN + 1))
        before = store.items()
        store.write_sample(sample(NOON, waiting=9))
        store.add_allocates(NOON, {AllocateOutcome.SUCCESS: 1})
        assert store.items() == before

    def test_a_sample_of_the_next_release_keeps_its_schema(self, store: Spoilable) -> None:
        store.write_sample(sample(NOON))
        (key,) = [{name: each[name] for name in ("PK", "SK")} for each in store.items() if each["SK"]["S"] == "12:00"]
        store.by_hand(key, "SET #schema = :value", value=encode(schema.KNOWN))
        store.write_sample(sample(NOON, waiting=9))
        store.add_allocates(NOON, {AllocateOutcome.SUCCESS: 1})
        (item,) = [each for each in store.items() if each["SK"]["S"] == "12:00"]
        assert (item["schema"], item["waiting"], item["allocates_success"]) == (
            encode(schema.KNOWN),
            {"N": "9"},
            {"N": "1"},
        )

    def test_a_damaged_level_is_told_to_nobody_until_a_person_has_looked(self, store: Spoilable) -> None:
        low = PoolLevel(is_low=True, counted_at=START)
        store.write_level(PoolLevel(), low, level_fact())
        store.by_hand({"PK": {"S": "POOL"}, "SK": {"S": "LEVEL"}}, "SET is_low = :value", value={"S": "yes"})
        with pytest.raises(UnreadableRecord, match="is_low"):
            store.read_level()
        with pytest.raises(UnreadableRecord):
            store.write_level(PoolLevel(), replace(low, counted_at=START + 1), level_fact("fact-2"))

    def test_a_version_that_a_hand_has_damaged_counts_as_none(self, store: Spoilable) -> None:
        hold(store, "7", expires_at=START)
        store.by_hand(sandbox_key("7"), "SET version = :value", value={"S": "seven"})
        assert dict(store.read_ending(until=START)) == {"7": 0}

    def test_facts_are_kept_for_as_many_days_as_they_are_told_to(self, store: Spoilable) -> None:
        longer = store.another(history_days=2 * KEPT_DAYS)
        added = add_of(make_sandbox("7"))
        longer.commit(added)
        longer.record(pool_fact("one"))
        assert added.fact is not None
        until = [int(item["ttl"]["N"]) for item in store.items() if "ttl" in item]
        assert sorted(until) == [at + 2 * KEPT_DAYS * _DAY_SEC for at in (added.fact.at, START)]

    def test_creating_a_table_has_its_facts_removed_in_time_also_if_it_is_there_already(self, store: Spoilable) -> None:
        assert has_ttl(store.client, store.table)
        name = f"{store.table}-of-before"
        store.client.create_table(**table_definition(name))
        try:
            assert not has_ttl(store.client, name)
            create_table(store.client, name)
            create_table(store.client, name)
            assert has_ttl(store.client, name)
        finally:
            store.client.delete_table(TableName=name)

    # -- releases side by side

    @pytest.mark.parametrize("before", range(schema.UPGRADE))
    def test_a_table_of_a_release_before_is_unfinished_until_somebody_says_otherwise(
        self, store: Spoilable, before: int
    ) -> None:
        update = "SET upgrade_finished = :before" if before else "REMOVE upgrade_finished"
        store.by_hand(LAYOUT_KEY, update, **({"before": encode(before)} if before else {}))
        assert store.ping().upgraded == before
        create_table(store.client, store.table, shards=store.positions // ORDER_LIMIT)
        assert store.ping().upgraded == before
        store.finish_upgrade()
        assert store.ping().upgraded == schema.UPGRADE

    def test_an_upgrade_of_a_table_without_a_layout_record_is_not_finished(self, store: Spoilable) -> None:
        store.client.delete_item(TableName=store.table, Key=LAYOUT_KEY)
        with pytest.raises(LayoutMismatch):
            store.finish_upgrade()
        assert store.items() == []

    @pytest.mark.parametrize("name", [*CHANGES, "allocated"])
    def test_what_this_release_does_not_know_of_a_record_survives_each_change(
        self, store: Spoilable, name: str
    ) -> None:
        change = change_named(name)
        store.commit(add_of(change.before))
        store.by_hand(sandbox_key("7"), "SET colour = :colour, #schema = :two", colour={"S": "red"}, two={"N": "2"})
        assert store.get("7") == change.before
        make(store, change)
        assert store.get("7") == change.after
        if change.after is not None:
            assert (store.item("7")["colour"], store.item("7")["schema"]) == ({"S": "red"}, {"N": "2"})

    @pytest.mark.parametrize("name", [*CHANGES, "allocated"])
    def test_a_record_of_a_newer_schema_is_never_changed(self, store: Spoilable, name: str) -> None:
        change = change_named(name)
        store.commit(add_of(change.before))
        store.by_hand(sandbox_key("7"), "SET #schema = :three", three={"N": "3"})
        before = store.items()
        if name == "allocated":
            assert make(store, change) == CandidateGone(None)
        else:
            with pytest.raises(UnreadableRecord, match="schema is 3, newer than this release knows"):
                make(store, change)
        assert sorted(store.items(), key=str) == sorted(before, key=str)

    def test_a_record_of_a_newer_schema_is_listed_as_unreadable_and_read_by_nobody(self, store: Spoilable) -> None:
        add_all(store, make_sandbox("7"), make_sandbox("8"))
        store.by_hand(sandbox_key("7"), "SET #schema = :three", three={"N": "3"})
        with pytest.raises(UnreadableRecord, match="schema"):
            store.get("7")
        assert [each.sandbox_id for each in store.read_all().sandboxes] == ["8"]
        page = store.list_sandboxes(Status.AVAILABLE, limit=9, cursor=None)
        assert page.unreadable == (Unreadable("7", "schema is 3, newer than this release knows"),)
        with pytest.raises(UnreadableRecord):
            store.commit(add_of(make_sandbox("7", version=9)))

    def test_a_claim_of_a_newer_schema_is_its_own_track_s_trouble(self, store: Spoilable) -> None:
        take(store, add_new(store))
        store.by_hand(claim_key("track-1", "track-1"), "SET #schema = :three", three={"N": "3"})
        with pytest.raises(UnreadableRecord, match="schema"):
            store.get_claim("track-1", "track-1")

    def test_a_claim_of_a_newer_schema_is_left_as_it_is_by_an_extension(self, store: Spoilable) -> None:
        held, _ = take(store, add_new(store))
        store.by_hand(claim_key("track-1", "track-1"), "SET #schema = :three", three={"N": "3"})
        before = [item for item in store.items() if item["SK"]["S"].startswith("CLAIM")]
        store.commit(extending(held))
        assert store.get(held.sandbox_id) == extending(held).result
        assert before == [item for item in store.items() if item["SK"]["S"].startswith("CLAIM")]

    def test_an_extension_leaves_what_this_release_does_not_know_of_a_claim(self, store: Spoilable) -> None:
        held, claim = take(store, add_new(store))
        store.by_hand(claim_key("track-1", "track-1"), "SET colour = :colour", colour={"S": "red"})
        store.commit(extending(held))
        (item,) = (each for each in store.items() if each["SK"]["S"].startswith("CLAIM"))
        assert (item["colour"], item["expires_at"]) == ({"S": "red"}, {"N": str(claim.lease.expires_at + 60)})

    def test_facts_that_a_later_release_wrote_are_left_out(self, store: Spoilable) -> None:
        added = add_of(make_sandbox("7"))
        store.commit(added)
        store.record(pool_fact("one"))
        (mine,) = (item for item in store.items() if item["SK"]["S"].startswith("FACT#"))
        later = [
            mine | {"SK": {"S": "FACT#00000000000000000002#sandbox.sung"}, "kind": {"S": "sandbox.sung"}},
            mine | {"SK": {"S": "FACT#00000000000000000003#sandbox.added"}, "schema": {"N": "3"}},
            mine | {"SK": {"S": "FACT#00000000000000000004#sandbox.added"}, "details": {"S": "[]"}},
            mine | {"SK": {"S": "FACT#00000000000000000005#sandbox.added"}, "details": {"S": "{"}},
        ]
        for item in later:
            store.client.put_item(TableName=store.table, Item=item)
        assert history(store, "7", limit=1) == [added.fact]
        assert sorted(feed(store, limit=2)[0], key=repr) == sorted([added.fact, pool_fact("one")], key=repr)

    # -- places in the line

    def test_a_place_is_removed_a_day_after_its_track_was_due_back_and_a_claim_never(self, store: Spoilable) -> None:
        place, sandbox = make_place(), add_new(store)
        wait(store, place)
        assert self._ttl(store, POINTER) == FAR + 90 * _DAY_SEC
        later = replace(place, back_by=FAR + 500)
        assert store.renew(later)
        assert self._ttl(store, place_key(place.place_id)) == FAR + 500 + _DAY_SEC
        assert allocate_in_line(store, sandbox, place) == Allocated()
        assert all("ttl" not in item for item in store.items() if item["SK"] == POINTER["SK"])

    def test_a_pointer_that_outlives_its_place_keeps_its_track_from_nothing(self, store: Spoilable) -> None:
        first, second, third = (make_place(unique=unique) for unique in "abc")
        wait(store, first)
        store.client.delete_item(TableName=store.table, Key=place_key(first.place_id))
        assert (store.read_place("track-1", "track-1"), store.read_places("track-1")) == (None, [])
        assert not store.renew(first)
        wait(store, second)
        assert store.read_place("track-1", "track-1") == second
        store.client.delete_item(TableName=store.table, Key=place_key(second.place_id))
        assert allocate_in_line(store, add_new(store), second) == Allocated()
        assert isinstance(store.join(third), ClaimHeld)

    def test_a_place_that_outlives_its_pointer_can_be_left_and_used(self, store: Spoilable) -> None:
        places = [make_place(), make_place("track-2")]
        wait(store, *places)
        for place in places:
            store.client.delete_item(TableName=store.table, Key=claim_key(place.track_id, place.track_id))
        assert store.leave(places[0])
        assert allocate_in_line(store, add_new(store), places[1]) == Allocated()
        assert store.read_line() == []

    def test_a_place_beside_a_claim_is_left_without_the_claim(self, store: Spoilable) -> None:
        place = make_place()
        _, claim = take(store, add_new(store))
        store.client.put_item(TableName=store.table, Item=encode_place(place))
        assert store.leave(place)
        assert store.read_line() == []
        assert store.get_claim("track-1", "track-1") == claim

    @pytest.mark.parametrize("place_id", [make_place().place_id, make_place(unique="b").place_id])
    def test_a_claim_that_a_hand_gave_a_place_stays_a_claim(self, store: Spoilable, place_id: str) -> None:
        place = make_place()
        _, claim = take(store, add_new(store))
        store.by_hand(POINTER, "SET place_id = :place", place={"S": place_id})
        other = add_new(store, "other")
        assert allocate_in_line(store, other, place) == ClaimHeld(claim)
        assert store.join(place) == ClaimHeld(claim)
        store.client.put_item(TableName=store.table, Item=encode_place(place))
        assert store.leave(place)
        assert store.get_claim("track-1", "track-1") == claim

    @pytest.mark.parametrize(
        ("update", "values", "reason"),
        [
            ("SET place_id = :new", {"new": {"N": "1"}}, "place_id is not a text"),
            ("SET #schema = :new", {"new": {"N": "3"}}, "schema is 3, newer than this release knows"),
            ("REMOVE place_id", {}, "track_id is missing"),
        ],
    )
    def test_a_pointer_that_cannot_be_read_is_its_own_track_s_trouble_and_stays(
        self, store: Spoilable, update: str, values: dict[str, Any], reason: str
    ) -> None:
        place, other, sandbox = make_place(), make_place("track-2"), add_new(store)
        wait(store, place, other)
        store.by_hand(POINTER, update, **values)
        before = store.items()
        calls: list[Callable[[], object]] = [
            lambda: store.get_claim("track-1", "track-1"),
            lambda: store.read_claims("track-1"),
            lambda: store.read_place("track-1", "track-1"),
            lambda: store.join(make_place(unique="b")),
            lambda: allocate_in_line(store, sandbox, place),
            lambda: allocate_in_line(store, sandbox, place, place_id=None),
        ]
        for call in calls:
            with pytest.raises(UnreadableRecord) as raised:
                call()
            assert (raised.value.track_id, raised.value.reason) == ("track-1", reason)
        assert store.read_places("track-1") == []
        assert sorted(store.items(), key=str) == sorted(before, key=str)
        assert store.read_line() == [place, other]
        assert allocate_in_line(store, sandbox, other) == Allocated()

    def test_a_place_of_a_newer_schema_is_never_changed(self, store: Spoilable) -> None:
        place, sandbox = make_place(), add_new(store)
        wait(store, place)
        store.by_hand(place_key(place.place_id), "SET #schema = :three", three={"N": "3"})
        before = store.items()
        calls: list[Callable[[], object]] = [
            lambda: store.read_place("track-1", "track-1"),
            lambda: store.renew(place),
            lambda: store.leave(place),
            lambda: store.leave(place, unless_renewed=True),
            lambda: allocate_in_line(store, sandbox, place),
        ]
        for call in calls:
            with pytest.raises(UnreadableRecord, match="schema is"):
                call()
        assert store.read_line() == []
        assert sorted(store.items(), key=str) == sorted(before, key=str)

    def test_what_this_release_does_not_know_of_a_place_survives_its_renewal(self, store: Spoilable) -> None:
        place = make_place()
        wait(store, place)
        key = place_key(place.place_id)
        store.by_hand(key, "SET colour = :red, #schema = :two", red={"S": "red"}, two={"N": "2"})
        assert store.renew(place)
        item = store.client.get_item(TableName=store.table, Key=key)["Item"]
        assert (item["colour"], item["schema"]) == ({"S": "red"}, {"N": "2"})

    def test_a_place_whose_answers_were_lost_is_had_renewed_and_left_once(self, store: Spoilable) -> None:
        place = make_place()
        assert self._losing(store).join(place) in {Joined(), PlaceHeld(place.place_id)}
        later = replace(place, back_by=FAR + 9)
        assert self._losing(store).renew(later)
        assert store.read_line() == [later]
        self._losing(store).leave(later)  # moto keeps no tokens, so there the second try finds nothing
        assert store.read_line() == []
        assert not [item for item in store.items() if item["SK"] == POINTER["SK"]]

    @staticmethod
    def _losing(store: Spoilable) -> DynamoStore:
        return store.another(client=Losing(store.client), clock=FakeClock())

    @staticmethod
    def _ttl(store: Spoilable, key: Item) -> int:
        return int(store.client.get_item(TableName=store.table, Key=key)["Item"]["ttl"]["N"])

    # -- counts

    @pytest.mark.parametrize(
        ("update", "values", "turn"),
        [
            ("SET turn = :new", {"new": {"N": "1"}}, None),
            ("REMOVE turn", {}, None),
            ("REMOVE counted_by", {}, "one"),
            ("SET returns_at = :new", {"new": {"S": "1,soon"}}, "one"),
            ("SET available = :new", {"new": {"N": "-1"}}, "one"),
            ("SET counting_until = :new", {"new": {"S": "later"}}, "one"),
        ],
    )
    def test_counts_that_a_hand_spoiled_are_replaced(
        self, store: Spoilable, update: str, values: dict[str, Any], turn: str | None
    ) -> None:
        store.write_counts(CountRecord(turn="one", count=COUNT, counter="ann"), instead_of=None)
        store.by_hand(COUNTS_KEY, update, **values)
        assert store.read_counts() == CountRecord(turn=turn)
        newer = CountRecord(turn="two", count=COUNT, counter="bob")
        store.write_counts(newer, instead_of=turn)
        assert store.read_counts() == newer

    def test_counts_of_a_release_that_knew_no_line_are_read(self, store: Spoilable) -> None:
        store.write_counts(CountRecord(turn="one", count=COUNT, counter="ann"), instead_of=None)
        store.by_hand(COUNTS_KEY, "REMOVE waiting, longest_waiting_since, returns_at")
        assert store.read_counts().count == replace(COUNT, waiting=0, longest_waiting_since=None, returns=())

    @pytest.mark.parametrize("schema", [{"N": "3"}, {"N": "-1"}])
    def test_counts_of_a_newer_schema_are_never_changed(self, store: Spoilable, schema: Item) -> None:
        assert_counts_stay(store, schema)

    # -- where a record stands in the index

    def test_a_cooling_sandbox_stands_at_a_place_of_its_own(self, store: Spoilable) -> None:
        store.commit(add_of(TRIED))
        store.commit(COOLED)
        assert store.item("7")["status_key"] == {"S": "pending_deletion/cooling#0"}

    # -- answers that are lost

    @pytest.mark.parametrize("name", [*CHANGES, "added"])
    def test_a_change_whose_answer_was_lost_is_made_and_told_once(self, store: Spoilable, name: str) -> None:
        if name == "added":
            change = add_of(make_sandbox("7"))
        else:
            change = CHANGES[name]
            assert change.before is not None
            store.commit(add_of(change.before))
        earlier = history(store, "7")
        losing = store.another(client=Losing(store.client), clock=FakeClock())
        losing.commit(change)
        assert store.get("7") == change.after
        assert history(store, "7") == [*([change.fact] if change.fact else []), *earlier]

    @pytest.mark.parametrize("trouble", ["answer lost", "TransactionConflict", "ValidationError"])
    def test_a_sync_adds_and_tells_each_new_account_once_when_a_transaction_of_many_fails(
        self, store: Spoilable, trouble: str
    ) -> None:
        clock = FakeClock()
        failing = store.another(client=FailingForMany(store.client, trouble), clock=clock)
        world = World(clock=clock, wrap=lambda _: TimelessStore(failing))
        result = world.sync(World.accounts(3))
        assert (result.added, result.overtaken, result.failed) == (3, 0, 0)
        pool = store.read_all()
        assert {each.sandbox_id for each in pool.sandboxes} == set(pool.accounts.values())
        for each in pool.sandboxes:
            assert [fact.kind for fact in history(store, each.sandbox_id)] == [FactKind.ADDED]


def allocate_in_line(
    store: DynamoStore, sandbox: Sandbox, place: Place, *, place_id: str | None = "its"
) -> AllocateAnswer:
    """Allocate a sandbox for the track of a place, which the request names if it is not told otherwise."""
    claim = make_claim(sandbox, place.track_id)
    named = place.place_id if place_id == "its" else place_id
    return store.allocate(candidate_of(sandbox), claim, by=BY, token=fresh_token(), place_id=named)


class FailingForMany:
    """A client whose every transaction of more than one sandbox fails, or is applied and loses its answer."""

    def __init__(self, client: Any, trouble: str) -> None:
        self._client = client
        self._trouble = trouble

    def __getattr__(self, operation: str) -> Any:
        return getattr(self._client, operation)

    def transact_write_items(self, **request: Any) -> Any:
        items = len(request["TransactItems"])
        if items <= len(("account", "sandbox", "fact")):
            return self._client.transact_write_items(**request)
        if self._trouble == "answer lost":
            self._client.transact_write_items(**request)
            raise ReadTimeoutError(endpoint_url="http://x")
        error: Any = {
            "Error": {"Code": "TransactionCanceledException", "Message": self._trouble},
            "ResponseMetadata": {"HTTPStatusCode": 400},
            "CancellationReasons": [{"Code": self._trouble}, *[{"Code": "None"}] * (items - 1)],
        }
        raise ClientError(error, "TransactWriteItems")


class Losing:
    """A client that loses the first answer to each kind of write, which was applied."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lost: set[str] = set()

    def __getattr__(self, operation: str) -> Any:
        call = getattr(self._client, operation)

        def lose(**request: Any) -> Any:
            answer = call(**request)
            if operation not in self._lost:
                self._lost.add(operation)
                raise ReadTimeoutError(endpoint_url="http://x")
            return answer

        return lose if operation in {"transact_write_items", "update_item"} else call


def change_named(name: str) -> Any:
    """Return one of `CHANGES`, or an allocation."""
    free = make_sandbox("7")
    return begin(free, make_claim(free).lease, by=BY) if name == "allocated" else CHANGES[name]


def make(store: DynamoStore, change: Change) -> AllocateAnswer | None:
    """Make a change as its kind is made."""
    if change.before is not None and change.fact is not None and change.fact.kind is FactKind.ALLOCATED:
        claim = claim_on(change.before, change.result.lease) if change.result.lease else None
        assert claim is not None
        return store.allocate(candidate_of(change.before), claim, by=BY, token=fresh_token())
    store.commit(change)
    return None


@cache
def client_of(url: str) -> DynamoDBClient:
    return make_client(region="us-east-1", endpoint_url=url, timeout_sec=60, connections=48)


@pytest.mark.slow
def assert_counts_stay(store: Spoilable, schema: Item) -> None:
    """Give the counts this schema, and check that no read and no write accepts them."""
    store.write_counts(CountRecord(turn="one", count=COUNT, counter="ann"), instead_of=None)
    store.by_hand(COUNTS_KEY, "SET #schema = :new", new=schema)
    before = store.items()
    with pytest.raises(UnreadableRecord, match="schema"):
        store.read_counts()
    with pytest.raises(Conflict):
        store.write_counts(CountRecord(turn="two", count=COUNT, counter="bob"), instead_of="one")
    assert sorted(store.items(), key=str) == sorted(before, key=str)


class TestOnMoto(StoreContract, FactContract, LineContract, UsageContract, TableContract, UsageTableContract):
    """In one thread only: moto copies the table for each transaction, without a lock. It answers in boto3's place."""

    @pytest.fixture
    def store(self, aws_environment: dict[str, str]) -> Iterator[Spoilable]:
        with mock_aws():
            yield from empty_store(moto_client())


class TestOnMinistack(
    ConcurrentStoreContract,
    FactContract,
    ConcurrentLineContract,
    ConcurrentUsageContract,
    TableContract,
    UsageTableContract,
):
    @pytest.fixture
    def store(self, ministack_url: str, aws_environment: dict[str, str]) -> Iterator[Spoilable]:
        yield from empty_store(client_of(ministack_url))


class TestOnDynamoDBLocal(
    ConcurrentStoreContract,
    FactContract,
    ConcurrentLineContract,
    ConcurrentUsageContract,
    TableContract,
    UsageTableContract,
):
    @pytest.fixture
    def store(self, dynamodb_local_url: str, aws_environment: dict[str, str]) -> Iterator[Spoilable]:
        yield from empty_store(client_of(dynamodb_local_url))

    @pytest.mark.parametrize("schema", [{"S": "1"}, {"NULL": True}])
    def test_counts_whose_schema_is_no_number_are_never_changed(self, store: Spoilable, schema: Item) -> None:
        """Moto cannot compare them with a number."""
        assert_counts_stay(store, schema)

    def test_allocates_whose_answer_was_lost_are_added_once(self, store: Spoilable) -> None:
        losing = store.another(client=Losing(store.client), clock=FakeClock())
        losing.add_allocates(NOON, {AllocateOutcome.SUCCESS: 5})
        (found,) = read_all(store)
        assert found.allocates == {AllocateOutcome.SUCCESS: 5}


class TestOnDynamoDBLocalWithOneShard(
    ConcurrentStoreContract, FactContract, ConcurrentLineContract, ConcurrentUsageContract
):
    @pytest.fixture
    def store(self, dynamodb_local_url: str, aws_environment: dict[str, str]) -> Iterator[Spoilable]:
        yield from empty_store(client_of(dynamodb_local_url), shards=1)
