"""Signs requests to DynamoDB by AWS Signature Version 4.

Source: "Create a signed AWS API request" in the guide of AWS IAM.
"""

from __future__ import annotations

import hmac
import time
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials


def sign(
    target: str, body: bytes, credentials: ReadOnlyCredentials, *, region: str, host: str, now: float
) -> dict[str, str]:
    """Return the headers of a POST of `body` to `/`: those that are signed, and the signature.

    `host` is what the header `Host` says, and `now` is in Unix seconds.
    """
    at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    headers = {"content-type": "application/x-amz-json-1.0", "host": host, "x-amz-date": at}
    if credentials.token:
        headers["x-amz-security-token"] = credentials.token
    headers["x-amz-target"] = target  # they must stand in the order of their names
    names = ";".join(headers)
    lines = "".join([f"{name}:{value}\n" for name, value in headers.items()])
    request = f"POST\n/\n\n{lines}\n{names}\n{sha256(body).hexdigest()}"
    scope = f"{at[:8]}/{region}/dynamodb/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{sha256(request.encode()).hexdigest()}"
    signature = hmac.digest(_key(credentials.secret_key, at[:8], region), text.encode(), "sha256").hex()
    credential = f"{credentials.access_key}/{scope}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}"
    return headers


@lru_cache(maxsize=2)  # one for the current secret and day, one for the previous
def _key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, "dynamodb", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
