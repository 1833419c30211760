"""How the DynamoDB store takes answers that no engine gives by itself: refusals, and records of another version."""

from __future__ import annotations

import time
import tracemalloc
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from moto import mock_aws

from broker_common.adapters import dynamo_base
from broker_common.adapters.dynamo_items import PAUSE_KEY, SYNC_KEY, encode_claim, sandbox_key
from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_table import LAYOUT_KEY, create_table, index_problem, table_definition
from broker_common.adapters.dynamo_time import make_time_reader, time_of
from broker_common.adapters.dynamo_transport import make_client
from broker_common.core.errors import (
    InvalidInput,
    LayoutMismatch,
    OutcomeUnknown,
    StoreMisconfigured,
    StoreUnavailable,
    UnreadableRecord,
)
from broker_common.core.facts import Change, PoolFact, PoolFactKind
from broker_common.core.lease import candidate_of, end
from broker_common.core.pauses import PauseCache
from broker_common.core.sandbox import DeletionReason, Status
from broker_common.core.store import (
    AllocateAnswer,
    Allocated,
    CandidateGone,
    Conflict,
    Contended,
    CountRecord,
    Pause,
    Pauses,
    SandboxPage,
    Watermark,
)
from broker_common.core.telemetry import AllocateOutcome, RecordUnreadable
from tests.backends import moto_client
from tests.contract.line import make_place
from tests.fakes import (
    BY,
    START,
    FakeClock,
    RecordingRecorder,
    add_of,
    change_of,
    make_claim,
    make_sandbox,
    removal_of,
    walk_ring,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_dynamodb import DynamoDBClient

HELD = make_sandbox("1", status=Status.ALLOCATED)
PAUSED = PoolFact(kind=PoolFactKind.PAUSED, fact_id="f", at=START, principal="op", details={"operation": "sync"})
PLACE = make_place()
WRITES: list[Callable[[DynamoStore], object]] = [
    lambda store: store.commit(add_of(make_sandbox("1"))),
    lambda store: store.commit(change_of(make_sandbox("1"), make_sandbox("1", version=2))),
    lambda store: store.commit(removal_of(make_sandbox("1"))),
    lambda store: store.write_watermark(Watermark(1, 1)),
    lambda store: store.commit(end(HELD, reason=DeletionReason.MARKED, by=BY, now=START)),
    lambda store: store.commit(Change(make_sandbox("1"), make_sandbox("1", version=2), None)),
    lambda store: store.record(PAUSED),
    lambda store: store.write_counts(CountRecord(turn="t", counter="c"), instead_of=None),
    lambda store: store.finish_upgrade(),
    lambda store: store.join(PLACE),
    lambda store: store.renew(PLACE),
    lambda store: store.leave(PLACE),
]


def asks_for_endpoints(request: dict[str, Any]) -> bool:
    """Tell whether a request only asks whether there are endpoints to which a fact must be told."""
    return request.get("Select") == "COUNT" and request.get("ConsistentRead", False)


class Answers:
    """A client that answers every call with the same error, but says that there are no endpoints."""

    def __init__(self, code: str, status: int, **fields: Any) -> None:
        self.calls = 0
        self._error = {
            "Error": {"Code": code, "Message": code},
            "ResponseMetadata": {"HTTPStatusCode": status},
            **fields,
        }

    def __getattr__(self, operation: str) -> Callable[..., dict[str, Any]]:
        def refuse(**request: Any) -> dict[str, Any]:
            if asks_for_endpoints(request):
                return {"Items": [], "Count": 0}
            self.calls += 1
            raise ClientError(self._error, operation)  # type: ignore[arg-type] # as DynamoDB answers

        return refuse


def cancelling(*codes: str) -> Answers:
    """Return a client that cancels every transaction, with a reason for each of its items."""
    return Answers("TransactionCanceledException", 400, CancellationReasons=[{"Code": code} for code in codes])


def allocate(store: DynamoStore) -> AllocateAnswer:
    return store.allocate(candidate_of(make_sandbox("1")), make_claim(make_sandbox("1")), by=BY, token="t")


def store_on(client: Any, recorder: RecordingRecorder | None = None) -> DynamoStore:
    return DynamoStore(client, "pool", clock=FakeClock(), rng=Random(1), recorder=recorder or RecordingRecorder())


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [("InternalServerError", 500, OutcomeUnknown), ("ThrottlingException", 400, StoreUnavailable)],
)
@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_failed_or_was_throttled_is_sent_again_because_its_condition_tells_whether_it_was_applied(
    write: Callable[[DynamoStore], object], code: str, status: int, error: type[StoreUnavailable]
) -> None:
    client = Answers(code, status)
    with pytest.raises(error) as raised:
        write(store_on(client))
    assert type(raised.value) is error
    assert client.calls > 1


@pytest.mark.parametrize("code", ["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"])
def test_an_allocation_that_met_others_says_so_and_is_not_repeated_here(code: str) -> None:
    client = cancelling("None", code, "None")
    assert allocate(store_on(client)) == Contended()
    assert client.calls == 1


class Keeps:
    """A client that applies every call, keeps its request, and says that there are no endpoints."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def query(self, **request: Any) -> dict[str, Any]:
        assert asks_for_endpoints(request)
        return {"Items": [], "Count": 0}

    def transact_write_items(self, **request: Any) -> dict[str, Any]:
        self.requests.append(request)
        return {}


def test_an_allocation_of_who_does_not_wait_writes_the_claim_the_sandbox_and_the_fact_and_nothing_else() -> None:
    client = Keeps()
    assert allocate(store_on(client)) == Allocated()
    (request,) = client.requests
    claim, sandbox, fact = request["TransactItems"]
    assert claim == {
        "Put": {
            "TableName": "pool",
            "Item": encode_claim(make_claim(make_sandbox("1"))),
            "ConditionExpression": "attribute_not_exists(PK)",
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    }
    assert sandbox["Update"]["Key"] == sandbox_key("1")
    assert fact["Put"]["Item"]["PK"] == sandbox_key("1")["PK"]


class Raises:
    """A client whose calls do not get an answer."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, operation: str) -> Callable[..., NoReturn]:
        def fail(**_: Any) -> NoReturn:
            raise self._error

        return fail


def test_an_allocation_that_did_not_reach_dynamodb_was_not_applied() -> None:
    with pytest.raises(StoreUnavailable) as raised:
        allocate(store_on(Raises(EndpointConnectionError(endpoint_url="http://x"))))
    assert not isinstance(raised.value, OutcomeUnknown)


@pytest.mark.parametrize("client", [Answers("UnrecognizedClientException", 400), Raises(NoCredentialsError())])
def test_credentials_that_are_missing_or_refused_need_a_person(client: object) -> None:
    with pytest.raises(StoreMisconfigured, match="credentials"):
        store_on(client).get("1")


@pytest.fixture
def table(aws_environment: dict[str, str]) -> Iterator[DynamoDBClient]:
    with mock_aws():
        client = moto_client()
        create_table(client, "pool")
        client.put_item(
            TableName="pool",
            Item={
                "PK": {"S": "SBX#sbx-0"},
                "SK": {"S": "META"},
                "status": {"S": "of_a_later_version"},
                "status_key": {"S": "available#0"},
                "status_order": {"N": "1"},
            },
        )
        yield client


def bad_by_hand(table: DynamoDBClient, sandbox_id: str, update: str, **values: Any) -> None:
    """Change a record as a hand would, beside every rule."""
    parts: Any = {
        "ExpressionAttributeNames": {"#name": "name"} if "#name" in update else {},
        "ExpressionAttributeValues": {f":{name}": value for name, value in values.items()},
    }
    given = {name: part for name, part in parts.items() if part}
    table.update_item(TableName="pool", Key=sandbox_key(sandbox_id), UpdateExpression=update, **given)


def all_pages(store: DynamoStore, status: Status | None, *, limit: int) -> list[SandboxPage]:
    pages = [store.list_sandboxes(status, limit=limit, cursor=None)]
    while cursor := pages[-1].cursor:
        pages.append(store.list_sandboxes(status, limit=limit, cursor=cursor))
    return pages


@pytest.mark.parametrize(
    ("update", "values"),
    [
        ("REMOVE #name", {}),
        ("REMOVE external_id", {}),
        ("SET #name = :bad", {"bad": {"N": "7"}}),
        ("SET version = :bad", {"bad": {"N": "1.5"}}),
        ("SET version = :bad", {"bad": {"S": "1"}}),
        ("SET sfdc_account_id = :bad", {"bad": {"BOOL": True}}),
        ("SET status_order = :bad", {"bad": {"N": "1E30"}}),
        ("SET status_order = :bad", {"bad": {"N": "-1"}}),
    ],
)
def test_what_the_index_shows_of_a_bad_record_is_no_candidate(
    table: DynamoDBClient, update: str, values: dict[str, Any]
) -> None:
    store = store_on(table)
    for number in range(4):
        store.commit(add_of(make_sandbox(f"lab-{number}")))
    bad_by_hand(table, "lab-3", update, **values)
    shown = {each.sandbox_id for each in walk_ring(store, limit=1)}
    assert shown == {f"lab-{number}" for number in range(4) if number != 3}
    (unreadable,) = (
        each for page in all_pages(store, None, limit=3) for each in page.unreadable if each.sandbox_id == "lab-3"
    )
    assert unreadable.reason.startswith(update.split()[1].lstrip("#"))


@pytest.mark.parametrize("order", ["0.5", "4503599627370496.25", "9007199254740990.5"])
def test_a_fraction_in_the_ring_stops_no_walk_and_no_listing(table: DynamoDBClient, order: str) -> None:
    store = store_on(table)
    for number in range(4):
        store.commit(add_of(make_sandbox(f"lab-{number}")))
    bad_by_hand(table, "lab-3", "SET status_order = :order", order={"N": order})
    everyone = sorted(f"lab-{number}" for number in range(4))
    assert sorted(each.sandbox_id for each in walk_ring(store, limit=1)) == everyone
    listed = [each.sandbox_id for page in all_pages(store, Status.AVAILABLE, limit=1) for each in page.sandboxes]
    assert sorted(listed) == everyone


def test_records_that_the_index_does_not_have_are_listed_at_the_end(table: DynamoDBClient) -> None:
    store = store_on(table)
    for number in range(9):
        store.commit(add_of(make_sandbox(f"lab-{number}")))
    for number in range(5):
        bad_by_hand(table, f"lab-{number}", "SET status_key = :later", later={"S": "reserved#0"})
    bad_by_hand(table, "lab-5", "REMOVE status_order")
    bad_by_hand(table, "lab-6", "REMOVE status_key")
    pages = all_pages(store, None, limit=2)
    assert {each.sandbox_id for page in pages for each in page.sandboxes} == {"lab-7", "lab-8"}
    bad = sorted(each.sandbox_id for page in pages for each in page.unreadable)
    assert bad == sorted([*(f"lab-{number}" for number in range(7)), "sbx-0"])
    assert all(len(page.sandboxes) + len(page.unreadable) <= 2 for page in pages)
    with pytest.raises(InvalidInput):
        store.list_sandboxes(Status.AVAILABLE, limit=2, cursor=pages[-2].cursor)


def test_a_record_too_large_to_be_allocated_is_no_candidate() -> None:
    recorder = RecordingRecorder()
    store = store_on(cancelling("None", "ValidationError", "None"), recorder)
    assert allocate(store) == CandidateGone(None)
    assert [event.sandbox_id for event in recorder.of(RecordUnreadable)] == ["1"]


def test_a_claim_that_is_said_to_be_there_and_not_shown_leaves_the_outcome_unknown() -> None:
    with pytest.raises(OutcomeUnknown):
        allocate(store_on(cancelling("ConditionalCheckFailed", "None", "None")))


def test_a_bad_record_is_said_once_a_minute_however_often_it_is_met(
    table: DynamoDBClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamo_base, "_MOST_REPORTED", 2)
    clock, recorder = FakeClock(), RecordingRecorder()
    store = DynamoStore(table, "pool", clock=clock, rng=Random(1), recorder=recorder)
    for _ in range(3):
        with pytest.raises(UnreadableRecord):
            store.get("sbx-0")
    assert [(each.sandbox_id, each.error) for each in recorder.of(RecordUnreadable)] == [
        ("sbx-0", "sandbox 'sbx-0' cannot be read: sandbox_id is missing")
    ]
    clock.advance(60)
    store.read_all()
    assert len(recorder.of(RecordUnreadable)) == 2
    for number in (1, 2):
        store.commit(add_of(make_sandbox(f"lab-{number}")))
        bad_by_hand(table, f"lab-{number}", "REMOVE #name")
    store.read_all()
    assert len({each.sandbox_id for each in recorder.of(RecordUnreadable)}) == 3


@pytest.mark.parametrize("consistent", [True, False])
def test_a_read_of_the_whole_pool_is_as_consistent_as_it_must_be(table: DynamoDBClient, consistent: bool) -> None:
    asked: list[bool] = []

    class Watched:
        def __getattr__(self, operation: str) -> object:
            return getattr(table, operation)

        def batch_get_item(self, **request: Any) -> object:
            asked.extend(each["ConsistentRead"] for each in request["RequestItems"].values())
            return table.batch_get_item(**request)

    store = store_on(Watched())
    store.commit(add_of(make_sandbox("1")))
    assert len(store.read_all(consistent=consistent).accounts) == 1
    assert asked == [consistent] * 2, "sandboxes, and accounts"


def test_pauses_that_cannot_be_read_are_said_and_can_be_set_again(table: DynamoDBClient) -> None:
    store = store_on(table)
    table.put_item(TableName="pool", Item={**PAUSE_KEY, "sync": {"S": "yes"}, "allocate": {"BOOL": True}})
    with pytest.raises(UnreadableRecord, match="what is paused"):
        store.read_pauses()
    board = PauseCache(store, FakeClock(), Random(1))
    with pytest.raises(UnreadableRecord, match="sync is not true or false"):
        board.set({"sync": True, "allocate": True}, by=BY)
    sync = Pause(by=BY.principal, since=START)
    assert board.set({"sync": True}, by=BY) == Pauses(sync=sync, allocate=Pause())


def test_a_deletion_whose_time_cannot_be_read_is_not_the_oldest(table: DynamoDBClient) -> None:
    store = store_on(table)
    for number in range(3):
        store.commit(
            add_of(make_sandbox(f"lab-{number}", status=Status.PENDING_DELETION, deletion_requested_at=100 + number))
        )
    bad_by_hand(table, "lab-0", "SET deletion_requested_at = :bad", bad={"S": "long ago"})
    assert store.oldest_pending_deletion() == 101


def test_a_table_that_was_created_before_is_left_as_it_is(table: DynamoDBClient) -> None:
    assert not create_table(table, "pool", shards=5)
    assert store_on(table).ping() is not None


def test_a_table_without_a_layout_says_which_command_is_missing(table: DynamoDBClient) -> None:
    table.delete_item(TableName="pool", Key=LAYOUT_KEY)
    with pytest.raises(LayoutMismatch, match="broker table create"):
        store_on(table).ping()


def test_a_table_for_another_number_of_shards_is_refused(table: DynamoDBClient) -> None:
    store = DynamoStore(table, "pool", clock=FakeClock(), rng=Random(1), recorder=RecordingRecorder(), shards=5)
    with pytest.raises(LayoutMismatch, match="but this process uses 5"):
        store.ping()


@pytest.mark.slow
def test_a_look_at_the_table_sees_the_last_sync_beside_a_thousand_reservations(table: DynamoDBClient) -> None:
    for number in range(1000):
        # A query answers with at most 1 MB.
        item = {"PK": {"S": "POOL"}, "SK": {"S": f"RESERVATION#{number:04}"}, "note": {"S": "x" * 2000}}
        table.put_item(TableName="pool", Item=item)
    store = store_on(table)
    store.write_watermark(Watermark(synced_at=START, accounts=1))
    assert store.ping().synced_at == START


SPOILED_LAYOUTS: list[dict[str, Any]] = [
    {"shards": {"S": "four"}},
    {"shards": {"S": "4"}},
    {"shards": {"NULL": True}},
    {},
    {"shards": {"N": "4"}, "identity": {"N": "7"}},
    {"shards": {"N": "4"}, "identity": {"M": {}}},
    {"shards": {"N": "4"}, "table_id": {"BOOL": True}},
    {"shards": {"N": "4"}, "accepted_at": {"S": "now"}},
]


@pytest.mark.parametrize("spoiled", SPOILED_LAYOUTS)
def test_a_layout_record_that_a_hand_spoiled_is_told_by_its_field(
    table: DynamoDBClient, spoiled: dict[str, Any]
) -> None:
    table.put_item(TableName="pool", Item={**LAYOUT_KEY, **spoiled})
    field = list(spoiled)[-1] if spoiled else "shards"
    with pytest.raises(LayoutMismatch, match=f"layout record cannot be read: {field} is"):
        store_on(table).ping()


@pytest.mark.parametrize("value", [{"S": "true"}, {"N": "1"}, {"NULL": True}, {"M": {}}])
def test_pauses_that_a_hand_spoiled_are_told_by_their_field_and_set_right_by_setting_them(
    table: DynamoDBClient, value: Any
) -> None:
    table.put_item(TableName="pool", Item={**PAUSE_KEY, "sync": value})
    store = store_on(table)
    with pytest.raises(UnreadableRecord, match="what is paused cannot be read: sync is not true or false"):
        store.read_pauses()
    assert PauseCache(store, FakeClock(), Random(1)).set({"sync": False}, by=BY) == Pauses()
    assert store.read_pauses() == Pauses()


@pytest.mark.parametrize("field", ["synced_at", "accounts"])
@pytest.mark.parametrize("value", [{"S": "7"}, {"N": "-1"}, {"NULL": True}, None])
def test_a_watermark_that_a_hand_spoiled_is_told_by_its_field_and_still_says_that_a_sync_succeeded(
    table: DynamoDBClient, field: str, value: Any
) -> None:
    item = {**SYNC_KEY, "synced_at": {"N": "7"}, "accounts": {"N": "7"}} | {field: value}
    table.put_item(TableName="pool", Item={name: each for name, each in item.items() if each is not None})
    recorder = RecordingRecorder()
    store = store_on(table, recorder)
    assert store.read_watermark() is None
    (said,) = recorder.of(RecordUnreadable)
    assert f"the last sync cannot be read: {field} is" in said.error
    assert store.ping().synced_at is not None


@pytest.fixture
def on_ministack(ministack_url: str, aws_environment: dict[str, str]) -> DynamoDBClient:
    return make_client(region="us-east-1", endpoint_url=ministack_url, timeout_sec=10, connections=4)


def test_a_table_that_was_made_again_with_the_layout_record_of_the_one_before_was_restored(
    on_ministack: DynamoDBClient,
) -> None:
    create_table(on_ministack, "restored")
    store = DynamoStore(on_ministack, "restored", clock=FakeClock(), rng=Random(1), recorder=RecordingRecorder())
    before = store.ping()
    assert not before.is_restored
    layout = on_ministack.get_item(TableName="restored", Key=LAYOUT_KEY)["Item"]
    on_ministack.delete_table(TableName="restored")
    create_table(on_ministack, "restored")
    try:
        assert store.ping().identity != before.identity
        on_ministack.put_item(TableName="restored", Item=layout)
        assert (store.ping().identity, store.ping().is_restored) == (before.identity, True)
        store.identify("accepted", instead_of=before.identity, last_foreign_sync=START)
        assert (store.ping().identity, store.ping().is_restored) == ("accepted", False)
    finally:
        on_ministack.delete_table(TableName="restored")


def test_a_table_of_an_older_release_is_given_its_identity_once(table: DynamoDBClient) -> None:
    table.put_item(TableName="pool", Item={**LAYOUT_KEY, "shards": {"N": "4"}})
    store = store_on(table)
    assert store.ping().identity is None
    store.identify("first", instead_of=None)
    with pytest.raises(Conflict):
        store.identify("second", instead_of=None)
    assert store.ping().identity == "first"


def test_a_table_without_a_layout_record_is_given_no_identity(table: DynamoDBClient) -> None:
    table.delete_item(TableName="pool", Key=LAYOUT_KEY)
    with pytest.raises(Conflict):
        store_on(table).identify("first", instead_of=None)
    assert "Item" not in table.get_item(TableName="pool", Key=LAYOUT_KEY)


def without_index(client: DynamoDBClient, name: str, **index: Any) -> None:
    """Create a table with its layout record whose index is missing, or as `index` has it."""
    definition: Any = table_definition(name)
    if index:
        definition["GlobalSecondaryIndexes"][0] |= index
    else:
        del definition["GlobalSecondaryIndexes"]
        del definition["AttributeDefinitions"][2:]
    client.create_table(**definition)
    create_table(client, name)


OTHER_KEYS = [
    {"AttributeName": "status_order", "KeyType": "HASH"},
    {"AttributeName": "status_key", "KeyType": "RANGE"},
]


@pytest.mark.parametrize(
    ("index", "problem"),
    [({}, "has no index StatusIndex"), ({"KeySchema": OTHER_KEYS}, "has an index StatusIndex with other keys")],
)
def test_a_table_without_its_index_is_refused_and_no_call_of_it_is_an_internal_error(
    on_ministack: DynamoDBClient, index: dict[str, Any], problem: str
) -> None:
    without_index(on_ministack, "index-less", **index)
    store = DynamoStore(on_ministack, "index-less", clock=FakeClock(), rng=Random(1), recorder=RecordingRecorder())
    try:
        with pytest.raises(LayoutMismatch, match=problem):
            store.ping()
        if not index:
            with pytest.raises(StoreMisconfigured, match="no index that can be used"):
                store.count()
    finally:
        on_ministack.delete_table(TableName="index-less")


def test_an_index_that_is_being_made_cannot_be_used_yet() -> None:
    (index,) = table_definition("pool")["GlobalSecondaryIndexes"]
    making = {"GlobalSecondaryIndexes": [{**index, "IndexStatus": "CREATING"}]}
    assert "which is CREATING" in str(index_problem(making))
    changing = {"GlobalSecondaryIndexes": [{**index, "IndexStatus": "UPDATING"}]}
    assert index_problem(changing) is None


def test_a_table_that_may_not_be_described_says_which_right_is_missing() -> None:
    with pytest.raises(StoreMisconfigured, match="DescribeTable: DynamoDB refused"):
        store_on(Answers("AccessDeniedException", 400)).ping()


class MovableClock(FakeClock):
    """A clock whose time of day can be set."""

    moved = 0

    def now(self) -> int:
        return super().now() + self.moved


class CountingDescriptions:
    """A client that counts its calls of DescribeTable, and fails every query while it `is_away`."""

    def __init__(self, table: DynamoDBClient) -> None:
        self.descriptions = 0
        self.is_away = False
        self._table = table

    def __getattr__(self, operation: str) -> Any:
        self.descriptions += operation == "describe_table"
        return getattr(Answers("ResourceNotFoundException", 400) if self.is_away else self._table, operation)


def ping_often(store: DynamoStore, clock: FakeClock, *, seconds: int) -> None:
    for _ in range(seconds // 3):
        clock.advance(3)
        store.ping()


def test_a_table_is_described_once_a_minute_while_pings_follow_each_other(table: DynamoDBClient) -> None:
    client, clock = CountingDescriptions(table), FakeClock()
    store = DynamoStore(client, "pool", clock=clock, rng=Random(1), recorder=RecordingRecorder())  # type: ignore[arg-type] # counts
    store.ping()
    ping_often(store, clock, seconds=60)
    assert client.descriptions == 1
    ping_often(store, clock, seconds=3)
    assert client.descriptions == 2


@pytest.mark.parametrize(
    "gap",
    ["a failed ping", "a time without a ping", "a clock that went on", "a clock set back", "a clock that stood still"],
)
def test_a_table_that_may_have_been_replaced_since_the_last_ping_is_described_again(
    table: DynamoDBClient, gap: str
) -> None:
    client, clock = CountingDescriptions(table), MovableClock()
    store = DynamoStore(client, "pool", clock=clock, rng=Random(1), recorder=RecordingRecorder())  # type: ignore[arg-type] # counts
    store.ping()
    match gap:
        case "a failed ping":
            client.is_away = True
            with pytest.raises(StoreMisconfigured):
                store.ping()
            client.is_away = False
        case "a time without a ping":
            clock.advance(11)
        case "a clock that went on":
            clock.moved = 11
        case "a clock set back":
            clock.moved = -11
        case "a clock that stood still":
            clock.advance(11)
            clock.moved = -11
    before = client.descriptions
    store.ping()
    assert client.descriptions == before + 1


class Sparing:
    """A client to which the table gives one item a query, and nothing at the first batch read."""

    def __init__(self, table: DynamoDBClient) -> None:
        self._table = table
        self._has_refused = False

    def __getattr__(self, operation: str) -> Any:
        return getattr(self._table, operation)

    def query(self, **request: Any) -> Any:
        return self._table.query(**request | {"Limit": 1})

    def batch_get_item(self, **request: Any) -> Any:
        if self._has_refused:
            return self._table.batch_get_item(**request)
        self._has_refused = True
        return {"Responses": {"pool": []}, "UnprocessedKeys": request["RequestItems"]}


def test_facts_are_kept_for_ninety_days_unless_told_otherwise(table: DynamoDBClient) -> None:
    store_on(table).record(PAUSED)
    (item,) = (item for item in table.scan(TableName="pool")["Items"] if item["PK"]["S"].startswith("POOLFACTS#"))
    assert item["ttl"] == {"N": str(START + 90 * 24 * 3600)}


def test_a_count_goes_on_to_the_last_page(table: DynamoDBClient) -> None:
    for number in range(1, 30):
        store_on(table).commit(add_of(make_sandbox(f"lab-{number}")))
    assert store_on(Sparing(table)).count()[Status.AVAILABLE] == 30


def test_what_a_batch_read_left_out_is_asked_for_again(table: DynamoDBClient) -> None:
    store_on(table).commit(add_of(make_sandbox("lab-1")))
    listed = store_on(Sparing(table)).list_sandboxes(Status.AVAILABLE, limit=10, cursor=None).sandboxes
    assert [each.sandbox_id for each in listed] == ["lab-1"]


def test_an_account_is_not_taken_from_a_sandbox_that_is_added_just_then(
    table: DynamoDBClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_on(table)
    owner = make_sandbox("owner", external_id="uuid-0a")
    store.record_accounts(owner)

    def read_too_early(_: str) -> None:
        store.commit(add_of(owner))

    monkeypatch.setattr(store, "get", read_too_early)
    with pytest.raises(Conflict, match="another owner"):
        store.commit(add_of(make_sandbox("other", external_id="uuid-0a")))
    assert store.read_all().accounts == {"uuid-0a": "owner"}


@pytest.mark.usefixtures("aws_environment")
@pytest.mark.parametrize("engine", ["ministack_url", "dynamodb_local_url"])
def test_an_engine_tells_its_time_to_a_request_without_a_signature(request: pytest.FixtureRequest, engine: str) -> None:
    read = make_time_reader(region="us-east-1", endpoint_url=request.getfixturevalue(engine), timeout_sec=30)
    told = read()
    assert told is not None
    assert abs(told - time.time()) < 60


@pytest.mark.usefixtures("aws_environment")
def test_an_engine_that_is_away_tells_no_time() -> None:
    assert make_time_reader(region="us-east-1", endpoint_url="http://127.0.0.1:1", timeout_sec=1)() is None


@pytest.mark.parametrize(
    "headers", [{}, {"date": ""}, {"date": "yesterday"}, {"date": "Sat, 99 Nov 2026 22:16:44 GMT"}]
)
def test_an_answer_without_a_date_that_can_be_read_tells_no_time(headers: dict[str, str]) -> None:
    assert time_of({"ResponseMetadata": {"HTTPHeaders": headers}}) is None


class Samples:
    """A client that answers the query of each date with a sample of every tenth minute."""

    def query(self, **request: Any) -> dict[str, Any]:
        date = request["ExpressionAttributeValues"][":date"]
        names = (*Status, "waiting", *(f"allocates_{each}" for each in AllocateOutcome))
        minutes = (f"{minute // 60:02}:{minute % 60:02}" for minute in range(0, 24 * 60, 10))
        items = [{"PK": date, "SK": {"S": each}, **{name: {"N": "12345"} for name in names}} for each in minutes]
        return {"Items": items, "Count": len(items)}


def test_a_read_of_many_samples_does_not_keep_their_items() -> None:
    store, days = store_on(Samples()), 30
    since = START - START % 86400
    tracemalloc.start()
    try:
        found = store.read_samples(since=since, until=since + days * 86400)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == days * 144
    assert most < len(found) * 2500
