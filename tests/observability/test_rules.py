"""The rules and alerts by themselves: valid, tested one by one, and each alert with something to do about it."""

from __future__ import annotations

import re
import subprocess

import pytest

from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import Daily
from tests.observability.deployed import PROMETHEUS, RUNBOOK, rule_tests, rules

ALERTS = sorted({rule["alert"] for rule in rules("alert")})
RECORDS = sorted({rule["record"] for rule in rules("record")})


def check(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["prometheus.yml", "compose.yml"])
def test_prometheus_takes_the_configuration_and_its_rules(promtool: str, name: str) -> None:
    check(promtool, "check", "config", str(PROMETHEUS / name))


@pytest.mark.parametrize("name", ["prometheus.yml", "compose.yml"])
def test_every_file_of_rules_is_loaded_by_the_configuration(promtool: str, name: str) -> None:
    check(promtool, "check", "rules", *map(str, PROMETHEUS.glob("*.rules.yml")))
    configuration = (PROMETHEUS / name).read_text()
    assert [path.name for path in PROMETHEUS.glob("*.rules.yml") if path.name not in configuration] == []


def test_the_rules_do_what_their_tests_say(promtool: str) -> None:
    check(promtool, "test", "rules", *map(str, PROMETHEUS.glob("*.test.yml")))


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tested_firing_and_silent(alert: str) -> None:
    cases = [case for test in rule_tests() for case in test.get("alert_rule_test", []) if case["alertname"] == alert]
    assert {bool(case["exp_alerts"]) for case in cases} == {True, False}


@pytest.mark.parametrize("record", RECORDS)
def test_a_recording_rule_is_tested_by_a_value(record: str) -> None:
    cases = [case for test in rule_tests() for case in test.get("promql_expr_test", []) if case["exp_samples"]]
    assert [case for case in cases if re.search(rf"(?<![\w:]){re.escape(record)}(?![\w:])", case["expr"])]


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_is_wrong_what_to_do_next_and_where_to_read_on(alert: str) -> None:
    headings = re.findall(r"^### (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    anchors = {heading.lower() for heading in headings}
    for rule in rules("alert"):
        if rule["alert"] == alert:
            assert rule["labels"]["severity"] in {"critical", "warning"}
            assert rule["annotations"]["summary"]
            assert re.search(r" Next: \w.+\.$", rule["annotations"]["description"])
            assert rule["annotations"]["runbook_url"] == f"deploy/RUNBOOK.md#{alert.lower()}"
            assert alert.lower() in anchors


@pytest.mark.parametrize("alert", ALERTS)
def test_a_section_of_the_runbook_says_how_to_see_it_what_to_do_and_when_it_is_over(alert: str) -> None:
    section = RUNBOOK.read_text().split(f"### {alert}\n")[1].split("\n##")[0]
    for part in ("**Means**", "**See**", "**Do**", "**Over**"):
        assert section.count(part) == 1
    assert "`" in section


def test_the_runbook_knows_no_alert_that_there_is_not() -> None:
    assert sorted(re.findall(r"^### (.+)$", RUNBOOK.read_text(), re.MULTILINE)) == ALERTS


def test_every_job_is_overdue_after_the_time_that_the_registry_says() -> None:
    threshold = "job:broker_job_overdue_seconds:threshold"
    found = {rule["labels"]["job"]: rule["expr"] for rule in rules("record") if rule["record"] == threshold}
    assert found == {name: f"vector({job.overdue_sec})" for name, job in JOBS.items()}


def test_a_job_that_never_succeeded_gets_a_day_if_it_is_daily_and_its_first_intervals_if_not() -> None:
    daily = "|".join(name for name, job in JOBS.items() if isinstance(job.schedule, Daily))
    found = {rule["expr"]: rule["for"] for rule in rules("alert") if rule["alert"] == "BrokerJobNeverSucceeded"}
    waits = {re.findall(r'threshold{job(\S+)"(.+?)"}', expr)[0]: wait for expr, wait in found.items()}
    assert waits == {("!~", daily): "30m", ("=~", daily): "26h"}
    longest = max(job.overdue_sec for job in JOBS.values() if not isinstance(job.schedule, Daily))
    assert longest <= 30 * 60
