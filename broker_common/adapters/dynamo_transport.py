"""Calls of DynamoDB: each within the request's deadline, again where that is safe, recorded, its errors translated.

What is asked for, and what an answer means for the pool, is `dynamo_store`'s business.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
)

from broker_common.core.deadline import Backoff, time_left
from broker_common.core.errors import DeadlineExceeded, OutcomeUnknown, StoreMisconfigured, StoreUnavailable
from broker_common.core.events import StoreCalled, StoreOutcome

if TYPE_CHECKING:
    from random import Random

    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.adapters.dynamo_items import Item
    from broker_common.core.ports import Clock, Recorder

_REFUSED = frozenset(
    {
        "ThrottlingException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "TransactionConflictException",
        "ReplicatedWriteConflictException",
        "LimitExceededException",
    }
)
"""Errors after which nothing was written and the same request may be sent again."""
_CREDENTIALS = frozenset(
    {
        "AccessDeniedException",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "UnrecognizedClientException",
    }
)

_OPERATIONS = {
    "batch_get_item": "BatchGetItem",
    "delete_item": "DeleteItem",
    "describe_table": "DescribeTable",
    "get_item": "GetItem",
    "put_item": "PutItem",
    "query": "Query",
    "scan": "Scan",
    "transact_write_items": "TransactWriteItems",
    "update_item": "UpdateItem",
}


def make_client(*, region: str, endpoint_url: str | None, timeout_sec: float, connections: int) -> DynamoDBClient:
    """Make the low-level client of one process; call it after a fork. It connects at its first call.

    `timeout_sec` bounds one call: a third of it for connecting, the rest for the answer. The client never repeats
    a call: the store does, within the request's deadline.
    """
    return boto3.session.Session().client(
        "dynamodb",
        region_name=region,
        endpoint_url=endpoint_url,
        config=Config(
            connect_timeout=timeout_sec / 3,
            read_timeout=timeout_sec * 2 / 3,
            max_pool_connections=connections,
            parameter_validation=False,
            retries={"mode": "standard", "total_max_attempts": 1},
            tcp_keepalive=True,
            # botocore would put its own together anew for each call, at a twentieth of a transaction's CPU.
            user_agent="sandbox-broker",
        ),
    )


class ConditionFailed(Exception):
    """The condition of a write did not hold; `answer` is DynamoDB's."""

    def __init__(self, answer: Item) -> None:
        super().__init__()
        self.answer = answer


class DynamoTransport:
    """Sends the calls of one table's store; safe to use from many threads.

    Every call may raise `StoreUnavailable`: `StoreMisconfigured` where a person must mend something, `DeadlineExceeded`
    where a call could outlast the request's deadline, and of a write `OutcomeUnknown` where it may have been applied.
    """

    def __init__(
        self,
        client: DynamoDBClient,
        table_name: str,
        *,
        clock: Clock,
        rng: Random,
        recorder: Recorder,
        timeout_sec: float,
    ) -> None:
        """Use `client` as `make_client` makes it, with the same `timeout_sec`; `table_name` is for messages."""
        self._client: Any = client  # its requests and answers are handled as DynamoDB's plain JSON
        self._table = table_name
        self._clock = clock
        self._rng = rng
        self._recorder = recorder
        self._timeout = timeout_sec

    def read(self, operation: str, **request: Any) -> Any:  # noqa: ANN401 - DynamoDB's own JSON
        """Send a call that changes nothing, and return its answer."""
        return self._send(operation, request, writing=False)

    def write(self, operation: str, **request: Any) -> Any:  # noqa: ANN401 - DynamoDB's own JSON
        """Send a write that may be repeated, and return its answer: its condition tells whether it was applied before.

        Raises `ConditionFailed`, and `OutcomeUnknown` if no try was answered.
        """
        return self._send(operation, request, writing=True)

    def transact_once(self, **request: Any) -> list[Item] | None:  # noqa: ANN401 - DynamoDB's own JSON
        """Send a TransactWriteItems, once; return None if it was applied, and else what each of its items met.

        Source for the reasons of a cancellation: TransactWriteItems in the DynamoDB API reference.
        """
        try:
            self._send_once("transact_write_items", request)
        except ClientError as error:
            if _code(error) != "TransactionCanceledException":
                raise self._translate(error, writing=True) from error
            reasons: list[Item] = _response(error)["CancellationReasons"]
            return reasons
        except BotoCoreError as error:
            raise self._translate(error, writing=True) from error
        return None

    def _send(self, operation: str, request: Item, *, writing: bool) -> Any:  # noqa: ANN401 - DynamoDB's own JSON
        """Send a request until it is answered, tries are used up, or the deadline is near."""
        backoff = Backoff(self._clock, self._rng, base=0.025, limit=1.0, tries=6)
        while True:
            try:
                return self._send_once(operation, request)
            except (ClientError, BotoCoreError) as error:
                if isinstance(error, ClientError) and _is_failed_condition(error):
                    raise ConditionFailed(_response(error)) from error
                trouble = self._translate(error, writing=writing)
                if isinstance(trouble, StoreMisconfigured):
                    raise trouble from error
            backoff.pause(trouble, need=self._timeout)

    def _send_once(self, operation: str, request: Item) -> Any:  # noqa: ANN401 - DynamoDB's own JSON
        """Send a request once, and record how long that took and how it ended."""
        self._check_deadline()
        started, outcome = self._clock.monotonic(), StoreOutcome.UNANSWERED
        try:
            answer = getattr(self._client, operation)(**request)
            outcome = StoreOutcome.SUCCESS
        except ClientError as error:
            outcome = _outcome(error)
            raise
        else:
            return answer
        finally:
            seconds = self._clock.monotonic() - started
            self._recorder.record(StoreCalled(operation=_OPERATIONS[operation], outcome=outcome, seconds=seconds))

    def _check_deadline(self) -> None:
        """Refuse to begin a call that could outlast the request's deadline."""
        if time_left(self._clock) < self._timeout:
            raise DeadlineExceeded("the store did not answer in time")

    def _translate(self, error: ClientError | BotoCoreError, *, writing: bool) -> StoreUnavailable:
        """Turn an error of the client into one of the port; a fault of ours in the request is raised as it is."""
        if isinstance(error, ClientError):
            code = _code(error)
            if code == "ResourceNotFoundException" or _is_about_the_index(error):
                no_index = "has no index that can be used: `broker check` tells more"
                no_table = "does not exist: create it with `broker table create`"
                missing = no_table if code == "ResourceNotFoundException" else no_index
                return StoreMisconfigured(f"table {self._table!r} {missing}")
            if code in _CREDENTIALS:
                return StoreMisconfigured(f"DynamoDB refused our credentials ({code})")
            if code in _REFUSED or code == "TransactionCanceledException":
                return StoreUnavailable("DynamoDB is busy")
            failed = _response(error)["ResponseMetadata"]["HTTPStatusCode"] >= HTTPStatus.INTERNAL_SERVER_ERROR
            if not failed and code != "TransactionInProgressException":
                raise error
            message = f"DynamoDB failed ({code})"
        elif isinstance(error, (NoCredentialsError, PartialCredentialsError)):
            return StoreMisconfigured("there are no AWS credentials")
        elif isinstance(error, (EndpointConnectionError, ConnectTimeoutError)):
            return StoreUnavailable("DynamoDB cannot be reached")
        else:
            message = f"DynamoDB did not answer ({type(error).__name__})"
        return OutcomeUnknown(message) if writing else StoreUnavailable(message)


def _outcome(error: ClientError) -> StoreOutcome:
    if _is_failed_condition(error):
        return StoreOutcome.CONDITION_FAILED
    if _code(error) in _REFUSED or _code(error) == "TransactionCanceledException":
        return StoreOutcome.THROTTLED
    return StoreOutcome.ERROR


def _response(error: ClientError) -> Item:
    return cast("Item", error.response)


def _code(error: ClientError) -> str:
    code: str = _response(error)["Error"]["Code"]
    return code


def _is_about_the_index(error: ClientError) -> bool:
    message: str = _response(error)["Error"].get("Message", "")
    if _code(error) != "ValidationException":
        return False
    return "does not have the specified index" in message or "backfilling" in message


def _is_failed_condition(error: ClientError) -> bool:
    """Tell a condition that did not hold from every other failure."""
    if _code(error) == "ConditionalCheckFailedException":
        return True
    codes = {reason["Code"] for reason in _response(error).get("CancellationReasons", [])}
    return "ConditionalCheckFailed" in codes
