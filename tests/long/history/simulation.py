"""A whole run in one process: the same clients and the real use cases over a store in memory, in simulated time.

Each process of the broker is a `World`; tasks take the part of its threads, and any of them may come between at each
call of the store or the provider. The seed decides about everything, so a run is the same each time.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from broker_api.errors import ERROR_OF
from broker_api.schemas.tracks import (
    AllocationSchema,
    ExtendedSchema,
    HeldSandboxesSchema,
    HeldSandboxSchema,
    MarkedSchema,
)
from broker_common.core.bookings import Wanted
from broker_common.core.deadline import deadline_in, time_left
from broker_common.core.errors import BrokerError, DeadlineExceeded, ListNotWhole, SyncBraked
from broker_common.core.facts import Fact
from broker_common.core.flat import flatten, flatten_claim
from broker_common.core.policy import Policy
from broker_common.core.ports import AccountListing, InactiveAccount, WipeAnswer
from broker_common.core.sandbox import Account, Status
from broker_common.core.waiting import Waiting
from tests.fakes import BY, Crashed, FakeProvider, MemoryStore, StoreWrapper
from tests.long.history.load import Answer, Budget, Client, Operator, Pace
from tests.long.history.planted import Bug, MemoryTable, Place, break_store
from tests.long.history.record import Account as ListedAccount
from tests.long.history.record import ClaimRow, Delete, History, JobRun, PlaceRow, ReservationRow, Row, Scan, Terms
from tests.scheduler.schedule import Schedule, stop
from tests.scheduler.strategies import AtRandom
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from broker_common.core.allocation import Allocation
    from broker_common.core.facts import PoolFact
    from broker_common.core.ports import Clock
    from broker_common.core.reservation import Reservation
    from broker_common.core.store import SandboxStore
    from tests.long.history.load import Request
    from tests.long.history.record import Call
    from tests.scheduler.schedule import VirtualTime

POLICY = Policy(
    lab_duration_sec=6,
    max_lab_duration_sec=12,
    expiry_buffer_sec=2,
    deletion_backoff_base_sec=0,
    k_candidates=3,
    line_grace_sec=20,
)
POOL, CLIENTS, API_PROCESSES, CLEANERS, EXPIRERS, SYNCERS, RESERVERS = 10, 8, 12, 3, 2, 2, 2
DEADLINE_SEC = 3
_KILLED_IN_GAP = 0.1


def simulate(seed: int, *, calls: int, bug: Bug | None = None, pool: int = POOL) -> History:
    """Run `calls` calls of clients beside jobs that repeat, with a planted bug or without, on so many sandboxes."""
    return _Simulation(seed, calls, bug, pool).run()


class _SlowStore(StoreWrapper):
    """Takes time before and after each call, in which others act, within the request's deadline."""

    def __init__(self, inner: SandboxStore, clock: Clock) -> None:
        super().__init__(inner)
        self._clock = clock

    def _call(self, method: str, call: Callable[[], Any]) -> Any:
        if time_left(self._clock) <= 0:
            raise DeadlineExceeded("the store did not answer in time")
        stop(method)
        try:
            return call()
        finally:
            stop(f"answer of {method}")


class _Provider(FakeProvider):
    """A provider whose calls take time, and which keeps a log."""

    def __init__(self, time: VirtualTime, rng: Random) -> None:
        super().__init__()
        self.listed: dict[str, Account] = {}
        self.switched_off: set[str] = set()
        self.log: list[Delete] = []
        self._time = time
        self._rng = rng

    def list_accounts(self) -> AccountListing:
        """List the accounts. Some lists shift during the read, and have one account in place of another."""
        accounts = [account for account in self.listed.values() if account.sandbox_id not in self.switched_off]
        inactive = tuple(InactiveAccount(each, self.listed[each].key) for each in self.switched_off)
        doubt = None
        if self._rng.random() < 0.2:
            accounts.remove(self._rng.choice(accounts))
            doubt = "an entry stands twice"
        self._time.sleep(self._rng.uniform(0.1, 1.0))
        return AccountListing(tuple(accounts), inactive=inactive, doubt=doubt)

    @contextmanager
    def admit(self) -> Iterator[None]:
        yield

    def delete_account(self, external_id: str, *, send_within: float) -> WipeAnswer:
        began = self._time.unix()
        self._time.sleep(self._rng.uniform(0.1, 0.5))
        known = any(account.external_id == external_id for account in self.listed.values())
        known = known and self._rng.random() < 0.9  # some deletes get a 404 although the account is listed
        self.log.append(
            Delete(
                external_id=external_id,
                began=began,
                ended=self._time.unix(),
                answer=200 if known else 404,
                applied=known,
            )
        )
        return WipeAnswer.WIPED if known else WipeAnswer.GONE


class _Simulation:
    """One run, which is also the `Surroundings` of its clients."""

    def __init__(self, seed: int, calls: int, bug: Bug | None, pool: int) -> None:
        self._seed, self._bug, self._pool = seed, bug, pool
        self._rng = Random(seed)
        self._schedule = Schedule(AtRandom(self._rng, least=0.001, most=0.02))
        self._time = self._schedule.time
        self._memory = MemoryStore(self._time)
        self._provider = _Provider(self._time, self._rng)
        self._idle = [self._process(Place.API) for _ in range(API_PROCESSES)]
        self._budget = Budget(calls)
        self._clients_left = CLIENTS
        self._calls: list[Call] = []
        self._scans: list[Scan] = []
        self._reserve_runs: list[JobRun] = []

    def run(self) -> History:
        names = (f"lab-{'expedition' if number % 4 == 0 else 'adventure'}-{number}" for number in range(self._pool))
        for number, name in enumerate(names):
            account = Account(sandbox_id=str(number), external_id=f"identity/accounts/{number}", name=name)
            self._provider.listed[account.sandbox_id] = account
        self._schedule.start(self._operate)
        self._schedule.run()
        accounts = [
            ListedAccount(sandbox_id=each.sandbox_id, external_id=each.external_id)
            for each in self._provider.listed.values()
        ]
        told = self._memory.facts
        ids = sorted({*self._memory.dump()[0], *(fact.sandbox_id for fact in _of_sandboxes(told))})
        return History(
            terms=Terms(
                lab_sec=POLICY.lab_duration_sec,
                max_lab_sec=POLICY.max_lab_duration_sec,
                buffer_sec=POLICY.expiry_buffer_sec,
                seed=self._seed,
                drained=True,
                is_told=True,
            ),
            calls=tuple(self._calls),
            scans=tuple(self._scans),
            deletes=tuple(self._provider.log),
            accounts=tuple(accounts),
            feed=tuple(_of_sandboxes(self._memory.read_feed(since=0, cursor=None, limit=len(told)).facts)),
            reserve_runs=tuple(self._reserve_runs),
            pasts=tuple(
                fact for each in ids for fact in self._memory.read_history(each, limit=len(told), cursor=None).facts
            ),
        )

    # -- `Surroundings` of the clients

    def now(self) -> float:
        return self._time.unix()

    def sleep(self, seconds: float) -> None:
        self._time.sleep(seconds)

    def together(self, *acts: Callable[[], Any]) -> list[Any]:
        return self._schedule.together(acts)

    def record(self, call: Call) -> None:
        self._calls.append(call)

    def send(self, request: Request, *, patience: float) -> Answer | None:
        stop("send")
        return self._answer(lambda world: _serve(world, request), DEADLINE_SEC + _wait_of(request))

    def operate(self, method: str, path: str, body: Mapping[str, Any] | None, *, patience: float) -> Answer | None:
        stop("send")
        return self._answer(partial(_serve_operator, method=method, path=path, body=body or {}), DEADLINE_SEC)

    def _answer(self, serve: Callable[[World], Answer], seconds: float) -> Answer:
        """Have some process of the API serve a request."""
        while not self._idle:
            stop("wait for a process")
        world = self._idle.pop(self._rng.randrange(len(self._idle)))
        try:
            with deadline_in(seconds, self._time):
                answer = serve(world)
        except BrokerError as error:
            answer = Answer(
                status=ERROR_OF[type(error)].status,
                body={"error": {"code": error.code}},
                retry_after=getattr(error, "retry_after", None) or 0,
            )
        self._idle.append(world)
        stop("receive")
        return answer

    # -- everything else

    def _operate(self) -> None:
        """Fill the pool, run clients and jobs, and then the jobs alone until nothing is left to do."""
        with suppress(ListNotWhole):
            self._process(Place.SYNC).syncer.run(by=BY)
        pace = Pace(
            lab_sec=POLICY.lab_duration_sec,
            max_lab_sec=POLICY.max_lab_duration_sec,
            buffer_sec=POLICY.expiry_buffer_sec,
            think_sec=0.4,
        )
        operator = Operator(self, Random(f"{self._seed}-operator"), pace)
        for number in range(CLIENTS):
            client = Client(
                f"client-{number}",
                self,
                Random(f"{self._seed}-{number}"),
                self._budget,
                pace,
                reservations=operator.booked,
            )
            self._schedule.start(partial(self._follow, client))
        for place, number in ((Place.SYNC, SYNCERS), (Place.EXPIRY, EXPIRERS), (Place.CLEANUP, CLEANERS)):
            for _ in range(number):
                self._schedule.start(partial(self._repeat, partial(_work, place, self._process(place)), 1.0))
        for _ in range(RESERVERS):
            self._schedule.start(partial(self._repeat, partial(self._reserve, self._process(Place.RESERVE)), 3.0))
        self._schedule.start(partial(self._repeat, operator.act, 1.0))
        self._schedule.start(partial(self._repeat, self._scan, 0.1))
        self._schedule.start(partial(self._repeat, self._change_accounts, 1.0))

    def _follow(self, client: Client) -> None:
        client.run()
        self._clients_left -= 1
        if not self._clients_left:
            self._time.sleep(POLICY.max_lab_duration_sec + POLICY.expiry_buffer_sec + 1)
            while any(row.status is not Status.AVAILABLE for row in self._memory.dump()[0].values()):
                for place in (Place.EXPIRY, Place.CLEANUP, Place.SYNC):
                    _work(place, self._process(place))
                self._reserve(self._process(Place.RESERVE))
                if self._bug is not None:
                    break  # a broken broker may never finish
            self._scan()

    def _repeat(self, act: Callable[[], None], mean_seconds: float) -> None:
        while self._clients_left:
            act()
            self._time.sleep(self._rng.expovariate(1 / mean_seconds))

    def _reserve(self, world: World) -> None:
        began = self._time.unix()
        world.reserver.run(by=BY)
        self._reserve_runs.append(JobRun(began=began, ended=self._time.unix()))

    def _change_accounts(self) -> None:
        """Rename an account, or leave one out of the list for some time."""
        listed = self._provider.listed
        account = self._rng.choice(list(listed.values()))
        chance = self._rng.random()
        if chance < 0.2:
            self._provider.switched_off.add(account.sandbox_id)
            self._time.sleep(self._rng.uniform(0.5, 3.0))
            self._provider.switched_off.discard(account.sandbox_id)
        elif chance < 0.75:
            listed[account.sandbox_id] = replace(account, name=f"{account.name.partition('~')[0]}~{self._time.now()}")
        else:
            del listed[account.sandbox_id]
            self._time.sleep(self._rng.uniform(0.5, 3.0))
            listed[account.sandbox_id] = account

    def _scan(self) -> None:
        sandboxes, claims = self._memory.dump()
        self._scans.append(
            Scan(
                began=self._time.unix(),
                ended=self._time.unix(),
                rows=tuple(Row.of(flatten(each)) for each in sandboxes.values()),
                claims=tuple(ClaimRow.of(flatten_claim(each)) for each in claims.values()),
                places=tuple(
                    PlaceRow.of(asdict(each) | {"prefix": each.wish.prefix}, each.place_id)
                    for each in MemoryStore.read_line(self._memory)
                ),
                reservations=tuple(
                    ReservationRow.of(asdict(each), each.track_names) for each in self._memory.reservations.values()
                ),
            )
        )

    def _risk(self, seconds: float) -> None:
        """Sleep, and perhaps be killed during that."""
        self._time.sleep(seconds)
        if self._rng.random() < _KILLED_IN_GAP:
            raise Crashed

    def _process(self, place: Place) -> World:
        """Return a process of the broker, with the planted bug if it belongs there."""

        def wrap(memory: MemoryStore) -> SandboxStore:
            store = _SlowStore(memory, self._time)
            bug = self._bug
            if bug is None or bug.place is not place:
                return store
            sleep = self._risk if bug is Bug.LATE_FACT else self._time.sleep
            return break_store(bug, store, MemoryTable(memory), rng=self._rng, sleep=sleep)

        return World(
            clock=self._time,
            memory=self._memory,
            provider=self._provider,
            wrap=wrap,
            policy=POLICY,
            seed=self._rng.getrandbits(64),
            k_candidates=POLICY.k_candidates,
        )


def _work(job: Place, world: World) -> None:
    """Run a job once. If it is killed, the next run continues."""
    if job is Place.EXPIRY:
        world.expirer.run(by=BY)
    elif job is Place.CLEANUP:
        with suppress(Crashed):
            for sandbox_id in world.cleaner.find_due():
                world.cleaner.delete_sandbox(sandbox_id, by=BY)
    else:
        try:
            world.syncer.run(by=BY)
        except (SyncBraked, ListNotWhole):
            return


def _wait_of(request: Request) -> int:
    """Return for how many seconds a request may be held."""
    return int(request.headers.get("Prefer", "wait=0").removeprefix("wait="))


def _tell(waiting: Waiting) -> Answer:
    body = {
        "state": "waiting",
        "position": waiting.position,
        "waiting": waiting.waiting,
        "joined_at": waiting.place.joined_at,
        "place_kept_until": waiting.kept_until,
        "expected_by": waiting.expected_by,
    }
    return Answer(status=202, body=body, retry_after=waiting.retry_after)


def _of_sandboxes(facts: Iterable[Fact | PoolFact]) -> Iterator[Fact]:
    return (fact for fact in facts if isinstance(fact, Fact))


def _allocate(world: World, request: Request) -> Answer:
    given = request.headers
    key, prefix = given.get("Idempotency-Key"), given.get("X-Sandbox-Name-Prefix", "")
    named = {"track_name": given.get("X-Instruqt-Track-ID"), "reservation_id": given.get("X-Reservation-ID")}
    if "Prefer" not in given:
        answer: Allocation | Waiting = world.allocate(request.track_id, key, prefix, **named)
    else:
        answer = world.wait(request.track_id, key, prefix=prefix, wait_sec=_wait_of(request), **named)
    if isinstance(answer, Waiting):
        return _tell(answer)
    return Answer(
        status=200 if answer.replayed else 201,
        body=AllocationSchema().dump(answer.claim),
        replayed=answer.replayed,
    )


def _serve(world: World, request: Request) -> Answer:
    track_id = request.track_id
    match request.method, request.path.split("/")[1:]:
        case "POST", ["allocate"]:
            return _allocate(world, request)
        case "DELETE", ["waiting"]:
            place = world.store.read_place(track_id, request.headers.get("Idempotency-Key", track_id))
            if place is not None:
                world.line.leave(place)
            return Answer(status=204, body={})
        case "GET", ["sandboxes"]:
            held = world.leases.list_held(track_id=track_id)
            return Answer(status=200, body=HeldSandboxesSchema().dump({"sandboxes": held, "count": len(held)}))
        case "GET", ["sandboxes", sandbox_id]:
            sandbox = world.leases.read(track_id=track_id, sandbox_id=sandbox_id)
            return Answer(status=200, body=HeldSandboxSchema().dump(sandbox))
        case "POST", ["sandboxes", sandbox_id, "extend"]:
            asked = request.body or {}
            extension = world.extend(asked["expires_at"], sandbox_id, track_id, asked.get("lease_id"))
            return Answer(status=200, body=ExtendedSchema().dump(extension))
        case "POST", ["sandboxes", sandbox_id, _]:
            lease_id = request.body["lease_id"] if request.body else None
            ending = world.mark(sandbox_id, track_id, lease_id=lease_id)
            return Answer(status=200, body=MarkedSchema().dump(ending.sandbox))
        case _:
            raise AssertionError(f"no call of a track: {request}")


def _serve_operator(world: World, *, method: str, path: str, body: Mapping[str, Any]) -> Answer:
    reservation_id = path.removeprefix("/reservations").removeprefix("/")
    match method:
        case "POST":
            wanted = Wanted(**{**body, "track_names": tuple(body["track_names"])})
            return Answer(status=201, body=_show(world, world.bookings.book(wanted, by=BY).reservation))
        case "PATCH":
            changes = {name: value for name, value in body.items() if name != "version"}
            changed = world.bookings.change(reservation_id, changes, version=body["version"], by=BY)
            return Answer(status=200, body=_show(world, changed))
        case _:
            return Answer(status=200, body=_show(world, world.bookings.cancel(reservation_id, by=BY)))


def _show(world: World, reservation: Reservation) -> dict[str, Any]:
    return asdict(reservation) | {"state": reservation.state_at(world.clock.now())}
