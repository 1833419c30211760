"""What `deploy/` says of rules, alerts, their tests, and the dashboard.

The files of rules and their tests are read once: to parse them takes seconds.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import yaml

from deploy.dev.processes import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
RUNBOOK = ROOT / "deploy" / "RUNBOOK.md"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "sandbox-broker.json"
PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"


@cache
def rules(kind: str) -> list[dict[str, Any]]:
    """Return the rules of a kind, `record` or `alert`."""
    files = sorted(PROMETHEUS.glob("*.rules.yml"))
    groups = [group for path in files for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


@cache
def rule_tests() -> list[dict[str, Any]]:
    """Return the tests that promtool runs."""
    files = sorted(PROMETHEUS.glob("*.test.yml"))
    return [test for path in files for test in yaml.safe_load(path.read_text())["tests"]]


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels, without the headings of its rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
