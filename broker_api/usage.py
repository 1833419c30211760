"""The call that reports how labs, customers and days used the pool."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, Any

from flask import Response

from broker_api.blueprint import Blueprint, refuse_surplus
from broker_api.current import current
from broker_api.limits import bulk_store_call
from broker_api.runtime import services
from broker_api.schemas.usage import UsageQuerySchema, UsageRowSchema, UsageSchema
from broker_common.core.principals import Role
from broker_common.core.usage import Grouping
from broker_common.csv_export import write_csv

if TYPE_CHECKING:
    from broker_common.core.usage import UsageReport

_CSV = "text/csv"
_ROW = UsageRowSchema()
_EXAMPLE = "group,leases,sandbox_hours,…\r\nintro-to-dns,40,38.5,…\r\n"

blueprint = Blueprint("usage", __name__)
blueprint.before_request(refuse_surplus)


@blueprint.route("/usage", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(
    operationId="adminReadUsage",
    errors=("SERVICE_UNAVAILABLE",),
    responses={200: {"content": {_CSV: {"schema": {"type": "string"}, "example": _EXAMPLE}}}},
)
@blueprint.arguments(UsageQuerySchema(), location="query")
@blueprint.response(200, UsageSchema, description="The report; with `Accept: text/csv` its rows as CSV")
@bulk_store_call
def read_usage(query: dict[str, Any]) -> UsageReport | Response:
    """Report on the leases that ended in a time, by lab, customer or day."""
    report = services().usage.report(
        since=query["since"], until=query["until"], by=Grouping(query["by"]), customer=query.get("customer")
    )
    return _as_csv(report) if _prefers_csv() else report


def _prefers_csv() -> bool:
    return current().accept_mimetypes.best_match(["application/json", _CSV]) == _CSV


def _as_csv(report: UsageReport) -> Response:
    file = StringIO()
    write_csv(map(_ROW.dump, report.rows), file, fields=_ROW.fields)
    return Response(file.getvalue(), mimetype=_CSV)
