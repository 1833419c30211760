"""Reads the file of named principals (`BROKER_TOKENS_FILE`), and names the line of each mistake.

[[token]]
name = "anna"
sha256 = "9f86d081..."                 # printf %s "$TOKEN" | sha256sum
roles = ["operator"]                   # track, viewer, operator, admin
tracks = ["acme-*"]                    # for the role track: only tracks whose id matches one of these
customer = "acme"
expires_at = 2027-01-31T00:00:00Z      # or Unix seconds
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema

from broker_common.core.principals import Principal, Role
from broker_common.tokens import BadTokenError, Token, is_well_known, read_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Set as AbstractSet

_NAME = r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}\Z"
_PLAIN = r"[!-~]([ -~]{0,126}[!-~])?\Z"
_RESERVED = rf"(?!({Role.TRACK}|{Role.ADMIN})\Z)"
_TABLE = "token"
_LATEST = 253_402_300_799
"""The end of the year 9999. A larger number is in milliseconds."""


def read_principals(path: str, *, production: bool, required: AbstractSet[Role] = frozenset()) -> tuple[Token, ...]:
    """Read the tokens of a file with their principals, which together must have the `required` roles.

    The result includes expired tokens, and they count for `required`: a token that expires must not keep a process from
    starting. Raises `BadTokenError`, which names every mistake by its line and field, and contains no values.
    """
    text = read_text(path)
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadTokenError(f"Not valid TOML: {error}.") from error
    mistakes = _Mistakes(text)
    tables = _take_tables(document, mistakes)
    tokens = [_read_token(table, index, mistakes, production=production) for index, table in enumerate(tables)]
    _refuse_duplicates(tables, mistakes)
    mistakes.raise_any()
    found = tuple(token for token in tokens if token is not None)
    missing = sorted(role for role in required if not any(token.principal.may(role) for token in found))
    if missing:
        raise BadTokenError(f"Holds no token with the role {' or '.join(missing)}, and no other setting gives one.")
    return found


@dataclass(slots=True)
class _Places:
    """The lines of a document, counted from 1."""

    tables: list[int] = field(default_factory=list)
    """Where each token's table begins."""
    fields: dict[tuple[int, str], int] = field(default_factory=dict)
    """Where a field of the table with this index stands."""
    others: dict[str, int] = field(default_factory=dict)
    """Where each other name stands."""

    def of(self, index: int, name: str) -> int:
        """Return the line of a token's field; of its table if it has no such field."""
        return self.fields.get((index, name), self.tables[index])


class _Mistakes:
    """The mistakes in a document, by line and field."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._found: list[tuple[int, str, str]] = []

    @cached_property
    def places(self) -> _Places:
        """The lines of the document's names."""
        return _find_places(self._text)

    def add(self, name: str, text: str) -> None:
        """Add a mistake in a name that is not a field of a token."""
        self._found.append((self.places.others.get(name, 1), name, text))

    def add_to_token(self, index: int, name: str, text: str) -> None:
        """Add a mistake in a field of the token with this index."""
        self._found.append((self.places.of(index, name), name, text))

    def raise_any(self) -> None:
        """Raise `BadTokenError` with all mistakes, if there are any."""
        told = [
            f"line {line}: {name if name.isprintable() else repr(name)}: {text}"
            for line, name, text in sorted(self._found)
        ]
        if told:
            raise BadTokenError(" ".join(told))


def _find_places(text: str) -> _Places:
    """Find the lines of a document's names, which tomllib does not report."""
    places = _Places()
    is_in_token = False
    for line, statement, found in _statements(text):
        tables = found.get(_TABLE)
        if isinstance(tables, list):
            places.tables += [line] * len(tables)
            places.others.setdefault(_TABLE, line)
            is_in_token = bool(places.tables)
        elif statement.lstrip().startswith("["):
            # Another table, or a table inside a token's table.
            is_in_token = isinstance(tables, dict) and bool(places.tables)
            _note(places, tables if isinstance(tables, dict) and is_in_token else found, line, in_token=is_in_token)
        else:
            _note(places, found, line, in_token=is_in_token)
    return places


def _note(places: _Places, names: Mapping[str, Any], line: int, *, in_token: bool) -> None:
    for name in names:
        if in_token:
            places.fields.setdefault((len(places.tables) - 1, name), line)
        else:
            places.others.setdefault(name, line)


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield each statement of a valid document: its first line, its text, and its content.

    A line feed ends a statement, except in an open string or array, where the text so far is not valid TOML.
    """
    begun, statement = 1, ""
    for line, more in enumerate(text.split("\n"), 1):
        statement += f"{more}\n"
        try:
            found = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        yield begun, statement, found
        begun, statement = line + 1, ""


def _take_tables(document: dict[str, Any], mistakes: _Mistakes) -> list[dict[str, Any]]:
    """Return the tokens' tables; anything else in a document is a mistake."""
    tables = document.pop(_TABLE, [])
    for key in document:
        mistakes.add(key, "Unknown: there are only tables [[token]].")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        mistakes.add(_TABLE, "Must be tables [[token]], in two brackets each.")
        return []
    if not tables:
        mistakes.add(_TABLE, "Missing: give at least one table [[token]].")
    return tables


def _read_token(table: Mapping[str, Any], index: int, mistakes: _Mistakes, *, production: bool) -> Token | None:
    try:
        read: dict[str, Any] = _TokenSchema().load(table)
    except ValidationError as error:
        for name, told in error.normalized_messages().items():  # type: ignore[no-untyped-call] # marshmallow leaves it untyped
            mistakes.add_to_token(index, str(name), " ".join(dict.fromkeys(_texts(told))))
        return None
    digest = bytes.fromhex(read["sha256"])
    if production and is_well_known(digest):
        mistakes.add_to_token(index, "sha256", "Belongs to a well-known development token.")
    tracks = read.get("tracks")
    return Token(
        digest,
        Principal(
            name=read["name"],
            roles=frozenset(read["roles"]),
            tracks=None if tracks is None else tuple(tracks),
            customer=read.get("customer"),
        ),
        expires_at=read.get("expires_at"),
    )


def _refuse_duplicates(tables: list[dict[str, Any]], mistakes: _Mistakes) -> None:
    for name in ("name", "sha256"):
        first: dict[str, int] = {}
        for index, table in enumerate(tables):
            value = table.get(name)
            if isinstance(value, str) and (same := first.setdefault(value.lower(), index)) != index:
                mistakes.add_to_token(index, name, f"Already used in line {mistakes.places.of(same, name)}.")


def _texts(told: Any) -> Iterator[str]:  # noqa: ANN401 - marshmallow nests lists of texts in mappings
    if isinstance(told, dict):
        for each in told.values():
            yield from _texts(each)
    else:
        yield from map(str, told)


class _Expiry(fields.Field[int]):
    """A TOML date-time with its offset from UTC, or Unix seconds."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:  # noqa: ANN401 - marshmallow's signature
        if isinstance(value, datetime) and value.tzinfo is not None:
            value = int(value.timestamp())
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LATEST:
            raise ValidationError("Must be a date-time with its offset, such as 2027-01-31T00:00:00Z, or Unix seconds.")
        return value


def _plain() -> fields.String:
    return fields.String(validate=validate.Regexp(_PLAIN, error="Must be 1 to 128 printable ASCII characters."))


class _TokenSchema(Schema):
    """The table of one token."""

    class Meta:
        unknown = RAISE

    name = fields.String(
        required=True,
        validate=[
            validate.Regexp(_NAME, error="Must be 1 to 64 of A-Z a-z 0-9 . _ @ + -, the first a letter or digit."),
            validate.Regexp(
                _RESERVED, re.IGNORECASE, error="Reserved for BROKER_API_TOKEN and BROKER_ADMIN_TOKEN: choose another."
            ),
        ],
    )
    sha256 = fields.String(
        required=True, validate=validate.Regexp(r"[0-9a-fA-F]{64}\Z", error="Must be 64 hexadecimal digits.")
    )
    roles = fields.List(
        fields.Enum(Role, by_value=True),
        required=True,
        validate=validate.Length(min=1, error="Must not be empty."),
    )
    tracks = fields.List(_plain(), validate=validate.Length(min=1, error="Must not be empty: leave it out for all."))
    customer = _plain()
    expires_at = _Expiry()

    @validates_schema
    def _need_a_track(self, data: Mapping[str, Any], **_: object) -> None:
        # A restriction without an effect is a mistake about the token's rights.
        if "tracks" in data and Role.TRACK not in data["roles"]:
            raise ValidationError("Only for a token with the role track.", "tracks")
