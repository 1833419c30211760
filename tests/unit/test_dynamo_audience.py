"""A process knows whether there are endpoints: only fresh knowledge counts, and hardly anything is read for it."""

from __future__ import annotations

import threading

from broker_common.adapters.dynamo_audience import MAX_AGE_SEC, Audience
from broker_common.core.errors import StoreUnavailable
from tests.fakes import FakeClock


class Table:
    """What the audience reads."""

    def __init__(self) -> None:
        self.has_endpoints = False
        self.is_away = False
        self.reads = 0

    def read(self) -> bool:
        self.reads += 1
        if self.is_away:
            raise StoreUnavailable("the table is away")
        return self.has_endpoints


def test_it_is_read_for_the_first_fact_and_then_every_three_seconds() -> None:
    clock, table = FakeClock(), Table()
    audience = Audience(table.read, clock)
    assert [audience.is_absent() for _ in range(100)] == [True] * 100
    assert table.reads == 1
    clock.advance(MAX_AGE_SEC - 0.1)
    table.has_endpoints = True
    assert audience.is_absent()
    clock.advance(0.1)
    assert not audience.is_absent()
    assert table.reads == 2
    table.has_endpoints = False
    clock.advance(MAX_AGE_SEC)
    assert audience.is_absent()


def test_while_the_table_is_away_there_is_somebody_and_it_is_asked_no_more_often() -> None:
    clock, table = FakeClock(), Table()
    audience = Audience(table.read, clock)
    assert audience.is_absent()
    clock.advance(MAX_AGE_SEC)
    table.is_away = True
    assert [audience.is_absent() for _ in range(100)] == [False] * 100
    assert table.reads == 2


def test_while_another_thread_reads_there_is_somebody_and_nobody_waits() -> None:
    reading, go_on = threading.Event(), threading.Event()

    def read() -> bool:
        reading.set()
        assert go_on.wait(30)
        return False

    audience = Audience(read, FakeClock())
    first: list[bool] = []
    thread = threading.Thread(target=lambda: first.append(audience.is_absent()))
    thread.start()
    assert reading.wait(30)
    audience.forget()
    assert not audience.is_absent()
    go_on.set()
    thread.join(30)
    assert first == [True]


def test_what_this_process_changed_itself_is_read_again_at_once() -> None:
    table = Table()
    audience = Audience(table.read, FakeClock())
    assert audience.is_absent()
    table.has_endpoints = True
    audience.forget()
    assert not audience.is_absent()
