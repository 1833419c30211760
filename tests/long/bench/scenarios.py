"""The scenarios of the bench: the requests, the servers, and the figures."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from broker_common.core.telemetry import StoreOutcome
from tests.bulk_load import load_records
from tests.long.bench import console, cost, flood, line, webhooks, workers
from tests.long.bench.bare import Bare
from tests.long.bench.load import Load, allocations, marks, new_tracks, percentile, request
from tests.long.bench.parts import PARTS, costs_of
from tests.long.bench.pool import make_pool
from tests.long.bench.report import Findings, Goal, markdown
from tests.long.bench.servers import API, DYNAMODB, REDIS, TRACK_TOKEN
from tests.long.bench.textbook import make_textbook_table
from tests.trace_receiver import receiving_traces

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.long.bench.load import Answer, Generator
    from tests.long.bench.servers import Api, Servers

CREATED, OK, NONE_LEFT, BUSY = 201, 200, 409, 503
CALLS = "broker_dynamodb_request_seconds_count"
SERVED = "broker_allocate_total"
CONFLICTS = "broker_allocate_conflicts_total"
_TRIES = 20
_FEWEST_ROUNDS, _LONGEST_SEC = 2, 25
PERCENTS = (50, 90, 99)
SHARE_OF_BARE = {1: Goal(0.9, at_least=True), **dict.fromkeys((16, 64, 256), Goal(0.95, at_least=True))}
SHARE_BY_CPU = Goal(0.9, at_least=True)
P99_TO_P50 = {64: Goal(2.5)}
OTHER_THAN_CREATED = {256: Goal(0.5)}
API_MILLISECONDS = Goal(2.0)
PAGE_MILLISECONDS = Goal(300)
API_TIME = "the API's processor time"
TOLD_TO_SENT = Goal(1.0, at_least=True)
API_TIME_TO_ALONE = Goal(1.1)
P50_TO_CONTROL = Goal(1.1)


class Length(StrEnum):
    """The length of a run."""

    FULL = "full"
    QUICK = "quick"
    """Gives rough figures."""
    SHORTEST = "shortest"
    """Shows only that every scenario works; its figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The tools of the scenarios. `length` sets how long each takes."""

    servers: Servers
    generator: Generator
    length: Length
    findings: Findings = field(default_factory=Findings)

    def size(self, usual: int) -> int:
        """Return the number of requests in place of the `usual` number of a full run."""
        return usual // {Length.FULL: 1, Length.QUICK: 5, Length.SHORTEST: 50}[self.length]

    def rounds(self, usual: int) -> int:
        """Return the number of rounds in place of the `usual` number of a full run."""
        return {Length.FULL: usual, Length.QUICK: 2, Length.SHORTEST: 1}[self.length]

    def at_least(self, needed: int) -> int:
        """Return a size that figures need: only the shortest run makes it smaller."""
        return needed // 10 if self.length is Length.SHORTEST else needed

    def table(self, name: str, sandboxes: int) -> str:
        """Create a table with a pool; return its name."""
        self.servers.make_table(name)
        self.fill(name, sandboxes)
        return name

    def fill(self, table: str, sandboxes: int, *, first: int = 0) -> None:
        """Load sandboxes into a table, numbered from `first`."""
        load_records(self.servers.client(), table, make_pool(sandboxes, first=first))

    def allocate(self, api: Api, requests: int, *, clients: int) -> Load:
        """Allocate for new tracks."""
        return self.send(api, allocations(TRACK_TOKEN, new_tracks(requests)), clients=clients)

    def send(self, api: Api, messages: list[bytes], *, clients: int) -> Load:
        """Send requests, and add the processor time of the API and of the other servers."""
        before = api.cpu_seconds()
        load = self.with_servers_cpu(lambda: self.generator.send(api.port, messages, clients=clients))
        spent = {API: api.cpu_seconds() - before}
        return replace(load, servers_cpu_seconds={**spent, **load.servers_cpu_seconds})

    def with_servers_cpu(self, run: Callable[[], Load]) -> Load:
        """Make a run, and add the processor time of DynamoDB Local and of Redis."""
        before = self.servers.cpu_seconds()
        load = run()
        after = self.servers.cpu_seconds()
        return replace(load, servers_cpu_seconds={kind: after[kind] - before[kind] for kind in after})

    def allocate_at_last(self, api: Api, tracks: int, *, clients: int) -> Load:
        """Allocate for new tracks. Each asks again after a 503, as the contract allows."""
        names = new_tracks(tracks)
        answers: list[Answer] = []
        cpu_seconds, left = 0.0, list(range(tracks))
        for _ in range(_TRIES):
            load = self.generator.send(
                api.port, allocations(TRACK_TOKEN, [names[number] for number in left]), clients=clients
            )
            cpu_seconds += load.cpu_seconds
            latest = [each._replace(number=left[each.number]) for each in load.answers]
            answers += latest
            left = [each.number for each in latest if each.status == BUSY]
            if not left:
                break
        return Load(answers, cpu_seconds)

    def in_turn(self, rounds: int, runs: Mapping[str, Callable[[], Load]]) -> dict[str, list[Load]]:
        """Make each run once a round, in changing order, so that other work of the machine affects all alike.

        After two rounds, a slow machine makes only the rounds for which it has time.
        """
        loads: dict[str, list[Load]] = {name: [] for name in runs}
        began = time.monotonic()
        for number in range(rounds):
            if number >= _FEWEST_ROUNDS and time.monotonic() - began > _LONGEST_SEC:
                break
            for name in runs if number % 2 == 0 else reversed(list(runs)):
                loads[name].append(runs[name]())
        return loads


def _clients(count: int) -> str:
    return f"{count} client{'s' if count > 1 else ''}"


def _milliseconds(loads: list[Load], percent: int) -> list[float]:
    return [percentile(load.latencies, percent) * 1000 for load in loads]


def _ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _rates(loads: list[Load]) -> list[float]:
    return [load.rate for load in loads]


def _other_than(status: int, loads: list[Load]) -> int:
    return sum(count for load in loads for each, count in load.statuses.items() if each != status)


def measure_clients(bench: Bench) -> None:
    """Measure rates and latencies at 1, 16, 64 and 256 clients, against bare transactions of as many threads."""
    usual = {1: (200, 7), 16: (600, 7), 64: (640, 7), 256: (1024, 5)}
    levels = {clients: (bench.size(requests), bench.rounds(rounds)) for clients, (requests, rounds) in usual.items()}
    needed = sum(requests * (rounds + 1) for requests, rounds in levels.values())
    tables = [bench.table(name, needed) for name in ("clients-broker", "clients-bare")]
    pool = iter(make_pool(needed))
    url = bench.servers.dynamodb_url
    sent: list[Load] = []
    sent_bare: list[Load] = []
    with (
        bench.servers.api(tables[0]) as api,
        Bare(url, processes=1) as alone,
        Bare(url, processes=bench.servers.processes) as together,
    ):

        def run_broker(requests: int, clients: int) -> Load:
            return bench.allocate(api, requests, clients=clients)

        def run_bare(requests: int, clients: int) -> Load:
            sandboxes = [next(pool) for _ in range(requests)]
            bare = alone if clients == 1 else together
            return bench.with_servers_cpu(lambda: bare.allocate(tables[1], sandboxes, clients=clients))

        for clients, (requests, rounds) in levels.items():
            runs = {
                "broker": partial(run_broker, requests, clients),
                "bare": partial(run_bare, requests, clients),
            }
            bench.in_turn(1, runs)  # warms up
            before = api.by_process()
            loads = bench.in_turn(rounds, runs)
            served = [counts[SERVED] - before[pid][SERVED] for pid, counts in api.by_process().items()]
            add_level(bench.findings, clients, loads["broker"], loads["bare"])
            if clients > 1:
                bench.findings.add(
                    _clients(clients), "the busiest process served", 100 * max(served) / sum(served), "%"
                )
            sent += loads["broker"]
            sent_bare += loads["bare"]
    add_processor_time(bench.findings, sent, sent_bare)
    bench.findings.tables.append(markdown("clients", bench.findings.series["levels"]))


def add_level(findings: Findings, clients: int, broker: list[Load], bare: list[Load]) -> None:
    """Add the figures of pairs of runs at one number of clients, with the goals for that number.

    By processor time, the share is what a bare transaction takes in its own process and in DynamoDB, to what an
    allocation takes in API, Redis and DynamoDB. Who asks the API is not counted: a caller of bare transactions has none.
    """
    scenario, add = _clients(clients), findings.add
    add(scenario, "allocations a second", _rates(broker))
    add(scenario, "bare transactions a second", _rates(bare))
    share = _ratios(_rates(broker), _rates(bare))
    add(scenario, "share of the bare rate", share, goal=SHARE_OF_BARE.get(clients))
    bare_cpu = [load.own_milliseconds + load.milliseconds_of(DYNAMODB) for load in bare]
    broker_cpu = [load.milliseconds_of(API, REDIS, DYNAMODB) for load in broker]
    share_by_cpu = _ratios(bare_cpu, broker_cpu)
    add(scenario, "the same by processor time", share_by_cpu, goal=SHARE_BY_CPU)
    for percent in PERCENTS:
        add(scenario, f"p{percent}", _milliseconds(broker, percent), "ms")
    add(scenario, "p50 of bare transactions", _milliseconds(bare, 50), "ms")
    to_bare = _ratios(_milliseconds(broker, 50), _milliseconds(bare, 50))
    add(scenario, "p50 to p50 of bare transactions", to_bare)
    tail = _ratios(_milliseconds(broker, 99), _milliseconds(broker, 50))
    add(scenario, "p99 to p50", tail, goal=P99_TO_P50.get(clients))
    other = 100 * _other_than(CREATED, broker) / sum(len(load.answers) for load in broker)
    add(scenario, "answers other than 201", other, "%", goal=OTHER_THAN_CREATED.get(clients))
    add(scenario, "bare transactions refused", _other_than(CREATED, bare))
    add(scenario, "bare transactions sent again", sum(load.sent_again for load in bare))
    findings.series["rates"][clients] |= {"broker": _rates(broker), "bare": _rates(bare)}
    findings.series["latencies"][clients] = {f"p{percent}": _milliseconds(broker, percent) for percent in PERCENTS}
    findings.series["levels"][clients] = {
        "rate to that of bare transactions": _spread(share),
        "the same by processor time": _spread(share_by_cpu),
        "p50": f"{median(_milliseconds(broker, 50)):.3g} ms",
        "p99": f"{median(_milliseconds(broker, 99)):.3g} ms",
        "p99 to p50": f"{median(tail):.2f}",
        "p50 to that of bare": f"{median(to_bare):.2f}",
        "answers other than 201": f"{other:.2g} %",
    }


def _spread(values: list[float]) -> str:
    """Return the median and the extremes of some ratios."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def add_processor_time(findings: Findings, broker: list[Load], bare: list[Load]) -> None:
    """Add the processor time of an allocation by process. Other work on the machine changes it less than a rate."""
    spent = {
        "the load generator": [load.own_milliseconds for load in broker],
        **{kind: [load.milliseconds_of(kind) for load in broker] for kind in broker[0].servers_cpu_seconds},
        "bare boto3, for a transaction": [load.own_milliseconds for load in bare],
        "DynamoDB Local, for a bare transaction": [load.milliseconds_of(DYNAMODB) for load in bare],
    }
    for who, rounds in spent.items():
        goal = API_MILLISECONDS if who == API else None
        findings.add("processor time an allocation", who, rounds, "ms", goal=goal)


def measure_textbook(bench: Bench) -> None:
    """Measure the textbook broker and the broker at 16 clients, and the answers to copies of one request."""
    requests, rounds, clients, copies = bench.size(160), bench.rounds(3), 16, 4
    tracks = bench.size(100)
    needed = requests * (rounds + 1) + copies * tracks
    spare = 2 * needed  # so each answer "none left" is wrong
    broker_table = bench.table("textbook-broker", needed + spare)
    textbook_table = make_textbook_table(bench.servers.client(), "textbook")
    bench.fill(textbook_table, needed + spare)
    add = bench.findings.add
    with (
        bench.servers.api(broker_table) as broker,
        bench.servers.api(textbook_table, application="tests.long.bench.textbook_wsgi:app") as textbook,
    ):
        apis = {"broker": broker, "textbook": textbook}
        runs = {name: lambda api=api: bench.allocate(api, requests, clients=clients) for name, api in apis.items()}
        bench.in_turn(1, runs)
        before = textbook.counts()
        loads = bench.in_turn(rounds, runs)
        counted = textbook.counts() - before
        scenario = f"the textbook broker, {clients} clients"
        found = loads["textbook"]
        add(scenario, "allocations a second", _rates(found))
        add(scenario, "the broker's rate to its", _ratios(_rates(loads["broker"]), _rates(found)))
        for percent in (50, 99):
            add(scenario, f"p{percent}", _milliseconds(found, percent), "ms")
        given = sum(load.statuses[CREATED] for load in found)
        add(scenario, "DynamoDB calls an allocation", counted[CALLS] / given)
        add(scenario, "conflicts an allocation", counted[CONFLICTS] / given)
        add(scenario, "refused (409) while most of the pool is free", _share(NONE_LEFT, found), "%")
        for name, api in apis.items():
            split = _split_tracks(bench, api, tracks, copies)
            who = "the broker's" if name == "broker" else "its"
            add(scenario, f"{who} tracks with two sandboxes after {copies} copies at once", split / tracks * 100, "%")
        bench.findings.series["rates"][clients]["textbook"] = _rates(found)


def _share(status: int, loads: list[Load]) -> float:
    return 100 * sum(load.statuses[status] for load in loads) / sum(len(load.answers) for load in loads)


def _split_tracks(bench: Bench, api: Api, tracks: int, copies: int) -> int:
    """Count the tracks that got more than one sandbox when each sent several copies of its request at once."""
    names = [track for track in new_tracks(tracks) for _ in range(copies)]
    load = bench.generator.send(api.port, allocations(TRACK_TOKEN, names), clients=4 * copies)
    got: dict[str, set[str]] = {}
    for answer in load.answers:
        if answer.status in {CREATED, OK}:
            got.setdefault(names[answer.number], set()).add(json.loads(answer.body)["sandbox_id"])
    return sum(len(sandboxes) > 1 for sandboxes in got.values())


def measure_replays(bench: Bench) -> None:
    """Repeat the allocate of tracks that hold a sandbox."""
    count, rounds, clients = bench.size(600), bench.rounds(5), 16
    table = bench.table("replays", count + 64)
    requests = allocations(TRACK_TOKEN, new_tracks(count))
    with bench.servers.api(table) as api:
        bench.generator.send(api.port, requests, clients=clients)
        loads = [bench.generator.send(api.port, requests, clients=clients) for _ in range(rounds)]
    scenario = f"replays, {clients} clients"
    bench.findings.add(scenario, "answers a second", _rates(loads))
    for percent in PERCENTS:
        bench.findings.add(scenario, f"p{percent}", _milliseconds(loads, percent), "ms")
    bench.findings.add(scenario, "answers other than 200", _other_than(OK, loads))


def measure_burst(bench: Bench) -> None:
    """Allocate for a whole class at once, each track on its own connection. The pool is just large enough."""
    tracks, warm_up = bench.size(1000), bench.at_least(200)
    table = bench.table("burst", tracks + warm_up)
    with bench.servers.api(table) as api:
        bench.allocate(api, warm_up, clients=16)
        load = bench.allocate_at_last(api, tracks, clients=tracks)
    began = min(each.began for each in load.answers)
    served = [each.ended - began for each in load.answers if each.status in {CREATED, OK}]
    scenario = f"{tracks} tracks at once"
    add = bench.findings.add
    add(scenario, "the first has its sandbox after", min(served), "s")
    add(scenario, "half of them have theirs after", percentile(served, 50), "s")
    add(scenario, "the last has its sandbox after", max(served), "s")
    _add_statuses(bench.findings, scenario, load)
    bench.findings.series["burst"]["served_after"] = served


def measure_drain(bench: Bench) -> None:
    """Allocate for more tracks than there are sandboxes: 16 at a time, and 64 at a time.

    Each has an API of its own: an API that has found its pool empty may say so for a second (docs/contract.md, promise 3).
    """
    pool = bench.size(1000)
    tracks = pool + pool // 10
    for clients in (16, 64):
        with bench.servers.api(bench.table(f"drain-{clients}", pool)) as api:
            before = api.counts()
            load = bench.allocate_at_last(api, tracks, clients=clients)
            scenario = f"draining {pool} sandboxes, {clients} clients"
            add_drain(bench.findings, scenario, pool, load, api.counts()[CALLS] - before[CALLS])


def add_drain(findings: Findings, scenario: str, pool: int, load: Load, calls: int) -> None:
    """Add the figures of a drain: the sandboxes that were allocated, and the false refusals."""
    holders: defaultdict[str, set[int]] = defaultdict(set)
    for each in load.answers:
        if each.status in {CREATED, OK}:
            holders[json.loads(each.body)["sandbox_id"]].add(each.number)
    last_given_began = max(each.began for each in load.answers if each.status == CREATED)
    # A sandbox that a later request got was free all the time.
    false = sum(each.status == NONE_LEFT and each.ended < last_given_began for each in load.answers)
    findings.add(scenario, "sandboxes given", 100 * len(holders) / pool, "%", Goal(100, at_least=True))
    findings.add(scenario, "sandboxes given twice", sum(len(tracks) > 1 for tracks in holders.values()), goal=Goal(0))
    findings.add(scenario, "409 while a sandbox was free", false, goal=Goal(0))
    findings.add(scenario, "DynamoDB calls an allocation", calls / len(holders), goal=Goal(2))
    _add_statuses(findings, scenario, load)


def _add_statuses(findings: Findings, scenario: str, load: Load) -> None:
    for status, count in sorted(load.statuses.items()):
        findings.add(scenario, f"answers {status}", count)


def measure_calls(bench: Bench) -> None:
    """Count DynamoDB calls and conflicts while a pool of 1,000 shrinks to its last tenth."""
    pool, clients = bench.at_least(1000), 16
    table = bench.table("calls", pool)
    with bench.servers.api(table) as api:
        before = api.counts()
        load = bench.allocate(api, pool * 9 // 10, clients=clients)
        counted = api.counts() - before
    given = load.statuses[CREATED]
    scenario = f"a pool of {pool} down to its last tenth, {clients} clients"
    add = bench.findings.add
    add(scenario, "DynamoDB calls an allocation", counted[CALLS] / given, goal=Goal(1.15))
    add(scenario, "conflicts an allocation", counted[CONFLICTS] / given, goal=Goal(0.05))
    for name, count in sorted(counted.items()):
        if name.startswith("calls:"):
            add(scenario, f"{name.removeprefix('calls:')} an allocation", count / given)
    add(scenario, "calls not answered in time, and sent again", counted[f"outcome:{StoreOutcome.UNANSWERED}"])


def measure_pools(bench: Bench) -> None:
    """Compare pools of 1k, 10k and 100k, each on an API of its own. The smallest is filled after each round."""
    requests, rounds, clients = bench.size(400), bench.rounds(5), 16
    full = bench.length is Length.FULL
    sizes = [1000, 10_000, 100_000] if full else [bench.at_least(1000), bench.at_least(3000)]
    filled = dict.fromkeys(sizes, 0)

    def fill(size: int, count: int) -> None:
        bench.fill(f"pool-{size}", count, first=filled[size])
        filled[size] += count

    def run(size: int, api: Api) -> Load:
        load = bench.allocate(api, requests, clients=clients)
        fill(size, load.statuses[CREATED])
        return load

    for size in sizes:
        bench.servers.make_table(f"pool-{size}")
        fill(size, size)
    with (
        bench.servers.api(f"pool-{sizes[0]}") as small,
        bench.servers.api(f"pool-{sizes[1]}") as middle,
        bench.servers.api(f"pool-{sizes[-1]}") as large,
    ):
        apis = dict(zip(sizes, (small, middle, large), strict=False))
        runs = {str(size): lambda size=size, api=api: run(size, api) for size, api in apis.items()}
        bench.in_turn(1, runs)
        loads = bench.in_turn(rounds, runs)
    scenario = f"pools by size, {clients} clients"
    for size in sizes:
        bench.findings.add(scenario, f"{size}: allocations a second", _rates(loads[str(size)]))
    smallest = _rates(loads[str(sizes[0])])
    for size in sizes[1:]:
        ratios = _ratios(smallest, _rates(loads[str(size)]))
        bench.findings.add(scenario, f"rate at {sizes[0]} to rate at {size}", ratios, goal=Goal(1.2))


def measure_parts(bench: Bench) -> None:
    """Measure the processor time of each part of the API: see `parts`.

    Each API has one process and 4 clients: as many for a process as 16 clients are for four.
    """
    requests, rounds, clients = bench.size(400), bench.rounds(7), 4
    with_database = PARTS.index("DynamoDB client") + 1
    table = bench.table("parts", with_database * (rounds + 1) * requests)
    with ExitStack() as opened:
        apis = [
            opened.enter_context(
                bench.servers.api(
                    table,
                    application="tests.long.bench.parts_wsgi:app",
                    processes=1,
                    variables={"BENCH_WITHOUT": str(without)},
                )
            )
            for without in range(len(PARTS))
        ]
        runs = {
            str(without): partial(bench.allocate, api, requests, clients=clients) for without, api in enumerate(apis)
        }
        bench.in_turn(1, runs)  # warms up
        loads = bench.in_turn(rounds, runs)
    spent = [[load.milliseconds_of(API) for load in each] for each in loads.values()]
    scenario = f"processor time of an allocation in one process of the API, {clients} clients"
    bench.findings.add(scenario, "in all", spent[0], "ms")
    costs = costs_of(spent)
    for part, values in costs.items():
        bench.findings.add(scenario, part, values, "ms")
    other = sum(_other_than(CREATED, each) for each in loads.values())
    bench.findings.add(scenario, "answers other than 201, by any of these APIs", other)
    bench.findings.series["parts"] |= costs


def measure_traces(bench: Bench) -> None:
    """Measure the processor time of an allocation without traces, with all, and with one of a hundred.

    Each API has one process and 4 clients. The receiver of traces is no part of what is measured.
    """
    requests, rounds, clients = bench.size(400), bench.rounds(7), 4
    with receiving_traces() as receiver, ExitStack() as opened:
        asking = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        few = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
        ways = {"no traces": {}, "all traces": asking, "one trace of a hundred": asking | few}
        table = bench.table("traces", len(ways) * (rounds + 1) * requests)
        runs = {
            way: partial(
                bench.allocate,
                opened.enter_context(bench.servers.api(table, processes=1, variables=variables)),
                requests,
                clients=clients,
            )
            for way, variables in ways.items()
        }
        bench.in_turn(1, runs)  # warms up
        loads = bench.in_turn(rounds, runs)
    scenario = f"traces: processor time of an allocation in one process of the API, {clients} clients"
    spent = {way: [load.milliseconds_of(API) for load in each] for way, each in loads.items()}
    for way, milliseconds in spent.items():
        bench.findings.add(scenario, way, milliseconds, "ms")
        if way != "no traces":
            bench.findings.add(scenario, f"{way}, to none", _ratios(milliseconds, spent["no traces"]))
    bench.findings.add(scenario, "answers other than 201", sum(_other_than(CREATED, each) for each in loads.values()))


def price_calls(bench: Bench) -> None:
    """Measure the price of each call and job on AWS."""
    pool = max(500, bench.size(5000))  # the sample allocates a fifth of it
    costs = cost.measure_costs(bench.servers, pool=pool)
    scenario, add = "cost on AWS", bench.findings.add
    new = costs.units["allocate, new"]
    add(scenario, "read units an allocation", new.reads)
    add(scenario, "write units an allocation", new.table_writes + new.index_writes)
    add(scenario, f"a month of {cost.ALLOCATIONS_A_MONTH:,} allocations", sum(costs.month.values()), "$")
    bench.findings.series["cost"] |= asdict(costs)
    bench.findings.tables.append(
        f"a pool of {pool}, four fifths allocated; read and write are request units\n\n{cost.cost_table(costs)}"
    )
    bench.findings.tables.append(f"dollars a month\n\n{cost.months_table(costs)}")


def measure_sizing(bench: Bench) -> None:
    """Measure the load that one process of the API carries by call, and one of a worker by job."""
    requests, rounds = bench.size(400), bench.rounds(5)
    levels = (1, 4, 16, 32)
    table = bench.table("sizing-api", requests * ((rounds + 1) * len(levels) + 1))
    scenario, add = "one process of the API", bench.findings.add

    calls: dict[str, dict[str, str]] = {}

    def show(what: str, loads: list[Load]) -> None:
        own = [load.milliseconds_of(API) for load in loads]
        p50, p99 = (_milliseconds(loads, percent) for percent in (50, 99))
        add(scenario, f"{what}: a second", _rates(loads))
        add(scenario, f"{what}: p50", p50, "ms")
        add(scenario, f"{what}: p99", p99, "ms")
        add(scenario, f"{what}: its processor time", own, "ms")
        add(scenario, f"{what}: 503", sum(load.statuses[BUSY] for load in loads))
        calls[what] = {
            "a second": f"{median(_rates(loads)):.0f}",
            "p50": f"{median(p50):.3g} ms",
            "p99": f"{median(p99):.3g} ms",
            "its processor time": f"{median(own):.1f} ms",
        }

    with bench.servers.api(table, processes=1) as api:
        for clients in levels:
            bench.allocate(api, requests, clients=clients)  # warms up
            show(
                f"allocate, {_clients(clients)}",
                [bench.allocate(api, requests, clients=clients) for _ in range(rounds)],
            )
        tracks = new_tracks(requests)
        asked = allocations(TRACK_TOKEN, tracks)
        given = bench.send(api, asked, clients=4)
        held = {tracks[each.number]: json.loads(each.body)["sandbox_id"] for each in given.answers}
        reads = [request("GET", f"/v1/sandboxes/{held[track]}", track, token=TRACK_TOKEN) for track in tracks]
        show("allocate again, 4 clients", [bench.send(api, asked, clients=4) for _ in range(rounds)])
        show("read a sandbox, 4 clients", [bench.send(api, reads, clients=4) for _ in range(rounds)])
        show("mark for deletion, 4 clients", [bench.send(api, marks(TRACK_TOKEN, held), clients=4)])
    jobs: dict[str, dict[str, str]] = {}
    for job, work in workers.size(bench.servers, items=bench.size(1000), lab_sec=bench.at_least(60)).items():
        add("one process of a worker", f"{job}: a second", work.rate)
        add("one process of a worker", f"{job}: its processor time for each", work.cpu_milliseconds, "ms")
        jobs[job] = {"a second": f"{work.rate:.0f}", "its processor time for each": f"{work.cpu_milliseconds:.2g} ms"}
    bench.findings.tables += [
        markdown("one process of the API (`API_WORKERS=1`)", calls),
        markdown("one process of a worker", jobs),
    ]


def measure_scaling(bench: Bench) -> None:
    """Give 1, 2 and 4 workers a flood of deletions, and measure its effect on tracks at two APIs."""
    steps = workers.scale(bench.servers, rounds=bench.rounds(6), round_size=bench.at_least(150))
    alone = median(load.rate for step in steps if step.deletions is None for load in step.served.loads)
    rows: dict[str, dict[str, str]] = {}
    for step in steps:
        loads, deletions = list(step.served.loads), step.deletions
        rates = [2 * rate for rate in _rates(loads)]
        rows[step.name] = {
            "calls at once": f"{deletions.at_once:.1f}" if deletions else "",
            "deletions a minute": f"{60 * deletions.rate:.0f}" if deletions else "",
            "allocations a second": f"{median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})",
            "p50": f"{median(_milliseconds(loads, 50)):.1f} ms",
            "p99": f"{median(_milliseconds(loads, 99)):.1f} ms",
            "other than 201": str(_other_than(CREATED, loads)),
            "the APIs' processor time each": f"{step.served.api_milliseconds:.2f} ms",
        }
        if deletions is not None:
            add = partial(bench.findings.add, f"{step.name} at work, {workers.DELETE_SEC:g} s a delete")
            add("deletions a minute", 60 * deletions.rate)
            add("rate of allocations to that without deletions", median(_rates(loads)) / alone)
    bench.findings.tables.append(
        f"a delete takes {workers.DELETE_SEC:g} s, CSP_MAX_CONCURRENCY is {workers.LIMIT}; two APIs of one process, one "
        f"client each\n\n{markdown('at work', rows)}"
    )


def measure_line(bench: Bench) -> None:
    """Free sandboxes one by one while 1, 100 and 1,000 tracks wait, until whose turn it is has its answer."""
    rows: dict[str, dict[str, str]] = {}
    for usual in (1, 100, 1000):
        waiting, sandboxes = max(1, bench.size(usual)), max(3, bench.size(100))
        table = bench.table(f"line-{usual}", 0)

        def free(number: int, table: str = table) -> str:
            bench.fill(table, 1, first=number)
            return make_pool(1, first=number)[0].sandbox_id

        with bench.servers.api(table) as api:
            tracks = bench.generator.start(line.wait_in_line, api.port, waiting, sandboxes)
            freed = line.free_some(api.port, waiting, sandboxes, free, tracks)
            seconds = line.delays(freed, tracks.get())
        scenario = f"a line of {waiting}"
        for percent in (50, 99):
            bench.findings.add(
                scenario, f"from the wipe to the 201 of whose turn it is, p{percent}", percentile(seconds, percent), "s"
            )
        rows[f"{waiting:,}"] = line.percentiles(seconds)
    bench.findings.tables.append(markdown("tracks in the line", rows))


def measure_class(bench: Bench) -> None:
    """Let a class come beside a flood of others, without and with a reservation, in a pool that is too small for both."""
    students = bench.size(200)
    crowd = flood.Crowd(
        students=students,
        others=2 * students,
        pool=students * 3 // 2,
        hold_sec=bench.at_least(10),
        arrive_sec=bench.at_least(10),
        limit_sec={Length.FULL: 60, Length.QUICK: 20, Length.SHORTEST: 6}[bench.length],
    )
    without, with_one = (
        workers.serve_class(bench.servers, bench.generator, crowd, with_reservation=each) for each in (False, True)
    )
    compared = flood.ratios(with_one, without)
    for name, found in (("without", without), ("with", with_one)):
        for what, value in found.figures.items():
            bench.findings.add(f"a class of {students}, {name} a reservation", what, value, flood.UNITS.get(what, ""))
    for what, ratio in compared.items():
        bench.findings.add(f"a class of {students}, with a reservation to without", what, ratio)
    rows = {
        "without": without.cells,
        "with": with_one.cells,
        "with, to without": {what: f"{ratio:.2g}" for what, ratio in compared.items()},
    }
    bench.findings.tables.append(
        f"a class of {students} comes within {crowd.arrive_sec} s, and waits for up to {crowd.limit_sec} s; "
        f"{crowd.others} others, {crowd.pool} sandboxes\n\n{markdown('a reservation', rows)}"
    )


def measure_webhooks(bench: Bench) -> None:
    """Tell a flood of facts, send them by one process, and measure the effect of each on tracks at the API."""
    facts = bench.size(15_000 if bench.length is Length.SHORTEST else 50_000)
    rounds, size = bench.rounds(6), bench.at_least(400)
    found = webhooks.send_flood(bench.servers, bench.generator, facts=facts, rounds=rounds, round_size=size)
    told, sent = found.told.a_second, found.sent.a_second
    add = partial(bench.findings.add, f"a flood of {facts} facts")
    add("facts told a second, by one process", told)
    add("deliveries a second, by one process", sent)
    add("told to sent", told / sent, goal=TOLD_TO_SENT)
    add("processor time of the sender for each", found.sent.milliseconds, "ms")
    add("allocations asked for a second", found.allocations_a_second)
    rows = add_flood(bench.findings, "told", found.told) | add_flood(bench.findings, "sent", found.sent)
    bench.findings.tables.append(
        f"one process tells {told:.0f} facts a second, and one sends {sent:.0f}, so 50,000 take "
        f"{50_000 / told / 60:.1f} and {50_000 / sent / 60:.1f} min; {found.allocations_a_second:.0f} allocations a "
        f"second are asked for\n\n{markdown('webhooks', rows)}"
    )


def measure_console(bench: Bench) -> None:
    """Read each page of the console of a broker with a large pool."""
    pool, leases = bench.at_least(10_000), bench.at_least(1_000)
    found = console.read_pages(bench.servers, bench.generator, pool=pool, leases=leases, views=1 + bench.rounds(20))
    scenario = f"the console, a pool of {pool}"
    rows = {}
    for name, seconds in found.seconds.items():
        milliseconds = [1000 * each for each in seconds]
        bench.findings.add(scenario, f"{name}, p95", percentile(milliseconds, 95), "ms", goal=PAGE_MILLISECONDS)
        rows[name] = {
            "p50": f"{percentile(milliseconds, 50):.0f} ms",
            "p95": f"{percentile(milliseconds, 95):.0f} ms",
            "first view": f"{1000 * found.first_seconds[name]:.0f} ms",
        }
    bench.findings.add(scenario, "its memory (PSS)", found.memory / 2**20, "MiB")
    bench.findings.tables.append(markdown("page of the console", rows))


def add_flood(findings: Findings, verb: str, seen: webhooks.Flood) -> dict[str, dict[str, str]]:
    """Add what tracks noticed while facts are told or sent; return rows of a table."""
    scenario, beside, control = f"allocations while facts are {verb}", webhooks.FLOOD, webhooks.CONTROL
    loads = {way: [each.load for each in rounds] for way, rounds in seen.rounds.items()}
    figures = {
        **{f"p{percent}": {way: _milliseconds(each, percent) for way, each in loads.items()} for percent in (50, 99)},
        API_TIME: {way: [each.api_milliseconds for each in seen.rounds[way]] for way in loads},
    }
    findings.add(scenario, f"facts {verb} a second meanwhile", seen.paces[beside])
    findings.add(scenario, f"facts a second {control}", seen.paces[control])
    database = {way: seen.database_milliseconds[way] for way in (beside, control)}
    findings.add(scenario, "DynamoDB Local's processor time for each fact", database[beside], "ms")
    findings.add(scenario, f"DynamoDB Local's processor time {control}", database[control], "ms")
    for name, by_way in figures.items():
        to_alone = {way: _ratios(by_way[way], by_way[webhooks.ALONE]) for way in (beside, control)}
        findings.add(
            scenario, f"{name} to that alone", to_alone[beside], goal=API_TIME_TO_ALONE if name == API_TIME else None
        )
        findings.add(scenario, f"{name} {control}, to that alone", to_alone[control])
        to_control = _ratios(by_way[beside], by_way[control])
        findings.add(scenario, f"{name} to that {control}", to_control, goal=P50_TO_CONTROL if name == "p50" else None)
    return {
        f"{verb}: {way}": {
            "facts a second": f"{median(seen.paces[way]):.0f}",
            "p50": f"{median(figures['p50'][way]):.1f} ms",
            "to that alone": _spread(_ratios(figures["p50"][way], figures["p50"][webhooks.ALONE])),
            "p99": f"{median(figures['p99'][way]):.1f} ms",
            "API's processor time": f"{median(figures[API_TIME][way]):.2f} ms",
            "other than 201": str(_other_than(CREATED, loads[way])),
        }
        for way in webhooks.WAYS
    }


SCENARIOS: Mapping[str, Callable[[Bench], None]] = {
    "clients": measure_clients,
    "textbook": measure_textbook,
    "replays": measure_replays,
    "burst": measure_burst,
    "drain": measure_drain,
    "calls": measure_calls,
    "pools": measure_pools,
    "parts": measure_parts,
    "traces": measure_traces,
    "cost": price_calls,
    "sizing": measure_sizing,
    "scaling": measure_scaling,
    "line": measure_line,
    "class": measure_class,
    "webhooks": measure_webhooks,
    "console": measure_console,
}
