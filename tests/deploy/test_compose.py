"""`deploy/compose.yaml`: what no schema knows of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from broker_common.settings import Process, Settings
from deploy.dev.processes import ROOT
from tests.deploy.environments import GUNICORN, PORTS, PROCESSES, accepted, graceful_timeout_sec, longest_task_sec
from tests.http_server import Handler, serving

COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROMETHEUS = ROOT / "deploy" / "prometheus"


def scrape_configs(name: str) -> dict[str, dict[str, Any]]:
    """Return the jobs of one of Prometheus' configurations by their names."""
    jobs = yaml.safe_load((PROMETHEUS / name).read_text())["scrape_configs"]
    return {job.pop("job_name"): job for job in jobs}


USERS = {"redis": (999, 1000), "prometheus": (65534, 65534), "grafana": (472, 0)}
"""User and group of each image of others that writes elsewhere than in /tmp, by the image's Dockerfile."""


def directories(name: str) -> dict[str, dict[str, str]]:
    """Return where a service can write, each with the options of its mount."""
    mounts = [mount.partition(":") for mount in SERVICES[name]["tmpfs"]]
    return {path: dict(option.partition("=")[::2] for option in options.split(",")) for path, _, options in mounts}


def test_every_part_of_a_broker_is_there() -> None:
    assert set(SERVICES) == {
        *(
            "api",
            "console",
            "worker-jobs",
            "worker-deletions",
            "worker-webhooks",
            "beat",
            "flower",
            "table",
            "first-sync",
        ),
        *("dynamodb", "redis", "csp", "prometheus", "grafana"),
    }


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_accepts_its_environment(process: str) -> None:
    service = SERVICES[process]
    assert service["command"] == [process]
    settings = accepted(process, service.get("environment", {}))
    if process != "console":
        assert settings.redis_url == "redis://redis:6379/0"


def test_the_console_gets_the_address_of_the_api_and_no_access_to_anything_else() -> None:
    console, api = (accepted(each, SERVICES[each]["environment"]) for each in ("console", "api"))
    assert SERVICES["console"]["environment"] == {
        "BROKER_ENV": "development",
        "BROKER_API_URL": f"http://api:{api.api_port}{api.api_base_path}",
    }
    assert SERVICES["console"]["ports"] == [f"127.0.0.1:{console.console_port}:{console.console_port}"]


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


def test_a_service_that_waits_for_another_waits_for_what_it_will_say() -> None:
    for name, service in SERVICES.items():
        for other, needs in service.get("depends_on", {}).items():
            ends_by_itself = SERVICES[other]["restart"].startswith("on-failure:")
            expected = "service_completed_successfully" if ends_by_itself else "service_healthy"
            assert needs["condition"] == expected, f"{name} waits for {other}"
            # the broker's own image has a health check
            assert ends_by_itself or "healthcheck" in SERVICES[other] or other in PROCESSES


def test_nothing_is_published_but_on_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 5
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []
    assert [service for service in SERVICES.values() if "network_mode" in service] == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert "/tmp" in directories(name)  # noqa: S108 - a container's own
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_can_write_belongs_to_its_user(name: str) -> None:
    """An engine makes a tmpfs root's, with the mode of the image's directory; /tmp is everybody's by that mode."""
    others = {path: options for path, options in directories(name).items() if path != "/tmp"}  # noqa: S108 - its own
    assert bool(others) == (name in USERS)
    for options in others.values():
        assert (int(options["uid"]), int(options["gid"])) == USERS[name]


def test_only_what_loads_a_library_that_it_unpacks_can_execute_what_it_writes() -> None:
    executable = {name for name in SERVICES for options in directories(name).values() if "exec" in options}
    assert executable == {"dynamodb"}


def test_what_a_program_is_told_to_write_is_where_it_can() -> None:
    prometheus = SERVICES["prometheus"]
    (path,) = [word.partition("=")[2] for word in prometheus["command"] if word.startswith("--storage.tsdb.path=")]
    assert path in directories("prometheus")
    assert SERVICES["redis"]["command"][1:] == ["--save", "", "--appendonly", "no"], "nothing is written to /data"


def listing_tables(status: int) -> tuple[int, list[tuple[str, str, bytes]]]:
    """Run the health check of DynamoDB Local against a server that answers with a status; its exit code, and the calls."""
    calls: list[tuple[str, str, bytes]] = []

    class Store(Handler):
        def reply(self) -> None:
            calls.append((self.command, self.headers["X-Amz-Target"], self.read_body()))
            self.answer(status, b"{}")

    with serving(Store) as server:
        command = [word.replace(":8000", f":{server.server_port}") for word in health_check("dynamodb")]
        return subprocess.run(command, check=False, timeout=30).returncode, calls


def health_check(name: str) -> list[str]:
    test: list[str] = SERVICES[name]["healthcheck"]["test"]
    assert test[0] == "CMD"
    return test[1:]


@pytest.mark.skipif(not shutil.which("curl") and os.environ.get("CI") != "true", reason="needs: apt-get install curl")
def test_dynamodb_local_is_healthy_only_if_it_lists_its_tables(dynamodb_local_url: str) -> None:
    exit_code, calls = listing_tables(500)
    assert exit_code != 0
    assert calls == [("POST", "DynamoDB_20120810.ListTables", b"{}")]
    real = [word.replace("http://127.0.0.1:8000", dynamodb_local_url) for word in health_check("dynamodb")]
    assert subprocess.run(real, check=False, timeout=30).returncode == 0


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
    for served in GUNICORN:
        service = SERVICES[served]
        limit = graceful_timeout_sec(served, service["environment"])
        assert int(service["stop_grace_period"].removesuffix("s")) > limit
    for queue in ("deletions", "webhooks"):
        worker = SERVICES[f"worker-{queue}"]
        assert int(worker["stop_grace_period"].removesuffix("s")) > longest_task_sec(worker["environment"], [queue])


def test_prometheus_scrapes_every_process_under_the_jobs_that_the_alerts_ask_for() -> None:
    here, elsewhere = scrape_configs("compose.yml"), scrape_configs("prometheus.yml")
    assert list(here) == list(elsewhere)
    for name, job in here.items():
        assert job.get("honor_labels") == elsewhere[name].get("honor_labels")
        (found,) = job["dns_sd_configs"]
        kinds = [process for process in PROCESSES if process.startswith(name.removeprefix("broker-"))]
        assert (found["names"], {found["port"]}) == (kinds, {PORTS[process] for process in kinds})
        for label in job.get("relabel_configs", []):
            assert (label["source_labels"], label["target_label"]) == (["__meta_dns_name"], "queues")
            matches = [re.fullmatch(label["regex"], kind) for kind in kinds]
            assert [each and each.expand(label["replacement"].replace("$", "\\")) for each in matches] == [
                target["labels"]["queues"] for target in elsewhere[name]["static_configs"]
            ]


@pytest.mark.parametrize("name", ["worker-jobs", "worker-deletions"])
def test_a_worker_can_call_the_mock_provider(name: str) -> None:
    worker, csp = SERVICES[name]["environment"], SERVICES["csp"]["environment"]
    assert worker["CSP_BASE_URL"] == f"http://csp:{csp['MOCK_CSP_PORT']}"
    assert worker["CSP_API_TOKEN"] == csp["MOCK_CSP_TOKEN"]
    assert worker["CSP_SERVICES_EMAIL"] == csp["MOCK_CSP_EMAIL"]
    assert worker["CSP_SERVICES_PASSWORD"] == csp["MOCK_CSP_PASSWORD"]
    assert csp["MOCK_CSP_BIND"] == "0.0.0.0"  # noqa: S104 - of its container
