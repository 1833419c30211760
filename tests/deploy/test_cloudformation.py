"""`deploy/cloudformation/broker.yaml`: the code's table and the policies of `deploy/iam`, with what guards them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from broker_common.adapters.dynamo_items import TTL
from broker_common.adapters.dynamo_table import INDEX, table_definition
from deploy.dev.processes import ROOT

TEMPLATE = yaml.safe_load((ROOT / "deploy" / "cloudformation" / "broker.yaml").read_text())
RESOURCES: dict[str, dict[str, Any]] = TEMPLATE["Resources"]
TABLE_NAME = TEMPLATE["Parameters"]["TableName"]["Default"]
TABLE_ARN = f"arn:aws:dynamodb:*:*:table/{TABLE_NAME}"
COUNTED = {
    "BatchExecuteStatement",
    "BatchGetItem",
    "BatchWriteItem",
    "DeleteItem",
    "ExecuteStatement",
    "ExecuteTransaction",
    "GetItem",
    "PutItem",
    "Query",
    "Scan",
    "TransactGetItems",
    "TransactWriteItems",
    "UpdateItem",
}
"""The operations that AWS counts. Source: "DynamoDB metrics and dimensions", Operation, in the developer guide."""
NOT_COUNTED = {"CreateTable", "DescribeTable", "DescribeTimeToLive", "UpdateTimeToLive"}
"""Those that describe or make the table. That page does not have them."""
MOST_METRICS = 10
"""Of an alarm on an expression. Source: "Limits" of alarms in the CloudWatch user guide: it cannot be raised."""


def resolved(value: Any) -> Any:
    """Return a part of the template with its references to the table resolved."""
    if isinstance(value, list):
        return [resolved(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value in ({"Ref": "TableName"}, {"Ref": "Table"}):
        return TABLE_NAME
    if value == {"Fn::GetAtt": ["Table", "Arn"]}:
        return TABLE_ARN
    if "Fn::Sub" in value:
        return value["Fn::Sub"].replace("${Table.Arn}", TABLE_ARN)
    return {name: resolved(each) for name, each in value.items()}


def alarms() -> dict[str, dict[str, Any]]:
    """Return the properties of the alarms."""
    found = {name: each for name, each in RESOURCES.items() if each["Type"] == "AWS::CloudWatch::Alarm"}
    return {name: resolved(each["Properties"]) for name, each in found.items()}


def dimensions(alarm: dict[str, Any]) -> list[dict[str, str]]:
    """Return the dimensions of each metric that an alarm looks at."""
    stats = [metric["MetricStat"]["Metric"] for metric in alarm.get("Metrics", []) if "MetricStat" in metric]
    return [{each["Name"]: each["Value"] for each in metric["Dimensions"]} for metric in stats or [alarm]]


def test_the_table_is_the_one_that_the_code_creates_and_its_data_is_kept() -> None:
    table = RESOURCES["Table"]
    kept = {
        "DeletionProtectionEnabled": True,
        "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True},
    }
    # Not among the arguments of CreateTable: `broker table create` turns it on by another call.
    removes_facts = {"TimeToLiveSpecification": {"AttributeName": TTL, "Enabled": True}}
    assert resolved(table["Properties"]) == table_definition("SandboxPool") | kept | removes_facts
    assert (table["DeletionPolicy"], table["UpdateReplacePolicy"]) == ("Retain", "Retain")


@pytest.mark.parametrize("process", ["api", "worker", "operator"])
def test_a_policy_is_the_one_that_was_seen_to_be_needed(process: str) -> None:
    policy = RESOURCES[f"{process.title()}Policy"]
    assert policy["Type"] == "AWS::IAM::ManagedPolicy"
    seen = json.loads((ROOT / "deploy" / "iam" / f"{process}.json").read_text())
    assert resolved(policy["Properties"]["PolicyDocument"]) == seen


def test_there_is_no_policy_beside_those() -> None:
    named = {path.stem for path in (ROOT / "deploy" / "iam").glob("*.json")}
    policies = [name for name, each in RESOURCES.items() if "IAM" in each["Type"]]
    assert sorted(policies) == sorted(f"{name.title()}Policy" for name in named)


def test_every_alarm_looks_at_the_table_or_its_index_and_tells_somebody() -> None:
    assert len(alarms()) == 7
    for name, alarm in alarms().items():
        for found in dimensions(alarm):
            assert found.pop("TableName") == TABLE_NAME, name
            assert found.pop("GlobalSecondaryIndexName", INDEX) == INDEX, name
            assert set(found) <= {"Operation"}, name
        assert alarm["AlarmActions"] == alarm["OKActions"] == [{"Ref": "AlarmTopicArn"}]


def test_throttling_is_reported_for_the_table_and_for_the_index_for_reads_and_writes() -> None:
    watched = {
        (alarm["MetricName"], "GlobalSecondaryIndexName" in found)
        for alarm in alarms().values()
        if "Throttle" in alarm.get("MetricName", "")
        for found in dimensions(alarm)
    }
    metrics = ("ReadThrottleEvents", "WriteThrottleEvents")
    assert watched == {(metric, of_index) for metric in metrics for of_index in (False, True)}


def test_failures_are_reported_for_every_operation_that_the_policies_allow_and_aws_counts() -> None:
    policies = [json.loads(path.read_text()) for path in (ROOT / "deploy" / "iam").glob("*.json")]
    statements = [statement for policy in policies for statement in policy["Statement"]]
    allowed = {action.removeprefix("dynamodb:") for statement in statements for action in statement["Action"]}
    assert allowed - COUNTED <= NOT_COUNTED, "an operation that AWS is not known to count, or not to count"
    counted = [found["Operation"] for found in dimensions(alarms()["DynamoDbFails"])]
    # It needs the permissions of what is in it, and has none of its own.
    assert sorted(counted) == sorted(allowed & COUNTED | {"TransactWriteItems"})


def test_no_alarm_has_more_metrics_than_aws_allows() -> None:
    assert {name for name, alarm in alarms().items() if len(dimensions(alarm)) > MOST_METRICS} == set()
