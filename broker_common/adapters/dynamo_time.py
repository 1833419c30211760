"""Reads DynamoDB's time, for processes that need nothing else of it and have no credentials for it."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from collections.abc import Callable


def make_time_reader(*, region: str, endpoint_url: str | None, timeout_sec: float) -> Callable[[], int | None]:
    """Return a function that reads DynamoDB's time in Unix seconds, or None if no answer with a time comes.

    It waits `timeout_sec` to connect, and as long for the answer. The request is not signed, so it needs no permission.
    Every answer has the header `Date`, even a refusal.
    """
    client: Any = boto3.session.Session().client(
        "dynamodb",
        region_name=region,
        endpoint_url=endpoint_url,
        config=Config(
            signature_version=UNSIGNED,
            connect_timeout=timeout_sec,
            read_timeout=timeout_sec,
            retries={"mode": "standard", "total_max_attempts": 1},
            user_agent="sandbox-broker",
        ),
    )

    def read() -> int | None:
        try:
            answer = client.list_tables(Limit=1)
        except ClientError as refused:
            answer = refused.response
        except BotoCoreError:
            return None
        return time_of(answer)

    return read


def time_of(answer: Any) -> int | None:  # noqa: ANN401 - DynamoDB's own JSON
    """Return the time of an answer's `Date` header in Unix seconds; None if it has no readable one."""
    try:
        return int(parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp())
    except (KeyError, ValueError):
        return None
