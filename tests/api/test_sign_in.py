"""Access tokens of an OpenID Connect issuer: which are taken, for what, and how each other one is refused."""

from __future__ import annotations

import base64
import hmac
import json
import logging
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from broker_api.auth import actor
from broker_api.runtime import runtime_of
from broker_common.adapters import oidc_keys
from broker_common.adapters.oidc_tokens import MAX_TOKEN_BYTES
from broker_common.core.principals import Actor
from tests.api.harness import Api, body_of, error_of, make_api, named_token
from tests.fakes import START, StoreWrapper
from tests.issuer import AUDIENCE, JWKS, Issuer, Key, claims_of, forge, running_issuer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from werkzeug.test import TestResponse

    from broker_common.core.facts import PoolFact
    from broker_common.core.store import Pauses

INVALID = 'Bearer error="invalid_token"'
FIRST, SECOND, CURVE, EDWARDS = Key("first"), Key("second"), Key("curve", "ES256"), Key("edwards", "EdDSA")


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests wait until the issuer has answered: on a busy machine that may take longer than they wait in service."""
    monkeypatch.setattr(oidc_keys, "WAIT_SEC", 60)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer() as running:
        running.keys = [FIRST.public(), CURVE.public(), EDWARDS.public()]
        yield running


def api_of(issuer: Issuer, *, around: Any = None, **settings: str) -> Api:
    return make_api(around=around, OIDC_ISSUER=issuer.url, OIDC_AUDIENCE=AUDIENCE, **settings)


@pytest.fixture
def api(issuer: Issuer) -> Api:
    return api_of(issuer)


def claims(issuer: Issuer, **changes: Any) -> dict[str, Any]:
    return claims_of(issuer.url, START, **changes)


def send(api: Api, token: str, path: str = "/v1/admin/whoami", method: str = "GET", **options: Any) -> TestResponse:
    headers = {"Authorization": f"Bearer {token}"} | options.pop("headers", {})
    return api.call(method, path, headers=headers, **options)


def refusal(api: Api, token: str) -> str:
    """Return the message of the answer to a token that must be refused."""
    answer = send(api, token)
    assert answer.status_code == 401, answer.text
    assert (error_of(answer)["code"], answer.headers["WWW-Authenticate"]) == ("UNAUTHORIZED", INVALID)
    message: str = error_of(answer)["message"]
    return message


# -- tokens that are taken


@pytest.mark.parametrize("key", [FIRST, CURVE, EDWARDS], ids=lambda key: key.algorithm)
def test_an_access_token_of_each_algorithm_opens_the_calls_of_its_roles(api: Api, issuer: Issuer, key: Key) -> None:
    token = key.sign(claims(issuer, broker_customer="acme"))
    assert body_of(send(api, token), 200) == {"principal": "oidc:anna-1", "roles": ["operator"], "customer": "acme"}
    answer = send(api, token, "/v1/admin/purge-stale", "POST")
    assert answer.status_code != 401


def test_a_token_with_the_role_track_acts_for_every_track_and_for_no_operator(api: Api, issuer: Issuer) -> None:
    token = FIRST.sign(claims(issuer, broker_roles="track"))
    for track_id in ("track-1", "other-7"):
        assert send(api, token, "/v1/sandboxes", headers={"X-Track-ID": track_id}).status_code == 200
    assert error_of(send(api, token))["message"] == "this call needs the role viewer, and the token has only track"
    assert api.rate_limit.keys[:2] == ["track:track-1", "track:other-7"]


def test_a_token_without_a_role_of_the_broker_is_answered_403_and_names_the_claim(issuer: Issuer) -> None:
    api = api_of(issuer, OIDC_ROLES_CLAIM="realm_access.roles")
    answer = send(api, FIRST.sign(claims(issuer, realm_access={"roles": ["offline_access"]})))
    assert (answer.status_code, error_of(answer)["message"]) == (
        403,
        "this call needs the role viewer, and the token's claim 'realm_access.roles' names no role of the broker",
    )
    assert api.rate_limit.keys == ["address:127.0.0.1"]
    assert send(api, FIRST.sign(claims(issuer, realm_access={"roles": ["viewer"]}))).status_code == 200


def test_a_person_is_counted_logged_and_kept_in_facts_by_the_subject(issuer: Issuer) -> None:
    actors: list[Actor] = []

    class Watching(StoreWrapper):
        def set_pauses(self, before: Pauses, after: Pauses, *facts: PoolFact) -> Pauses:
            actors.append(actor())
            return super().set_pauses(before, after, *facts)

    api = api_of(issuer, around=Watching)
    token = FIRST.sign(claims(issuer))
    with capture_logs(processors=[merge_contextvars]) as lines:
        headers = {"X-Request-ID": "req-1"}
        assert send(api, token, "/v1/admin/pause", "POST", headers=headers, json={"sync": True}).status_code == 200
    assert actors == [Actor(principal="oidc:anna-1", request_id="req-1")]
    assert [line["principal"] for line in lines] == ["oidc:anna-1"]
    assert api.rate_limit.keys == ["principal:oidc:anna-1"]


def test_static_tokens_work_beside_the_issuer_and_need_no_answer_of_it(tmp_path: Path, issuer: Issuer) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(named_token("anna", "a.b.c", "viewer"))
    api = api_of(issuer, BROKER_TOKENS_FILE=str(file))
    assert body_of(send(api, "a.b.c"))["principal"] == "anna"
    assert body_of(api.admin("GET", "/v1/admin/whoami"))["principal"] == "admin"
    assert refusal(api, "neither") == "the token is unknown"
    assert issuer.asked == []


def test_without_an_issuer_a_jwt_is_an_unknown_token(issuer: Issuer) -> None:
    assert refusal(make_api(), FIRST.sign(claims(issuer))) == "the token is unknown"


def test_headers_that_name_a_key_are_ignored(api: Api, issuer: Issuer) -> None:
    """RFC 7515, sections 4.1.2 to 4.1.6: the writer of a token must not choose the key that checks it."""
    more = {"jku": f"{issuer.url}/evil", "x5u": f"{issuer.url}/evil", "jwk": SECOND.public(), "x5c": ["MIIB"]}
    assert send(api, FIRST.sign(claims(issuer), **more)).status_code == 200
    assert refusal(api, SECOND.sign(claims(issuer), **more, kid="first")) == "the token's signature is wrong"
    assert "/evil" not in issuer.asked


# -- tokens that are refused


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def hs256(secret: bytes) -> Callable[[Issuer], str]:
    def make(issuer: Issuer) -> str:
        unsigned = forge({"alg": "HS256", "kid": "first", "typ": "at+jwt"}, claims(issuer)).rsplit(".", 1)[0]
        return f"{unsigned}.{encode(hmac.digest(secret, unsigned.encode(), 'sha256'))}"

    return make


def tampered(issuer: Issuer) -> str:
    header, _, signature = FIRST.sign(claims(issuer)).split(".")
    return f"{header}.{encode(json.dumps(claims(issuer, broker_roles=['admin'])).encode())}.{signature}"


def changed(**changes: Any) -> Callable[[Issuer], str]:
    return lambda issuer: FIRST.sign(claims(issuer, **changes))


def headed(**header: Any) -> Callable[[Issuer], str]:
    return lambda issuer: FIRST.sign(claims(issuer), **header)


def forged(header: dict[str, Any]) -> Callable[[Issuer], str]:
    return lambda issuer: forge({"kid": "first", "typ": "at+jwt"} | header, claims(issuer), b"signature")


PEM = FIRST.private.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
ALGORITHM = "the token's algorithm must be one of ES256, EdDSA, RS256"
NO_JWT = "the token is not a valid JWT"
UNKNOWN_KEY = "the token is signed with a key that the issuer does not publish"
WRONG = "the token's signature is wrong"
CRITICAL = "the token has critical headers (crit), and the broker knows none"
REFUSED: dict[str, tuple[Callable[[Issuer], str], str]] = {
    "another issuer": (changed(iss="https://other.example.com"), "the token is from another issuer"),
    "another audience": (changed(aud="account"), "the token is for another audience"),
    "expired": (changed(exp=START - 30), "the token has expired"),
    "no expiry": (changed(exp=None), "the token has no end: its claim exp is missing"),
    "not yet valid": (changed(nbf=START + 31), "the token is not valid yet"),
    "issued in the future": (changed(iat=START + 31), "the token was issued in the future"),
    "an ID token": (
        lambda issuer: FIRST.sign(claims(issuer, nonce="n", client_id=None, azp="console"), typ="JWT"),
        "the token is an ID token: send the access token",
    ),
    "a plain ID token": (
        lambda issuer: FIRST.sign(claims(issuer, client_id=None), typ="JWT"),
        "the token does not show that it is an access token: it has no scope and names no client",
    ),
    "a logout token": (
        headed(typ="logout+jwt"),
        "the token is no access token: its type must be at+jwt or JWT",
    ),
    "bound to a key": (changed(cnf={"jkt": "x"}), "the token is bound to a key (cnf), so it is no bearer token"),
    "no subject": (changed(sub=None), "the token's claim sub must be 1 to 123 printable ASCII characters"),
    "an unknown key": (lambda issuer: SECOND.sign(claims(issuer)), UNKNOWN_KEY),
    "signed by another": (lambda issuer: SECOND.sign(claims(issuer), kid="first"), WRONG),
    "tampered": (tampered, WRONG),
    "alg none": (forged({"alg": "none"}), ALGORITHM),
    "alg None": (forged({"alg": "None"}), ALGORITHM),
    "HS256 with the public key as PEM": (hs256(PEM), ALGORITHM),
    "HS256 with the public key as JWK": (hs256(json.dumps(FIRST.public()).encode()), ALGORITHM),
    "RS512": (forged({"alg": "RS512"}), ALGORITHM),
    "PS256": (forged({"alg": "PS256"}), ALGORITHM),
    "no algorithm": (forged({}), ALGORITHM),
    "an algorithm of another key": (forged({"alg": "ES256"}), "the token's algorithm does not fit its key"),
    "a signature that is none": (forged({"alg": "RS256"}), WRONG),
    "an algorithm that is a list": (forged({"alg": ["RS256"]}), NO_JWT),
    "a key's name that is a number": (forged({"alg": "RS256", "kid": 1}), NO_JWT),
    "critical headers": (headed(crit=["exp"], exp=START), CRITICAL),
    "critical headers that are none": (forged({"alg": "RS256", "crit": []}), CRITICAL),
    "a payload that is not encoded": (forged({"alg": "RS256", "b64": False}), WRONG),
    "too long": (changed(padding="x" * MAX_TOKEN_BYTES), "the token is longer than 8192 bytes"),
    "dots alone": (lambda _: "..", NO_JWT),
    "no JSON": (lambda _: "e30.bm9uZQ.x", NO_JWT),
    "a list": (lambda _: "W10.W10.x", NO_JWT),
    "a length that base64 does not have": (lambda _: "e.e.x", NO_JWT),
    "characters that base64url does not have": (lambda _: "e+0/.e30.x", NO_JWT),
    "deep nesting": (lambda _: f"{encode(b'[' * 5000)}.e30.x", NO_JWT),
    "five parts": (lambda _: "a.b.c.d.e", "the token is unknown"),
}


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Api, Issuer]]:
    """Yield an API and its issuer for tests that change neither: to make an API takes longer than a call."""
    with running_issuer() as issuer:
        issuer.keys = [FIRST.public(), CURVE.public(), EDWARDS.public()]
        yield api_of(issuer), issuer


@pytest.mark.parametrize("name", REFUSED)
def test_every_other_token_is_refused_with_its_reason_and_shown_nowhere(
    shared: tuple[Api, Issuer], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    api, issuer = shared
    make, told = REFUSED[name]
    token = make(issuer)
    with caplog.at_level(logging.DEBUG), capture_logs() as lines:
        assert refusal(api, token) == told
        answer = send(api, token)
    assert api.rate_limit.keys[-1] == "address:127.0.0.1"
    seen = answer.text + str(answer.headers) + caplog.text + str(lines)
    assert [part for part in token.split(".") if len(part) > 8 and part in seen] == []


def test_a_token_is_refused_from_the_end_of_the_leeway_on_also_if_it_was_taken_before(api: Api, issuer: Issuer) -> None:
    token = FIRST.sign(claims(issuer, exp=START + 10))
    assert send(api, token).status_code == 200
    api.clock.advance(39)
    assert send(api, token).status_code == 200
    api.clock.advance(1)
    assert refusal(api, token) == "the token has expired"


# -- keys


def test_a_token_that_names_no_key_is_taken_if_only_one_key_can_be_meant(api: Api, issuer: Issuer) -> None:
    nameless = Key(None, private=FIRST.private)
    assert send(api, nameless.sign(claims(issuer))).status_code == 200
    issuer.keys.append(SECOND.public())
    told = "the token does not name its key (kid), and several may be meant"
    assert refusal(api_of(issuer), nameless.sign(claims(issuer))) == told


def test_a_new_key_is_taken_at_once_and_unknown_keys_make_the_issuer_be_asked_once_a_minute(
    api: Api, issuer: Issuer
) -> None:
    assert send(api, FIRST.sign(claims(issuer))).status_code == 200
    issuer.keys.append(SECOND.public())
    token = SECOND.sign(claims(issuer))
    assert [refusal(api, token) for _ in range(5)] == [UNKNOWN_KEY] * 5
    api.clock.advance(59)
    assert refusal(api, token) == UNKNOWN_KEY
    assert issuer.asked.count(JWKS) == 1
    api.clock.advance(1)
    assert send(api, token).status_code == 200
    assert [refusal(api, Key(f"unknown-{number}", "ES256").sign(claims(issuer))) for number in range(5)] == [
        UNKNOWN_KEY
    ] * 5
    assert issuer.asked.count(JWKS) == 2


def test_a_key_that_the_issuer_removed_is_refused_after_ten_minutes_also_for_tokens_that_were_taken(
    api: Api, issuer: Issuer
) -> None:
    token = FIRST.sign(claims(issuer))
    assert send(api, token).status_code == 200
    issuer.keys.pop(0)
    api.clock.advance(600)
    assert refusal(api, token) == UNKNOWN_KEY


def test_known_keys_serve_on_while_the_issuer_is_away(api: Api, issuer: Issuer) -> None:
    assert send(api, FIRST.sign(claims(issuer))).status_code == 200
    issuer.faults[JWKS] = lambda handler: handler.answer(503)
    api.clock.advance(3000)
    assert send(api, FIRST.sign(claims(issuer, jti="another"))).status_code == 200
    assert refusal(api, SECOND.sign(claims(issuer))) == UNKNOWN_KEY


def test_until_a_key_is_known_the_answer_is_503_and_tells_when_to_try_again(api: Api, issuer: Issuer) -> None:
    issuer.faults[JWKS] = lambda handler: handler.answer(503)
    token = FIRST.sign(claims(issuer))
    answers = [send(api, token) for _ in range(3)]
    assert [each.status_code for each in answers] == [503] * 3
    told = "the issuer of the token does not answer, and its keys are not known yet"
    assert (error_of(answers[0])["code"], error_of(answers[0])["message"]) == ("SERVICE_UNAVAILABLE", told)
    assert (answers[0].headers["Retry-After"], issuer.asked.count(JWKS)) == ("5", 1)
    assert refusal(api, REFUSED["another issuer"][0](issuer)) == "the token is from another issuer"
    issuer.faults.clear()
    api.clock.advance(5)
    assert send(api, token).status_code == 200


def test_a_token_that_was_taken_is_not_checked_again_before_the_keys_are_renewed(
    api: Api, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = FIRST.sign(claims(issuer))
    assert send(api, token).status_code == 200
    checks: list[object] = []
    check = jwt.PyJWS.decode_complete

    def counted(*args: Any, **options: Any) -> dict[str, Any]:
        checks.append(args)
        return check(*args, **options)

    monkeypatch.setattr(jwt.PyJWS, "decode_complete", counted)
    assert (send(api, token).status_code, len(checks)) == (200, 0)
    api.clock.advance(600)
    assert (send(api, token).status_code, len(checks)) == (200, 1)
    assert (send(api, token).status_code, len(checks)) == (200, 1)


def test_only_so_many_tokens_are_remembered(api: Api, issuer: Issuer) -> None:
    tokens = runtime_of(api.app).access_tokens
    assert tokens is not None
    for number in range(1002):
        assert tokens.identify(EDWARDS.sign(claims(issuer, sub=f"p{number}")).encode()).name == f"oidc:p{number}"
    assert len(tokens._checked) == 1000
