"""The bodies and queries of the calls that read facts: a sandbox's history, and the feed of all events."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from marshmallow import Schema, fields, pre_dump, validate

from broker_api.schemas.parts import (
    LEASE_ID,
    MAX_CURSOR,
    REQUEST_ID,
    StrictInteger,
    enum_field,
    number_field,
    optional_text_field,
    plain_field,
    text_field,
    time_field,
)
from broker_common.core.facts import FactKind, PoolFactKind
from broker_common.core.sandbox import Status

if TYPE_CHECKING:
    from broker_common.core.facts import Fact, PoolFact


class FactSchema(Schema):
    """What happened to a sandbox, or to the pool."""

    kind = text_field("sandbox.allocated", "What happened")
    at = time_field("When it happened")
    principal = text_field(
        "track",
        "Who did it: the name of a token, `oidc:` and the subject of an access token, or `job:` and the name of a job",
    )
    request_id = optional_text_field(REQUEST_ID, "The request, or the run of a job, that did it")
    sandbox_id = optional_text_field("2009521", "The sandbox; null for a fact of the pool")
    version = fields.Integer(
        required=True,
        allow_none=True,
        metadata={
            "example": 1759574955000,
            "description": "The sandbox's version after this fact. `sandbox_id`, `version` and `kind` together name"
            " the fact. Null for a fact of the pool",
        },
    )
    fact_id = optional_text_field(None, "Names a fact of the pool; null for a fact of a sandbox")
    track_id = optional_text_field("track-4711", "The track that held the sandbox, or held it last")
    lease_id = optional_text_field(LEASE_ID, "The lease of that track")
    status = enum_field(
        Status,
        {"example": "allocated", "description": "The status after this fact; null: the record was removed"},
        required=True,
        allow_none=True,
    )
    status_before = enum_field(
        Status,
        {"example": "available", "description": "The status before; null: there was no record"},
        required=True,
        allow_none=True,
    )
    details = fields.Dict(keys=fields.String(), required=True, metadata={"example": {}, "description": "More, by kind"})

    @pre_dump
    def _complete(self, fact: Fact | PoolFact, **_: Any) -> dict[str, Any]:  # noqa: ANN401 - marshmallow's options
        return {name: getattr(fact, name, None) for name in self.fields}


class FactQuerySchema(Schema):
    """Which part of a history to read."""

    limit = StrictInteger(
        load_default=50,
        validate=validate.Range(min=1, max=100),
        metadata={"description": "How many facts a page has at most: 1 to 100"},
    )
    cursor = fields.String(
        validate=validate.Length(min=1, max=MAX_CURSOR), metadata={"description": "The `cursor` of the page before"}
    )


class FactPageSchema(Schema):
    """A page of a sandbox's facts, newest first."""

    facts = fields.List(fields.Nested(FactSchema), required=True)
    count = number_field("How many are in `facts`", 1)
    cursor = optional_text_field(None, "Send it to read the next page; null on the last page")


class FeedOrder(StrEnum):
    """In which order the feed is read."""

    OLDEST_FIRST = "oldest_first"
    NEWEST_FIRST = "newest_first"


class FeedQuerySchema(Schema):
    """Which facts to read."""

    after = fields.String(
        validate=validate.Length(min=1, max=MAX_CURSOR),
        metadata={
            "description": "The last `cursor` read, in the same `order`; without it, the oldest fact that is kept"
            " comes first, or the newest"
        },
    )
    since = StrictInteger(
        validate=validate.Range(min=0, max=2**40),
        metadata={"description": "The time of the earliest facts without `after`, in Unix seconds"},
    )
    order = enum_field(
        FeedOrder,
        {
            "example": "oldest_first",
            "description": "`oldest_first` misses no fact, and is read on for ever; `newest_first` looks back from the"
            " newest fact",
        },
        load_default=FeedOrder.OLDEST_FIRST,
    )
    kind = fields.String(
        validate=validate.OneOf([kind.value for kind in (*FactKind, *PoolFactKind)]),
        metadata={"description": "Only facts of this kind"},
    )
    track_id = plain_field({"description": "Only facts of this track's leases"})
    limit = StrictInteger(
        load_default=100,
        validate=validate.Range(min=1, max=1000),
        metadata={"description": "How many facts are looked at: 1 to 1,000"},
    )


class FeedSchema(Schema):
    """A page of the feed."""

    events = fields.List(fields.Nested(FactSchema), required=True)
    count = number_field("How many are in `events`", 1)
    cursor = text_field("f1759574835", "Send it as `after` to read on")
    is_last = fields.Boolean(
        required=True,
        metadata={
            "example": True,
            "description": "There was no later fact when these were read; with the newest first, no older one",
        },
    )
