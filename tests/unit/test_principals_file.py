"""The file of named principals: what it may say, and how its mistakes are told."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from broker_common.core.principals import Principal, Role
from broker_common.principals_file import read_principals
from broker_common.tokens import DEVELOPMENT_TRACK_TOKEN, BadTokenError, Token

if TYPE_CHECKING:
    from pathlib import Path

ANNAS, BOBS = (hashlib.sha256(name.encode()).hexdigest() for name in ("anna's token", "bob's token"))
ANNA = f"""
[[token]]
name = "anna"
sha256 = "{ANNAS}"
roles = ["operator"]
"""
RESERVED = "Reserved for BROKER_API_TOKEN and BROKER_ADMIN_TOKEN: choose another."


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def read(file: Path, text: str, *required: Role, production: bool = True) -> tuple[Token, ...]:
    file.write_text(text)
    return read_principals(str(file), production=production, required=set(required))


def mistakes(file: Path, text: str, *required: Role) -> list[str]:
    """Return the mistakes that are reported for a file, one each."""
    with pytest.raises(BadTokenError) as refused:
        read(file, text, *required)
    return str(refused.value).replace(". line ", ".\nline ").split("\n")


def test_a_token_names_its_principal_with_its_roles(file: Path) -> None:
    (token,) = read(file, ANNA)
    assert token == Token(bytes.fromhex(ANNAS), Principal(name="anna", roles=frozenset({Role.OPERATOR})))


def test_a_token_may_be_bound_to_tracks_belong_to_a_customer_and_expire(file: Path) -> None:
    (token,) = read(
        file,
        f"""
        [[token]]
        name = "labs@acme.example"
        sha256 = "{ANNAS.upper()}"
        roles = ["track", "viewer"]
        tracks = ["acme-*", "intro-?"]
        customer = "Acme Ltd."
        expires_at = 2027-01-31T01:00:00+01:00
        """,
    )
    assert token.principal == Principal(
        name="labs@acme.example",
        roles=frozenset({Role.TRACK, Role.VIEWER}),
        tracks=("acme-*", "intro-?"),
        customer="Acme Ltd.",
    )
    assert (token.digest.hex(), token.expires_at) == (ANNAS, 1801353600)


def test_an_expiry_may_be_in_unix_seconds(file: Path) -> None:
    (token,) = read(file, f"{ANNA}expires_at = 1801353600")
    assert not token.is_expired(1801353599)
    assert token.is_expired(1801353600)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("colour = 3", "colour: Unknown field."),
        ("tracks = []", "tracks: Must not be empty: leave it out for all."),
        ("tracks = 'acme-*'", "tracks: Not a valid list."),
        ("tracks = ['acme-*', 7]", "tracks: Not a valid string."),
        ("tracks = ['']", "tracks: Must be 1 to 128 printable ASCII characters."),
        ("tracks = ['acme-*']", "tracks: Only for a token with the role track."),
        ("customer = ''", "customer: Must be 1 to 128 printable ASCII characters."),
        ("customer = 7", "customer: Not a valid string."),
        (f"customer = '{'x' * 129}'", "customer: Must be 1 to 128 printable ASCII characters."),
        ("'a\\tb' = 1", "a\\tb: Unknown field."),
        ('"a\\tb" = 1', "'a\\tb': Unknown field."),
    ],
)
def test_a_field_that_cannot_be_used_is_told_by_line(file: Path, line: str, told: str) -> None:
    assert mistakes(file, f"{ANNA}{line}") == [f"line 6: {told}"]


@pytest.mark.parametrize(
    "value",
    [
        *("2027-01-31T00:00:00", "2027-01-31", "12:00:00", "'2027-01-31T00:00:00Z'", "1969-12-31T00:00:00Z"),
        *("1801353600.5", "1801353600000", "-1", "true"),
    ],
)
def test_an_expiry_that_is_no_moment_is_refused(file: Path, value: str) -> None:
    assert mistakes(file, f"{ANNA}expires_at = {value}") == [
        "line 6: expires_at: Must be a date-time with its offset, such as 2027-01-31T00:00:00Z, or Unix seconds."
    ]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('name = "anna"\n', "", "line 2: name: Missing data for required field."),
        ('"anna"', "7", "line 3: name: Not a valid string."),
        (
            '"anna"',
            '"job:sync"',
            "line 3: name: Must be 1 to 64 of A-Z a-z 0-9 . _ @ + -, the first a letter or digit.",
        ),
        ('"anna"', '"track"', f"line 3: name: {RESERVED}"),
        ('"anna"', '"Admin"', f"line 3: name: {RESERVED}"),
        (f'sha256 = "{ANNAS}"\n', "", "line 2: sha256: Missing data for required field."),
        (ANNAS, ANNAS[1:], "line 4: sha256: Must be 64 hexadecimal digits."),
        (ANNAS, "g" * 64, "line 4: sha256: Must be 64 hexadecimal digits."),
        ('roles = ["operator"]\n', "", "line 2: roles: Missing data for required field."),
        ('["operator"]', "[]", "line 5: roles: Must not be empty."),
        ('["operator"]', '"operator"', "line 5: roles: Not a valid list."),
        ("operator", "boss", "line 5: roles: Must be one of: track, viewer, operator, admin."),
        ('"operator"', "{}", "line 5: roles: Must be one of: track, viewer, operator, admin."),
    ],
)
def test_a_token_needs_a_name_a_digest_and_roles(file: Path, before: str, after: str, told: str) -> None:
    assert mistakes(file, ANNA.replace(before, after)) == [told]


def test_every_mistake_is_told_at_once_with_the_line_where_its_field_begins(file: Path) -> None:
    text = f"""# [[token]]
[[ "token" ]]   # the name may be quoted
name = "anna"
sha256 = "{ANNAS}"
roles = [
  "operator",
  "boss",
]
customer = '''
[[token]]
name = "nobody"
'''
[[token]]
name = "Anna"
sha256 = "{ANNAS}"
roles = ["viewer"]

colour = "red"
[token.more]
name = "inside"
[other]
name = "elsewhere"
[[token]]
"""
    assert mistakes(file, text.replace("\n", "\r\n")) == [
        "line 5: roles: Must be one of: track, viewer, operator, admin.",
        "line 9: customer: Must be 1 to 128 printable ASCII characters.",
        "line 14: name: Already used in line 3.",
        "line 15: sha256: Already used in line 4.",
        "line 18: colour: Unknown field.",
        "line 19: more: Unknown field.",
        "line 21: other: Unknown: there are only tables [[token]].",
        "line 23: name: Missing data for required field.",
        "line 23: roles: Missing data for required field.",
        "line 23: sha256: Missing data for required field.",
    ]


def test_tables_on_one_line_are_told_by_that_line(file: Path) -> None:
    assert mistakes(file, '\ntoken = [{name = "anna"}, {name = "anna", sha256 = "", roles = ["track"]}]\n') == [
        "line 2: name: Already used in line 2.",
        "line 2: roles: Missing data for required field.",
        "line 2: sha256: Missing data for required field.",
        "line 2: sha256: Must be 64 hexadecimal digits.",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1: token: Missing: give at least one table [[token]]."),
        ("\ntoken = []", "line 2: token: Missing: give at least one table [[token]]."),
        ("\n\n[token]\nname = 'anna'", "line 3: token: Must be tables [[token]], in two brackets each."),
        ("\ntoken = 'a-token'", "line 2: token: Must be tables [[token]], in two brackets each."),
        ("\ntoken = [1]", "line 2: token: Must be tables [[token]], in two brackets each."),
        (f"\nversion = 1\n{ANNA}", "line 2: version: Unknown: there are only tables [[token]]."),
        (f"{ANNA}\n[[tokens]]", "line 7: tokens: Unknown: there are only tables [[token]]."),
    ],
)
def test_a_file_holds_tables_of_tokens_and_nothing_else(file: Path, text: str, told: str) -> None:
    assert mistakes(file, text) == [told]


def test_a_file_that_is_no_toml_is_told_by_line_and_column(file: Path) -> None:
    (told,) = mistakes(file, f"{ANNA}name = \n")
    assert told.startswith("Not valid TOML: ")
    assert told.endswith("(at line 6, column 8).")


def test_a_file_that_nests_too_deep_is_no_toml(file: Path) -> None:
    (told,) = mistakes(file, f"token = {'[' * 100_000}")
    assert told.startswith("Not valid TOML: ")


def test_a_file_that_cannot_be_read_is_told(file: Path) -> None:
    with pytest.raises(BadTokenError, match=r"Cannot be read \(FileNotFoundError\)"):
        read_principals(str(file), production=True)


def test_no_mistake_tells_a_value(file: Path) -> None:
    told = mistakes(
        file,
        """
        [[token]]
        name = "s3cr3t token"
        sha256 = "s3cr3t"
        roles = ["s3cr3t"]
        tracks = "s3cr3t"
        customer = ["s3cr3t"]
        expires_at = "s3cr3t"
        token = "s3cr3t"
        """,
    )
    assert len(told) == 7
    assert "s3cr3t" not in "".join(told)


def test_production_refuses_the_digest_of_a_well_known_token(file: Path) -> None:
    known = ANNA.replace(ANNAS, hashlib.sha256(DEVELOPMENT_TRACK_TOKEN.encode()).hexdigest())
    assert mistakes(file, known) == ["line 4: sha256: Belongs to a well-known development token."]
    assert read(file, known, production=False)


def test_the_roles_that_are_required_must_be_there_also_by_a_token_that_has_expired(file: Path) -> None:
    assert mistakes(file, ANNA, Role.TRACK, Role.ADMIN) == [
        "Holds no token with the role admin or track, and no other setting gives one."
    ]
    bob = ANNA.replace("anna", "bob").replace(ANNAS, BOBS).replace('["operator"]', '["track", "admin"]\nexpires_at = 1')
    assert len(read(file, ANNA + bob, Role.TRACK, Role.ADMIN)) == 2
