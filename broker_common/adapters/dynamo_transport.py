"""Sends calls to DynamoDB within the request's deadline, repeats them where that is safe, and translates errors.

The parts of `dynamo_store` build the requests, and judge what an answer means for the pool.
"""

from __future__ import annotations

import logging
import os
from enum import Enum
from http import HTTPStatus
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import boto3
from botocore.awsrequest import AWSHTTPConnection, AWSHTTPConnectionPool, AWSHTTPSConnection, AWSHTTPSConnectionPool
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.httpsession import get_cert_path
from botocore.session import Session as BotocoreSession
from botocore.utils import get_environ_proxies

from broker_common.adapters.bounded_http import BoundedResponse, answer_within
from broker_common.adapters.dynamo_answers import NoAnswer, refuse_foreign_answers, require
from broker_common.adapters.dynamo_client import DynamoClient
from broker_common.adapters.dynamo_http import Connections, TlsFailed
from broker_common.core.deadline import Backoff, time_left
from broker_common.core.errors import (
    DeadlineExceeded,
    OutcomeUnknown,
    StoreMisconfigured,
    StoreRejected,
    StoreUnavailable,
)
from broker_common.core.ids import new_id
from broker_common.core.telemetry import StoreCalled, StoreOutcome

if TYPE_CHECKING:
    from random import Random

    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.adapters.dynamo_fields import Item
    from broker_common.core.ports import Clock, Recorder

_log = logging.getLogger(__name__)


class _Meaning(Enum):
    """What an error means for its request."""

    AGAIN = "nothing was written, and the same request may be sent again"
    ANOTHER_ID = "nothing was written, and with another client token it may be"
    UNKNOWN = "it may have been applied"
    NO_TABLE = "nothing was written: the table does not exist"
    NO_INDEX = "nothing was written: the table's index cannot be used"
    CREDENTIALS = "nothing was written: our credentials are refused"
    REFUSED = "nothing was written, and a person must look at table or settings"
    MALFORMED = "nothing was written: the request is a bug of the broker"


_MEANINGS = {
    "ThrottlingException": _Meaning.AGAIN,
    "ProvisionedThroughputExceededException": _Meaning.AGAIN,
    "RequestLimitExceeded": _Meaning.AGAIN,
    "LimitExceededException": _Meaning.AGAIN,
    "TransactionConflictException": _Meaning.AGAIN,
    "TransactionCanceledException": _Meaning.AGAIN,
    "ReplicatedWriteConflictException": _Meaning.AGAIN,
    "ResourceInUseException": _Meaning.AGAIN,
    "IdempotentParameterMismatchException": _Meaning.ANOTHER_ID,
    "IdempotentParameterMismatch": _Meaning.ANOTHER_ID,
    "TransactionInProgressException": _Meaning.UNKNOWN,
    "InternalServerError": _Meaning.UNKNOWN,
    "InternalFailure": _Meaning.UNKNOWN,
    "ServiceUnavailable": _Meaning.UNKNOWN,
    "ResourceNotFoundException": _Meaning.NO_TABLE,
    "AccessDeniedException": _Meaning.CREDENTIALS,
    "ExpiredTokenException": _Meaning.CREDENTIALS,
    "IncompleteSignature": _Meaning.CREDENTIALS,
    "InvalidClientTokenId": _Meaning.CREDENTIALS,
    "InvalidSignatureException": _Meaning.CREDENTIALS,
    "MissingAuthenticationTokenException": _Meaning.CREDENTIALS,
    "NotAuthorized": _Meaning.CREDENTIALS,
    "OptInRequired": _Meaning.CREDENTIALS,
    "UnrecognizedClientException": _Meaning.CREDENTIALS,
    "InvalidEndpointException": _Meaning.REFUSED,
    "ItemCollectionSizeLimitExceededException": _Meaning.REFUSED,
    "DuplicateItemException": _Meaning.MALFORMED,
    "SerializationException": _Meaning.MALFORMED,
    "UnknownOperationException": _Meaning.MALFORMED,
    "ValidationException": _Meaning.MALFORMED,
}
"""Any other code is `UNKNOWN` with a status from 500 on, and `REFUSED` below.

Sources: "Error handling with DynamoDB" in its guide; the errors of each operation, and "Common Errors", in its API
reference.
"""
_CONTENTION = {"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"}
"""Reasons of a cancelled transaction that may be over when it is sent again."""
_OF_ITEMS = {"None", "ConditionalCheckFailed", "ValidationError"}
"""Reasons that concern one record."""

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
    """Make the client of one process; call it after a fork. It connects at its first call.

    `timeout_sec` limits one call: a third of it for connecting to an address. The client never repeats a call: the
    store does, within the request's deadline. The client's calls of the store's operations raise `NoAnswer` for an
    answer that is not DynamoDB's. The most frequent calls go past boto3, to the endpoint that it would choose, unless
    they need its proxies.
    """
    session = BotocoreSession()
    options: Any = {"region": region, "endpoint_url": endpoint_url, "connections": connections}
    client = make_boto3_client(**options, timeout_sec=timeout_sec, session=session)
    url, signing_region = _endpoint(client)
    parts = urlsplit(url)
    if get_environ_proxies(url).get(parts.scheme) or parts.path.strip("/") or parts.query:
        return client
    trusted: Any = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    ca_file: Any = trusted or get_cert_path(verify=True)
    pool = Connections(url, ca_file=ca_file, timeout_sec=timeout_sec / 3, kept=connections)
    own = DynamoClient(client, session.get_credentials(), pool, region=signing_region, timeout_sec=timeout_sec)
    return cast("DynamoDBClient", own)


def make_boto3_client(
    *,
    region: str,
    endpoint_url: str | None,
    timeout_sec: float,
    connections: int,
    session: BotocoreSession | None = None,
) -> DynamoDBClient:
    """Make a client all of whose calls are boto3's.

    It never repeats a call either, and raises `NoAnswer` too. `timeout_sec` gives a third to connecting, and two thirds
    to each read of an answer; `DynamoTransport` limits the whole answer.
    """
    client = boto3.session.Session(botocore_session=session).client(
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
            # Otherwise the host depends on the credentials of each call.
            account_id_endpoint_mode="disabled",
            # botocore would build its own again for each call, which takes a twentieth of a transaction's CPU.
            user_agent="sandbox-broker",
        ),
    )
    # botocore has no public way to choose the classes of its connections, except to send each request ourselves.
    client._endpoint.http_session._pool_classes_by_scheme.update(http=_Pool, https=_TlsPool)  # type: ignore[attr-defined] # noqa: SLF001
    refuse_foreign_answers(client, _OPERATIONS.values())
    return client


def _endpoint(client: DynamoDBClient) -> tuple[str, str]:
    """Return the URL and the signing region of boto3's requests, which are not always those of `client.meta`.

    Nothing is sent, and no credentials are needed.
    """
    found: list[tuple[str, str]] = []

    def keep(*, params: Any, request_signer: Any, context: Any, **_: object) -> Any:  # noqa: ANN401 - botocore's own
        found.append((params["url"], context.get("signing", {}).get("region", request_signer.region_name)))
        return SimpleNamespace(status_code=HTTPStatus.OK), {}  # boto3 takes this for the answer

    client.meta.events.register("before-call.dynamodb.GetItem", keep)
    try:
        client.get_item(TableName="any", Key={})
    finally:
        client.meta.events.unregister("before-call.dynamodb.GetItem", keep)
    return found[0]


class _Connection(AWSHTTPConnection):
    response_class = BoundedResponse  # type: ignore[assignment] # botocore's own differs from http.client's for S3 alone


class _TlsConnection(AWSHTTPSConnection):
    response_class = BoundedResponse  # type: ignore[assignment] # botocore's own differs from http.client's for S3 alone


class _Pool(AWSHTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(AWSHTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class ConditionFailed(Exception):
    """The condition of a write did not hold; `answer` is DynamoDB's."""

    def __init__(self, answer: Item) -> None:
        super().__init__()
        self.answer = answer


class DynamoTransport:
    """Sends the calls of one table's store; safe to use from many threads.

    Every call may raise `StoreUnavailable`, for example `StoreMisconfigured` if a person must repair something,
    `DeadlineExceeded` if the call could outlast the request's deadline, and `OutcomeUnknown` if a write may have been
    applied. `StoreRejected` is a bug of the broker.
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
        """Send a write that may be repeated, and return its answer.

        The write's condition shows whether an earlier try was applied. Raises `ConditionFailed`, and `OutcomeUnknown`
        if no try was answered.
        """
        return self._send(operation, request, writing=True)

    def transact_once(self, **request: Any) -> list[Item] | None:  # noqa: ANN401 - DynamoDB's own JSON
        """Send a TransactWriteItems once; returns None if it was applied, or else the result of each of its items.

        Source for the reasons of a cancellation: TransactWriteItems in the DynamoDB API reference.
        """
        try:
            self._send_once("transact_write_items", request)
        except ClientError as error:
            reasons: list[Item] = _response(error).get("CancellationReasons", [])
            other = {each["Code"] for each in reasons} - _CONTENTION - _OF_ITEMS
            if _code(error) != "TransactionCanceledException" or other:
                raise self._translate(error, writing=True) from error
            if len(reasons) != len(request["TransactItems"]):
                raise OutcomeUnknown("DynamoDB cancelled the transaction, but gave no reasons") from error
            return reasons
        except BotoCoreError as error:
            raise self._translate(error, writing=True) from error
        return None

    def _send(self, operation: str, request: Item, *, writing: bool) -> Any:  # noqa: ANN401 - DynamoDB's own JSON
        """Send a request until it is answered, tries are used up, or the deadline is near."""
        backoff = Backoff(self._clock, self._rng, base=0.025, limit=1.0, tries=6)
        doubt: OutcomeUnknown | None = None
        while True:
            try:
                return self._send_once(operation, request)
            except (ClientError, BotoCoreError) as error:
                if isinstance(error, ClientError):
                    if _is_failed_condition(error):
                        raise ConditionFailed(_response(error)) from error
                    if _meaning(error) is _Meaning.ANOTHER_ID and "ClientRequestToken" in request:
                        request = request | {"ClientRequestToken": new_id(self._rng)}
                trouble = self._translate(error, writing=writing)
                if isinstance(trouble, StoreMisconfigured | StoreRejected):
                    raise trouble from error
                if isinstance(trouble, OutcomeUnknown):
                    doubt = trouble
            # An earlier try may have been applied, even if a later one is refused.
            backoff.pause(doubt or trouble, need=self._timeout)

    def _send_once(self, operation: str, request: Item) -> Any:  # noqa: ANN401 - DynamoDB's own JSON
        """Send a request once, and record how long that took and how it ended."""
        self._check_deadline()
        started, outcome = self._clock.monotonic(), StoreOutcome.UNANSWERED
        try:
            with answer_within(self._timeout):
                answer = getattr(self._client, operation)(**request)
            require(answer, operation, request)
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

    def _translate(self, error: ClientError | BotoCoreError, *, writing: bool) -> StoreUnavailable | StoreRejected:
        """Turn an error of the client into one of the port."""
        if isinstance(error, ClientError):
            if refusal := self._refusal(error):
                return refusal
            message = f"DynamoDB failed ({_code(error)})"
        elif isinstance(error, (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)):
            return StoreMisconfigured("there are no AWS credentials that can be used")
        elif isinstance(error, (EndpointConnectionError, ConnectTimeoutError, TlsFailed)):
            return StoreUnavailable(f"DynamoDB cannot be reached ({type(error).__name__})")
        else:
            what = error if isinstance(error, NoAnswer) else type(error).__name__
            message = f"DynamoDB did not answer ({what})"
        return OutcomeUnknown(message) if writing else StoreUnavailable(message)

    def _refusal(self, error: ClientError) -> StoreUnavailable | StoreRejected | None:  # noqa: PLR0911 - one a meaning
        """Return the port's error if nothing was written, or None if that is not known."""
        code = _code(error)
        match _meaning(error):
            case _Meaning.AGAIN | _Meaning.ANOTHER_ID:
                return StoreUnavailable("DynamoDB is busy")
            case _Meaning.NO_TABLE:
                return StoreMisconfigured(f"table {self._table!r} does not exist: create it with `broker table create`")
            case _Meaning.NO_INDEX:
                return StoreMisconfigured(f"table {self._table!r} has no index that can be used: run `broker check`")
            case _Meaning.CREDENTIALS:
                return StoreMisconfigured(f"DynamoDB refused our credentials ({code})")
            case _Meaning.REFUSED:
                return StoreMisconfigured(f"DynamoDB refused the request ({code})")
            case _Meaning.MALFORMED:
                _log.error("DynamoDB calls a request malformed: %s", error)
                return StoreRejected(f"DynamoDB calls the request malformed ({code})")
            case _:
                return None


def _meaning(error: ClientError) -> _Meaning:
    code, response = _code(error), _response(error)
    reasons = {each["Code"] for each in response.get("CancellationReasons", [])}
    if "ValidationError" in reasons:
        return _Meaning.MALFORMED
    if reasons - _CONTENTION - {"None"}:
        return _Meaning.REFUSED
    if _is_about_the_index(error):
        return _Meaning.NO_INDEX
    is_failure = response["ResponseMetadata"]["HTTPStatusCode"] >= HTTPStatus.INTERNAL_SERVER_ERROR
    return _MEANINGS.get(code, _Meaning.UNKNOWN if is_failure else _Meaning.REFUSED)


def _outcome(error: ClientError) -> StoreOutcome:
    if _is_failed_condition(error):
        return StoreOutcome.CONDITION_FAILED
    if _meaning(error) is _Meaning.AGAIN:
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
    """Tell whether an error says that a write's condition did not hold."""
    if _code(error) == "ConditionalCheckFailedException":
        return True
    codes = {reason["Code"] for reason in _response(error).get("CancellationReasons", [])}
    return "ConditionalCheckFailed" in codes
