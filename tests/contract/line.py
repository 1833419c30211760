"""The promises of every `SandboxStore` about the line; see `suite`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_common.core.errors import UnreadableRecord
from broker_common.core.lease import candidate_of
from broker_common.core.line import Place, Wish, new_place_id
from broker_common.core.store import (
    AllocateAnswer,
    Allocated,
    CandidateGone,
    ClaimHeld,
    JoinAnswer,
    Joined,
    PlaceHeld,
)
from tests.contract.suite import (
    ANY_TEXT,
    PRINTABLE,
    SHARED_STORE,
    add_many,
    add_new,
    at_once,
    bare,
    ended,
    ending,
    fresh_token,
    held_under,
    settle,
    take,
)
from tests.fakes import BY, MemoryStore, make_claim, make_sandbox, removal_of, walk_ring

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.sandbox import Sandbox
    from broker_common.core.store import SandboxStore

FAR = 10**11
"""A time for which no engine removes a record while a test runs."""
GONE = make_sandbox("gone")
_runs = count()
_TRACK = (st.sampled_from("xy"), st.sampled_from("ab"))
_BY = st.integers(3, 5)
STEPS = st.one_of(
    st.tuples(st.just("join"), *_TRACK),
    st.tuples(st.just("renew"), *_TRACK, _BY),
    st.tuples(st.just("leave"), *_TRACK, _BY, st.booleans()),
    st.tuples(st.just("allocate"), *_TRACK, st.integers(0, 3), st.booleans()),
    st.tuples(st.just("end"), st.sampled_from("xy")),
)
"""What two tracks do, each with a place of two ids, and four sandboxes."""


def make_place(track_id: str = "track-1", *, unique: str = "a", round_: int = 0, **changes: Any) -> Place:
    """Return a place of a track whose key is its id."""
    joined_at = changes.pop("joined_at", FAR)
    place = Place(
        place_id=new_place_id(round_, joined_at, f"{unique}-{track_id}"),
        track_id=track_id,
        idempotency_key=track_id,
        wish=Wish(),
        round=round_,
        joined_at=joined_at,
        back_by=joined_at + 3,
    )
    return replace(place, **changes)


def wait(store: SandboxStore, *places: Place) -> None:
    """Give tracks these places."""
    for place in places:
        assert store.join(place) == Joined()


def allocate(store: SandboxStore, sandbox: Sandbox, place: Place, *, place_id: str | None) -> AllocateAnswer:
    """Allocate a sandbox for the track of a place."""
    claim = make_claim(sandbox, place.track_id, idempotency_key=place.idempotency_key)
    return store.allocate(candidate_of(sandbox), claim, by=BY, token=fresh_token(), place_id=place_id)


class LineContract:
    """The promises of every store to a single caller, about the line."""

    # -- places

    def test_nobody_waits_at_first(self, store: SandboxStore) -> None:
        assert (store.read_line(), store.read_place("track-1", "track-1"), store.read_places("track-1")) == (
            [],
            None,
            [],
        )

    @given(
        names=st.tuples(PRINTABLE, PRINTABLE),
        texts=st.tuples(ANY_TEXT, st.none() | ANY_TEXT, st.none() | ANY_TEXT),
        reservations=st.lists(st.uuids().map(str), max_size=3),
        numbers=st.tuples(st.integers(0, 10**8 - 1), st.integers(FAR, 10**12 - 1), st.integers(FAR, 10**12)),
    )
    @settings(SHARED_STORE, max_examples=25)
    def test_every_field_of_a_place_survives_storage(
        self,
        store: SandboxStore,
        names: tuple[str, str],
        texts: tuple[str, str | None, str | None],
        reservations: list[str],
        numbers: tuple[int, int, int],
    ) -> None:
        prefix, customer, track_name = texts
        place = make_place(
            names[0],
            idempotency_key=names[1],
            wish=Wish(prefix=prefix, reservations=tuple(reservations)),
            round_=numbers[0],
            joined_at=numbers[1],
            back_by=numbers[2],
            customer=customer,
            track_name=track_name,
        )
        wait(store, place)
        assert store.read_line() == [place]
        assert store.read_place(*names) == place
        assert store.read_places(names[0]) == [place]
        assert store.leave(place)
        assert (store.read_line(), store.read_places(names[0])) == ([], [])

    def test_the_line_is_in_the_order_of_rounds_and_then_of_times(self, store: SandboxStore) -> None:
        places = [
            make_place(f"track-{number}", round_=round_, joined_at=joined_at, unique=unique)
            for number, (round_, joined_at, unique) in enumerate(
                [(0, FAR, "b"), (0, FAR + 9, "a"), (1, FAR, "a"), (1, FAR, "b"), (9, FAR, "a"), (10, FAR, "a")]
            )
        ]
        wait(store, *reversed(places))
        assert store.read_line() == places
        for limit in range(1, len(places) + 2):
            assert store.read_line(limit=limit) == places[:limit]

    @pytest.mark.many_calls
    def test_a_long_line_is_read_whole(self, store: SandboxStore) -> None:
        places = [make_place(f"track-{number}", joined_at=FAR + number, track_name="x" * 9000) for number in range(150)]
        wait(store, *places)
        assert store.read_line() == places
        assert store.read_line(limit=140) == places[:140]

    def test_the_places_of_a_track_are_its_own(self, store: SandboxStore) -> None:
        mine = [make_place(idempotency_key=key, joined_at=FAR + at) for at, key in enumerate(["x", "y"])]
        wait(store, *mine, make_place("track-2"), make_place("track-11"))
        take(store, add_new(store), idempotency_key="z")
        assert store.read_places("track-1") == mine
        assert store.read_place("track-1", "y") == mine[1]
        assert store.read_place("track-1", "z") is None

    # -- joining

    def test_a_join_that_is_sent_again_tells_its_own_place(self, store: SandboxStore) -> None:
        place = make_place()
        wait(store, place)
        assert store.join(place) == PlaceHeld(place.place_id)
        assert store.read_line() == [place]

    def test_a_track_s_key_has_one_place(self, store: SandboxStore) -> None:
        place = make_place()
        wait(store, place)
        assert store.join(make_place(unique="b")) == PlaceHeld(place.place_id)
        assert store.read_line() == [place]

    def test_who_holds_a_sandbox_gets_no_place(self, store: SandboxStore) -> None:
        _, claim = take(store, add_new(store))
        assert store.join(make_place()) == ClaimHeld(claim)
        assert (store.read_line(), store.read_place("track-1", "track-1")) == ([], None)

    def test_a_track_may_wait_when_its_lease_has_ended(self, store: SandboxStore) -> None:
        held, _ = take(store, add_new(store))
        store.commit(ending(held))
        wait(store, make_place())

    def test_a_place_is_no_claim_and_no_sandbox(self, store: SandboxStore) -> None:
        wait(store, make_place())
        assert store.get_claim("track-1", "track-1") is None
        assert store.read_claims("track-1") == []
        assert store.read_all().sandboxes == ()
        assert not store.has_sandboxes()
        assert store.list_sandboxes(None, limit=9, cursor=None).sandboxes == ()

    # -- coming back

    def test_a_renewal_changes_when_the_track_is_due_back_and_its_reservations_alone(self, store: SandboxStore) -> None:
        place = make_place(wish=Wish(prefix="lab", reservations=("one",)), customer="acme", track_name="intro")
        wait(store, place)
        for reservations in (("one", "two"), ()):
            later = replace(place, back_by=FAR + 99, wish=Wish(prefix="lab", reservations=reservations))
            sent = replace(later, wish=replace(later.wish, prefix="other"), customer=None, track_name=None)
            assert store.renew(sent)
            assert store.read_place("track-1", "track-1") == later

    def test_a_place_that_is_gone_is_not_renewed(self, store: SandboxStore) -> None:
        place = make_place()
        assert not store.renew(place)
        wait(store, place)
        assert store.leave(place)
        assert not store.renew(place)
        assert store.read_line() == []

    # -- leaving

    def test_who_leaves_has_no_place_and_may_join_again(self, store: SandboxStore) -> None:
        place, other = make_place(), make_place("track-2", unique="b")
        wait(store, place, other)
        assert store.leave(place)
        assert store.read_line() == [other]
        assert store.read_place("track-1", "track-1") is None
        assert not store.leave(place)
        wait(store, make_place(unique="c"))

    def test_a_place_that_was_renewed_is_left_only_by_who_does_not_mind(self, store: SandboxStore) -> None:
        place = make_place()
        wait(store, place)
        renewed = replace(place, back_by=place.back_by + 9)
        assert store.renew(renewed)
        assert not store.leave(place, unless_renewed=True)
        assert store.read_line() == [renewed]
        assert store.leave(renewed, unless_renewed=True)
        assert store.read_line() == []

    def test_a_late_leave_takes_no_later_place_and_no_claim(self, store: SandboxStore) -> None:
        place, following = make_place(), make_place(unique="b")
        wait(store, place)
        assert store.leave(place)
        wait(store, following)
        assert not store.leave(place)
        assert store.read_place("track-1", "track-1") == following
        sandbox = add_new(store)
        assert allocate(store, sandbox, following, place_id=following.place_id) == Allocated()
        assert not store.leave(following)
        assert store.get_claim("track-1", "track-1") == make_claim(sandbox)

    # -- allocating

    def test_an_allocation_ends_its_place(self, store: SandboxStore) -> None:
        place, other = make_place(), make_place("track-2", unique="b")
        wait(store, place, other)
        sandbox = add_new(store)
        assert allocate(store, sandbox, place, place_id=place.place_id) == Allocated()
        assert store.read_line() == [other]
        assert (store.read_place("track-1", "track-1"), store.read_places("track-1")) == (None, [])
        claim = make_claim(sandbox)
        assert store.get_claim("track-1", "track-1") == claim
        assert store.get(sandbox.sandbox_id) == held_under(sandbox, claim)
        assert store.read_claims("track-1") == [claim]
        assert store.join(make_place(unique="c")) == ClaimHeld(claim)

    @pytest.mark.parametrize("known", [None, make_place(unique="b").place_id], ids=["none", "another"])
    def test_a_place_that_the_request_does_not_name_is_told_and_nothing_written(
        self, store: SandboxStore, known: str | None
    ) -> None:
        place = make_place()
        wait(store, place)
        sandbox = add_new(store)
        for candidate in (sandbox, GONE):
            assert allocate(store, candidate, place, place_id=known) == PlaceHeld(place.place_id)
        assert store.get(sandbox.sandbox_id) == sandbox
        assert store.get_claim("track-1", "track-1") is None
        assert store.read_line() == [place]

    def test_a_candidate_that_is_gone_leaves_the_place(self, store: SandboxStore) -> None:
        place = make_place()
        wait(store, place)
        assert allocate(store, GONE, place, place_id=place.place_id) == CandidateGone(None)
        assert store.read_place("track-1", "track-1") == place
        assert store.read_line() == [place]

    def test_a_place_that_is_gone_keeps_nobody_from_a_sandbox(self, store: SandboxStore) -> None:
        place = make_place()
        sandbox = add_new(store)
        assert allocate(store, sandbox, place, place_id=place.place_id) == Allocated()

    def test_an_allocation_that_is_sent_again_shows_its_own_claim(self, store: SandboxStore) -> None:
        place = make_place()
        wait(store, place)
        sandbox = add_new(store)
        claim, token = make_claim(sandbox), fresh_token()
        for again in (token, token, fresh_token()):
            answer = store.allocate(candidate_of(sandbox), claim, by=BY, token=again, place_id=place.place_id)
            assert answer in {Allocated(), ClaimHeld(claim)}
        assert answer == ClaimHeld(claim)
        assert store.read_line() == []

    def test_the_place_of_another_key_of_the_track_is_left_alone(self, store: SandboxStore) -> None:
        place = make_place(idempotency_key="x")
        wait(store, place)
        held, _ = take(store, add_new(store))
        store.commit(ending(held))
        store.commit(removal_of(ended(held)))
        assert store.read_places("track-1") == [place]

    # -- places that cannot be read

    def test_a_place_that_cannot_be_read_is_left_out_and_is_its_own_track_s_trouble(self, store: SandboxStore) -> None:
        places = [make_place(f"track-{number}", joined_at=FAR + number) for number in range(4)]
        wait(store, *places)
        bare(store).spoil_place(places[1].place_id)
        assert store.read_line() == [places[0], *places[2:]]
        assert store.read_line(limit=3) == [places[0], *places[2:]], "the limit is of places that can be read"
        assert store.read_line(limit=2) == [places[0], places[2]]
        assert store.read_places("track-1") == []
        with pytest.raises(UnreadableRecord) as raised:
            store.read_place("track-1", "track-1")
        assert raised.value.track_id == "track-1"
        assert store.join(make_place("track-1", unique="b")) == PlaceHeld(places[1].place_id)

    def test_a_place_that_cannot_be_read_keeps_its_track_from_no_sandbox(self, store: SandboxStore) -> None:
        place, sandbox = make_place(), add_new(store)
        wait(store, place)
        bare(store).spoil_place(place.place_id)
        assert allocate(store, sandbox, place, place_id=None) == PlaceHeld(place.place_id)
        assert allocate(store, sandbox, place, place_id=place.place_id) == Allocated()
        assert store.read_place("track-1", "track-1") is None

    # -- any order

    @given(steps=st.lists(STEPS, min_size=4, max_size=12))
    @settings(SHARED_STORE, max_examples=10)
    def test_any_calls_in_any_order_are_answered_as_by_the_store_in_memory(
        self, store: SandboxStore, steps: list[tuple[Any, ...]]
    ) -> None:
        run = f"run-{next(_runs)}"
        stores = [store, MemoryStore()]
        for each in stores:
            for number in range(4):
                add_new(each, f"{run}-{number}")
        for step in steps:
            ours, expected = (make(each, run, *step) for each in stores)
            assert ours == expected, step
            ours, expected = (seen(each, run) for each in stores)
            assert ours == expected, step


def make(store: SandboxStore, run: str, kind: str, track: str, *more: Any) -> object:
    """Make one of `STEPS`, and return its answer."""
    track_id = f"{run}-{track}"
    if kind == "end":
        claim = store.get_claim(track_id, track_id)
        held = store.get(claim.sandbox_id) if claim else None
        if held is not None:
            store.commit(ending(held))
        return held
    place = make_place(track_id, unique=more[0])
    if kind == "join":
        return store.join(place)
    if kind == "allocate":
        _, number, is_named = more
        return allocate(store, make_sandbox(f"{run}-{number}"), place, place_id=place.place_id if is_named else None)
    place = replace(place, back_by=FAR + more[1])
    return store.renew(place) if kind == "renew" else store.leave(place, unless_renewed=more[2])


def seen(store: SandboxStore, run: str) -> object:
    """Return all that a store has of a run."""
    tracks = [f"{run}-{track}" for track in "xy"]
    return (
        [place for place in store.read_line() if place.track_id in tracks],
        [(store.read_place(each, each), store.read_places(each)) for each in tracks],
        [(store.get_claim(each, each), store.read_claims(each)) for each in tracks],
    )


class ConcurrentLineContract(LineContract):
    """The promises of a store to many callers at once, about the line."""

    def test_of_many_copies_of_a_join_one_gets_a_place_and_the_others_see_it(self, store: SandboxStore) -> None:
        joins: list[Callable[[], JoinAnswer]] = [
            partial(store.join, make_place(unique=str(number))) for number in range(12)
        ]
        answers = at_once(joins)
        (place,) = store.read_line()
        assert answers.count(Joined()) == 1
        assert answers.count(PlaceHeld(place.place_id)) == len(joins) - 1

    def test_of_a_join_and_an_allocation_of_the_same_key_one_is_written(self, store: SandboxStore) -> None:
        for number in range(8):
            sandbox, place = add_new(store, f"sbx-{number}"), make_place(f"track-{number}")
            claim = make_claim(sandbox, place.track_id)
            calls: list[Callable[[], object]] = [
                partial(store.join, place),
                partial(settle, store, candidate_of(sandbox), claim),
            ]
            joined, given = at_once(calls)
            seen = (store.read_place(place.track_id, place.track_id), store.get_claim(place.track_id, place.track_id))
            assert (joined, given, seen) in {
                (Joined(), PlaceHeld(place.place_id), (place, None)),
                (ClaimHeld(claim), Allocated(), (None, claim)),
            }

    def test_of_an_allocation_and_a_leave_at_once_the_place_ends_once_and_the_claim_stays(
        self, store: SandboxStore
    ) -> None:
        for number, sandbox in enumerate(add_many(store, 8)):
            place = make_place(f"track-{number}")
            wait(store, place)
            claim = make_claim(sandbox, place.track_id)
            calls: list[Callable[[], object]] = [
                partial(store.leave, place),
                partial(settle, store, candidate_of(sandbox), claim, place_id=place.place_id),
            ]
            _, given = at_once(calls)
            assert given == Allocated()
            assert store.get_claim(place.track_id, place.track_id) == claim
        assert store.read_line() == []
        assert walk_ring(store, limit=100) == []
