"""A track's life over real HTTP, against several API processes, real workers and the mock provider."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import requests

from deploy.dev.processes import wait_until
from tests.api.harness import ALLOCATION

if TYPE_CHECKING:
    from tests.e2e.stack import Stack

SETTINGS = {"POOL": "40", "API_WORKERS": "4"}


def a_track() -> str:
    return f"track-{uuid.uuid4()}"


def give_back(stack: Stack, track: str) -> None:
    for held in stack.as_track(track, "GET", "/sandboxes").json()["sandboxes"]:
        answer = stack.as_track(track, "POST", f"/sandboxes/{held['sandbox_id']}/mark-for-deletion")
        assert answer.status_code == 200


def test_a_track_allocates_reads_and_gives_back_a_sandbox(stack: Stack) -> None:
    track = a_track()
    first = stack.as_track(track, "POST", "/allocate", headers={"X-Instruqt-Track-ID": "intro-lab"})
    assert first.status_code == 201
    assert "Idempotent-Replayed" not in first.headers
    body = first.json()
    assert body.keys() == ALLOCATION
    assert body["track_name"] == "intro-lab"
    assert body["expires_at"] - body["allocated_at"] == 4 * 3600
    again = stack.as_track(track, "POST", "/allocate")
    assert (again.status_code, again.headers["Idempotent-Replayed"], again.json()) == (200, "true", body)
    path = f"/sandboxes/{body['sandbox_id']}"
    read = stack.as_track(track, "GET", path)
    assert read.json() == body | {"status": "allocated", "allocated_to_track": track}
    marked = stack.as_track(track, "POST", f"{path}/mark-for-deletion")
    assert marked.status_code == 200
    assert marked.json().keys() == {"sandbox_id", "status", "lease_id", "deletion_requested_at"}
    assert marked.json()["status"] == "pending_deletion"
    repeated = stack.as_track(track, "POST", f"{path}/mark-for-deletion")
    assert (repeated.status_code, repeated.json()) == (200, marked.json())
    assert stack.as_track(track, "GET", "/sandboxes").json()["sandboxes"] == []


def test_twenty_copies_of_one_request_get_one_sandbox(stack: Stack) -> None:
    track = a_track()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: stack.as_track(track, "POST", "/allocate"), range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert len({answer.text for answer in answers}) == 1
    give_back(stack, track)


def test_each_idempotency_key_holds_a_sandbox_of_its_own(stack: Stack) -> None:
    track = a_track()
    one, two, one_again = (
        stack.as_track(track, "POST", "/allocate", headers={"Idempotency-Key": key}).json()["sandbox_id"]
        for key in ("one", "two", "one")
    )
    assert one != two
    assert one_again == one
    held = stack.as_track(track, "GET", "/sandboxes").json()["sandboxes"]
    assert {sandbox["sandbox_id"] for sandbox in held} == {one, two}
    give_back(stack, track)


def test_both_spellings_of_the_track_header_name_the_same_track(stack: Stack) -> None:
    track = a_track()
    url = f"{stack.api_url}/v1/allocate"
    token = {"Authorization": f"Bearer {stack.plan.env['BROKER_API_TOKEN']}"}
    first = requests.post(url, headers=token | {"X-Instruqt-Sandbox-ID": track}, timeout=10)
    again = stack.as_track(track, "POST", "/allocate")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    differing = stack.as_track(track, "POST", "/allocate", headers={"X-Instruqt-Sandbox-ID": "another"})
    assert differing.status_code == 400
    give_back(stack, track)


def test_a_name_prefix_selects_among_the_sandboxes(stack: Stack) -> None:
    some = stack.as_admin("GET", "/sandboxes?status=available&limit=1").json()["sandboxes"][0]["name"]
    track = a_track()
    chosen = stack.as_track(track, "POST", "/allocate", headers={"X-Sandbox-Name-Prefix": some})
    assert (chosen.status_code, chosen.json()["name"]) == (201, some)
    none = stack.as_track(a_track(), "POST", "/allocate", headers={"X-Sandbox-Name-Prefix": "no-such-name"})
    assert none.status_code == 409
    assert none.json()["error"]["code"] == "NO_SANDBOXES_AVAILABLE"
    give_back(stack, track)


def test_another_track_may_not_read_or_mark_a_sandbox(stack: Stack) -> None:
    holder, other = a_track(), a_track()
    path = f"/sandboxes/{stack.as_track(holder, 'POST', '/allocate').json()['sandbox_id']}"
    for answer in (stack.as_track(other, "GET", path), stack.as_track(other, "POST", f"{path}/mark-for-deletion")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "NOT_SANDBOX_OWNER")
    assert stack.as_track(holder, "GET", path).json()["status"] == "allocated"
    give_back(stack, holder)


def test_an_unknown_sandbox_is_not_found(stack: Stack) -> None:
    for method, path in (("GET", "/sandboxes/nope"), ("POST", "/sandboxes/nope/mark-for-deletion")):
        answer = stack.as_track(a_track(), method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "SANDBOX_NOT_FOUND")


def test_an_empty_pool_answers_409_and_says_when_to_come_back(stack: Stack) -> None:
    tracks = [a_track() for _ in range(45)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda track: stack.as_track(track, "POST", "/allocate"), tracks))
    free = stack.stats()["available"]
    assert free == 0
    given = [answer.json()["sandbox_id"] for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code != 201]
    assert len(given) == len(set(given))
    assert refused
    for answer in refused:
        assert answer.status_code == 409
        error = answer.json()["error"]
        assert error["code"] == "NO_SANDBOXES_AVAILABLE"
        assert int(answer.headers["Retry-After"]) == error["retry_after"] > 0
    held = next(track for track, answer in zip(tracks, answers, strict=True) if answer.status_code == 201)
    assert stack.as_track(held, "POST", "/allocate").status_code == 200, "who holds one is never refused"
    for track in tracks:
        give_back(stack, track)


def test_a_sandbox_that_was_given_back_is_wiped_and_given_out_again(stack: Stack) -> None:
    def cleaned() -> bool:
        stack.run_job("cleanup")
        return stack.stats()["pending_deletion"] == 0

    assert wait_until(cleaned, 60)
    track = a_track()
    sandbox = stack.as_track(track, "POST", "/allocate").json()
    give_back(stack, track)
    run = stack.run_job("cleanup")
    assert (run["state"], run["result"]["deleted"]) == ("succeeded", 1)
    asked = stack.delete_log()["deletes"]
    assert sandbox["external_id"] in {delete["external_id"] for delete in asked}
    record = stack.as_admin("GET", f"/sandboxes/{sandbox['sandbox_id']}").json()
    assert (record["status"], record["dirty"], record["last_track_id"]) == ("available", False, track)
    free = stack.stats()["available"]
    tracks = [a_track() for _ in range(free)]
    given = {stack.as_track(each, "POST", "/allocate").json()["sandbox_id"] for each in tracks}
    assert sandbox["sandbox_id"] in given
    late = stack.as_track(track, "POST", f"/sandboxes/{sandbox['sandbox_id']}/mark-for-deletion")
    assert late.status_code == 403, "its last holder is a stranger once it is allocated again"
    for each in tracks:
        give_back(stack, each)
