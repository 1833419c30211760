"""The line's order, and whose turn it is by one snapshot, held against a slow model in the contract's words."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_common.core.line import (
    Place,
    Turns,
    Wish,
    front_of,
    in_order,
    new_place_id,
    next_round,
    retry_after,
)
from broker_common.core.sandbox import Candidate
from tests import line_model as model
from tests.examples import examples
from tests.fakes import START

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GRACE = 600


def place(name: str, *, prefix: str = "", round_: int = 0, joined: int = 0, back: int = 3, **changes: Any) -> Place:
    """Return a place that was joined `joined` seconds after `START`, whose track should be back `back` after `START`."""
    fields: dict[str, Any] = {
        "place_id": new_place_id(round_, START + joined, name),
        "track_id": name,
        "idempotency_key": name,
        "wish": Wish(prefix=prefix),
        "round": round_,
        "joined_at": START + joined,
        "back_by": START + back,
    }
    return Place(**fields | changes)


def free(*names: str, reservation_id: str | None = None) -> list[Candidate]:
    """Return available sandboxes, whose ids are their names."""
    return [
        Candidate(sandbox_id=name, version=1, name=name, external_id=f"uuid-{name}", reservation_id=reservation_id)
        for name in names
    ]


def names(candidates: Iterable[Candidate]) -> list[str]:
    return [each.sandbox_id for each in candidates]


def join_all(customers: Sequence[str | None]) -> list[Place]:
    """Return the line after tracks of these customers have joined one after another, each a second later."""
    line: list[Place] = []
    for number, customer in enumerate(customers):
        round_ = next_round(line, customer)
        line.append(place(f"t{number}", round_=round_, joined=number, customer=customer))
    return line


# -- order


def test_places_of_one_customer_are_served_in_the_order_in_which_they_were_joined() -> None:
    line = join_all(["one"] * 5)
    assert names_of(in_order(line)) == ["t0", "t1", "t2", "t3", "t4"]


def names_of(places: Iterable[Place]) -> list[str]:
    return [each.track_id for each in places]


def test_customers_take_turns_so_one_with_many_places_does_not_keep_another_waiting() -> None:
    line = join_all(["many", "many", "many", "few", "many", "few"])
    assert names_of(in_order(line)) == ["t0", "t3", "t1", "t5", "t2", "t4"]


def test_a_new_customer_joins_at_the_lowest_round_that_waits() -> None:
    line = in_order(join_all(["many"] * 6))[4:]  # four were served
    assert next_round(line, "new") == 4
    assert next_round(line, "many") == 6


def test_tracks_without_a_customer_count_as_one_customer() -> None:
    line = join_all([None, None, "one", None])
    assert names_of(in_order(line)) == ["t0", "t2", "t1", "t3"]


def test_the_first_place_of_an_empty_line_has_the_lowest_round() -> None:
    assert next_round([], "one") == next_round([], None) == 0


def test_places_of_one_round_and_second_are_ordered_by_their_ids() -> None:
    line = [place(name, joined=7) for name in ("c", "a", "b")]
    assert names_of(in_order(line)) == ["a", "b", "c"]


@pytest.mark.parametrize(("low", "high"), [(9, 10), (99, 100), (0, 99_999_999)])
def test_ids_sort_by_round_before_time_also_when_the_numbers_have_other_lengths(low: int, high: int) -> None:
    assert new_place_id(low, START + 10**6, "z") < new_place_id(high, START, "a")
    assert new_place_id(low, 999, "z") < new_place_id(low, START, "a")


customers = st.sampled_from([None, "one", "two", "three"])


@given(st.lists(customers, max_size=12), st.integers(0, 12), customers)
def test_a_new_place_gets_the_round_of_the_contract(
    joined: list[str | None], served: int, customer: str | None
) -> None:
    line = in_order(join_all(joined))[served:]
    assert next_round(line, customer) == model.round_of_next(line, customer)


@given(st.lists(customers, min_size=1, max_size=16))
def test_nobody_of_a_customer_with_fewer_places_waits_for_more_than_one_of_each_other_per_turn(
    joined: list[str | None],
) -> None:
    line = in_order(join_all(joined))
    for at, each in enumerate(line):
        own = sum(other.customer == each.customer for other in line[: at + 1])
        for customer in {other.customer for other in line}:
            assert sum(other.customer == customer for other in line[:at]) <= own


# -- when to come back


@pytest.mark.parametrize(("pool", "front"), [(0, 20), (10, 20), (200, 20), (210, 21), (1000, 100), (10_000, 1000)])
def test_the_front_is_twenty_places_or_a_tenth_of_the_pool(pool: int, front: int) -> None:
    assert front_of(pool) == front


@pytest.mark.parametrize(
    ("position", "seconds"), [(1, 1), (39, 1), (40, 2), (60, 3), (79, 3), (80, 4), (220, 11), (400, 20), (10_000, 20)]
)
def test_a_track_comes_back_the_later_the_further_behind_it_is(position: int, seconds: int) -> None:
    assert retry_after(position, 20) == seconds


@given(st.integers(1, 20_000), st.integers(20, 1000))
def test_the_time_to_come_back_grows_with_the_position_and_is_short_in_the_front(position: int, front: int) -> None:
    seconds = retry_after(position, front)
    assert 1 <= seconds <= retry_after(position + 1, front) <= 20
    assert seconds <= 3 or position > front
    assert retry_after(20 * front, front) == 20


# -- which wishes compete

prefixes = st.text("ab", max_size=3)


@given(prefixes, prefixes, prefixes)
def test_two_wishes_overlap_if_a_sandbox_can_fit_both(one: str, other: str, rest: str) -> None:
    a, b = Wish(prefix=one), Wish(prefix=other)
    (longer,) = free(max(one, other, key=len) + rest)
    assert a.overlaps(b) == b.overlaps(a) == (a.fits(longer) and b.fits(longer))


# -- late and dead places


@pytest.mark.parametrize(("now", "is_live"), [(3, True), (8, True), (9, False), (603, False)])
def test_a_sandbox_may_be_due_to_a_track_until_five_seconds_after_it_should_be_back(now: int, is_live: bool) -> None:
    assert place("t", back=3).is_live(START + now) is is_live


@pytest.mark.parametrize(("now", "is_kept"), [(3, True), (9, True), (603, True), (604, False)])
def test_a_place_is_kept_until_the_grace_is_over(now: int, is_kept: bool) -> None:
    assert place("t", back=3).is_kept(START + now, GRACE) is is_kept


def test_a_late_track_is_passed_over_and_keeps_its_position() -> None:
    late, on_time = place("late", back=3), place("on-time", joined=1, back=20)
    turns = Turns([late, on_time], free("lab-1"), now=START + 9)
    assert turns.is_next(on_time.place_id)
    assert not turns.is_next(late.place_id)
    assert (turns.position(late.place_id), turns.position(on_time.place_id)) == (1, 2)


def test_a_late_track_that_is_back_may_take_what_is_due_to_those_behind_it() -> None:
    late, on_time = place("late", back=3), place("on-time", joined=1, back=20)
    turns = Turns([late, on_time], free("lab-1"), now=START + 9)
    assert names(turns.open_to(late.wish, late.place_id)) == ["lab-1"]


def test_a_line_of_late_tracks_keeps_nobody_waiting() -> None:
    turns = Turns([place("late", back=3)], free("lab-1"), now=START + 9)
    assert names(turns.open_to(Wish(), None)) == ["lab-1"]


# -- whose turn it is


def test_the_first_ones_get_what_is_free_and_the_others_and_a_newcomer_get_nothing() -> None:
    line = [place(name, joined=number) for number, name in enumerate("abc")]
    turns = Turns(line, free("lab-1", "lab-2"), now=START)
    assert [turns.is_next(each.place_id) for each in line] == [True, True, False]
    assert len(turns) == 3
    assert turns.open_to(Wish(), line[2].place_id) == []
    assert turns.open_to(Wish(), None) == []


def test_a_place_is_assigned_the_sandbox_that_the_fewest_waiting_wishes_fit() -> None:
    anything, special = place("anything"), place("special", prefix="gpu-", joined=1)
    turns = Turns([anything, special], free("gpu-1", "lab-1"), now=START)
    assert names(turns.open_to(anything.wish, anything.place_id))[0] == "lab-1"
    assert names(turns.open_to(special.wish, special.place_id)) == ["gpu-1"]


def test_a_late_tracks_wish_does_not_count_when_sandboxes_are_assigned() -> None:
    anything, late = place("anything", back=60), place("late", prefix="a-", joined=1, back=3)
    turns = Turns([anything, late], free("a-1", "b-1"), now=START + 30)
    assert names(turns.open_to(anything.wish, anything.place_id))[0] == "a-1"


def test_a_request_tries_the_sandbox_that_is_assigned_to_it_first_and_then_those_due_to_nobody_ahead() -> None:
    first, second, third = (place(name, joined=number) for number, name in enumerate("abc"))
    turns = Turns([first, second, third], free("lab-4", "lab-3", "lab-2", "lab-1"), now=START)
    tried = names(turns.open_to(second.wish, second.place_id))
    assert tried[0] == "lab-2"
    assert sorted(tried) == ["lab-2", "lab-3", "lab-4"]


def test_a_newcomer_is_not_refused_because_of_places_that_want_something_else() -> None:
    line = [place(str(number), prefix="gpu-", joined=number) for number in range(3)]
    turns = Turns(line, free("lab-1", "gpu-1"), now=START)
    assert names(turns.open_to(Wish(), None)) == ["lab-1"]
    assert turns.open_to(Wish(prefix="gpu-"), None) == []


def test_a_newcomer_may_have_what_is_left_when_everybody_who_waits_was_assigned_one() -> None:
    turns = Turns([place("a")], free("lab-1", "lab-2"), now=START)
    assert names(turns.open_to(Wish(), None)) == ["lab-2"]


def test_a_sandbox_that_came_after_the_snapshot_is_due_to_the_place_that_lacks_one() -> None:
    has_one, lacks_one = place("has"), place("lacks", prefix="gpu-", joined=1)
    turns = Turns([has_one, lacks_one], free("lab-1"), now=START)
    gpu, lab = free("gpu-9", "lab-9")
    assert not turns.may_take(gpu, None)
    assert turns.may_take(lab, None)
    assert turns.may_take(gpu, lacks_one.place_id)
    assert turns.may_take(gpu, has_one.place_id)


def test_a_sandbox_that_came_after_the_snapshot_is_not_due_to_a_late_place() -> None:
    turns = Turns([place("late", prefix="gpu-", back=3)], [], now=START + 9)
    assert turns.may_take(free("gpu-9")[0], None)


def test_a_place_that_the_snapshot_lacks_has_everybody_ahead_of_it() -> None:
    turns = Turns([place("a")], free("lab-1"), now=START)
    assert turns.position("another") is None
    assert turns.open_to(Wish(), "another") == []


def test_a_reserved_sandbox_is_only_for_a_wish_that_has_its_reservation() -> None:
    class_place = place("student", wish=Wish(reservations=("class",)))
    other = place("other", joined=1)
    turns = Turns([class_place, other], free("lab-1", reservation_id="class"), now=START)
    assert turns.is_next(class_place.place_id)
    assert not turns.is_next(other.place_id)
    assert turns.open_to(Wish(), None) == turns.open_to(Wish(), other.place_id) == []


def test_what_is_assigned_to_a_place_is_not_tried_by_a_request_that_may_no_longer_have_it() -> None:
    class_place = place("student", wish=Wish(reservations=("class",)))
    turns = Turns([class_place], free("lab-1", reservation_id="class"), now=START)
    assert names(turns.open_to(class_place.wish, class_place.place_id)) == ["lab-1"]
    assert turns.open_to(Wish(), class_place.place_id) == []


# -- against the model

prefixes = st.sampled_from(["", "", "lab-", "gpu-", "gpu-a"])
wishes = st.builds(Wish, prefix=prefixes, reservations=st.sampled_from([(), (), ("class",), ("class", "other")]))
NOW = 30


@st.composite
def lines(draw: st.DrawFn) -> list[Place]:
    """Draw a line, in no order, in which some tracks are late."""
    size = draw(st.integers(0, 8))
    return draw(
        st.permutations(
            [
                place(
                    f"t{number}",
                    round_=draw(st.integers(0, 3)),
                    joined=draw(st.integers(0, 3)),
                    back=draw(st.sampled_from([3, NOW - 6, NOW - 5, NOW, NOW + 20])),
                    wish=draw(wishes),
                )
                for number in range(size)
            ]
        )
    )


@st.composite
def pools(draw: st.DrawFn) -> list[Candidate]:
    """Draw free sandboxes, in no order."""
    found = []
    for number in range(draw(st.integers(0, 8))):
        name = draw(st.sampled_from(["lab-{}", "gpu-a{}", "gpu-b{}"])).format(number)
        (one,) = free(name, reservation_id=draw(st.sampled_from([None, None, None, "class", "other"])))
        found.append(replace(one, version=draw(st.integers(1, 3))))
    return draw(st.permutations(found))


MANY = examples(400)


@MANY
@given(lines(), pools(), wishes)
def test_a_request_may_try_exactly_what_is_due_to_nobody_ahead_of_it(
    line: list[Place], pool: list[Candidate], newcomer: Wish
) -> None:
    turns = Turns(line, pool, now=START + NOW)
    for own in (None, *line):
        wish = own.wish if own else newcomer
        tried = names(turns.open_to(wish, own.place_id if own else None))
        assert len(tried) == len(set(tried))
        assert set(tried) == model.may_have(wish, own, line, pool, START + NOW)


@MANY
@given(lines(), pools())
def test_a_live_place_is_next_exactly_if_a_sandbox_is_due_to_it_and_tries_that_one_first(
    line: list[Place], pool: list[Candidate]
) -> None:
    turns = Turns(line, pool, now=START + NOW)
    due = {owner.place_id: sandbox_id for sandbox_id, owner in model.find_due(line, pool, START + NOW).items()}
    for position, each in enumerate(model.in_order(line), start=1):
        assert turns.position(each.place_id) == position
        assert turns.is_next(each.place_id) == (each.place_id in due)
        if each.place_id in due:
            assert names(turns.open_to(each.wish, each.place_id))[0] == due[each.place_id]


@MANY
@given(lines(), pools(), st.integers(0, 10**6))
def test_each_process_assigns_the_same_sandboxes_in_any_order_of_its_reads(
    line: list[Place], pool: list[Candidate], seed: int
) -> None:
    read, other = list(line), list(pool)
    Random(seed).shuffle(read)
    Random(seed + 1).shuffle(other)
    one, two = Turns(line, pool, now=START + NOW), Turns(read, other, now=START + NOW)
    for each in line:
        assert one.is_next(each.place_id) == two.is_next(each.place_id)
        if one.is_next(each.place_id):
            assert one.open_to(each.wish, each.place_id)[0] == two.open_to(each.wish, each.place_id)[0]
        assert set(one.open_to(each.wish, each.place_id)) == set(two.open_to(each.wish, each.place_id))


@MANY
@given(lines(), pools(), wishes)
def test_a_newcomer_is_refused_only_for_places_that_want_what_it_wants(
    line: list[Place], pool: list[Candidate], newcomer: Wish
) -> None:
    turns = Turns(line, pool, now=START + NOW)
    wanted = [each for each in pool if newcomer.fits(each)]
    rivals = [each for each in line if each.is_live(START + NOW) and any(each.wish.fits(one) for one in wanted)]
    assert len(turns.open_to(newcomer, None)) >= len(wanted) - len(rivals)


@MANY
@given(lines(), pools(), wishes, st.sampled_from(["lab-new", "gpu-again"]))
def test_a_sandbox_that_is_new_is_due_to_each_live_place_that_got_nothing_and_may_have_it(
    line: list[Place], pool: list[Candidate], newcomer: Wish, name: str
) -> None:
    (new,) = free(name)
    turns = Turns(line, pool, now=START + NOW)
    lacking = [
        each.place_id for each in line
        if each.is_live(START + NOW) and each.wish.fits(new) and not turns.is_next(each.place_id)
    ]  # fmt: skip
    assert turns.may_take(new, None) == (not lacking)
    for each in line:
        assert turns.may_take(new, each.place_id) == all(each.place_id <= other for other in lacking)
