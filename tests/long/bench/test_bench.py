"""The bench's own accounting: nothing here is timed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError

from broker_common.adapters.dynamo_items import encode_sandbox
from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_table import SHARDS, create_table
from broker_common.adapters.dynamo_transport import make_boto3_client
from broker_common.adapters.recorders import Recorders
from broker_common.adapters.system_clock import SystemClock
from broker_common.core.allocation import AllocateRequest
from broker_common.core.errors import NoSandboxesAvailable
from broker_common.core.policy import Policy
from broker_common.core.sandbox import Status
from deploy.dev.processes import ROOT, wait_until
from tests.bulk_load import load_records
from tests.fakes import BY, add_of, flat, make_claim
from tests.http_server import Handler, serving
from tests.long.bench.bare import Bare, transactions
from tests.long.bench.cost import GAUGES, GAUGES_OF_NONE, LOOK, Meter, Units, months_table, price
from tests.long.bench.flood import ratios, sum_up
from tests.long.bench.line import count_waiting, delays, wait_in_line
from tests.long.bench.load import Answer, Generator, Load, allocations, drive, new_tracks, percentile
from tests.long.bench.parts import PARTS, costs_of, draw_parts
from tests.long.bench.pool import make_pool
from tests.long.bench.report import Findings, Goal, markdown, table, write_json, write_plot
from tests.long.bench.scenarios import CALLS, add_drain, add_level
from tests.long.bench.servers import REGION, TRACK_TOKEN, Servers
from tests.long.bench.textbook import TextbookAllocator, make_textbook_table
from tests.long.bench.workers import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.core.sandbox import Candidate


@pytest.fixture
def client(aws_environment: dict[str, str], dynamodb_local_url: str) -> DynamoDBClient:
    return make_boto3_client(region=REGION, endpoint_url=dynamodb_local_url, timeout_sec=60, connections=8)


@pytest.fixture
def table_name(client: DynamoDBClient) -> str:
    name = f"bench-{uuid4()}"
    create_table(client, name)
    return name


def store_on(client: DynamoDBClient, name: str) -> DynamoStore:
    return DynamoStore(client, name, clock=SystemClock(), rng=Random(1), recorder=Recorders([]))


def test_a_freed_sandbox_is_late_by_the_time_until_its_tracks_answer_ended() -> None:
    answers = [Answer(0, 201, 5.0, 12.5, b'{"sandbox_id": "b"}'), Answer(0, 201, 5.0, 11.0, b'{"sandbox_id": "a"}')]
    assert delays({"a": 10.0, "b": 12.0, "not taken": 13.0}, answers) == [1.0, 0.5]


def test_one_of_a_class_who_gets_nothing_in_time_counts_with_the_limit() -> None:
    outcome = sum_up([(True, 0.5), (False, 2.0), (False, math.inf), (False, 60.2)], 7, limit_sec=60)
    assert outcome.cells == {
        "of the class served at once": "25 %",
        "p50 to the 201": "31.00 s",
        "p99 to the 201": "60.00 s",
        "of the class not served in time": "2",
        "others served meanwhile": "7",
    }


def test_a_figure_that_is_0_without_a_reservation_has_no_ratio() -> None:
    without = sum_up([(False, 8.0), (False, 8.0)], 10, limit_sec=60)
    with_one = sum_up([(True, 2.0), (True, 2.0)], 5, limit_sec=60)
    assert ratios(with_one, without) == {
        "p50 to the 201": 0.25,
        "p99 to the 201": 0.25,
        "others served meanwhile": 0.5,
    }


@contextmanager
def server(answer: Callable[[str], int]) -> Iterator[tuple[int, list[str]]]:
    """Answer allocates with the status that `answer` gives for each track; yield the port and the tracks."""
    seen: list[str] = []

    class Answering(Handler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            track = self.headers["X-Track-ID"]
            seen.append(track)
            body = json.dumps({"track": track}).encode()
            self.send_response(answer(track))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for byte in body:  # an answer that comes in pieces
                self.wfile.write(bytes([byte]))

    with serving(Answering) as running:
        yield running.server_port, seen


def test_a_percentile_lies_between_the_neighbours_of_its_place() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([float(number) for number in range(101)], 99) == 99.0
    assert percentile([1.0, 2.0], 90) == pytest.approx(1.9)
    assert percentile([7.0], 99) == 7.0


def test_the_load_generator_sends_each_request_once_and_reads_each_answer_whole() -> None:
    tracks = [f"track-{number}" for number in range(40)]
    with server(lambda track: 409 if track.endswith("7") else 201) as (port, seen), Generator() as generator:
        load = generator.send(port, allocations("token", tracks), clients=6)
    assert sorted(seen) == sorted(tracks)
    assert sorted(each.number for each in load.answers) == list(range(40))
    assert [json.loads(each.body)["track"] for each in load.answers] == [tracks[each.number] for each in load.answers]
    assert load.statuses == {201: 36, 409: 4}
    assert all(each.ended > each.began for each in load.answers)


def test_a_steady_load_sends_each_request_once_and_counts_its_latency_from_when_it_was_due() -> None:
    tracks, rate = [f"track-{number}" for number in range(40)], 1e6
    with server(lambda _: 201) as (port, seen), Generator() as generator:
        load = generator.send_steadily(port, allocations("token", tracks), clients=3, rate=rate)
    assert sorted(seen) == sorted(tracks)
    assert load.statuses == {201: 40}
    began = [each.began for each in sorted(load.answers, key=lambda each: each.number)]
    assert [each - began[0] for each in began] == pytest.approx([number / rate for number in range(40)], abs=1e-9)


def test_the_rate_of_a_load_counts_what_succeeded() -> None:
    answers = [Answer(0, 201, 10.0, 11.0), Answer(1, 503, 10.0, 12.0), Answer(2, 200, 11.0, 14.0)]
    assert Load(answers, cpu_seconds=0).rate == 0.5


def test_processor_time_is_told_for_each_successful_request() -> None:
    answers = [Answer(0, 201, 0.0, 1.0), Answer(1, 503, 0.0, 1.0), Answer(2, 201, 0.0, 1.0)]
    load = Load(answers, cpu_seconds=0.2, servers_cpu_seconds={"API": 0.006, "Redis": 0.001, "DynamoDB Local": 0.008})
    assert load.own_milliseconds == pytest.approx(100)
    assert load.milliseconds_of("API", "Redis") == pytest.approx(3.5)


def test_the_share_by_processor_time_counts_all_but_the_load_generator() -> None:
    bare = Load([Answer(0, 201, 0.0, 1.0)], 0.002, {"DynamoDB Local": 0.004, "Redis": 1.0})
    broker = Load([Answer(0, 201, 0.0, 1.0)], 9.0, {"API": 0.003, "DynamoDB Local": 0.004, "Redis": 0.001})
    findings = Findings()
    add_level(findings, 1, [broker], [bare])
    share = next(each for each in findings.figures if each.name == "the same by processor time")
    assert share.value == pytest.approx(0.75)
    assert share.verdict == "MISSED"


def test_a_part_costs_the_difference_between_the_api_with_it_and_without_it(tmp_path: Path) -> None:
    costs = costs_of([[7.0 - part, 8.0 - part] for part in range(len(PARTS))])
    assert list(costs) == list(PARTS)
    assert set(map(tuple, list(costs.values())[:-1])) == {(1.0, 1.0)}
    assert costs["gunicorn"] == [1.0, 2.0]
    draw_parts(tmp_path / "parts.svg", {"before": costs, "now": costs})
    drawn = (tmp_path / "parts.svg").read_text()
    assert all(part in drawn for part in PARTS)
    assert "now: 7.50 ms in all" in drawn


def test_the_load_generator_fails_when_a_connection_ends_before_its_answer() -> None:
    class Closing(Handler):
        def handle(self) -> None:
            self.request.recv(65536)

    with serving(Closing) as running, pytest.raises(ConnectionError):
        drive(running.server_port, allocations("token", ["track"]), 1)


def test_no_process_of_the_bench_outlives_it_when_it_is_killed(tmp_path: Path, aws_environment: dict[str, str]) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal\n"
        "from tests.long.bench.bare import Bare\n"
        "from tests.long.bench.load import Generator\n"
        "if __name__ == '__main__':\n"
        "    generator, bare = Generator(), Bare('http://127.0.0.1:9', processes=1)\n"
        "    print(generator._pool.apply(os.getpid), bare._pool.apply(os.getpid), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(
        [sys.executable, str(script)], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    pids = [int(pid) for pid in killed.stdout.split()]
    assert len(pids) == 2
    assert wait_until(lambda: not any(map(_runs, pids)), 30)


def _runs(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_bare_transactions_allocate_each_sandbox_to_a_track_of_its_own(
    client: DynamoDBClient, table_name: str, dynamodb_local_url: str
) -> None:
    pool = make_pool(10)
    load_records(client, table_name, pool)
    with Bare(dynamodb_local_url, processes=2) as bare:
        load = bare.allocate(table_name, pool[:8], clients=4)
    assert load.statuses == {201: 8}
    store = store_on(client, table_name)
    found = [store.get(each.sandbox_id) for each in pool]
    assert [each.status for each in found if each] == [Status.ALLOCATED] * 8 + [Status.AVAILABLE] * 2
    for each in found[:8]:
        assert each is not None
        claim = store.get_claim(flat(each).allocated_to_track or "", flat(each).idempotency_key or "")
        assert claim is not None
        assert (claim.sandbox_id, claim.lease.lease_id) == (each.sandbox_id, flat(each).lease_id)


def test_a_bare_transaction_that_is_not_answered_is_sent_again_and_one_that_is_refused_is_not_counted_as_made(
    aws_environment: dict[str, str],
) -> None:
    sent: list[bytes] = []

    class SilentAtFirst(Handler):
        def reply(self) -> None:
            sent.append(self.read_body())
            if len(sent) > 1:
                self.answer(200 if len(sent) == 2 else 400, b"{}")

    with serving(SilentAtFirst) as running, Bare(f"http://127.0.0.1:{running.server_port}", processes=1) as bare:
        load = bare.allocate("table", make_pool(2), clients=1)
    assert (load.statuses, load.sent_again) == ({201: 1, 400: 1}, 1)
    assert sent[0] == sent[1] != sent[2]


def test_a_bare_transaction_is_refused_once_its_sandbox_is_taken(client: DynamoDBClient, table_name: str) -> None:
    pool = make_pool(1)
    load_records(client, table_name, pool)
    first, second = (transactions(table_name, pool)[0] for _ in range(2))
    client.transact_write_items(**first)
    with pytest.raises(ClientError, match="ConditionalCheckFailed"):
        client.transact_write_items(**second)


class _OvertakenAllocator(TextbookAllocator):
    """A store in whose `allocate` others come first."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def _first_available(self) -> list[Candidate]:
        found = super()._first_available()
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return found


def _textbook(client: DynamoDBClient, *, pool: int, k_candidates: int = 15) -> _OvertakenAllocator:
    name = make_textbook_table(client, f"textbook-{uuid4()}")
    load_records(client, name, make_pool(pool))
    policy = Policy(k_candidates=k_candidates)
    return _OvertakenAllocator(store=store_on(client, name), policy=policy, recorder=Recorders([]))


def test_the_textbook_broker_repeats_what_its_index_shows(client: DynamoDBClient) -> None:
    textbook = _textbook(client, pool=3)
    request = AllocateRequest(track_id="track", idempotency_key="track")
    first, again = textbook.allocate(request, by=BY), textbook.allocate(request, by=BY)
    assert not first.replayed
    assert again == replace(first, replayed=True)


def test_the_textbook_broker_gives_a_track_two_sandboxes_when_copies_of_its_request_overlap(
    client: DynamoDBClient,
) -> None:
    textbook = _textbook(client, pool=3)
    request = AllocateRequest(track_id="track", idempotency_key="track")
    copies = []
    textbook.meanwhile = lambda: copies.append(textbook.allocate(request, by=BY))
    copies.append(textbook.allocate(request, by=BY))
    assert len({each.claim.sandbox_id for each in copies}) == 2


def test_the_textbook_broker_refuses_a_track_whose_first_k_others_took_while_sandboxes_are_free(
    client: DynamoDBClient,
) -> None:
    textbook = _textbook(client, pool=3, k_candidates=1)
    textbook.meanwhile = lambda: textbook.allocate(AllocateRequest(track_id="other", idempotency_key="other"), by=BY)
    with pytest.raises(NoSandboxesAvailable):
        textbook.allocate(AllocateRequest(track_id="track", idempotency_key="track"), by=BY)


def test_the_meter_counts_what_reads_and_writes_consume(client: DynamoDBClient, table_name: str) -> None:
    meter = Meter(client)
    store = store_on(client, table_name)
    first, sandbox = make_pool(2)
    store.commit(add_of(first))  # which looks whether there are webhook endpoints
    assert meter.measure(lambda: store.commit(add_of(sandbox))) == Units(calls=1, table_writes=4, index_writes=2)
    assert meter.measure(lambda: store.get(sandbox.sandbox_id)) == Units(calls=1, reads=1)
    transaction: Any = transactions(table_name, [sandbox])[0]
    # In a transaction everything counts twice: the claim, the sandbox, the fact. In the index a change of status is a
    # delete and a put, and the fact another put.
    assert meter.measure(lambda: client.transact_write_items(**transaction)) == Units(
        calls=1, table_writes=6, index_writes=6
    )


def test_the_meter_counts_writes_that_their_condition_refused(client: DynamoDBClient, table_name: str) -> None:
    (sandbox,) = make_pool(1)
    claim = make_claim(sandbox)
    load_records(client, table_name, [sandbox, claim])
    meter = Meter(client)
    store = store_on(client, table_name)
    gone = replace(sandbox, version=sandbox.version - 1)

    def refused(call: Callable[[], object]) -> None:
        with pytest.raises(ClientError, match="ConditionalCheckFailed"):
            call()

    put: Any = {
        "TableName": table_name,
        "Item": encode_sandbox(sandbox, SHARDS),
        "ConditionExpression": "attribute_not_exists(PK)",
    }
    assert meter.measure(lambda: refused(lambda: client.put_item(**put))) == Units(calls=1, table_writes=1)
    transaction: Any = transactions(table_name, [gone])[0]
    units = meter.measure(lambda: refused(lambda: client.transact_write_items(**transaction)))
    assert units == Units(calls=1, table_writes=6)
    assert store.get(sandbox.sandbox_id) == sandbox


def test_units_cost_what_their_price_says() -> None:
    assert Units(reads=8, table_writes=3, index_writes=5).dollars == 8 * 0.125 + 8 * 0.625
    assert (Units(reads=1, calls=2) + Units(calls=1)) * 2 == Units(reads=2, calls=6)


def test_a_month_prices_lives_by_their_number_and_gauges_by_the_pool_that_they_need() -> None:
    units = defaultdict(Units, {"mark for deletion": Units(table_writes=8), GAUGES: Units(reads=24)})
    units |= {GAUGES_OF_NONE: Units(reads=8), LOOK: Units(reads=1)}
    costs = price(units, measured_pool=5000)
    assert costs.months[100_000]["allocations"] == pytest.approx(0.5)
    assert costs.months[10_000_000]["allocations"] == pytest.approx(50)
    # 100,000 allocations need 2,055 sandboxes in busy hours. One process counts every 2 s: 1.314 million times. Three
    # others read that count, half of the times twice.
    gauges = 1.314 * (8 + 16 * 100_000 / 730 * 3 * 4 / 0.8 / 5000 + 3 * 1.5) * 0.125
    assert costs.months[100_000]["gauges every 2 s"] == pytest.approx(gauges)
    assert costs.months[100_000]["gauges every 30 s"] == pytest.approx(gauges / 15)
    # 730,000, spread evenly, need what was measured.
    assert costs.month[GAUGES] == pytest.approx(1.314 * 24 * 0.125)
    assert costs.months[1_000]["jobs and probes"] == 0
    assert months_table(costs).splitlines()[3].split() == ["100,000", "2,055", "0.50", "0.00", "3.13", "0.21"]


def test_what_workers_did_is_told_by_the_second_and_by_processor_time() -> None:
    work = Work(items=30, seconds=2, cpu_seconds=0.6)
    assert (work.rate, work.cpu_milliseconds) == (15, 20)


def _drained(*answers: Answer) -> dict[str, float]:
    findings = Findings()
    add_drain(findings, "drain", pool=2, load=Load(answers, cpu_seconds=0), calls=6)
    return {each.name: each.value for each in findings.figures}


def _given(sandbox_id: str) -> bytes:
    return json.dumps({"sandbox_id": sandbox_id}).encode()


def test_a_drain_counts_what_was_given_and_the_calls_that_it_took() -> None:
    figures = _drained(
        Answer(0, 201, 0.0, 1.0, _given("a")), Answer(1, 201, 0.0, 2.0, _given("b")), Answer(2, 409, 1.5, 3.0)
    )
    assert figures["sandboxes given"] == 100
    assert figures["sandboxes given twice"] == 0
    assert figures["409 while a sandbox was free"] == 0
    assert figures["DynamoDB calls an allocation"] == 3


def test_a_drain_shows_a_sandbox_given_twice_and_a_refusal_before_a_later_request_was_served() -> None:
    figures = _drained(
        Answer(0, 201, 0.0, 1.0, _given("a")), Answer(1, 409, 0.0, 1.0), Answer(2, 201, 1.5, 2.0, _given("a"))
    )
    assert figures["sandboxes given"] == 50
    assert figures["sandboxes given twice"] == 1
    assert figures["409 while a sandbox was free"] == 1


def test_the_whole_line_is_counted_however_few_of_its_places_are_listed() -> None:
    class Api(Handler):
        def reply(self) -> None:
            self.answer(200, json.dumps({"places": [{}], "count": 1, "waiting": 1000}).encode())

    with serving(Api) as server:
        assert count_waiting(server.server_port) == 1000


@pytest.mark.timeout(30)
def test_tracks_stop_waiting_when_the_api_does_not_answer(capfd: pytest.CaptureFixture[str]) -> None:
    class Api(Handler):
        asked = 0

        def reply(self) -> None:
            Api.asked += 1
            if Api.asked < 50:
                self.answer(202, Retry_After="20")

    with serving(Api) as server, pytest.raises(ConnectionError):
        wait_in_line(server.server_port, waiting=50, served=1)
    assert capfd.readouterr().err == ""


def test_a_track_that_is_served_again_after_an_unknown_outcome_holds_one_sandbox() -> None:
    figures = _drained(Answer(0, 201, 0.0, 1.0, _given("a")), Answer(0, 200, 1.0, 2.0, _given("a")))
    assert figures["sandboxes given twice"] == 0


def test_the_table_says_of_each_goal_whether_it_is_met() -> None:
    findings = Findings()
    findings.add("one", "rate", [3.0, 1.0, 2.0], goal=Goal(2, at_least=True))
    findings.add("one", "calls", 3.0, goal=Goal(2))
    lines = table(findings.figures).splitlines()
    assert lines[3].split() == ["rate", "2", "1", "to", "3", "≥", "2", "met"]
    assert lines[4].split() == ["calls", "3", "≤", "2", "MISSED"]
    assert lines[-1] == "1 of 2 goals met on this machine, this time."


def test_a_table_for_the_documents_is_markdown() -> None:
    rows = {16: {"p50": "8.8 ms", "p99": "18 ms"}, 64: {"p99": "20 ms"}}
    assert markdown("clients", rows).splitlines() == [
        "| clients | p50 | p99 |",
        "| --- | ---: | ---: |",
        "| 16 | 8.8 ms | 18 ms |",
        "| 64 |  | 20 ms |",
    ]


def test_what_was_found_is_written_as_json_and_drawn(tmp_path: Path) -> None:
    findings = Findings()
    findings.add("1 client", "share", [0.7, 0.8], goal=Goal(0.67, at_least=True))
    findings.series["rates"][1] = {"broker": [1.0, 2.0], "bare": [3.0]}
    findings.series["latencies"][1] = {"p50": [1.0], "p90": [2.0], "p99": [3.0]}
    findings.series["burst"]["served_after"] = [0.5, 0.2]
    write_json(findings, tmp_path / "bench.json")
    write_plot(findings, tmp_path / "bench.png")
    (figure,) = json.loads((tmp_path / "bench.json").read_text())["figures"]
    assert (figure["value"], figure["low"], figure["goal"], figure["verdict"]) == (0.75, 0.7, "≥ 0.67", "met")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_an_api_under_load_counts_as_many_allocations_as_the_load_does(
    tmp_path: Path, aws_environment: dict[str, str], dynamodb_local_url: str
) -> None:
    with Servers(tmp_path) as servers, Generator() as generator:
        name = servers.make_table("smoke")
        load_records(servers.client(), name, make_pool(60))
        with servers.api(name, processes=2) as api:
            before = api.counts()
            load = generator.send(api.port, allocations(TRACK_TOKEN, new_tracks(40)), clients=4)
            counted = api.counts() - before
    given = [json.loads(each.body)["sandbox_id"] for each in load.answers if each.status == 201]
    assert len(load.answers) == 40
    assert len(set(given)) == len(given) > 0
    assert counted["broker_allocate_total"] == 40
    assert counted["calls:TransactWriteItems"] >= len(given)
    assert counted[CALLS] == sum(count for name, count in counted.items() if name.startswith("calls:"))
