"""`deploy/compose.yaml`: what no schema knows of it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from broker_common.settings import Process, Settings
from deploy.dev.processes import ROOT
from tests.deploy.environments import PORTS, PROCESSES, accepted, graceful_timeout_sec, longest_task_sec

COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROMETHEUS = ROOT / "deploy" / "prometheus"


def scrape_configs(name: str) -> dict[str, dict[str, Any]]:
    """Return the jobs of one of Prometheus' configurations by their names."""
    jobs = yaml.safe_load((PROMETHEUS / name).read_text())["scrape_configs"]
    return {job.pop("job_name"): job for job in jobs}


def test_every_part_of_a_broker_is_there() -> None:
    assert set(SERVICES) == {
        *("api", "worker", "beat", "flower", "table", "first-sync"),
        *("dynamodb", "redis", "csp", "prometheus", "grafana"),
    }


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_accepts_its_environment(process: str) -> None:
    service = SERVICES[process]
    assert service["command"] == [process]
    settings = accepted(process, service.get("environment", {}))
    assert settings.redis_url == "redis://redis:6379/0"


def test_what_prepares_the_table_and_the_pool_has_what_it_reads() -> None:
    table, api = SERVICES["table"]["environment"], SERVICES["api"]["environment"]
    assert set(table) - {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} == {"DDB_ENDPOINT_URL"}
    created = Settings.from_env(table, process=Process.TOOL)
    used = accepted("api", api)
    assert (created.ddb_table_name, created.ddb_endpoint_url) == (used.ddb_table_name, used.ddb_endpoint_url)
    operator = SERVICES["first-sync"]["environment"]
    assert set(operator) == {"BROKER_API_URL", "BROKER_ADMIN_TOKEN"}
    assert operator["BROKER_API_URL"] == f"http://api:{used.api_port}{used.api_base_path}"
    assert operator["BROKER_ADMIN_TOKEN"] == api["BROKER_ADMIN_TOKEN"]


def test_whatever_waits_for_a_service_waits_for_what_it_will_say() -> None:
    for name, service in SERVICES.items():
        for other, needs in service.get("depends_on", {}).items():
            ends_by_itself = SERVICES[other]["restart"] == "no"
            expected = "service_completed_successfully" if ends_by_itself else "service_healthy"
            assert needs["condition"] == expected, f"{name} waits for {other}"
            # the broker's own image has a health check
            assert ends_by_itself or "healthcheck" in SERVICES[other] or other in PROCESSES


def test_nothing_is_published_but_on_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 4
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []
    assert [service for service in SERVICES.values() if "network_mode" in service] == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]  # noqa: S108 - a container's own
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_every_image_of_others_is_pinned() -> None:
    tags = [service["image"].partition(":")[2] for service in SERVICES.values() if "build" not in service]
    assert len(tags) == 4
    assert [tag for tag in tags if not any(character.isdigit() for character in tag)] == []


def test_every_file_that_is_mounted_is_there() -> None:
    mounted = [volume.split(":") for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert len(mounted) == 4
    for source, _, mode in mounted:
        assert (ROOT / "deploy" / source).exists(), source
        assert mode == "ro"


def test_a_process_has_as_long_to_stop_as_it_may_take() -> None:
    api, worker = SERVICES["api"], SERVICES["worker"]
    assert int(api["stop_grace_period"].removesuffix("s")) > graceful_timeout_sec(api["environment"])
    assert int(worker["stop_grace_period"].removesuffix("s")) > longest_task_sec(worker["environment"], ["deletions"])


def test_prometheus_scrapes_every_process_under_the_jobs_that_the_alerts_ask_for() -> None:
    here, elsewhere = scrape_configs("compose.yml"), scrape_configs("prometheus.yml")
    assert list(here) == list(elsewhere)
    for name, job in here.items():
        assert job.get("honor_labels") == elsewhere[name].get("honor_labels")
        (found,) = job["dns_sd_configs"]
        process = name.removeprefix("broker-")
        assert (found["names"], found["port"]) == ([process], PORTS[process])


def test_the_worker_can_call_the_mock_provider() -> None:
    worker, csp = SERVICES["worker"]["environment"], SERVICES["csp"]["environment"]
    assert worker["CSP_BASE_URL"] == f"http://csp:{csp['MOCK_CSP_PORT']}"
    assert worker["CSP_API_TOKEN"] == csp["MOCK_CSP_TOKEN"]
    assert csp["MOCK_CSP_BIND"] == "0.0.0.0"  # noqa: S104 - of its container
