"""What an access token says: whose it is, and which tokens are refused."""

from __future__ import annotations

from typing import Any

import pytest

from broker_common.core.access_token import LEEWAY_SEC, AccessRules, check_type, read_claims
from broker_common.core.errors import InvalidToken
from broker_common.core.principals import Principal, Role
from tests.fakes import START
from tests.issuer import AUDIENCE, claims_of

ISSUER = "https://issuer.example.com/realms/labs"
RULES = AccessRules(issuer=ISSUER, audience=AUDIENCE, roles_claim="broker_roles")


def read(now: int = START, rules: AccessRules = RULES, **changes: Any) -> Principal:
    return read_claims(claims_of(ISSUER, START, **changes), rules, now)[0]


def refusal(now: int = START, **changes: Any) -> str:
    with pytest.raises(InvalidToken) as refused:
        read(now, **changes)
    return refused.value.message


def test_a_token_says_whose_it_is_with_which_roles_and_until_when() -> None:
    claims = claims_of(ISSUER, START, broker_customer="acme")
    expected = Principal(name="oidc:anna-1", roles=frozenset({Role.OPERATOR}), customer="acme")
    assert read_claims(claims, RULES, START) == (expected, START + 3600 + LEEWAY_SEC)


@pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["account", AUDIENCE]])
def test_the_audience_may_be_a_text_or_a_list(audience: object) -> None:
    assert read(aud=audience).name == "oidc:anna-1"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"iss": f"{ISSUER}/"}, "the token is from another issuer"),
        ({"iss": None}, "the token is from another issuer"),
        ({"iss": [ISSUER]}, "the token is from another issuer"),
        *(
            ({"aud": audience}, "the token is for another audience")
            for audience in (
                None,
                "",
                [],
                AUDIENCE[:-1],
                f"{AUDIENCE}/",
                [f"{AUDIENCE} x"],
                {AUDIENCE: 1},
                [[AUDIENCE]],
            )
        ),
        ({"exp": None}, "the token has no end: its claim exp is missing"),
        ({"exp": START - LEEWAY_SEC}, "the token has expired"),
        ({"exp": 0}, "the token has expired"),
        *(
            ({name: value}, f"the token's claim {name} must be a time in Unix seconds")
            for name in ("exp", "nbf", "iat")
            for value in (True, str(START + 60), [START + 60], float("inf"), float("nan"))
        ),
        ({"nbf": START + LEEWAY_SEC + 1}, "the token is not valid yet"),
        ({"iat": START + LEEWAY_SEC + 1}, "the token was issued in the future"),
        ({"cnf": {"jkt": "0ZcOCORZNYy"}}, "the token is bound to a key (cnf), so it is no bearer token"),
        *(
            ({"sub": subject}, "the token's claim sub must be 1 to 123 printable ASCII characters")
            for subject in (None, "", " anna", "anna\n", "ann\u00e4", "a" * 124, 7, ["anna"])
        ),
        *(
            (
                {"broker_customer": customer},
                "the token's claim broker_customer must be 1 to 128 printable ASCII characters",
            )
            for customer in ("", "acme\n", "a" * 129, 7, ["acme"])
        ),
    ],
)
def test_a_claim_that_is_not_right_is_told(changes: dict[str, Any], told: str) -> None:
    assert refusal(**changes) == told


def test_clocks_may_differ_by_the_leeway() -> None:
    late, early = START + LEEWAY_SEC - 1, START + LEEWAY_SEC
    assert read(late, exp=START).name == read(nbf=early, iat=early).name == "oidc:anna-1"


def test_times_that_a_token_need_not_have_may_be_missing_and_times_may_have_fractions() -> None:
    assert read(nbf=None, iat=None, exp=START + 0.5).name == "oidc:anna-1"


def test_the_longest_subject_gives_the_longest_name() -> None:
    assert len(read(sub="a" * 123).name) == 128


@pytest.mark.parametrize(
    ("given", "roles"),
    [
        (["viewer", "track"], {Role.VIEWER, Role.TRACK}),
        ("operator admin", {Role.OPERATOR, Role.ADMIN}),
        (["offline_access", "viewer", 7, None, ["admin"]], {Role.VIEWER}),
        ("Admin ADMIN administrators", set()),
        (None, set()),
        ([], set()),
        ("", set()),
        (7, set()),
        ({"admin": True}, set()),
    ],
)
def test_roles_are_a_list_or_a_text_and_those_of_others_are_ignored(given: object, roles: set[Role]) -> None:
    assert read(broker_roles=given).roles == roles


@pytest.mark.parametrize(
    ("path", "claims"),
    [
        ("realm_access.roles", {"realm_access": {"roles": ["viewer"]}}),
        ("a.b.c", {"a": {"b": {"c": "viewer"}}}),
        ("https://example.com/roles", {"https://example.com/roles": ["viewer"]}),
    ],
)
def test_roles_may_stand_inside_of_other_claims_or_under_a_name_with_dots(path: str, claims: dict[str, Any]) -> None:
    rules = AccessRules(issuer=ISSUER, audience=AUDIENCE, roles_claim=path)
    assert read(rules=rules, **claims).roles == {Role.VIEWER}


@pytest.mark.parametrize("claims", [{}, {"realm_access": ["roles"]}, {"realm_access": {}}, {"realm_access": "roles"}])
def test_roles_that_are_not_where_they_should_be_are_none(claims: dict[str, Any]) -> None:
    rules = AccessRules(issuer=ISSUER, audience=AUDIENCE, roles_claim="realm_access.roles")
    assert read(rules=rules, **claims).roles == set()


# -- access tokens and others

PLAIN = {"aud": AUDIENCE, "sub": "anna-1"}
ID_TOKEN = "the token is an ID token: send the access token"
NO_TYPE = "the token is no access token: its type must be at+jwt or JWT"
NO_SIGN = "the token does not show that it is an access token: it has no scope and names no client"


@pytest.mark.parametrize(
    ("token_type", "claims"),
    [
        ("at+jwt", {}),
        ("AT+JWT", {}),
        ("application/at+jwt", {}),
        *((vague, {"scope": "openid"}) for vague in ("JWT", "jwt", "application/jwt", None)),
        ("JWT", {"scp": "broker"}),
        ("JWT", {"client_id": "console"}),
        ("JWT", {"azp": "console"}),
        ("JWT", {"azp": "console", "aud": ["account", AUDIENCE]}),
        ("JWT", {"typ": "Bearer", "azp": "console", "scope": "openid"}),
        ("JWT", {"token_use": "access", "client_id": "console"}),
    ],
)
def test_access_tokens_are_known_by_their_type_or_by_their_claims(
    token_type: str | None, claims: dict[str, Any]
) -> None:
    check_type(token_type, PLAIN | claims)


@pytest.mark.parametrize(
    ("token_type", "claims", "told"),
    [
        *((other, {"scope": "openid"}, NO_TYPE) for other in ("logout+jwt", "dpop+jwt", "secevent+jwt", "id+jwt", "")),
        *(("JWT", {"scope": "openid", sign: "x"}, ID_TOKEN) for sign in ("nonce", "at_hash", "c_hash", "s_hash")),
        ("JWT", {"scope": "openid", "typ": "ID"}, ID_TOKEN),
        ("JWT", {"scope": "openid", "token_use": "id"}, ID_TOKEN),
        ("JWT", {"scope": "openid", "typ": "Refresh"}, "the token is no access token"),
        ("JWT", {"scope": "openid", "typ": 7}, "the token is no access token"),
        ("JWT", {}, NO_SIGN),
        (None, {}, NO_SIGN),
        ("JWT", {"azp": "console", "aud": "console"}, NO_SIGN),
        ("JWT", {"azp": "console", "aud": ["console", AUDIENCE]}, NO_SIGN),
        ("JWT", {"azp": 7}, NO_SIGN),
    ],
)
def test_tokens_that_are_for_something_else_are_refused(
    token_type: str | None, claims: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidToken) as refused:
        check_type(token_type, PLAIN | claims)
    assert refused.value.message == told
