"""Any account in the provider's list: one that is taken in can be named in every call, and has a label."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING, Any

import requests
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker_common.adapters.csp_listing import Listing
from broker_common.core.pool import add
from broker_common.core.ports import SkippedAccount
from broker_common.core.sandbox import ORDER_LIMIT
from tests.api.harness import Api, body_of, make_api
from tests.fakes import BY, START

if TYPE_CHECKING:
    from broker_common.core.sandbox import Account

ENTRY = {
    "account_type": "sandbox",
    "state": "active",
    "id": "identity/accounts/0b1f5cf8-6c3e-4f0e-9a53-6f0f8d8e1c11",
    "name": "lab-adventure-0087",
    "csp_id": 2009521,
    "sfdc_account_id": None,
}
OTHER = ENTRY | {"id": "identity/accounts/0b1f5cf8-6c3e-4f0e-9a53-6f0f8d8e1c12", "csp_id": "other"}
"""Keeps the list from being empty."""
PROFILE = settings(max_examples=150, derandomize=True, deadline=None, database=None)


def read(**changes: Any) -> Account | SkippedAccount:
    """Return what is made of an account with these fields."""
    listing = Listing("https://provider.example")
    listing.take(json.dumps({"results": [OTHER, ENTRY | changes]}).encode(), url="https://provider.example", link=None)
    found = listing.finish()
    return next(iter(found.skipped), found.accounts[-1])


def hold(account: Account) -> tuple[Api, dict[str, Any]]:
    """Return an API whose pool is this account, which a track holds, and what the track was told."""
    api = make_api()
    api.store.seed(add(account, order=ORDER_LIMIT // 2, by=BY, now=START, version=1).result)
    return api, api.allocate()


def as_sent(path: str) -> str:
    """Return a path as it leaves a client, which removes `.` and `..` (RFC 3986, section 5.2.4) as proxies do."""
    url = requests.Request("GET", f"http://broker.example{path}").prepare().url
    assert url is not None
    return url.removeprefix("http://broker.example")


_IDS = st.one_of(
    st.integers(),
    st.integers(-20, 20),
    st.integers(2**53, 2**70),
    st.integers(0, 10**6).map("{:07}".format),
    st.from_regex(r"[A-Za-z0-9._-]{1,66}", fullmatch=True),
    st.text(st.sampled_from(".-_a%2e/?#;~ "), max_size=4),
    st.text(max_size=8),
    st.none() | st.booleans() | st.floats() | st.lists(st.integers(), max_size=2),
)


@PROFILE
@given(csp_id=_IDS)
@example(csp_id=".")
@example(csp_id="..")
@example(csp_id="...")
@example(csp_id="%2e%2e")
@example(csp_id="a..b")
@example(csp_id="-")
@example(csp_id="0")
@example(csp_id="9" * 64)
def test_an_account_whose_id_is_taken_in_can_be_named_in_every_call(csp_id: Any) -> None:
    account = read(csp_id=csp_id)
    if isinstance(account, SkippedAccount):
        assert account.reason.startswith("its csp_id ")
        return
    api, held = hold(account)
    assert held["sandbox_id"] == str(csp_id)
    track, admin = as_sent(f"/v1/sandboxes/{csp_id}"), as_sent(f"/v1/admin/sandboxes/{csp_id}")
    assert body_of(api.track("GET", track))["sandbox_id"] == str(csp_id)
    assert body_of(api.admin("GET", admin))["sandbox_id"] == str(csp_id)
    lease = {"lease_id": held["lease_id"]}
    assert api.admin("POST", as_sent(f"/v1/admin/sandboxes/{csp_id}/release"), json=lease).status_code == 200
    marked = api.track("POST", as_sent(f"/v1/sandboxes/{csp_id}/mark-for-deletion"), json=lease)
    assert body_of(marked)["sandbox_id"] == str(csp_id)


@PROFILE
@given(number=st.integers(-100, 2**70), width=st.integers(1, 22))
@example(number=7, width=3)
@example(number=2**63, width=1)
def test_a_number_has_one_id_however_it_is_spelled(number: int, width: int) -> None:
    spellings = (number, str(number), f"{number:0{width}}", f"+{number}", f" {number}", f"{number}\n", float(number))
    made = [read(csp_id=spelling) for spelling in spellings]
    ids = {each.sandbox_id for each in made if not isinstance(each, SkippedAccount)}
    assert ids == ({str(number)} if 0 <= number < 2**63 else set())


_LABELS = (
    st.text(st.characters())
    | st.sampled_from(
        ["\ud800", "\x1b[2J", "\x85", "\u2028", "\u202e", "\xa0", "\u3000", "\u200d", "\u200f", "=1+1", ""]
    )
    | st.text(st.characters(), min_size=250, max_size=300)
    | st.recursive(st.none() | st.booleans() | st.integers() | st.floats(), st.lists)
)


@PROFILE
@given(name=_LABELS, sfdc_account_id=_LABELS, omitted=st.sets(st.sampled_from(["name", "sfdc_account_id"])))
def test_no_label_keeps_an_account_out_of_the_pool_or_breaks_an_answer(
    name: Any, sfdc_account_id: Any, omitted: set[str]
) -> None:
    labels = {"name": name, "sfdc_account_id": sfdc_account_id}
    account = read(**{label: None if label in omitted else value for label, value in labels.items()})
    assert not isinstance(account, SkippedAccount)
    api, held = hold(account)
    assert (held["name"], held["sfdc_account_id"]) == (account.name, account.sfdc_account_id)
    assert held["name"]
    for label in (account.name, account.sfdc_account_id or ""):
        assert len(label) <= 256
        assert not any(unicodedata.category(each) in {"Cc", "Cs", "Zl", "Zp"} for each in label)
    shown = body_of(api.admin("GET", f"/v1/admin/sandboxes/{account.sandbox_id}"))
    assert (shown["name"], shown["sfdc_account_id"]) == (account.name, account.sfdc_account_id)
