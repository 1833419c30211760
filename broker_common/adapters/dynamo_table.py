"""The table's definition: its keys, its one index, and the record of its layout."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker_common.adapters.dynamo_fields import fields_of, read_fields
from broker_common.adapters.dynamo_items import TTL
from broker_common.core import schema
from broker_common.core.errors import UnreadableRecord

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import AttributeValueTypeDef, CreateTableInputTypeDef

    from broker_common.adapters.dynamo_fields import Item

INDEX = "StatusIndex"
SHARDS = 4
"""Index partitions per status. Every process on a table must agree: the table's layout record says how many it has."""
PROJECTED = ("name", "external_id", "sfdc_account_id", "version", "deletion_requested_at")
"""A candidate's fields, and the time of a deletion's request. More fields would make changes of status cost more."""
LAYOUT_KEY: dict[str, AttributeValueTypeDef] = {"PK": {"S": "POOL"}, "SK": {"S": "CONFIG"}}


_INDEX_KEYS = {"status_key": "HASH", "status_order": "RANGE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The layout record; `table_id` is the engine's own id of the table that it was written for.

    `accepted_at` is the watermark of the last sync before an operator accepted the table; earlier releases stored the
    time of the acceptance, and compare it in the same way.
    """

    shards: int
    identity: str | None = None
    table_id: str | None = None
    accepted_at: int | None = None
    upgrade_finished: int | None = None
    """The last counted release (`schema.UPGRADE`) before which no process runs any more."""


_LAYOUT_FIELDS = fields_of(
    {"shards": int}, {"identity": str, "table_id": str, "accepted_at": int, "upgrade_finished": int}
)


def decode_layout(item: Item) -> Layout:
    """Return the layout of an item; raises `UnreadableRecord`."""
    try:
        return Layout(**read_fields(item, _LAYOUT_FIELDS))
    except ValueError as error:
        raise UnreadableRecord("the layout record", str(error)) from error


def index_problem(description: Item) -> str | None:
    """Return the problem of the index in DescribeTable's answer; None if the index can be used."""
    for index in description.get("GlobalSecondaryIndexes", []):
        if index["IndexName"] == INDEX:
            if {key["AttributeName"]: key["KeyType"] for key in index["KeySchema"]} != _INDEX_KEYS:
                return f"has an index {INDEX} with other keys: it must have those of deploy/cloudformation/broker.yaml"
            if index.get("IndexStatus", "ACTIVE") not in {"ACTIVE", "UPDATING"}:
                return f"cannot use its index {INDEX}, which is {index['IndexStatus']}: wait until it is ACTIVE"
            return None
    return f"has no index {INDEX}: add it as deploy/cloudformation/broker.yaml has it"


def table_definition(table_name: str) -> CreateTableInputTypeDef:
    """Return the arguments of CreateTable: on-demand billing, one index."""
    return {
        "TableName": table_name,
        "BillingMode": "PAY_PER_REQUEST",
        "KeySchema": [{"AttributeName": "PK", "KeyType": "HASH"}, {"AttributeName": "SK", "KeyType": "RANGE"}],
        "AttributeDefinitions": [
            {"AttributeName": "PK", "AttributeType": "S"},
            {"AttributeName": "SK", "AttributeType": "S"},
            {"AttributeName": "status_key", "AttributeType": "S"},
            {"AttributeName": "status_order", "AttributeType": "N"},
        ],
        "GlobalSecondaryIndexes": [
            {
                "IndexName": INDEX,
                "KeySchema": [
                    {"AttributeName": "status_key", "KeyType": "HASH"},
                    {"AttributeName": "status_order", "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": list(PROJECTED)},
            }
        ],
    }


def create_table(client: DynamoDBClient, table_name: str, *, shards: int = SHARDS) -> bool:
    """Create the table and its layout record, and wait until it can be used; returns False if it existed already.

    May run any number of times. In an existing table it only turns the TTL of facts on; it never changes a layout
    record.
    """
    created = True
    try:
        client.create_table(**table_definition(table_name))
    except client.exceptions.ResourceInUseException:
        created = False
    client.get_waiter("table_exists").wait(TableName=table_name, WaiterConfig={"Delay": 1, "MaxAttempts": 120})
    if not has_ttl(client, table_name):
        client.update_time_to_live(
            TableName=table_name, TimeToLiveSpecification={"Enabled": True, "AttributeName": TTL}
        )
    layout: Item = {
        **LAYOUT_KEY,
        "shards": {"N": str(shards)},
        "identity": {"S": str(uuid.uuid4())},
        "upgrade_finished": {"N": str(schema.UPGRADE)},
    }
    if table_id := client.describe_table(TableName=table_name)["Table"].get("TableId"):
        layout["table_id"] = {"S": table_id}
    try:
        client.put_item(
            TableName=table_name,
            Item=layout,
            ConditionExpression="attribute_not_exists(PK)",
        )
    except client.exceptions.ConditionalCheckFailedException:
        created = False
    return created


def has_ttl(client: DynamoDBClient, table_name: str) -> bool:
    """Tell whether DynamoDB removes facts when their time is over."""
    description = client.describe_time_to_live(TableName=table_name)["TimeToLiveDescription"]
    is_enabled = description.get("TimeToLiveStatus") in {"ENABLED", "ENABLING"}
    return is_enabled and description.get("AttributeName") == TTL
