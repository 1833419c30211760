"""`broker check`, `broker table` and `broker upgrade`: what reads the settings of the broker's processes."""

from __future__ import annotations

import os
import sys
import uuid

import click
from botocore.exceptions import BotoCoreError, ClientError

from broker_common.adapters.dynamo_table import create_table
from broker_common.adapters.dynamo_transport import make_client
from broker_common.adapters.redis_table_memory import RedisTableMemory
from broker_common.adapters.system_clock import SystemClock
from broker_common.cli.check import PARTS, check
from broker_common.cli.findings import print_findings
from broker_common.cli.output import json_option
from broker_common.core.errors import BrokerError
from broker_common.core.table_identity import accept_table
from broker_common.services import build_store, connect_redis
from broker_common.settings import Process
from broker_common.startup import read_settings

ADMIN_TIMEOUT_SEC = 10.0
"""Table operations are slower than reads and writes."""


@click.command(name="check")
@click.option(
    "--process",
    type=click.Choice([process.value for process in PARTS]),
    help="Check all that this process needs, whether its settings are here or missing.",
)
@json_option
def check_command(process: str | None, *, as_json: bool) -> None:
    """Check the parts that a broker needs, and say what to do.

    The parts are settings, table, index, history, Redis, provider, API and issuer, a line each. Nothing is changed.
    Exits 1 when something is wrong. Without --process it checks what those processes need whose settings are here, and
    the API that BROKER_API_URL names; it says which processes it leaves out.

    Example: broker check

    In a pod: kubectl exec -n sandbox-broker deploy/broker-api -- broker check --process api
    """
    print_findings(check(os.environ, Process(process) if process else None), as_json=as_json)


@click.group()
def table() -> None:
    """Create the DynamoDB table, or accept a changed one.

    Example: broker table create
    """


@table.command()
def create() -> None:
    """Create the table, its index and its layout record.

    Changes nothing that is there already, except for TTL, which it turns on.

    Example: DDB_TABLE_NAME=SandboxPool AWS_REGION=eu-central-1 broker table create
    """
    settings = read_settings(os.environ, process=Process.TOOL)
    try:
        client = make_client(
            region=settings.aws_region,
            endpoint_url=settings.ddb_endpoint_url,
            timeout_sec=ADMIN_TIMEOUT_SEC,
            connections=1,
        )
        created = create_table(client, settings.ddb_table_name)
    except (ClientError, BotoCoreError) as error:
        click.echo(f"table {settings.ddb_table_name} could not be created: {error}", err=True)
        sys.exit(1)
    click.echo(f"table {settings.ddb_table_name} {'is created' if created else 'was there already'}")


@table.command()
def accept() -> None:
    """Have every process use the table as it is now.

    API and jobs stop (503 TABLE_CHANGED) when the table was replaced, restored or emptied, because it may call a
    sandbox free that a track holds. Read the runbook first, and run this once the records are right. API and jobs go on
    within 5 seconds. It reads DDB_TABLE_NAME, AWS_REGION and REDIS_URL, as API and workers do.

    Example: broker table accept
    """
    settings = read_settings(os.environ, process=Process.TOOL)
    clock, name = SystemClock(), settings.ddb_table_name
    try:
        memory = RedisTableMemory(connect_redis(settings), clock)
        accept_table(build_store(settings), memory, identity=str(uuid.uuid4()))
    except (BrokerError, BotoCoreError) as error:
        raise click.ClickException(f"table {name} is not accepted: {error}") from error
    click.echo(f"table {name} is accepted: API and jobs use it within 5 s")


@click.group()
def upgrade() -> None:
    """Finish an upgrade to a newer release.

    Example: broker upgrade finish
    """


@upgrade.command()
def finish() -> None:
    """Say that no process of the previous release runs any more.

    Run it once every API, worker and beat is of this release. Until then some calls answer 503 UPGRADE_UNFINISHED,
    because an older process could not keep what they need: history, events, and quarantine of a sandbox that is held.
    May be repeated.

    Example: broker upgrade finish
    """
    settings = read_settings(os.environ, process=Process.TOOL)
    try:
        build_store(settings).finish_upgrade()
    except (BrokerError, BotoCoreError) as error:
        raise click.ClickException(f"the upgrade is not finished: {error}") from error
    click.echo("the upgrade is finished: every process knows within 5 s")
