"""Sign-in over real processes: people and tracks come with access tokens, while keys change and the issuer goes away."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from broker_common.cli.commands import main
from deploy.dev.processes import wait_until
from tests.e2e.stack import Stack
from tests.issuer import AUDIENCE, DISCOVERY, Issuer, Key, claims_of, running_issuer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import requests

FIRST, SECOND = Key("first"), Key("second", "ES256")


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with running_issuer() as running:
        running.keys = [FIRST.public()]
        yield running


@pytest.fixture(scope="module")
def stack(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    # One process, so that one test knows which keys the next request meets.
    settings = {"OIDC_ISSUER": issuer.url, "OIDC_AUDIENCE": AUDIENCE, "OIDC_CLIENT_ID": "console", "API_WORKERS": "1"}
    with Stack(tmp_path_factory.mktemp("stack"), settings) as running:
        assert wait_until(lambda: running.run_job("sync")["state"] == "succeeded", 30)
        yield running


def token(issuer: Issuer, key: Key = FIRST, **changes: Any) -> str:
    return key.sign(claims_of(issuer.url, **changes))


def as_person(stack: Stack, bearer: str, method: str, path: str, **options: Any) -> requests.Response:
    return stack.as_admin(method, path, headers={"Authorization": f"Bearer {bearer}"}, **options)


def test_the_keys_are_fetched_before_anybody_asks(stack: Stack, issuer: Issuer) -> None:
    assert wait_until(lambda: DISCOVERY in issuer.asked, 10)


def test_a_track_and_an_operator_work_with_access_tokens_and_facts_and_logs_name_them(
    stack: Stack, issuer: Issuer
) -> None:
    of_lab = {"Authorization": f"Bearer {token(issuer, sub='labs', broker_roles='track')}"}
    lease = stack.as_track("track-1", "POST", "/allocate", headers=of_lab).json()
    anna, path = token(issuer), f"/sandboxes/{lease['sandbox_id']}"
    released = as_person(stack, anna, "POST", f"{path}/release", json={"lease_id": lease["lease_id"]})
    assert released.status_code == 200, released.text
    told = as_person(stack, anna, "GET", f"{path}/history").json()["facts"]
    assert {"oidc:labs", "oidc:anna-1"} <= {fact["principal"] for fact in told}
    assert {"oidc:labs", "oidc:anna-1"} <= {record.get("principal") for record in stack.records("api")}


def test_the_command_broker_takes_an_access_token(stack: Stack, issuer: Issuer) -> None:
    env = {"BROKER_API_URL": f"{stack.api_url}/v1", "BROKER_ADMIN_TOKEN": token(issuer)}
    shown = CliRunner().invoke(main, ["whoami"], env=env)
    assert (shown.exit_code, shown.stdout.splitlines()[:2]) == (0, ["principal  oidc:anna-1", "roles      operator"])
    assert CliRunner().invoke(main, ["token", "check"], env=env).exit_code == 0
    stale = CliRunner().invoke(main, ["token", "check"], env=env | {"BROKER_ADMIN_TOKEN": token(issuer, exp=1)})
    assert (stale.exit_code, "the token has expired" in stale.output) == (1, True)


def test_check_asks_the_issuer(stack: Stack, issuer: Issuer) -> None:
    right = CliRunner().invoke(main, ["check", "--process", "api"], env=stack.plan.env, prog_name="broker")
    assert "issuer    OK   publishes keys that the broker can use: 1" in right.stdout
    elsewhere = dict(stack.plan.env) | {"OIDC_ISSUER": f"{issuer.url}/"}
    wrong = CliRunner().invoke(main, ["check", "--process", "api"], env=elsewhere, prog_name="broker")
    assert (wrong.exit_code, "issuer    FAIL its discovery document is that of" in wrong.stdout) == (1, True)


def test_known_keys_serve_on_and_others_are_served_while_the_issuer_hangs(stack: Stack, issuer: Issuer) -> None:
    assert as_person(stack, token(issuer), "GET", "/whoami").status_code == 200
    issuer.keys.append(SECOND.public())
    issuer.faults[DISCOVERY] = issuer.hang
    asked = len(issuer.asked)
    new = token(issuer, SECOND)
    # A minute after the fetch at the start, the first token with a new key makes the issuer be asked again.
    assert wait_until(lambda: as_person(stack, new, "GET", "/whoami").status_code == 503, 90)
    began = time.monotonic()
    assert as_person(stack, token(issuer), "GET", "/whoami").status_code == 200
    assert stack.as_admin("GET", "/whoami").status_code == 200
    assert as_person(stack, new, "GET", "/whoami").status_code == 503
    assert time.monotonic() - began < 5
    assert len(issuer.asked) == asked + 1
    issuer.faults.clear()
    issuer.goes_on.set()


def test_no_token_is_in_any_output(stack: Stack, issuer: Issuer) -> None:
    bad = token(issuer, aud="another")
    assert as_person(stack, bad, "GET", "/whoami").json()["error"]["message"] == "the token is for another audience"
    for part in (*bad.split("."), *token(issuer).split(".")[:1]):
        assert part not in stack.output("api")
