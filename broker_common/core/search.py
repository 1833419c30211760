"""Find sandboxes by fields that the index lacks, in a copy of the pool that is a few seconds old."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from broker_common.core.errors import InvalidInput
from broker_common.core.flat import OPTIONAL_SANDBOX_FIELDS, SANDBOX_FIELDS, flatten

if TYPE_CHECKING:
    from broker_common.core.inventory import Inventory
    from broker_common.core.pool_copy import PoolCopy
    from broker_common.core.ports import Clock
    from broker_common.core.sandbox import Sandbox, Status
    from broker_common.core.store import Unreadable

_FIELDS = {**SANDBOX_FIELDS, **OPTIONAL_SANDBOX_FIELDS}


class SortField(StrEnum):
    """The fields by which found sandboxes can be sorted. A sandbox without the field comes last."""

    SANDBOX_ID = "sandbox_id"
    NAME = "name"
    STATUS = "status"
    TRACK_NAME = "track_name"
    TRACK_ID = "allocated_to_track"
    ALLOCATED_AT = "allocated_at"
    EXPIRES_AT = "expires_at"
    DELETION_REQUESTED_AT = "deletion_requested_at"
    DELETION_RETRY_COUNT = "deletion_retry_count"
    STALE_SINCE = "stale_since"
    CREATED_AT = "created_at"
    UPDATED_AT = "updated_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which sandboxes to find, and in which order.

    `name` is a part of the sandbox's name, in any case of letters. `track_name` is the lab of its latest lease.
    `track_id` is the track that holds it.
    """

    status: Status | None = None
    name: str | None = None
    track_name: str | None = None
    track_id: str | None = None
    sort: SortField = SortField.SANDBOX_ID
    descending: bool = False

    def fits(self, sandbox: Sandbox) -> bool:
        """Tell whether a sandbox matches all conditions."""
        latest = sandbox.latest_lease
        return (
            self.status in {None, sandbox.status}
            and (self.name is None or self.name.casefold() in sandbox.name.casefold())
            and (self.track_name is None or (latest is not None and latest.track_name == self.track_name))
            and (self.track_id is None or (sandbox.lease is not None and sandbox.lease.track_id == self.track_id))
        )


@dataclass(frozen=True, slots=True)
class Found:
    """A page of found sandboxes. `cursor` reads the next page; it is None on the last one.

    `total`: how many were found on all pages. `age_sec`: the age of the copy that was searched.
    """

    sandboxes: tuple[Sandbox, ...]
    total: int
    age_sec: float
    cursor: str | None
    unreadable: tuple[Unreadable, ...] = ()


class Search:
    """Searches a copy of the pool. Thread-safe."""

    def __init__(self, *, copy: PoolCopy, inventory: Inventory, clock: Clock) -> None:
        self._copy = copy
        self._inventory = inventory
        self._clock = clock

    def find(self, query: Query, *, limit: int, cursor: str | None) -> Found:
        """Return a page of the sandboxes that match `query`.

        A sandbox that changes between two pages may be missed or found twice. Sandboxes whose record cannot be read
        are on the first page of every query. Raises `InvalidInput` for a cursor that was not given for this query.
        """
        after = _read_cursor(query, cursor) if cursor is not None else None
        read_at, pool = self._copy.get()
        fitting = sorted((_key(query, each), each.sandbox_id) for each in pool.sandboxes if query.fits(each))
        if query.descending:
            # Sandboxes without a value stay at the end.
            have, lack = [each for each in fitting if each[0][0] == 0], [each for each in fitting if each[0][0] == 1]
            fitting = have[::-1] + lack
        by_id = {each.sandbox_id: each for each in pool.sandboxes}
        first = 0
        if after is not None:
            first = next((at for at, each in enumerate(fitting) if _is_after(query, each, after)), len(fitting))
        page = fitting[first : first + limit]
        more = first + limit < len(fitting)
        return Found(
            self._inventory.show(by_id[sandbox_id] for _, sandbox_id in page),
            len(fitting),
            max(0.0, self._clock.monotonic() - read_at),
            _write_cursor(query, page[-1]) if more else None,
            pool.unreadable if cursor is None else (),
        )


_Key = tuple[int, str | int]
_Position = tuple[_Key, str]


def _key(query: Query, sandbox: Sandbox) -> _Key:
    value = flatten(sandbox)[query.sort]
    return (1, 0) if value is None else (0, value)


def _is_after(query: Query, position: _Position, other: _Position) -> bool:
    """Tell whether a position comes after another one in the order of the query."""
    if position[0][0] != other[0][0]:
        return position[0][0] > other[0][0]
    return position < other if query.descending and position[0][0] == 0 else position > other


def _id_of(query: Query) -> str:
    """Return a short text that identifies a query."""
    return hashlib.sha256(json.dumps([str(each) for each in astuple(query)]).encode()).hexdigest()[:16]


def _write_cursor(query: Query, position: _Position) -> str:
    content = json.dumps([_id_of(query), position], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode()


def _read_cursor(query: Query, cursor: str) -> _Position:
    kind = int if _FIELDS[query.sort] is int else str
    try:
        match json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True)):
            case [query_id, [[int(lacks), value], str(sandbox_id)]] if query_id == _id_of(query) and (
                (lacks == 0 and type(value) is kind) or (lacks == 1 and value == 0)
            ):
                return (lacks, value), sandbox_id
    except (ValueError, RecursionError):
        pass
    raise InvalidInput("cursor: was not given by a listing with the same filters and order")
