"""The record of a run, and its file: JSON lines that can be checked again.

All times are Unix seconds of the one clock that a run has: its machine's, or its simulation's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from broker_common.core.facts import Fact, FactKind
from broker_common.core.sandbox import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


class Kind(StrEnum):
    """A call of the API."""

    ALLOCATE = "allocate"
    READ = "read"
    LIST = "list"
    EXTEND = "extend"
    MARK = "mark"
    RELEASE = "release"
    GIVE_UP = "give up"
    BOOK = "book"
    CHANGE = "change"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the API and its answer. Without an answer `status` is None, and the effect is unknown."""

    kind: Kind
    began: float
    ended: float
    status: int | None
    body: Mapping[str, Any] = field(default_factory=dict)
    track_id: str = ""
    key: str = ""
    """The idempotency key of an allocate, or the track id if none was sent."""
    prefix: str = ""
    sandbox_id: str = ""
    lease_id: str | None = None
    """The lease that an extension, a mark or a release named."""
    until: int = 0
    """The end that an extension asked for."""
    replayed: bool = False
    """Whether the answer's header said that it is a repetition."""
    patience: float = 0
    """The seconds after which the caller gives up."""
    wait_sec: int | None = None
    """For how long an allocate waits in line before its answer; None if its track does not wait."""
    track_name: str = ""
    """The lab of an allocate."""
    reservation_id: str | None = None
    """The reservation that an allocate, a change or a cancel named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A sandbox's record in the table, with the fields that the promises name."""

    sandbox_id: str
    external_id: str
    name: str
    status: str
    version: int
    dirty: bool = False
    lease_id: str | None = None
    track_id: str | None = None
    key: str | None = None
    allocated_at: int | None = None
    expires_at: int | None = None
    last_lease_id: str | None = None
    reservation_id: str | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Return the row of a record, given by its attributes in the table."""
        given: dict[str, Any] = {each.name: record.get(each.name) for each in fields(cls)}
        return cls(**given | {"track_id": record.get("allocated_to_track"), "key": record.get("idempotency_key")})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRow:
    """A claim in the table."""

    track_id: str
    key: str
    lease_id: str
    sandbox_id: str

    @classmethod
    def of(cls, claim: Mapping[str, Any]) -> Self:
        """Return the row of a claim, given by its attributes in the table."""
        return cls(
            track_id=claim["track_id"],
            key=claim["idempotency_key"],
            lease_id=claim["lease_id"],
            sandbox_id=claim["sandbox_id"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceRow:
    """A place in the line, in the table. Places are served in the order of their ids."""

    place_id: str
    track_id: str
    key: str
    prefix: str
    back_by: int

    @classmethod
    def of(cls, place: Mapping[str, Any], place_id: str) -> Self:
        """Return the row of a place, given by its attributes in the table."""
        return cls(
            place_id=place_id,
            track_id=place["track_id"],
            key=place["idempotency_key"],
            prefix=place["prefix"],
            back_by=place["back_by"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationRow:
    """A reservation in the table that is not archived."""

    reservation_id: str
    version: int
    stage: str
    count: int
    starts_at: int
    ends_at: int
    track_names: tuple[str, ...]
    set_aside: int
    drawn: int

    @classmethod
    def of(cls, reservation: Mapping[str, Any], track_names: Iterable[str]) -> Self:
        """Return the row of a reservation, given by its attributes in the table."""
        given: dict[str, Any] = {
            each.name: reservation[each.name] for each in fields(cls) if each.name != "track_names"
        }
        return cls(**given, track_names=tuple(track_names))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """A run of a job to its end."""

    began: float
    ended: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A consistent read of the whole table. Each record is of some moment from `began` to `ended`."""

    began: float
    ended: float
    rows: tuple[Row, ...]
    claims: tuple[ClaimRow, ...]
    places: tuple[PlaceRow, ...] = ()
    reservations: tuple[ReservationRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """A delete call to the provider. `answer` is None if the connection was dropped."""

    external_id: str
    began: float
    ended: float
    answer: int | None
    applied: bool

    @property
    def is_confirmed(self) -> bool:
        """Whether the provider wiped the account and said so."""
        return self.applied and self.answer in {200, 202, 204}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault. With `refuses_calls`, tracks may get a 503 or no answer during it and shortly after."""

    name: str
    began: float
    ended: float
    refuses_calls: bool
    hits: int = 1
    """How many calls it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The broker's settings, and how the run ended."""

    lab_sec: int
    max_lab_sec: int
    buffer_sec: int
    seed: int
    drained: bool
    """Whether all jobs ran after the load until nothing was left to do. Then no allocation may be left."""
    is_told: bool = False
    """Whether all facts were read at the end, after the last change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A sandbox account that the provider lists at the end."""

    sandbox_id: str
    external_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All that was seen of a run. The last scan is after the last change."""

    terms: Terms
    calls: tuple[Call, ...] = ()
    scans: tuple[Scan, ...] = ()
    deletes: tuple[Delete, ...] = ()
    accounts: tuple[Account, ...] = ()
    faults: tuple[Fault, ...] = ()
    feed: tuple[Fact, ...] = ()
    """The facts of all sandboxes, from the feed."""
    pasts: tuple[Fact, ...] = ()
    """The same facts, from the history of each sandbox, newest first."""
    reserve_runs: tuple[JobRun, ...] = ()
    """The runs of the job `reserve`, in order, as far as they are known."""

    def save(self, path: Path) -> None:
        """Write the history to a file."""
        with path.open("w") as file:
            for name in _READERS:
                file.writelines(json.dumps([name, asdict(each)]) + "\n" for each in getattr(self, name))
            file.write(json.dumps(["terms", asdict(self.terms)]) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a history from a file."""
        found: dict[str, list[Any]] = {name: [] for name in _READERS}
        with path.open() as file:
            for line in file:
                name, values = json.loads(line)
                if name == "terms":
                    terms = Terms(**values)
                else:
                    found[name].append(_READERS[name](values))
        return cls(terms=terms, **{name: tuple(each) for name, each in found.items()})


def _read_call(values: dict[str, Any]) -> Call:
    return Call(**{**values, "kind": Kind(values["kind"])})


def _read_scan(values: dict[str, Any]) -> Scan:
    rows: Iterable[dict[str, Any]] = values.pop("rows")
    claims: Iterable[dict[str, Any]] = values.pop("claims")
    places: Iterable[dict[str, Any]] = values.pop("places", ())
    reservations: Iterable[dict[str, Any]] = values.pop("reservations", ())
    return Scan(
        **values,
        rows=tuple(Row(**each) for each in rows),
        claims=tuple(ClaimRow(**each) for each in claims),
        places=tuple(PlaceRow(**each) for each in places),
        reservations=tuple(
            ReservationRow(**{**each, "track_names": tuple(each["track_names"])}) for each in reservations
        ),
    )


def read_fact(values: Mapping[str, Any]) -> Fact:
    """Return a fact of a sandbox as JSON shows it."""
    status, status_before = (values[name] and Status(values[name]) for name in ("status", "status_before"))
    return Fact(**{**values, "kind": FactKind(values["kind"]), "status": status, "status_before": status_before})


_READERS: Mapping[str, Any] = {
    "calls": _read_call,
    "scans": _read_scan,
    "deletes": lambda values: Delete(**values),
    "accounts": lambda values: Account(**values),
    "faults": lambda values: Fault(**values),
    "feed": read_fact,
    "pasts": read_fact,
    "reserve_runs": lambda values: JobRun(**values),
}
