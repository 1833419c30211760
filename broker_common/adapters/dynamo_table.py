"""The table's definition: its keys, its one index, and the record of its layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import AttributeValueTypeDef, CreateTableInputTypeDef

INDEX = "StatusIndex"
SHARDS = 4
"""Index partitions per status. Every process on a table must agree: the table's layout record says how many it has."""
PROJECTED = ("name", "external_id", "sfdc_account_id", "version", "deletion_requested_at")
"""What a candidate needs, and since when a deletion waits; any more would make changes of status dearer."""
LAYOUT_KEY: dict[str, AttributeValueTypeDef] = {"PK": {"S": "POOL"}, "SK": {"S": "CONFIG"}}


def table_definition(table_name: str) -> CreateTableInputTypeDef:
    """Return the arguments of CreateTable: on-demand billing, no TTL, one index."""
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
    """Create the table and its layout record, and wait until it can be used; False if it was there already.

    May be run any number of times; never changes a table, nor a layout record that is there.
    """
    created = True
    try:
        client.create_table(**table_definition(table_name))
    except client.exceptions.ResourceInUseException:
        created = False
    client.get_waiter("table_exists").wait(TableName=table_name, WaiterConfig={"Delay": 1, "MaxAttempts": 120})
    try:
        client.put_item(
            TableName=table_name,
            Item={**LAYOUT_KEY, "shards": {"N": str(shards)}},
            ConditionExpression="attribute_not_exists(PK)",
        )
    except client.exceptions.ConditionalCheckFailedException:
        created = False
    return created
