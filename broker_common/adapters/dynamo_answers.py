"""Checks that an answer comes from DynamoDB: an empty, cut or foreign one never counts as a success.

botocore reads an answer that is not JSON, or lacks its fields, as `{}`: as "applied", or as "there is nothing".
"""

from __future__ import annotations

import json
import zlib
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import orjson
from botocore.exceptions import BotoCoreError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from botocore.model import OperationModel, StructureShape
    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.adapters.dynamo_fields import Item

_CONTENT_TYPE = "application/x-amz-json-1."
_TYPES: Mapping[str, type] = {"structure": dict, "map": dict, "list": list, "integer": int}


class NoAnswer(BotoCoreError):
    """The answer is not DynamoDB's, so the outcome of the request is not known."""

    fmt = "{reason}"


def refuse_foreign_answers(client: DynamoDBClient, operations: Collection[str]) -> None:
    """Make the client's calls of `operations` raise `NoAnswer` unless DynamoDB answered, with any status.

    The calls return DynamoDB's own JSON, which botocore would only copy, shape by shape. A `NoAnswer` closes all
    connections, because the rest of that answer may still arrive.
    """

    def take(
        *, response_dict: Item, customized_response_dict: Item, operation_model: OperationModel, **_: object
    ) -> None:
        try:
            fields, error = read_answer(
                operation_model, response_dict["status_code"], response_dict["headers"], response_dict["body"]
            )
        except NoAnswer:
            client.close()
            raise
        customized_response_dict.update(fields)
        response_dict["body"] = json.dumps(error).encode()

    for operation in operations:
        client.meta.events.register(f"before-parse.dynamodb.{operation}", take)


def read_answer(
    operation: OperationModel, status: int, headers: Mapping[str, str], body: bytes
) -> tuple[Item, dict[str, str]]:
    """Return the fields of an answer of any status, and of an error also its code, as `__type`, and its `message`.

    The fields are DynamoDB's own JSON, those that the operation has. Raises `NoAnswer` unless DynamoDB answered. The
    headers are looked up by names in lower case.
    """
    answer = _read(headers, body)
    if status == HTTPStatus.OK:
        return _read_success(answer, headers, operation), {}
    return _read_error(answer, status)


def require(answer: Item, operation: str, request: Item) -> None:
    """Raise `NoAnswer` if an answer lacks a field that this request asks for."""
    required = "Attributes" if "ReturnValues" in request else _REQUIRED.get(operation)
    if request.get("Select") == "COUNT":
        required = "Count"
    if required is not None and required not in answer:
        raise NoAnswer(reason=f"an answer without {required}")
    answered = answer.get("Responses", {}).keys() | answer.get("UnprocessedKeys", {}).keys()
    if request.get("RequestItems", {}).keys() - answered:
        raise NoAnswer(reason="an answer without the table")


_REQUIRED: Mapping[str, str] = {
    "query": "Items",
    "scan": "Items",
    "batch_get_item": "Responses",
    "describe_table": "Table",
}


def _read(headers: Mapping[str, str], body: bytes) -> Item:
    """Return the JSON object of an answer.

    Source for the checksum that DynamoDB sends with its answers: "Error handling with DynamoDB" in its guide.
    """
    length, checksum = str(len(body)), str(zlib.crc32(body))
    if headers.get("content-length", length) != length:
        raise NoAnswer(reason="an answer that is not as long as it says")
    if headers.get("x-amz-crc32", checksum) != checksum:
        raise NoAnswer(reason="an answer that does not match its checksum")
    try:
        answer = orjson.loads(body)
    except ValueError as error:
        raise NoAnswer(reason="an answer that is not JSON") from error
    if not isinstance(answer, dict):
        raise NoAnswer(reason="an answer that is not a JSON object")
    return answer


def _read_success(answer: Item, headers: Mapping[str, str], operation: OperationModel) -> Item:
    """Return the fields that the operation has, after a check of their types down to the items' attributes."""
    if not headers.get("content-type", "").startswith(_CONTENT_TYPE):
        raise NoAnswer(reason="a success that is not of DynamoDB's type")
    members = cast("StructureShape", operation.output_shape).members  # each of these operations has an output
    known = {name: value for name, value in answer.items() if name in members and value is not None}
    if answer and not known:
        raise NoAnswer(reason="a success with other content than this operation's")
    for name, value in known.items():
        if type(value) is not _TYPES[members[name].type_name]:
            raise NoAnswer(reason=f"a success with a malformed {name}")
    items = [known[name] for name in ("Item", "Attributes", "LastEvaluatedKey") if name in known]
    unread = [each.get("Keys") if type(each) is dict else None for each in known.get("UnprocessedKeys", {}).values()]
    for found in (known.get("Items", []), *known.get("Responses", {}).values(), *unread):
        items += found if type(found) is list else [None]
    if not all(map(_is_item, items)):
        raise NoAnswer(reason="a success with a malformed item")
    return known


def _read_error(answer: Item, status: int) -> tuple[Item, dict[str, str]]:
    """Return an error's fields about records, and its own code and message."""
    kind, reasons = answer.get("__type"), answer.get("CancellationReasons", [])
    # A type may be "com.amazonaws.dynamodb.v20120810#Code:".
    code = kind.split(":")[0].split("#")[-1] if type(kind) is str else ""
    if status < HTTPStatus.BAD_REQUEST or not code:
        raise NoAnswer(reason=f"an answer of status {status} that is not DynamoDB's")
    if type(reasons) is not list or not all(type(each) is dict and type(each.get("Code")) is str for each in reasons):
        raise NoAnswer(reason="an error with malformed reasons")
    if not all(_is_item(each["Item"]) for each in (answer, *reasons) if each.get("Item") is not None):
        raise NoAnswer(reason="an error with a malformed item")
    kept = {name: answer[name] for name in ("Item", "CancellationReasons") if answer.get(name) is not None}
    return kept, {"__type": code, "message": str(answer.get("message", answer.get("Message", "")))}


def _is_item(item: object) -> bool:
    """Tell whether `item` has the form of DynamoDB's items (a type and a content for each name) and our key."""
    if type(item) is not dict or not all(type(value) is dict and len(value) == 1 for value in item.values()):
        return False
    return type(item.get("PK", {}).get("S")) is str
