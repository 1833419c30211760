"""The AWS CLI with the files under `deploy/`, in two emulators of AWS: the stack, a broker on its table, the definitions.

What the emulators leave out, and no test here shows: the table's backups and the removal of old facts (both make the
table without them; `broker table create` turns on the second), and whether AWS accepts each value. ministack has no
alarms on expressions, and deletes what is to be retained. moto accepts the whole template, but makes no alarm of it.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from broker_common.adapters.dynamo_items import TTL
from broker_common.adapters.dynamo_table import table_definition
from deploy.dev import programs
from deploy.dev.plan import LOOPBACK
from deploy.dev.processes import ROOT, Program, free_ports
from tests.backends import AWS_ENVIRONMENT, running
from tests.deploy.test_cloudformation import RESOURCES, TABLE_ARN, TABLE_NAME, TEMPLATE, resolved
from tests.deploy.test_ecs import TASKS
from tests.e2e.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.dev.plan import Plan

Object = dict[str, Any]

FILE = "deploy/cloudformation/broker.yaml"
SERVICES = ("cloudformation", "cloudwatch", "dynamodb", "ecs", "iam", "sns")
ON_EXPRESSIONS = {name for name, each in RESOURCES.items() if "Metrics" in each["Properties"]}
MADE = RESOURCES.keys() - ON_EXPRESSIONS


@dataclass(frozen=True)
class Aws:
    """The AWS CLI, as it calls an emulator."""

    url: str
    topic: str = "arn:aws:sns:us-east-1:000000000000:alarms"

    def __call__(self, *words: str) -> Any:
        """Return what a command prints: of JSON its value, otherwise None. The command has to succeed."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.startswith("{") else None

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Return a command that has ended."""
        own = {"PATH": str(Path(sys.executable).parent), "AWS_ENDPOINT_URL": self.url, "AWS_PAGER": ""}
        command = ["aws", *words]
        return subprocess.run(
            command, cwd=ROOT, env=AWS_ENVIRONMENT | own, capture_output=True, text=True, check=False, timeout=100
        )

    def deploy(self, *overrides: str, stack: str = "sandbox-broker", file: Path | str = FILE) -> None:
        """Create or change a stack by the command at the top of the template."""
        (told,) = re.findall(r"^#   (aws .*\\\n#.*)$", (ROOT / FILE).read_text(), re.MULTILINE)
        program, *words = shlex.split(told.replace("\\\n#", ""))
        assert program == "aws"
        named = {FILE: str(file), "sandbox-broker": stack, "AlarmTopicArn=arn:aws:sns:...": ""}
        assert named.keys() <= set(words)
        self(*filter(None, (named.get(word, word) for word in words)), f"AlarmTopicArn={self.topic}", *overrides)

    def events(self, stack: str = "sandbox-broker") -> list[tuple[str, str, str]]:
        """Return (name, type, status) of each event of a stack. Those of one moment are in no order."""
        found = self("cloudformation", "describe-stack-events", "--stack-name", stack)["StackEvents"]
        return [(each["LogicalResourceId"], each["ResourceType"], each["ResourceStatus"]) for each in found]

    def outputs(self) -> dict[str, str]:
        """Return the outputs of the stack."""
        (stack,) = self("cloudformation", "describe-stacks", "--stack-name", "sandbox-broker")["Stacks"]
        return {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}

    def table(self, name: str = TABLE_NAME) -> Object:
        """Return the description of a table."""
        found: Object = self("dynamodb", "describe-table", "--table-name", name)["Table"]
        return found

    def alarms(self) -> dict[str, Object]:
        """Return the alarms by their names in the template, or by their own, if no stack made them."""
        found = self("cloudwatch", "describe-alarms")["MetricAlarms"]
        return {(re.findall(r"-([A-Za-z]+)-", each["AlarmName"]) or [each["AlarmName"]])[-1]: each for each in found}


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """Run ministack with what the stack needs."""
    program = programs.ministack(free_ports(1)[0], tmp_path_factory.mktemp("ministack"))
    with running(replace(program, env={**program.env, "SERVICES": ",".join(SERVICES)})) as address:
        yield Aws(f"http://{address}")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the template without what ministack lacks."""
    path = tmp_path_factory.mktemp("template") / "broker.yaml"
    path.write_text(yaml.safe_dump(TEMPLATE | {"Resources": {name: RESOURCES[name] for name in MADE}}))
    return path


@pytest.fixture(scope="module")
def created(aws: Aws, template: Path) -> Aws:
    """Create the stack."""
    aws.deploy(file=template)
    return aws


@pytest.fixture(scope="module")
def moto() -> Iterator[Aws]:
    """Run moto."""
    port = free_ports(1)[0]
    command = (sys.executable, "-m", "moto.server", "--host", LOOPBACK, "--port", str(port))
    url = f"http://{LOOPBACK}:{port}"
    with running(Program(name="moto", command=command, env=AWS_ENVIRONMENT, ready_url=f"{url}/moto-api/")):
        yield Aws(url)


@pytest.fixture(scope="module")
def whole(moto: Aws) -> Aws:
    """Create the stack of the whole template."""
    moto.deploy()
    return moto


def test_the_stack_is_created_without_a_failure_except_for_two_alarms_that_the_emulator_lacks(created: Aws) -> None:
    assert sorted(ON_EXPRESSIONS) == ["DynamoDbFails", "WritesNearQuota"]
    events = created.events()
    kinds = {name: RESOURCES[name]["Type"] for name in MADE}
    for status in ("CREATE_IN_PROGRESS", "CREATE_COMPLETE"):
        reached = [(name, kind) for name, kind, each in events if each == status and name in MADE]
        assert sorted(reached) == sorted(kinds.items())
    assert {status for *_, status in events} == {"REVIEW_IN_PROGRESS", "CREATE_IN_PROGRESS", "CREATE_COMPLETE"}
    assert ("sandbox-broker", "AWS::CloudFormation::Stack", "CREATE_COMPLETE") in events


def test_the_table_of_the_stack_is_the_one_that_the_code_creates(created: Aws) -> None:
    made, expected = created.table(), table_definition(TABLE_NAME)
    assert made["BillingModeSummary"]["BillingMode"] == expected["BillingMode"]
    for name in ("TableName", "KeySchema", "AttributeDefinitions", "GlobalSecondaryIndexes"):
        assert made[name] == expected[name]
    assert made["DeletionProtectionEnabled"] is True
    assert created.outputs()["TableArn"] == made["TableArn"]


def test_the_outputs_name_the_policies(created: Aws) -> None:
    made = {name.removesuffix("Arn"): arn for name, arn in created.outputs().items() if name.endswith("PolicyArn")}
    assert sorted(made) == sorted(name for name in RESOURCES if "IAM" in RESOURCES[name]["Type"])
    listed = created("iam", "list-policies", "--scope", "Local")["Policies"]
    assert sorted(made.values()) == sorted(each["Arn"] for each in listed if "/sandbox-broker-" in each["Arn"])


def test_a_broker_works_on_the_table_of_the_stack(created: Aws, tmp_path: Path) -> None:
    before = created.table()
    settings = {"DDB_ENDPOINT_URL": created.url, "DDB_TABLE_NAME": TABLE_NAME}

    def services(plan: Plan, scratch: Path) -> list[Program]:
        return [programs.worker_jobs(plan, scratch), programs.api(plan, scratch)]

    with Stack(tmp_path, settings, services=services) as broker:
        assert broker.run_job("sync")["state"] == "succeeded"
        held = broker.as_track("a-track", "POST", "/allocate")
        assert held.status_code == 201, held.text
        path = f"/sandboxes/{held.json()['sandbox_id']}/mark-for-deletion"
        assert broker.as_track("a-track", "POST", path).status_code == 200
        assert broker.stats()["pending_deletion"] == 1
        check = [sys.executable, "-m", "broker_common.cli", "check", "--process", "worker"]
        done = subprocess.run(check, env=broker.plan.env, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    after = created.table()
    assert after["TableId"] == before["TableId"], "the broker worked on another table"
    assert after["ItemCount"] > before["ItemCount"]
    removal = created("dynamodb", "describe-time-to-live", "--table-name", TABLE_NAME)["TimeToLiveDescription"]
    assert removal == {"TimeToLiveStatus": "ENABLED", "AttributeName": TTL}, "broker table create has to turn it on"


def test_a_changed_parameter_changes_the_alarms_and_leaves_the_table_as_it_is(aws: Aws, template: Path) -> None:
    def change(topic: str) -> Object:
        replace(aws, topic=topic).deploy("TableName=Changed", stack="changed", file=template)
        named = {name: each for name, each in aws.alarms().items() if each["AlarmName"].startswith("changed-")}
        assert named.keys() == {name for name in MADE if RESOURCES[name]["Type"] == "AWS::CloudWatch::Alarm"}
        assert {(*each["AlarmActions"], *each["OKActions"]) for each in named.values()} == {(topic, topic)}
        return aws.table("Changed")

    first = change("arn:aws:sns:us-east-1:000000000000:first")
    item = json.dumps({"PK": {"S": "kept"}, "SK": {"S": "kept"}})
    aws("dynamodb", "put-item", "--table-name", "Changed", "--item", item)
    assert change("arn:aws:sns:us-east-1:000000000000:second")["TableId"] == first["TableId"]
    assert aws("dynamodb", "scan", "--table-name", "Changed")["Count"] == 1
    reached = {status for name, _, status in aws.events("changed") if name == "changed"}
    assert {"UPDATE_IN_PROGRESS", "UPDATE_COMPLETE"} <= reached


def test_the_policies_of_the_stack_are_those_that_were_seen_to_be_needed(whole: Aws) -> None:
    table = whole.table()["TableArn"]
    found = whole("iam", "get-account-authorization-details", "--filter", "LocalManagedPolicy")["Policies"]
    of_stack = [each for each in found if "/sandbox-broker-" in each["Arn"]]
    documents = {each["Arn"].split("-")[-2]: each["PolicyVersionList"][-1]["Document"] for each in of_stack}
    seen = {f"{path.stem.title()}Policy": path.read_text() for path in (ROOT / "deploy" / "iam").glob("*.json")}
    assert documents == {name: json.loads(text.replace(TABLE_ARN, table)) for name, text in seen.items()}


@pytest.mark.parametrize("name", sorted(ON_EXPRESSIONS))
def test_an_alarm_on_an_expression_is_accepted_by_itself(moto: Aws, name: str) -> None:
    given = json.loads(
        json.dumps(resolved(RESOURCES[name]["Properties"])).replace('{"Ref": "AlarmTopicArn"}', '"arn:a"')
    )
    moto("cloudwatch", "put-metric-alarm", "--cli-input-json", json.dumps(given | {"AlarmName": name}))
    assert moto.alarms()[name].items() >= given.items()


@pytest.mark.parametrize("process", TASKS)
def test_a_task_definition_is_registered_as_it_is_written(aws: Aws, process: str) -> None:
    file = f"file://deploy/ecs/{process}.json"
    got = aws("ecs", "register-task-definition", "--cli-input-json", file)["taskDefinition"]
    assert got["status"] == "ACTIVE"
    assert f":task-definition/sandbox-broker-{process}:" in got["taskDefinitionArn"]
    for name, value in TASKS[process].items():
        if name != "containerDefinitions":
            assert got[name] == value
    (container,), (given,) = got["containerDefinitions"], TASKS[process]["containerDefinitions"]
    assert container.items() >= given.items()


def test_the_table_outlives_the_stack(moto: Aws) -> None:
    moto.deploy("TableName=Kept", stack="kept")
    assert ("kept", "AWS::CloudFormation::Stack", "CREATE_COMPLETE") in moto.events("kept")
    made = moto.table("Kept")
    moto("cloudformation", "delete-stack", "--stack-name", "kept")
    gone = moto("cloudformation", "list-stacks", "--stack-status-filter", "DELETE_COMPLETE")["StackSummaries"]
    assert [each["StackName"] for each in gone] == ["kept"]
    assert moto.table("Kept") == made


def test_a_field_that_ecs_does_not_have_is_refused(aws: Aws) -> None:
    wrong = {**TASKS["api"], "containerDefinitons": []}
    done = aws.run("ecs", "register-task-definition", "--cli-input-json", json.dumps(wrong))
    assert done.returncode != 0
    assert 'Unknown parameter in input: "containerDefinitons"' in done.stderr
