"""The shape of Grafana's files, as far as it can be told without Grafana. Its queries: see `test_prometheus`."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import yaml

from tests.observability.deployed import PROVISIONING, dashboard, panels


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def test_the_dashboard_keeps_its_address_and_is_new_to_grafana() -> None:
    board = dashboard()
    assert (board["uid"], board["title"]) == ("sandbox-broker", "Sandbox Broker")
    assert "id" not in board
    assert board["schemaVersion"] >= 39


def test_every_panel_has_a_place_of_its_own() -> None:
    every = dashboard()["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    places = [panel["gridPos"] for panel in every]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    assert [pair for pair in combinations(places, 2) if overlap(*pair)] == []


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"]
        assert defaults["thresholds"]["steps"][0]["value"] is None
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


def test_a_data_source_is_chosen_by_the_variable_alone() -> None:
    (variable,) = dashboard()["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")
    used: list[Any] = [panel["datasource"] for panel in panels()]
    used += [target["datasource"] for panel in panels() for target in panel["targets"]]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in used)


def test_the_first_row_answers_whether_tracks_are_served() -> None:
    first, *others = (panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row")
    assert first == "Are tracks being served?"
    second = next(panel for panel in dashboard()["panels"] if panel["title"] == others[0])
    titles = {panel["title"] for panel in panels() if panel["gridPos"]["y"] < second["gridPos"]["y"]}
    assert titles >= {"Available sandboxes", "Served", "p99 of allocates", "Errors in 5 min", "Allocates by outcome"}


def test_grafana_is_provisioned_with_prometheus_and_the_dashboards() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "$PROMETHEUS_URL")
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "sandbox-broker.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"]
