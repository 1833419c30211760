"""The manifests under `deploy/kubernetes`: what no schema knows of them, and that each has a schema that finds typos."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from functools import cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from redis import Redis

from broker_common.adapters.public_address import is_public
from broker_common.settings import Settings
from deploy.dev import kubernetes_lint
from deploy.dev.kubernetes_lint import find_faults
from deploy.dev.processes import ROOT
from tests.backends import empty_database
from tests.console.harness import make_console
from tests.deploy.environments import (
    A_TOKEN,
    GUNICORN,
    PORTS,
    QUEUES,
    accepted,
    graceful_timeout_sec,
    longest_task_sec,
    output_of,
)
from tests.deploy.test_compose import scrape_configs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BASE = ROOT / "deploy" / "kubernetes" / "base"
OVERLAY = ROOT / "deploy" / "kubernetes" / "overlays" / "example"
_DATABASE = 12
SECRETS = {
    ("broker-redis", "url"): "rediss://:password@redis.example.com:6379/0",
    ("broker-provider", "token"): "provider",
    ("broker-flower", "basic-auth"): "user:password",
    ("broker-console", "secret-key"): A_TOKEN,
}

Object = dict[str, Any]


def kustomization(directory: Path) -> Object:
    found: Object = yaml.safe_load((directory / "kustomization.yaml").read_text())
    return found


@cache
def base_objects() -> list[Object]:
    files = [BASE / name for name in kustomization(BASE)["resources"]]
    return [each for file in files for each in yaml.safe_load_all(file.read_text())]


def objects(kind: str | None = None) -> dict[str, Object]:
    """Return the objects of the base, of one kind by their names, or all of them by kind and name."""
    found = base_objects()
    if kind is None:
        named = {f"{each['kind']}/{each['metadata']['name']}": each for each in found}
    else:
        named = {each["metadata"]["name"]: each for each in found if each["kind"] == kind}
    assert len(named) == len([each for each in found if kind in {None, each["kind"]}]), "a name is there twice"
    return named


DEPLOYMENTS = objects("Deployment")


def pod(name: str) -> Object:
    found: Object = DEPLOYMENTS[name]["spec"]["template"]["spec"]
    return found


def container(name: str) -> Object:
    (only,) = pod(name)["containers"]
    assert isinstance(only, dict)
    return only


def process(name: str) -> str:
    """Return which command of the image a Deployment runs."""
    return str(container(name)["args"][0])


def queues(name: str) -> list[str]:
    """Return the queues of a worker's Deployment."""
    return [process(name).removeprefix("worker-")]


def selects(selector: Object, labels: Object) -> bool:
    """Tell whether a label selector selects these labels."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    expressions = selector.get("matchExpressions", [])
    assert {each["operator"] for each in expressions} <= {"In"}
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )


def pods_of(selector: Object) -> list[str]:
    """Return the Deployments whose pods a selector selects."""
    labels = {name: each["spec"]["template"]["metadata"]["labels"] for name, each in DEPLOYMENTS.items()}
    return [name for name in DEPLOYMENTS if selects(selector, labels[name])]


def ports_of(name: str) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container(name)["ports"]}


def settings_of_the_example() -> dict[str, str]:
    """Return the ConfigMap of base and overlay, merged."""
    merged: dict[str, str] = {}
    for directory in (BASE, OVERLAY):
        (generator,) = kustomization(directory)["configMapGenerator"]
        assert generator["name"] == "broker-settings"
        (file,) = generator["envs"]
        lines = (directory / file).read_text().splitlines()
        merged |= dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return merged


def environment(name: str, tokens: Path) -> dict[str, str]:
    """Return what a container is given in the example, with stand-ins for secrets, token files in a directory."""
    given = container(name)
    assert given["envFrom"] == [{"configMapRef": {"name": "broker-settings"}}]
    environ = settings_of_the_example()
    for variable in given["env"]:
        if "value" in variable:
            environ[variable["name"]] = variable["value"]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            if reference.get("optional"):
                continue
            environ[variable["name"]] = SECRETS[reference["name"], reference["key"]]
    mounts = {mount["name"]: mount["mountPath"] for mount in given["volumeMounts"]}
    for volume in pod(name)["volumes"]:
        secret = volume.get("secret", {})
        for item in [] if secret.get("optional") else secret.get("items", []):
            mounted = f"{mounts[volume['name']]}/{item['path']}"
            (variable,) = [key for key, value in environ.items() if value == mounted]
            environ[variable] = str(tokens / item["key"])
    return environ


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    (tmp_path / "track").write_text(A_TOKEN)
    (tmp_path / "admin").write_text(A_TOKEN[::-1])
    return tmp_path


@pytest.mark.parametrize("directory", [BASE, OVERLAY], ids=["base", "example"])
def test_a_kustomization_lists_every_file_beside_it_and_no_other(directory: Path) -> None:
    listed = kustomization(directory)
    here = [name for name in listed["resources"] if "/" not in name]
    here += [patch["path"] for patch in listed.get("patches", [])]
    here += [file for generator in listed["configMapGenerator"] for file in generator["envs"]]
    assert sorted(here) == sorted(path.name for path in directory.iterdir() if path.name != "kustomization.yaml")


def test_the_example_is_made_of_the_base_and_changes_what_is_there() -> None:
    listed = kustomization(OVERLAY)
    assert [(OVERLAY / name).resolve() for name in listed["resources"] if "/" in name] == [BASE]
    assert [image["name"] for image in listed["images"]] == [container(next(iter(DEPLOYMENTS)))["image"]]
    for patch in listed["patches"]:
        for each in yaml.safe_load_all((OVERLAY / patch["path"]).read_text()):
            assert f"{each['kind']}/{each['metadata']['name']}" in objects()
    hosts = set()
    for file, name in (("ingress.yaml", "broker-api"), ("ingress-console.yaml", "broker-console")):
        ingress, rule = ingress_of(file)
        for path in rule["http"]["paths"]:
            backend = path["backend"]["service"]
            assert backend["name"] == name
            assert backend["port"]["name"] in [port["name"] for port in objects("Service")[name]["spec"]["ports"]]
        assert [entry["hosts"] for entry in ingress["spec"]["tls"]] == [[rule["host"]]]
        hosts.add(rule["host"])
    assert len(hosts) == 2, "the cookie of the console is for its host, and the API must not get it"


def ingress_of(file: str) -> tuple[Object, Object]:
    """Return an Ingress of the example, and its one rule."""
    (ingress,) = yaml.safe_load_all((OVERLAY / file).read_text())
    (rule,) = ingress["spec"]["rules"]
    return ingress, rule


def is_let_in(rule: Object, path: str) -> bool:
    """Tell whether an Ingress' rule passes this path: by the elements of the path, as Kubernetes has it."""
    return any(
        path == each["path"] or (each["pathType"] == "Prefix" and f"{path}/".startswith(f"{each['path']}/"))
        for each in rule["http"]["paths"]
    )


def test_the_example_lets_in_the_calls_of_the_api_and_the_pages_of_the_console_and_nothing_else() -> None:
    _, rule = ingress_of("ingress.yaml")
    assert [each["path"] for each in rule["http"]["paths"]] == [Settings().api_base_path]
    _, rule = ingress_of("ingress-console.yaml")
    kept_inside = {"/healthz", "/readyz", "/metrics"}
    routes = {str(each) for each in make_console().app.url_map.iter_rules()}
    assert kept_inside < routes
    assert {route for route in routes if not is_let_in(rule, route)} == kept_inside


@pytest.fixture
def kubectl() -> str:
    """Return the path of kubectl. If it is missing, skip the test, or fail it in CI."""
    path = kubernetes_lint.find_kubectl()
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("kubectl is missing")
        pytest.skip("kubectl is missing")
    return path


def test_kustomize_makes_of_them_what_this_file_takes_them_for(kubectl: str) -> None:
    made = kubernetes_lint.kustomize(kubectl, OVERLAY)
    found = {f"{each['kind']}/{each['metadata']['name']}": each for each in made}
    assert {each["kind"] for each in made} <= every_object().keys(), "a kind in which no typo is planted"
    (settings,) = [name for name in found if name.startswith("ConfigMap/")]
    assert set(found) == {
        *objects(),
        settings,
        "Namespace/sandbox-broker",
        "Ingress/broker-api",
        "Ingress/broker-console",
    }
    assert {each["metadata"].get("namespace") for each in found.values()} == {"sandbox-broker", None}
    assert found[settings]["data"] == settings_of_the_example()
    for name in DEPLOYMENTS:
        (only,) = found[f"Deployment/{name}"]["spec"]["template"]["spec"]["containers"]
        assert only["envFrom"] == [{"configMapRef": {"name": settings.partition("/")[2]}}]
        assert only["image"].endswith("/sandbox-broker:0.1.0")


def rule_objects() -> list[Object]:
    """Make the PrometheusRules as the comment in `monitoring.yaml` says."""
    comment = re.findall(r"^#   (.*)$", (BASE / "monitoring.yaml").read_text(), re.MULTILINE)
    script = "\n".join(comment).replace("kubectl apply -n sandbox-broker -f -", "cat")
    made = subprocess.run(["sh", "-ec", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [each for each in yaml.safe_load_all(made) if each]


def every_object() -> dict[str, Object]:
    """Return an object of each kind that is deployed, by its kind."""
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "broker-settings"}}
    others = [*rule_objects(), kustomization(OVERLAY), settings | {"data": settings_of_the_example()}]
    for file in ("ingress.yaml", "namespace.yaml"):
        others += yaml.safe_load_all((OVERLAY / file).read_text())
    return {each["kind"]: each for each in [*objects().values(), *others]}


FREE_FORM = {"data", "labels", "matchLabels", "annotations", "selector", "requests", "limits"}


def with_a_typo(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield copies of a value, in each of which another field has a typo, with that field's name."""
    if isinstance(value, list):
        for number, each in enumerate(value):
            for name, copy in with_a_typo(each):
                yield name, [*value[:number], copy, *value[number + 1 :]]
    if isinstance(value, dict):
        for name, each in value.items():
            rest = {key: other for key, other in value.items() if key != name}
            yield name, {**rest, f"{name}s": each}
            if name not in FREE_FORM:
                yield from ((inner, {**rest, name: copy}) for inner, copy in with_a_typo(each))


def test_every_object_keeps_to_the_schema_of_its_kind() -> None:
    made = {f"PrometheusRule/{each['metadata']['name']}": each for each in rule_objects()}
    assert set(made) == {"PrometheusRule/broker-recording", "PrometheusRule/broker-alerts"}
    found = {name: list(find_faults(each)) for name, each in (objects() | made).items()}
    assert {name: faults for name, faults in found.items() if faults} == {}


@pytest.mark.parametrize("kind", every_object())
def test_a_typo_in_any_field_is_found(kind: str) -> None:
    typos = [(name, copy) for name, copy in with_a_typo(every_object()[kind]) if name not in {"apiVersion", "kind"}]
    assert typos
    assert [name for name, copy in typos if not list(find_faults(copy))] == []


def test_a_kind_without_a_schema_is_a_fault() -> None:
    (fault,) = find_faults({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledJob", "metadata": {"name": "a-job"}})
    assert fault.startswith("ScaledJob a-job: keda.sh/v1alpha1/ScaledJob has no schema")


def test_the_linter_prints_each_fault_and_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert kubernetes_lint.main() == 0
    assert "0 faults found; Kustomization, ScaledObject, ServiceMonitor, TriggerAuthentication by" in (
        capsys.readouterr().out
    )
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump_all([{**objects("Service")["broker-api"], "spce": {}}] * 2))
    assert kubernetes_lint.main(tmp_path) == 1
    assert capsys.readouterr().out.count("wrong.yaml: Service broker-api: $: ") == 2


def small(directory: Path, **resources: Object) -> Path:
    """Write a base of these resources, each in its file, and an overlay of that base."""
    for name, resource in resources.items():
        (directory / "base").mkdir(parents=True, exist_ok=True)
        (directory / "base" / f"{name}.yaml").write_text(yaml.safe_dump(resource))
    for name, listed in (("base", [f"{each}.yaml" for each in resources]), ("overlay", ["../base"])):
        made = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": listed}
        (directory / name).mkdir(exist_ok=True)
        (directory / name / "kustomization.yaml").write_text(yaml.safe_dump(made))
    return directory


def test_the_linter_also_reads_what_kubectl_makes_of_the_base_and_of_the_overlay(
    kubectl: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaled = objects("ScaledObject")["broker-worker-jobs"]
    spec = {name.replace("minReplica", "minReplicas"): value for name, value in scaled["spec"].items()}
    assert kubernetes_lint.main(small(tmp_path, scaling=scaled)) == 0
    assert "5 objects checked, 0 faults found" in capsys.readouterr().out
    assert kubernetes_lint.main(small(tmp_path, scaling={**scaled, "spec": spec})) == 1
    found = {line.partition(": ")[0] for line in capsys.readouterr().out.splitlines() if "minReplicasCount" in line}
    assert found == {"base/scaling.yaml", "kubectl kustomize base", "kubectl kustomize overlay"}


def test_the_linter_fails_where_kubectl_refuses(
    kubectl: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small(tmp_path, scaling={}) / "base" / "scaling.yaml").unlink()
    assert kubernetes_lint.main(tmp_path) == 1
    *faults, _ = capsys.readouterr().out.splitlines()
    assert [fault.partition(": error: ")[0] for fault in faults] == [
        "kubectl kustomize base",
        "kubectl kustomize overlay",
    ]
    assert "scaling.yaml" in faults[0]


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)], ids=["in CI", "elsewhere"])
def test_without_kubectl_the_linter_says_so_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, ci: str, code: int
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(kubernetes_lint, "find_kubectl", lambda: None)
    scaled = objects("ScaledObject")["broker-worker-jobs"]
    assert kubernetes_lint.main(small(tmp_path, scaling=scaled)) == code
    assert "kubectl is missing" in capsys.readouterr().out


def test_every_process_is_deployed_and_every_queue_has_a_worker() -> None:
    assert {process(name) for name in DEPLOYMENTS} == set(PORTS)
    assert sorted(
        queue for name in DEPLOYMENTS if process(name).startswith("worker-") for queue in queues(name)
    ) == sorted(QUEUES)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_process_accepts_its_environment(name: str, tokens: Path) -> None:
    settings = accepted(process(name), environment(name, tokens))
    assert settings.in_production


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_kubernetes_adds_no_variables_that_look_like_settings(name: str) -> None:
    assert pod(name)["enableServiceLinks"] is False


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_owns_its_pods_and_no_other(name: str) -> None:
    spec = DEPLOYMENTS[name]["spec"]
    assert pods_of(spec["selector"]) == [name]
    for spread in pod(name).get("topologySpreadConstraints", []):
        assert pods_of(spread["labelSelector"]) == [name]
    assert pod(name)["serviceAccountName"] in objects("ServiceAccount")
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_container_listens_and_is_probed_at_the_default_port_of_its_process(name: str) -> None:
    ((port_name, port),) = ports_of(name).items()
    assert port == PORTS[process(name)]
    path = "/healthcheck" if process(name) == "flower" else "/healthz"
    probes = {kind: container(name)[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {port_name}
    assert (probes["startup"]["path"], probes["liveness"]["path"]) == (path, path)
    assert probes["readiness"]["path"] == ("/readyz" if process(name) in GUNICORN else path)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_pod_is_confined_as_the_restricted_standard_asks(name: str) -> None:
    assert pod(name)["automountServiceAccountToken"] is False
    of_pod = pod(name)["securityContext"]
    assert of_pod["runAsNonRoot"] is True
    assert (ROOT / "deploy" / "Dockerfile").read_text().count(
        f"USER {of_pod['runAsUser']}:{of_pod['runAsGroup']}\n"
    ) == 1
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # An emptyDir, and the files of a secret, belong to root and this group.
    assert of_pod["fsGroup"] == of_pod["runAsGroup"]
    assert "/tmp" in {mount["mountPath"] for mount in container(name)["volumeMounts"]}  # noqa: S108 - a container's own
    written = {mount["name"] for mount in container(name)["volumeMounts"] if not mount.get("readOnly")}
    assert written == {volume["name"] for volume in pod(name)["volumes"] if "emptyDir" in volume}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_container_asks_for_what_it_needs(name: str) -> None:
    resources = container(name)["resources"]
    assert set(resources["requests"]) == {"cpu", "memory"}
    assert set(resources["limits"]) == {"memory"}


@pytest.mark.parametrize("served", GUNICORN)
def test_what_gunicorn_serves_has_as_long_to_stop_as_it_may_take(served: str, tokens: Path) -> None:
    name = f"broker-{served}"
    (*_, pause) = container(name).get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["0"])
    limit = int(pause) + graceful_timeout_sec(served, environment(name, tokens))
    assert pod(name)["terminationGracePeriodSeconds"] > limit


def test_the_console_calls_the_api_by_its_service_and_gets_no_secret_of_another_process(tokens: Path) -> None:
    environ = environment("broker-console", tokens)
    (service,) = [name for name in objects("Service") if environ["BROKER_API_URL"] == f"http://{name}/v1"]
    assert [port["port"] for port in objects("Service")[service]["spec"]["ports"]] == [80]
    assert pods_of({"matchLabels": objects("Service")[service]["spec"]["selector"]}) == ["broker-api"]
    references = [
        each["valueFrom"]["secretKeyRef"] for each in container("broker-console")["env"] if "valueFrom" in each
    ]
    assert {each["name"] for each in references} == {"broker-console"}
    assert [volume for volume in pod("broker-console")["volumes"] if "secret" in volume] == []


@pytest.mark.parametrize("name", ["broker-worker-jobs", "broker-worker-deletions", "broker-worker-webhooks"])
def test_a_worker_has_as_long_to_stop_as_its_longest_task_may_take(name: str, tokens: Path) -> None:
    limit = longest_task_sec(environment(name, tokens), queues(name))
    assert pod(name)["terminationGracePeriodSeconds"] > limit


def test_named_tokens_are_mounted_where_the_settings_say() -> None:
    (path,) = re.findall(r"^# BROKER_TOKENS_FILE=(.*)$", (BASE / "settings.env").read_text(), re.MULTILINE)
    mounts = {mount["name"]: mount["mountPath"] for mount in container("broker-api")["volumeMounts"]}
    optional = [volume for volume in pod("broker-api")["volumes"] if volume.get("secret", {}).get("optional")]
    assert [f"{mounts[each['name']]}/{item['path']}" for each in optional for item in each["secret"]["items"]] == [path]


def test_the_secrets_that_are_referred_to_are_those_that_the_kustomization_names() -> None:
    comment = re.findall(
        r"^#   (broker-[a-z]+) +([a-z-]+(?:, [a-z-]+)*)", (BASE / "kustomization.yaml").read_text(), re.MULTILINE
    )
    named = {(secret, key) for secret, keys in comment for key in keys.split(", ")}
    used = set()
    for name in DEPLOYMENTS:
        references = [each["valueFrom"]["secretKeyRef"] for each in container(name)["env"] if "valueFrom" in each]
        used |= {(each["name"], each["key"]) for each in references}
        secrets = [volume["secret"] for volume in pod(name)["volumes"] if "secret" in volume]
        used |= {(each["secretName"], item["key"]) for each in secrets for item in each["items"]}
    for each in objects("TriggerAuthentication").values():
        used |= {(target["name"], target["key"]) for target in each["spec"]["secretTargetRef"]}
    assert used == named
    assert [each for each in objects() if each.startswith("Secret/")] == []


@pytest.mark.parametrize("name", objects("Service"))
def test_a_service_leads_to_a_port_of_one_deployment(name: str) -> None:
    spec = objects("Service")[name]["spec"]
    (deployment,) = pods_of({"matchLabels": spec["selector"]})
    for port in spec["ports"]:
        assert port["targetPort"] in ports_of(deployment)


def test_every_deployment_of_more_than_one_pod_has_a_disruption_budget() -> None:
    budgets = [pods_of(each["spec"]["selector"]) for each in objects("PodDisruptionBudget").values()]
    assert sorted(budgets) == sorted([name] for name in DEPLOYMENTS if DEPLOYMENTS[name]["spec"].get("replicas") != 1)


def test_what_is_scaled_says_no_number_of_its_own() -> None:
    scalers = [*objects("HorizontalPodAutoscaler").values(), *objects("ScaledObject").values()]
    scaled = sorted(each["spec"]["scaleTargetRef"]["name"] for each in scalers)
    assert scaled == sorted(name for name, each in DEPLOYMENTS.items() if "replicas" not in each["spec"])


@pytest.mark.parametrize("name", objects("ScaledObject"))
def test_workers_are_scaled_by_the_list_that_their_queue_is(name: str) -> None:
    spec = objects("ScaledObject")[name]["spec"]
    assert set(spec) == {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "triggers"}
    assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
    (trigger,) = spec["triggers"]
    metadata = trigger["metadata"]
    assert (trigger["type"], set(metadata)) == ("redis", {"listName", "listLength", "databaseIndex", "enableTLS"})
    assert [metadata["listName"]] == queues(spec["scaleTargetRef"]["name"])
    assert all(isinstance(value, str) for value in metadata.values()), "KEDA reads strings"
    assert trigger["authenticationRef"]["name"] in objects("TriggerAuthentication")


def test_every_task_waits_in_a_list_of_its_queue(redis_url: str) -> None:
    url = empty_database(redis_url, _DATABASE)
    with Redis.from_url(url) as redis:
        code = """
            from broker_worker.celery_app import app
            tasks = [task for name, task in app.tasks.items() if name.startswith("broker.")]
            for task in tasks:
                task.typing = False  # no arguments are needed to see where it waits
                task.apply_async()
            print(len(tasks))"""
        sent = int(output_of(textwrap.dedent(code), {"REDIS_URL": url}))
        assert {key.decode() for key in redis.scan_iter() if redis.type(key) == b"list"} == QUEUES
        assert sum(redis.llen(key) for key in QUEUES) == sent == 9


def test_one_pod_makes_as_many_deletes_as_the_provider_may_be_asked_for() -> None:
    assert container("broker-worker-deletions")["args"] == ["worker-deletions"], "which has a thread for each"


def test_prometheus_scrapes_every_pod_under_the_jobs_that_the_alerts_ask_for() -> None:
    monitors, expected = objects("ServiceMonitor"), scrape_configs("prometheus.yml")
    assert set(monitors) == set(expected)
    scraped: list[str] = []
    queues: list[str] = []
    for name, monitor in monitors.items():
        assert set(monitor["spec"]) == {"selector", "endpoints"}
        (endpoint,) = monitor["spec"]["endpoints"]
        assert set(endpoint) <= {"port", "interval", "honorLabels", "relabelings"}
        job, *labels = endpoint["relabelings"]
        assert job == {"targetLabel": "job", "replacement": name}
        assert endpoint.get("honorLabels") == expected[name].get("honor_labels")
        services = [
            each["spec"]
            for each in objects("Service").values()
            if selects(monitor["spec"]["selector"], each["metadata"]["labels"])
        ]
        for spec in services:
            (deployment,) = pods_of({"matchLabels": spec["selector"]})
            assert process(deployment).startswith(name.removeprefix("broker-"))
            (port,) = [port for port in spec["ports"] if port["name"] == endpoint["port"]]
            assert port["targetPort"] in ports_of(deployment)
            scraped.append(deployment)
            assert [label["targetLabel"] for label in labels] == (["queues"] if name == "broker-worker" else [])
            for label in labels:
                assert label["sourceLabels"] == ["__meta_kubernetes_service_label_app_kubernetes_io_component"]
                component = spec["selector"]["app.kubernetes.io/component"]
                found = re.fullmatch(label["regex"], component)
                assert found is not None
                queues.append(found.expand(label["replacement"].replace("$", "\\")))
    assert sorted(queues) == sorted(QUEUES)
    assert sorted(scraped) == sorted(DEPLOYMENTS)


def open_to(name: str, direction: str) -> list[Object]:
    """Return the rules of all NetworkPolicies that hold for a Deployment's pods."""
    specs = [each["spec"] for each in objects("NetworkPolicy").values()]
    return [rule for spec in specs if name in pods_of(spec["podSelector"]) for rule in spec.get(direction, [])]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_everything_is_closed_but_what_a_process_needs(name: str) -> None:
    closed = objects("NetworkPolicy")["broker-deny-all"]["spec"]
    assert name in pods_of(closed["podSelector"])
    assert closed["policyTypes"] == ["Ingress", "Egress"]
    assert set(closed) == {"podSelector", "policyTypes"}
    out = {port["port"] for rule in open_to(name, "egress") for port in rule["ports"]}
    others: dict[str, set[int | str]] = {"flower": {6379}, "worker-webhooks": {6379, 1}, "console": {443, "http"}}
    traces = set() if process(name) == "flower" else {4318}
    assert out == {53, *others.get(process(name), {6379, 443}), *traces}


def test_traces_go_to_pods_of_a_collector_alone() -> None:
    (rule,) = [rule for rule in open_to("broker-api", "egress") if rule["ports"][0]["port"] == 4318]
    assert rule["to"] == [
        {
            "namespaceSelector": {},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "opentelemetry-collector"}},
        }
    ]


def test_the_console_reaches_of_all_pods_the_apis_alone() -> None:
    (rule,) = [rule for rule in open_to("broker-console", "egress") if rule["ports"][0]["port"] == "http"]
    (target,) = rule["to"]
    assert pods_of(target["podSelector"]) == ["broker-api"]


def test_the_sender_of_webhooks_reaches_all_of_the_internet_and_nothing_inside() -> None:
    (rule,) = [rule for rule in open_to("broker-worker-webhooks", "egress") if rule["ports"][0]["port"] == 1]
    assert rule["ports"] == [{"protocol": "TCP", "port": 1, "endPort": 65535}]
    blocks = [each["ipBlock"] for each in rule["to"]]

    def is_reached(address: str) -> bool:
        return any(
            ip_address(address) in ip_network(block["cidr"])
            and not any(ip_address(address) in ip_network(each) for each in block.get("except", []))
            for block in blocks
        )

    for address in ("8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700:4700::1111"):
        assert is_reached(address), address
    for address in ("10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "127.0.0.1", "fd00::1"):
        assert not is_reached(address), address
        assert not is_public(ip_address(address))


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_only_prometheus_reaches_a_pod_and_of_api_and_console_the_ingress(name: str) -> None:
    (port,) = ports_of(name)
    callers = [
        source["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        if "namespaceSelector" in source
        else ", ".join(pods_of(source["podSelector"]))
        for rule in open_to(name, "ingress")
        if port in [each["port"] for each in rule["ports"]]
        for source in rule["from"]
    ]
    others = {"api": ["broker-console", "ingress-nginx"], "console": ["ingress-nginx"]}.get(process(name), [])
    assert sorted(callers) == sorted([*others, "monitoring"])
