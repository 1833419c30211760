"""The DynamoDB store keeps the stores' contract on every engine that speaks DynamoDB's API here."""

from __future__ import annotations

from functools import cache
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from moto import mock_aws

from broker_common.adapters.dynamo_items import COUNTS_KEY, claim_key, sandbox_key
from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_table import LAYOUT_KEY, create_table, has_ttl, table_definition
from broker_common.adapters.dynamo_transport import make_boto3_client, make_client
from broker_common.adapters.system_clock import SystemClock
from broker_common.core.errors import LayoutMismatch, UnreadableRecord
from broker_common.core.facts import FactKind
from broker_common.core.lease import begin, candidate_of, claim_on
from broker_common.core.sandbox import ORDER_LIMIT, Status
from broker_common.core.store import (
    AllocateAnswer,
    CandidateGone,
    Conflict,
    CountRecord,
    Pause,
    Pauses,
    Unreadable,
    Watermark,
)
from tests.contract.facts import CHANGES, COOLED, TRIED, FactContract, feed, history, life, pool_fact
from tests.contract.suite import COUNT, ConcurrentStoreContract, StoreContract, add_all, add_new, fresh_token, take
from tests.fakes import BY, START, FakeClock, RecordingRecorder, TimelessStore, add_of, make_claim, make_sandbox
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.adapters.dynamo_fields import Item
    from broker_common.core.facts import Change

_tables = count()
KEPT_DAYS = 100_000
"""How long facts are kept here: DynamoDB Local removes what its time is over for, and the tests' time has long passed."""
_DAY_SEC = 24 * 3600


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

    def lose_reservation(self, reservation_id: str) -> None:
        self.client.delete_item(TableName=self.table, Key={**LAYOUT_KEY, "SK": {"S": f"RESERVATION#{reservation_id}"}})

    def by_hand(self, key: Item, update: str, **values: Item) -> None:
        request: Item = {"TableName": self.table, "Key": key, "UpdateExpression": update}
        if values:
            request["ExpressionAttributeValues"] = {f":{name}": value for name, value in values.items()}
        if "#schema" in update:
            request["ExpressionAttributeNames"] = {"#schema": "schema"}
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
            if is_told or item["SK"]["S"] == "REMOVED":
                kept[item["PK"]["S"], item["SK"]["S"]] = int(item["ttl"]["N"]) - KEPT_DAYS * _DAY_SEC
            else:
                assert "ttl" not in item
        at = [fact.at for fact in history(store, "7")]
        assert sorted(when for (pk, _), when in kept.items() if pk == "SBX#7") == sorted([*at, at[0]])
        assert [when for (pk, _), when in kept.items() if pk.startswith("POOLFACTS#")] == [START]

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

    def test_a_table_of_the_release_before_is_unfinished_until_somebody_says_otherwise(self, store: Spoilable) -> None:
        store.by_hand(LAYOUT_KEY, "REMOVE upgrade_finished")
        assert not store.ping().is_upgraded
        create_table(store.client, store.table, shards=store.positions // ORDER_LIMIT)
        assert not store.ping().is_upgraded
        store.finish_upgrade()
        assert store.ping().is_upgraded

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

    # -- counts

    @pytest.mark.parametrize(
        ("update", "values", "turn"),
        [
            ("SET turn = :new", {"new": {"N": "1"}}, None),
            ("REMOVE turn", {}, None),
            ("REMOVE counted_by", {}, "one"),
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


class TestOnMoto(StoreContract, FactContract, TableContract):
    """In one thread only: moto copies the table for each transaction, without a lock. It answers in boto3's place."""

    @pytest.fixture
    def store(self, aws_environment: dict[str, str]) -> Iterator[Spoilable]:
        with mock_aws():
            client = make_boto3_client(region="us-east-1", endpoint_url=None, timeout_sec=60, connections=1)
            yield from empty_store(client)


class TestOnMinistack(ConcurrentStoreContract, FactContract, TableContract):
    @pytest.fixture
    def store(self, ministack_url: str, aws_environment: dict[str, str]) -> Iterator[Spoilable]:
        yield from empty_store(client_of(ministack_url))


class TestOnDynamoDBLocal(ConcurrentStoreContract, FactContract, TableContract):
    @pytest.fixture
    def store(self, dynamodb_local_url: str, aws_environment: dict[str, str]) -> Iterator[Spoilable]:
        yield from empty_store(client_of(dynamodb_local_url))

    @pytest.mark.parametrize("schema", [{"S": "1"}, {"NULL": True}])
    def test_counts_whose_schema_is_no_number_are_never_changed(self, store: Spoilable, schema: Item) -> None:
        """Moto cannot compare them with a number."""
        assert_counts_stay(store, schema)


class TestOnDynamoDBLocalWithOneShard(ConcurrentStoreContract, FactContract):
    @pytest.fixture
    def store(self, dynamodb_local_url: str, aws_environment: dict[str, str]) -> Iterator[Spoilable]:
        yield from empty_store(client_of(dynamodb_local_url), shards=1)
