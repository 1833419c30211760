"""Our signature of a request is botocore's, for any request."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest.mock import patch

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from broker_common.adapters.dynamo_http import Connections
from broker_common.adapters.dynamo_signer import sign

VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x17F, exclude_categories=["C", "Z"]), min_size=1)
SECRETS = st.text(st.characters(exclude_categories=["Cs"]))
HOSTS = st.sampled_from(["dynamodb.eu-central-1.amazonaws.com", "LocalHost", "127.0.0.1", "[::1]", "user:pass@host"])
PORTS = st.sampled_from(["", ":80", ":443", ":8000"])
DAYS = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)) | st.sampled_from([datetime(2026, 2, 28, 23, 59, 59)])  # noqa: DTZ001 - UTC is added


@given(
    body=st.binary(),
    target=VALUES,
    key=VALUES,
    secret=SECRETS,
    token=st.none() | st.just("") | VALUES,
    region=VALUES,
    scheme=st.sampled_from(["http", "https"]),
    host=HOSTS,
    port=PORTS,
    clock=DAYS,
)
def test_a_request_is_signed_as_botocore_signs_it(  # noqa: PLR0917 - by name
    body: bytes,
    target: str,
    key: str,
    secret: str,
    token: str | None,
    region: str,
    scheme: str,
    host: str,
    port: str,
    clock: datetime,
) -> None:
    url, now = f"{scheme}://{host}{port}", clock.replace(tzinfo=UTC)
    credentials = Credentials(key, secret, token).get_frozen_credentials()
    ours = sign(
        target,
        body,
        credentials,
        region=region,
        host=Connections(url, ca_file="", timeout_sec=1, kept=1).host,
        now=now.timestamp(),
    )
    given_headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": target}
    request = AWSRequest(method="POST", url=url, data=body, headers=given_headers)
    with patch("botocore.auth.get_current_datetime", return_value=now):
        SigV4Auth(credentials, "dynamodb", region).add_auth(request)
    theirs = {name.lower(): value for name, value in request.headers.items()}
    assert ours.pop("host")  # botocore's connection adds it later; the signature holds it
    assert ours == theirs
