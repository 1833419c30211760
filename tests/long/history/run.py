"""One run against real processes: clients, jobs and faults together, then the jobs alone until nothing is left to do."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from tests.long.history.broker import BUFFER_SEC, LAB_SEC, MAX_LAB_SEC, Broker
from tests.long.history.faults import deal
from tests.long.history.load import Budget, Client, Operator, Pace
from tests.long.history.record import Fault, History, Terms

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from tests.long.history.faults import Disturbance
    from tests.long.history.planted import Bug

CLIENTS = 16
_DRAIN_SEC = 240
_DRAIN_OF_BROKEN_SEC = 20
_STEP_SEC = 0.2
_HIDDEN_AT_MOST = 4
"""Fewer than the limit of sync's brake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The orders for a run."""

    seed: int
    calls: int
    faults: int
    calls_a_second: float
    bug: Bug | None = None


class Unfinished(Exception):
    """A run failed before its end; `history` is the part until then."""

    def __init__(self, history: History) -> None:
        super().__init__("the run failed before its end")
        self.history = history


def run(order: Order, scratch: Path, database_url: str, say: Callable[[str], None]) -> History:
    """Run on an empty database and return the history. `say` gets lines on the progress.

    `scratch` keeps the output of the processes. Raises `Unfinished` from the reason.
    """
    with Broker(scratch, database_url, order.bug) as broker:
        try:
            return _Run(order, broker, say).run()
        finally:
            for name in broker.names:
                (scratch / f"{name}.log").write_text(broker.stack.output(name))


class _Run:
    """One run. The clients are in threads. All else is in the main thread: only it may start processes."""

    def __init__(self, order: Order, broker: Broker, say: Callable[[str], None]) -> None:
        self._order = order
        self._broker = broker
        self._say = say
        self._rng = Random(order.seed)
        self._budget = Budget(order.calls)
        self._pace = Pace(
            lab_sec=LAB_SEC, max_lab_sec=MAX_LAB_SEC, buffer_sec=BUFFER_SEC, think_sec=CLIENTS / order.calls_a_second
        )
        self._operator = Operator(broker, Random(f"{order.seed}-operator"), self._pace)
        self._hidden: list[tuple[float, dict[str, Any]]] = []
        """Accounts that the provider does not list now, and until when."""
        self._faults: list[Fault] = []

    def run(self) -> History:
        clock_step = time.time() - time.monotonic()
        try:
            self._load()
            self._drain()
            assert abs(time.time() - time.monotonic() - clock_step) < 0.1, "the machine's clock was set during the run"
            self._broker.rest()
            self._broker.stop_watching()
            feed = self._broker.read_feed()
            pasts = self._broker.read_pasts(feed)
        except Exception as reason:
            for name in self._broker.names:
                self._broker.stack.kill(name)
            self._broker.stop_watching()  # the last scan must come after the last change
            raise Unfinished(self._seen(self._terms())) from reason
        terms = self._terms(drained=True, is_told=True)
        return replace(self._seen(terms), feed=feed, pasts=pasts)

    def _load(self) -> None:
        """Run the ordered calls and faults."""
        order, broker = self._order, self._broker
        dealt = deal(self._rng, order.faults)
        due = sorted(self._rng.uniform(0.02, 0.95) * order.calls for _ in dealt)
        self._budget.goes_on = True
        with ThreadPoolExecutor(CLIENTS) as threads:
            names = [f"{order.seed}-{number}" for number in range(CLIENTS)]
            clients = [
                threads.submit(
                    Client(name, broker, Random(name), self._budget, self._pace, reservations=self._operator.booked).run
                )
                for name in names
            ]
            try:
                for at, disturbance in zip(due, dealt, strict=True):
                    self._live(partial(self._has_made, at, clients))
                    self._disturb(disturbance)
                self._budget.goes_on = False
                self._live(lambda: all(client.done() for client in clients))
            finally:
                self._budget.is_closed = True
        for client in clients:
            client.result()

    def _terms(self, *, drained: bool = False, is_told: bool = False) -> Terms:
        return Terms(
            lab_sec=LAB_SEC,
            max_lab_sec=MAX_LAB_SEC,
            buffer_sec=BUFFER_SEC,
            seed=self._order.seed,
            drained=drained,
            is_told=is_told,
        )

    def _seen(self, terms: Terms) -> History:
        broker = self._broker
        return History(
            terms=terms,
            calls=tuple(broker.calls),
            scans=tuple(broker.scans),
            deletes=broker.deletes(),
            accounts=broker.listed(),
            faults=(*self._faults, *broker.lateness),
        )

    def _has_made(self, calls: float, clients: list[Future[None]]) -> bool:
        """Tell whether so many calls were made, or a client has failed so that they never will be."""
        return self._budget.made >= calls or any(client.done() for client in clients)

    def _live(self, is_over: Callable[[], bool], *, supervised: bool = True) -> None:
        """Act at random as operators, provider and supervisor until a condition holds."""
        while not is_over():
            if supervised:
                self._broker.supervise()
            self._act()
            time.sleep(_STEP_SEC)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._live(lambda: time.monotonic() >= until, supervised=False)

    def _act(self) -> None:
        rng, broker = self._rng, self._broker
        self._show_again([each for each in self._hidden if each[0] <= time.monotonic()])
        acts = {"": 50, "job": 12, "release": 3, "retry": 4, "rename": 12, "hide": 6, "deliver": 10, "reserve": 10}
        match rng.choices(list(acts), weights=list(acts.values()))[0]:
            case "job":
                broker.ask(rng.choice(["sync", "cleanup", "expire", "reserve"]))
            case "release":
                broker.release(broker.scans[-1], rng)
            case "retry":
                broker.ask("bulk-retry")
            case "reserve":
                self._operator.act()
            case "deliver":
                broker.deliver_again(rng)
            case "rename":
                account = rng.choice(broker.accounts())
                name = str(account["name"]).partition("~")[0]
                broker.list_account({**account, "name": f"{name}~{rng.randrange(1000)}"})
            case "hide" if len(self._hidden) < _HIDDEN_AT_MOST:
                account = rng.choice(broker.accounts())
                broker.hide_account(account)
                self._hidden.append((time.monotonic() + rng.uniform(0.5, 4.0), account))
            case _:
                return

    def _show_again(self, hidden: list[tuple[float, dict[str, Any]]]) -> None:
        for each in hidden:
            self._broker.list_account(each[1])
            self._hidden.remove(each)

    def _disturb(self, disturbance: Disturbance) -> None:
        began = time.time()
        hits = disturbance.strike(self._broker, self._rng, self._wait)
        fault = Fault(
            name=disturbance.name,
            began=began,
            ended=time.time(),
            refuses_calls=disturbance.refuses_calls,
            hits=hits,
        )
        self._faults.append(fault)
        self._say(f"{self._budget.made:6} calls  {fault.name}: {fault.ended - fault.began:.1f} s, struck {hits} times")

    def _drain(self) -> None:
        """Let all allocations expire, and run the jobs until every sandbox is back in the pool."""
        broker = self._broker
        self._say(f"{self._budget.made:6} calls  no more clients: waiting until every sandbox is back")
        self._show_again(list(self._hidden))
        time.sleep(MAX_LAB_SEC + BUFFER_SEC + 1)
        give_up_at = time.monotonic() + (_DRAIN_SEC if self._order.bug is None else _DRAIN_OF_BROKEN_SEC)
        total = len(broker.accounts())
        while time.monotonic() < give_up_at:
            broker.supervise()
            for what in ("bulk-retry", "expire", "cleanup", "sync", "reserve"):
                broker.ask(what)
            time.sleep(1)
            counts = broker.counts()
            if counts.get("available") == counts.get("total") == total:
                break
        self._say(f"the pool at the end: {dict(broker.counts())}")
