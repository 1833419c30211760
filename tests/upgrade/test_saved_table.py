"""A table that release 1 has filled is answered for as that release did, and carried on until its pool is free again.

`release_1/table.json` holds the whole table: its definition and every item, at the time `now`. Git commit 5e9ccd6 made
it on DynamoDB Local by its own use cases, none of it by hand, and with it `release_1/answers.json`: what its API
answered to calls that change nothing. A sandbox is known by what became of it (`variants`); `removed` has no record
any more. Neither file is ever written again: what such a table looks like is history.
"""

from __future__ import annotations

import json
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from broker_api.app import create_app
from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_transport import make_client
from broker_common.core.allocation import Allocation
from broker_common.core.errors import UpgradeUnfinished
from broker_common.core.sandbox import Account
from broker_common.core.waiting import Waiting
from broker_common.settings import Process, Settings
from tests.api.harness import (
    ADMIN_TOKEN,
    ENVIRONMENT,
    TRACK_TOKEN,
    FakeQueue,
    FakeRateLimit,
    body_of,
    make_services,
)
from tests.fakes import BY, FakeClock, FakeProvider, RecordingRecorder, TimelessStore
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_dynamodb import DynamoDBClient
    from werkzeug.test import TestResponse

HOUR = 3600
RELEASE_1 = Path(__file__).parent / "release_1"
TABLE: dict[str, Any] = json.loads((RELEASE_1 / "table.json").read_text())
ANSWERS: dict[str, Any] = json.loads((RELEASE_1 / "answers.json").read_text())
ID_OF: dict[str, str] = TABLE["variants"]
HELD: list[str] = ANSWERS["listed"]["allocated"]
REMOVED = ("tomb-wiped", "tomb-purged", "tomb-failed", "tomb-quarantined")
"""Tombstones that stay for as long as the provider lists their accounts."""

_tables = count()


class Broker:
    """This release's API and jobs on the saved table, at the time at which it was saved."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self.clock = FakeClock(TABLE["now"])
        self._items = partial(client.get_paginator("scan").paginate, TableName=table, ConsistentRead=True)
        recorder = RecordingRecorder()
        settings = Settings.from_env(ENVIRONMENT, process=Process.API)
        store = TimelessStore(DynamoStore(client, table, clock=self.clock, rng=Random(table), recorder=recorder))
        services = make_services(store, self.clock, FakeQueue(), recorder, settings, FakeRateLimit())
        self._app = create_app(settings, services, registry=CollectorRegistry())
        self.provider = FakeProvider()
        self.jobs = World(clock=self.clock, provider=self.provider, wrap=lambda _: store)

    def admin(self, method: str, path: str, **options: Any) -> TestResponse:
        """Make a call as an operator."""
        return self._call(method, path, {"Authorization": f"Bearer {ADMIN_TOKEN}"}, **options)

    def track(self, track_id: str, method: str, path: str, **headers: str) -> TestResponse:
        """Make a call as a track."""
        named = {"Authorization": f"Bearer {TRACK_TOKEN}", "X-Track-ID": track_id}
        return self._call(method, path, named | headers)

    def read(self, sandbox_id: str) -> dict[str, Any]:
        """Return what an operator sees of a sandbox."""
        return body_of(self.admin("GET", f"/v1/admin/sandboxes/{sandbox_id}"))

    def usage(self, by: str) -> dict[str, Any]:
        """Return the report on all leases whose lines this release keeps."""
        earliest = self.clock.now() - self.clock.now() % (24 * HOUR) - 24 * HOUR
        return body_of(self.admin("GET", f"/v1/admin/usage?from={earliest}&by={by}"), 200)

    def status_of(self, variant: str) -> str:
        return str(self.read(ID_OF[variant])["status"])

    def held(self) -> dict[str, dict[str, Any]]:
        """Return what is allocated, by sandbox id."""
        return {sandbox_id: self.read(sandbox_id) for sandbox_id in HELD}

    def accounts(self) -> set[tuple[str, str]]:
        """Return which accounts the table has, and whose each is."""
        items = [item for page in self._items() for item in page["Items"]]
        return {(each["PK"]["S"], each["sandbox_id"]["S"]) for each in items if each["SK"] == {"S": "ACCOUNT"}}

    def list(self, provider_has: set[str]) -> None:
        """Sync with a list of the accounts of these variants."""
        wanted = {ID_OF[variant] for variant in provider_has}
        self.provider.accounts = [Account(**each) for each in TABLE["accounts"] if each["sandbox_id"] in wanted]
        self.jobs.syncer.run(by=BY)

    def wipe_what_is_due(self) -> None:
        """Run the cleanup often enough to see the end of each attempt and pause of before."""
        for _ in range(3):
            self.clock.advance(HOUR)
            for sandbox_id in list(self.jobs.cleaner.find_due()):
                self.jobs.cleaner.delete_sandbox(sandbox_id, by=BY)

    def _call(self, method: str, path: str, headers: dict[str, str], **options: Any) -> TestResponse:
        return self._app.test_client().open(path, method=method, headers=headers, buffered=True, **options)


@pytest.fixture(params=["ministack_url", "dynamodb_local_url"])
def client(request: pytest.FixtureRequest, aws_environment: dict[str, str]) -> DynamoDBClient:
    url = request.getfixturevalue(request.param)
    return make_client(region="us-east-1", endpoint_url=url, timeout_sec=10, connections=8)


@pytest.fixture
def broker(client: DynamoDBClient) -> Iterator[Broker]:
    """Yield a broker on a copy of the saved table; only the engine's own id of a table is that of the copy."""
    table = f"release-1-{next(_tables)}"
    client.create_table(TableName=table, **TABLE["definition"])
    client.get_waiter("table_exists").wait(TableName=table, WaiterConfig={"Delay": 1})
    table_id = client.describe_table(TableName=table)["Table"].get("TableId")
    for saved in TABLE["items"]:
        item = {name: value for name, value in saved.items() if name != "table_id"}
        if "table_id" in saved and table_id is not None:
            item["table_id"] = {"S": table_id}
        client.put_item(TableName=table, Item=item)
    yield Broker(client, table)
    client.delete_table(TableName=table)


def lacks(answer: Any, saved: Any, at: str = "answer") -> list[str]:
    """Say where an answer is not the saved one; it may tell more than that."""
    if isinstance(saved, dict) and isinstance(answer, dict):
        missing = [f"{at}.{name} is missing" for name in saved.keys() - answer.keys()]
        return missing + [
            line for name in saved.keys() & answer.keys() for line in lacks(answer[name], saved[name], f"{at}.{name}")
        ]
    if isinstance(saved, list) and isinstance(answer, list) and len(saved) == len(answer):
        pairs = enumerate(zip(answer, saved, strict=True))
        return [line for number, (one, other) in pairs for line in lacks(one, other, f"{at}[{number}]")]
    return [] if answer == saved else [f"{at} is {answer!r}, was {saved!r}"]


def test_each_call_is_answered_as_the_release_answered_that_filled_the_table(broker: Broker) -> None:
    wrong: list[str] = []
    for call in ANSWERS["calls"]:
        if call["role"] == "admin":
            answer = broker.admin(call["method"], call["path"])
        else:
            answer = broker.track(call["track"], call["method"], call["path"], **call["headers"])
        body = body_of(answer)
        found = [
            *lacks(answer.status_code, call["status"], "status"),
            *lacks(answer.headers.get("Idempotent-Replayed"), call["replayed"], "Idempotent-Replayed"),
            *lacks(body if answer.status_code < 400 else body["error"], call["answer"]),
        ]
        wrong += [f"{call['method']} {call['path']} as {call['track'] or 'admin'}: {line}" for line in found]
    assert wrong == []


@pytest.mark.parametrize("status", ANSWERS["listed"])
def test_a_listing_has_the_same_sandboxes_page_by_page(broker: Broker, status: str) -> None:
    path = "/v1/admin/sandboxes?limit=3" + ("" if status == "all" else f"&status={status}")
    found: list[dict[str, Any]] = []
    page = body_of(broker.admin("GET", path))
    while page["cursor"]:
        found += page["sandboxes"]
        assert page["unreadable"] == []
        page = body_of(broker.admin("GET", f"{path}&cursor={page['cursor']}"))
    found += page["sandboxes"]

    assert sorted(each["sandbox_id"] for each in found) == ANSWERS["listed"][status]
    assert all(each == broker.read(each["sandbox_id"]) for each in found)


def test_every_holder_can_give_back_what_it_holds(broker: Broker) -> None:
    before = broker.held()
    for sandbox_id, held in before.items():
        for _ in range(2):
            answer = broker.track(held["allocated_to_track"], "POST", f"/v1/sandboxes/{sandbox_id}/mark-for-deletion")
            told = {"status": "pending_deletion", "lease_id": held["lease_id"], "deletion_requested_at": TABLE["now"]}
            assert lacks(body_of(answer, 200), told | {"sandbox_id": sandbox_id}) == []
    for track_id in {held["allocated_to_track"] for held in before.values()}:
        assert body_of(broker.track(track_id, "GET", "/v1/sandboxes"))["count"] == 0
    assert body_of(broker.admin("GET", "/v1/admin/stats"))["allocated"] == 0


def test_an_operator_can_release_every_allocation(broker: Broker) -> None:
    for sandbox_id, held in broker.held().items():
        body = {"lease_id": held["lease_id"]}
        answer = broker.admin("POST", f"/v1/admin/sandboxes/{sandbox_id}/release", json=body)
        ended = {"status": "pending_deletion", "deletion_reason": "released_by_operator", "lease_id": None}
        assert body_of(answer, 200).items() >= (ended | {"last_lease_id": held["lease_id"]}).items()


def test_a_lease_that_the_release_before_began_is_in_the_usage_without_a_customer(broker: Broker) -> None:
    held = broker.held().values()
    for each in held:
        body_of(
            broker.track(each["allocated_to_track"], "POST", f"/v1/sandboxes/{each['sandbox_id']}/mark-for-deletion")
        )
    broker.clock.advance(1)
    by_lab, by_customer = (broker.usage(by) for by in ("track_name", "customer"))
    assert {row["group"] for row in by_lab["rows"]} == {each["track_name"] for each in held}
    assert [(row["group"], row["leases"]) for row in by_customer["rows"]] == [(None, len(held))]
    lengths = [TABLE["now"] - each["allocated_at"] for each in held]
    assert by_lab["total"]["sandbox_hours"] == round(sum(lengths) / HOUR, 2)


def test_a_lease_that_the_release_before_ended_is_not_in_the_usage_though_this_one_wipes_after_it(
    broker: Broker,
) -> None:
    broker.wipe_what_is_due()
    assert broker.usage("day")["rows"] == []


def test_only_what_is_overdue_expires_until_the_time_of_the_others_has_come(broker: Broker) -> None:
    broker.jobs.expirer.run(by=BY)
    assert [sandbox_id for sandbox_id, held in broker.held().items() if held["status"] != "allocated"] == [
        ID_OF["held-overdue"]
    ]

    broker.clock.advance(5 * HOUR)
    broker.jobs.expirer.run(by=BY)
    for ended in broker.held().values():
        assert (ended["status"], ended["deletion_reason"]) == ("pending_deletion", "expired")


def test_a_track_whose_allocation_is_overdue_gets_another_sandbox(broker: Broker) -> None:
    overdue = broker.read(ID_OF["held-overdue"])
    answer = broker.track(overdue["allocated_to_track"], "POST", "/v1/allocate")
    assert body_of(answer, 201)["sandbox_id"] in ANSWERS["listed"]["available"]
    assert broker.read(ID_OF["held-overdue"])["deletion_reason"] == "expired"


def test_what_was_under_way_is_left_alone_until_its_window_has_passed(broker: Broker) -> None:
    under_way = {ID_OF["under-way"], ID_OF["lost-then-under-way"]}
    due = set(ANSWERS["listed"]["pending_deletion"]) - under_way
    assert set(broker.jobs.cleaner.find_due()) == due

    broker.clock.advance(60)
    assert set(broker.jobs.cleaner.find_due()) == due | under_way


def test_a_wipe_whose_outcome_was_in_doubt_waits_for_a_sync(broker: Broker) -> None:
    broker.wipe_what_is_due()
    doubtful = {"under-way", "lost-then-under-way", "failed-unknown", "cancelled"}
    certain = {"marked", "released", "expired", "failed", "contradicted", "retried", "retried-quarantine"}
    assert {variant: broker.status_of(variant) for variant in doubtful | certain} == dict.fromkeys(
        doubtful, "stale"
    ) | dict.fromkeys(certain, "available")


def test_accounts_are_recorded_where_the_release_before_looks_for_them(broker: Broker) -> None:
    """While both run side by side, an account that one of them adds must keep the other from adding it again."""
    before = broker.accounts()
    assert {sandbox_id for _, sandbox_id in before} == set(ANSWERS["listed"]["all"])
    broker.list(set(ID_OF))
    (added,) = broker.accounts() - before
    account = next(each for each in TABLE["accounts"] if each["sandbox_id"] == ID_OF["removed"])
    assert added == (f"ACCOUNT#{account['external_id'].lower()}", ID_OF["removed"])
    assert before < broker.accounts()


def test_a_track_waits_in_line_once_the_upgrade_is_finished_and_gets_what_comes_back(broker: Broker) -> None:
    for number in range(len(ANSWERS["listed"]["available"])):
        assert broker.track(f"first-{number}", "POST", "/v1/allocate").status_code == 201
    with pytest.raises(UpgradeUnfinished):
        broker.jobs.wait("late")
    broker.jobs.store.finish_upgrade()
    broker.clock.advance(10)
    waiting = broker.jobs.wait("late")
    assert isinstance(waiting, Waiting)
    assert (waiting.position, waiting.waiting) == (1, 1)

    held = broker.held()
    broker.wipe_what_is_due()
    broker.jobs.wait("late")  # more than its time to come back has passed, so it is at the end of the line, alone
    broker.clock.advance(2)
    given = broker.jobs.wait("late")
    assert isinstance(given, Allocation)
    assert given.claim.sandbox_id not in held
    assert broker.held() == held


def test_the_whole_pool_comes_back_and_can_be_allocated_once_each(broker: Broker) -> None:
    assert broker.admin("POST", "/v1/admin/pause", json={"sync": False}).status_code == 200
    for sandbox_id, held in list(broker.held().items())[::2]:
        broker.track(held["allocated_to_track"], "POST", f"/v1/sandboxes/{sandbox_id}/mark-for-deletion")
    broker.clock.advance(5 * HOUR)
    broker.jobs.expirer.run(by=BY)
    assert broker.admin("POST", "/v1/admin/bulk-retry").status_code == 200
    broker.wipe_what_is_due()

    # A tombstone goes when its account is not listed any more; one that comes back is new.
    everything = set(ID_OF)
    broker.list(everything - set(REMOVED))
    broker.wipe_what_is_due()
    assert {broker.admin("GET", f"/v1/admin/sandboxes/{ID_OF[variant]}").status_code for variant in REMOVED} == {404}
    broker.list(everything)

    stats = body_of(broker.admin("GET", "/v1/admin/stats"))
    assert (stats["available"], stats["total"]) == (len(ID_OF), len(ID_OF))
    given = [broker.track(f"later-{number}", "POST", "/v1/allocate") for number in range(len(ID_OF))]
    assert {answer.status_code for answer in given} == {201}
    assert {body_of(answer)["sandbox_id"] for answer in given} == set(ID_OF.values())
    assert broker.track("one-too-many", "POST", "/v1/allocate").status_code == 409
