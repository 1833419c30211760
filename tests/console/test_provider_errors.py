"""Errors of the provider in words."""

from __future__ import annotations

import pytest

from broker_api.console.provider_errors import plain_error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('delete: HTTP 422: {"error": [{"message": "It has a child"}]}', "delete: HTTP 422: It has a child"),
        ('delete: HTTP 500: {"error": {"code": 3, "message": "Busy"}} (no wipe)', "delete: HTTP 500: Busy (no wipe)"),
        ('delete: HTTP 404: {"detail": " "}', 'delete: HTTP 404: {"detail": " "}'),
        ('list: HTTP 200: {"title": "Odd", "error": true}', "list: HTTP 200: Odd"),
        ('delete: HTTP 422: {"error": [{"message": "It has a ch…', "delete: HTTP 422: It has a ch…"),
        (r'delete: HTTP 422: {"error": [{"message": "\u00fcber \"x', 'delete: HTTP 422: über "x…'),
        ("delete: HTTP 422: {broken", "delete: HTTP 422: {broken"),
        ("delete: HTTP 502: <html>", "delete: HTTP 502: <html>"),
        ("delete: no answer in 30 s", "delete: no answer in 30 s"),
    ],
)
def test_the_message_stands_in_place_of_the_json_and_all_else_stays(text: str, words: str) -> None:
    assert plain_error(text) == words


def test_a_message_that_is_cut_off_within_an_escape_is_shown_as_far_as_it_came() -> None:
    assert plain_error(r'{"message": "a\u00') == r"a\u00…"
