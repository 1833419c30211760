"""A list that shifts while its pages are read is not taken for whole, unless every account that stayed is in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from broker_common.adapters.csp_listing import Listing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker_common.core.ports import AccountListing

URL = "http://127.0.0.1/accounts"
NUMBERS = range(1, 9)


def entry(number: int) -> dict[str, Any]:
    return {
        "account_type": "sandbox",
        "state": "active" if number % 4 else "disabled",
        "id": f"identity/accounts/0b1f5cf8-6c3e-4f0e-9a53-{number:012}",
        "name": f"lab-{number}",
        "csp_id": number,
    }


def read(orders: Sequence[Sequence[int]], *, size: int) -> AccountListing:
    """Read a list page by page, which is in the next of these orders at each page, and in the last one from then on."""
    listing, offset, page = Listing(URL), 0, 0
    while True:
        now = orders[min(page, len(orders) - 1)]
        results = [entry(number) for number in now[offset : offset + size]]
        body = json.dumps({"results": results, "_offset": offset, "_limit": size, "total": len(now)}).encode()
        if listing.take(body, url=URL, link=None) is None:
            return listing.finish()
        offset, page = offset + len(results), page + 1


def named(listing: AccountListing) -> set[str]:
    return set(listing.sandbox_ids)


SIZES = st.integers(2, 5)


@given(orders=st.lists(st.permutations(NUMBERS), min_size=1, max_size=5), size=SIZES)
def test_a_list_whose_order_changes_is_whole_only_if_all_of_it_was_read(orders: list[list[int]], size: int) -> None:
    found = read(orders, size=size)
    assert found.doubt is not None or named(found) == set(map(str, NUMBERS))


@given(order=st.permutations(NUMBERS), size=SIZES, at=st.integers(0, 4), place=st.integers(0, 7), back=st.booleans())
def test_a_list_that_gains_or_loses_an_account_is_whole_only_if_all_that_stayed_was_read(
    order: list[int], size: int, at: int, place: int, back: bool
) -> None:
    fewer = order[:place] + order[place + 1 :]
    before, after = (fewer, order) if back else (order, fewer)
    found = read([before] * at + [after], size=size)
    assert found.doubt is not None or named(found) >= set(map(str, fewer))


@given(order=st.permutations(NUMBERS), size=SIZES)
def test_a_list_that_stays_as_it_is_is_whole(order: list[int], size: int) -> None:
    assert read([order], size=size).doubt is None
