"""How the broker asks an issuer for its keys, keeps them, and lets no request wait for them for long."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ed448

from broker_common.adapters import oidc_issuer, oidc_keys
from broker_common.adapters.oidc_issuer import MAX_ANSWER_BYTES, IssuerError, Keys, fetch_keys
from broker_common.adapters.oidc_keys import IssuerKeys
from broker_common.adapters.system_clock import SystemClock
from broker_common.core.errors import SignInUnavailable
from deploy.dev.processes import wait_until
from tests.fakes import FakeClock
from tests.issuer import DISCOVERY, JWKS, Issuer, Key, rsa_key, running_issuer, send_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FIRST = Key("first")


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer() as running:
        running.keys = [FIRST.public()]
        yield running


def kids(issuer: Issuer) -> list[str | None]:
    return [key.kid for key in fetch_keys(issuer.url)]


def trouble(issuer: Issuer) -> str:
    with pytest.raises(IssuerError) as refused:
        fetch_keys(issuer.url)
    return str(refused.value)


# -- asking


def test_keys_come_from_the_address_in_the_discovery_document(issuer: Issuer) -> None:
    assert [(key.kid, key.algorithm) for key in fetch_keys(issuer.url)] == [("first", "RS256")]
    assert issuer.asked == [DISCOVERY, JWKS]


def test_only_keys_for_signatures_that_the_broker_takes_are_used(issuer: Issuer) -> None:
    p384 = {"kty": "EC", "crv": "P-384", "x": "AAAA", "y": "AAAA"}
    ed448_key = Key("ed448", "EdDSA", ed448.Ed448PrivateKey.generate()).public()
    issuer.keys = [
        FIRST.public(alg="RS256", x5c=["MIIB"], key_ops=["verify"]),
        Key("curve", "ES256").public(),
        Key("edwards", "EdDSA").public(alg="Ed25519"),
        Key(None).public(),
        FIRST.public(kid="to encrypt", use="enc"),
        FIRST.public(kid="to sign alone", key_ops=["sign"]),
        FIRST.public(kid="no list", key_ops="verify"),
        FIRST.public(kid="RS512", alg="RS512"),
        FIRST.public(kid="odd", alg=["RS256"]),
        FIRST.public(kid=7),
        Key("short", "RS256", rsa_key("short", 1024)).public(),
        p384,
        ed448_key,
        {"kty": "OKP", "crv": "X25519", "x": "AAAA"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
        {"kty": "RSA", "kid": "no numbers"},
        {"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA", "kid": "no point"},
        {"kty": ["RSA"]},
        {"kty": "RSA", "crv": 1},
        {},
    ]
    issuer.keys.append("text")  # type: ignore[arg-type] # an issuer's mistake
    assert kids(issuer) == ["first", "curve", "edwards", None]


def test_what_a_list_says_of_private_parts_is_not_kept(issuer: Issuer) -> None:
    issuer.keys = [FIRST.public(d="AQAB", p="AQAB")]
    (key,) = fetch_keys(issuer.url)
    assert not hasattr(key.key.key, "private_numbers")


def answering(status: int = 200, body: bytes = b"", **headers: str) -> Callable[[Any], None]:
    return lambda handler: handler.answer(status, body, **headers)


@pytest.mark.parametrize("path", [DISCOVERY, JWKS])
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (answering(302, Location="/elsewhere"), "the answer was 302"),
        (answering(404), "the answer was 404"),
        (answering(503), "the answer was 503"),
        (answering(204), "the answer was 204"),
        (answering(200, b"<!doctype html><html>Sign in</html>"), "the answer is not JSON"),
        (answering(200), "the answer is not JSON"),
        (answering(200, b"[]"), "the answer is not a JSON object"),
        (answering(200, b"[" * 100_000), "the answer is not JSON"),
        (answering(200, b" " * (MAX_ANSWER_BYTES + 1)), "the answer has more than 256 KiB"),
        (lambda _: None, "no answer"),
    ],
)
def test_an_answer_that_is_none_is_told_in_words(issuer: Issuer, path: str, fault: Any, told: str) -> None:
    issuer.faults[path] = fault
    what = "the discovery document" if path == DISCOVERY else "the list of keys"
    assert trouble(issuer) == f"{what}: {told}"


@pytest.mark.parametrize("how", ["hang", "drip"])
@pytest.mark.parametrize("path", [DISCOVERY, JWKS])
def test_an_issuer_that_does_not_come_to_an_end_is_left_when_the_time_is_over(
    issuer: Issuer, path: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc_issuer, "FETCH_SEC", 0.5)
    issuer.faults[path] = getattr(issuer, how)
    began = time.monotonic()
    assert trouble(issuer).endswith(": timed out")
    assert time.monotonic() - began < 20  # far from for ever, also on a busy machine


def test_an_issuer_that_listens_nowhere_gives_no_answer() -> None:
    with running_issuer() as gone:
        pass
    assert trouble(gone) == "the discovery document: no answer"


def test_the_document_must_be_that_of_the_issuer_by_the_letter(issuer: Issuer) -> None:
    issuer.faults[DISCOVERY] = lambda handler: send_json(
        handler, {"issuer": f"{issuer.url}/", "jwks_uri": f"{issuer.url}{JWKS}"}
    )
    assert trouble(issuer) == f"its discovery document is that of '{issuer.url}/', not of OIDC_ISSUER"
    assert [key.kid for key in fetch_keys(f"{issuer.url}/")] == ["first"]


@pytest.mark.parametrize(
    "address", [None, 7, "", "ftp://127.0.0.1/keys", "http://other.example.com/keys", "http://[::1", "/keys"]
)
def test_keys_come_by_https_or_from_the_issuer_on_loopback_itself(issuer: Issuer, address: object) -> None:
    issuer.faults[DISCOVERY] = lambda handler: send_json(handler, {"issuer": issuer.url, "jwks_uri": address})
    assert trouble(issuer) == "its discovery document has no jwks_uri with https"


@pytest.mark.parametrize("keys", [[], None, "keys", {"kid": "first"}, [{"kty": "oct", "k": "c2VjcmV0"}]])
def test_a_list_without_a_key_that_can_be_used_is_told(issuer: Issuer, keys: Any) -> None:
    issuer.keys = keys
    assert trouble(issuer) == "it publishes no key that the broker can use (RS256, ES256, EdDSA)"


def test_a_certificate_must_be_of_a_known_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with running_issuer(authority.issue_cert("127.0.0.1")) as issuer:
        issuer.keys = [FIRST.public()]
        assert issuer.url.startswith("https://")
        assert trouble(issuer) == "the discovery document: no secure connection"
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        assert kids(issuer) == ["first"]


def test_a_proxy_of_the_environment_is_not_used(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert kids(issuer) == ["first"]


# -- keeping


class Source:
    """Gives keys, each fetch once it is let go; `answers` are keys, or errors to raise, and the last one repeats."""

    def __init__(self, *answers: Keys | Exception) -> None:
        self.answers = list(answers)
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.fetches = 0
        self.at_once = 0

    def fetch(self) -> Keys:
        self.fetches += 1
        self.at_once += 1
        assert self.at_once == 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.begun.release()
        self.may_end.acquire()
        self.at_once -= 1
        if isinstance(answer, Exception):
            raise answer
        return answer

    def let_go(self) -> None:
        """Let the next fetch end."""
        self.may_end.release()


def key_set(*names: str) -> Keys:
    made = oidc_issuer.SigningKey
    return tuple(made(name, "RS256", None) for name in names)  # type: ignore[arg-type] # nobody looks at the key itself


OLD, NEW = key_set("old"), key_set("old", "new")
AWAY = IssuerError("the list of keys: no answer")


def kept(source: Source, clock: Any, *, waiting: int = 4) -> IssuerKeys:
    """Return keys that were fetched once."""
    keys = IssuerKeys(source.fetch, clock, waiting=waiting)
    source.let_go()
    keys.prepare()
    assert wait_until(lambda: not keys._fetching, 30)
    return keys


def test_keys_are_renewed_in_the_background_while_requests_go_on_with_the_old_ones() -> None:
    clock, source = FakeClock(), Source(OLD, NEW)
    keys = kept(source, clock)
    clock.advance(299)
    assert (keys.current(), source.fetches) == (OLD, 1)
    clock.advance(1)
    assert [keys.current() for _ in range(5)] == [OLD] * 5
    assert source.fetches == 2
    source.let_go()
    assert wait_until(lambda: keys.current() is NEW, 30)


def test_only_one_fetch_runs_at_a_time_and_each_begins_a_minute_after_the_last_one() -> None:
    clock, source = FakeClock(), Source(OLD, AWAY)
    keys = kept(source, clock)
    for age in (300, 359, 360, 420):
        clock.advance(age - clock.monotonic())
        keys.current()
        source.let_go()
        assert wait_until(lambda: not keys._fetching, 30)
    assert source.fetches == 1 + len((300, 360, 420))


def test_a_request_waits_for_a_hanging_issuer_a_second_from_its_begin_and_no_other_one_does() -> None:
    source = Source(OLD)
    keys = IssuerKeys(source.fetch, SystemClock(), waiting=4)
    began = time.monotonic()
    with pytest.raises(SignInUnavailable):
        keys.current()
    assert time.monotonic() - began >= oidc_keys.WAIT_SEC
    # The second is over, so this one does not wait at all: nobody lets the fetch go.
    with pytest.raises(SignInUnavailable):
        keys.current()
    assert source.fetches == 1
    source.let_go()


def test_requests_that_find_no_place_to_wait_are_answered_at_once() -> None:
    source = Source(OLD)
    keys = IssuerKeys(source.fetch, FakeClock(), waiting=0)
    for _ in range(3):
        with pytest.raises(SignInUnavailable, match="not known yet"):
            keys.current()
    assert source.fetches == 1
    source.let_go()


def test_the_issuer_is_not_asked_again_before_it_has_answered_however_long_that_takes() -> None:
    clock, source = FakeClock(), Source(OLD)
    keys = IssuerKeys(source.fetch, clock, waiting=0)
    for _ in range(5):
        keys.prepare()
        clock.advance(oidc_keys.SPACING_SEC)
    source.begun.acquire()
    assert (source.fetches, source.begun.acquire(timeout=0.1)) == (1, False)
    source.let_go()


def test_requests_that_wait_go_on_when_the_keys_are_there() -> None:
    clock, source = FakeClock(), Source(OLD)
    keys = IssuerKeys(source.fetch, clock, waiting=4)
    found: list[Keys] = []
    waiting = [threading.Thread(target=lambda: found.append(keys.current())) for _ in range(3)]
    for thread in waiting:
        thread.start()
    source.begun.acquire()
    source.let_go()
    for thread in waiting:
        thread.join()
    assert (found, source.fetches) == ([OLD] * 3, 1)


def test_while_the_issuer_is_asked_a_token_with_an_unknown_key_is_to_be_sent_again() -> None:
    clock, source = FakeClock(), Source(OLD, NEW)
    keys = kept(source, clock, waiting=0)
    clock.advance(60)
    with pytest.raises(SignInUnavailable) as refused:
        keys.newer(OLD)
    assert refused.value.retry_after == 1
    source.let_go()
    assert wait_until(lambda: keys.current() is NEW, 30)
    assert keys.newer(OLD) is NEW
    assert keys.newer(NEW) is None


def test_trouble_is_logged_when_it_begins_changes_and_ends_and_not_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, source = FakeClock(), Source(AWAY, AWAY, OLD, AWAY, AWAY, ValueError("s3cr3t"), OLD, OLD)
    keys = IssuerKeys(source.fetch, clock, waiting=1)
    with caplog.at_level(logging.INFO):
        for _ in range(8):
            source.let_go()
            keys.prepare()
            assert wait_until(lambda: not keys._fetching and source.at_once == 0, 30)
            clock.advance(60)
        assert wait_until(lambda: len(caplog.records) == 6, 30)
    assert [record.getMessage() for record in caplog.records] == [
        "the issuer's keys could not be renewed, no JWT can be checked: the list of keys: no answer",
        "the issuer's keys were renewed",
        "the issuer's keys could not be renewed, the known keys serve on: the list of keys: no answer",
        "the issuer's keys could not be read",
        "the issuer's keys could not be renewed, the known keys serve on: a fault of the broker",
        "the issuer's keys were renewed",
    ]
