"""`broker`: the operator's command line."""

from __future__ import annotations

import os
import sys

import click
from botocore.exceptions import BotoCoreError, ClientError

from broker_common.adapters.dynamo_store import make_client
from broker_common.adapters.dynamo_table import create_table
from broker_common.settings import Process, Settings, SettingsError

ADMIN_TIMEOUT_SEC = 10.0
"""Table operations are slower than reads and writes."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """Operate a Sandbox Broker. Settings come from the environment, as for its processes."""
    try:
        context.obj = Settings.from_env(os.environ, process=Process.TOOL)
    except SettingsError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(2)


@main.group()
def table() -> None:
    """Look after the DynamoDB table."""


@table.command()
@click.pass_obj
def create(settings: Settings) -> None:
    """Create the table, its index and its layout record; changes nothing that is there already.

    Example: DDB_TABLE_NAME=SandboxPool AWS_REGION=eu-central-1 broker table create
    """
    client = make_client(
        region=settings.aws_region,
        endpoint_url=settings.ddb_endpoint_url,
        timeout_sec=ADMIN_TIMEOUT_SEC,
        connections=1,
    )
    try:
        created = create_table(client, settings.ddb_table_name)
    except (ClientError, BotoCoreError) as error:
        click.echo(f"table {settings.ddb_table_name} could not be created: {error}", err=True)
        sys.exit(1)
    click.echo(f"table {settings.ddb_table_name} {'is created' if created else 'was there already'}")


if __name__ == "__main__":
    main()
