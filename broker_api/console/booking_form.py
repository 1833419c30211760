"""The form by which a class is booked or changed, in words of an instructor.

Times are typed and sent in UTC. With a script, the reader sees and types his own zone, and the form still sends UTC:
see static/booking.js. So the server never guesses a zone.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from wtforms import Field, FloatField, IntegerField, StringField, TextAreaField
from wtforms.validators import DataRequired, InputRequired, Length, NumberRange, Optional, Regexp
from wtforms.widgets import DateTimeLocalInput

from broker_api.console.calls import sentence
from broker_api.console.forms import Form, trimmed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker_common.adapters.broker_http import Refused

_LONGEST = 128
_LONGEST_NOTE = 500
_MOST = 100_000
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
DEFAULT_LEAD = 15
_LENGTH = re.compile(
    r"(?:(\d{1,3}) ?d(?:ays?)?)? ?(?:(\d{1,4}(?:\.\d{1,2})?) ?h(?:(?:ou)?rs?)?)? ?(?:(\d{1,6}) ?m(?:in(?:ute)?s?)?)?",
    re.ASCII | re.IGNORECASE,
)
_PLAIN = Regexp(r"[ -~]*\Z", message="Use only letters without accents, digits, and signs of an English keyboard.")
_SHORT = Length(max=_LONGEST, message=f"Use at most {_LONGEST} characters.")
_FIELD_OF = {
    "name": "name",
    "count": "count",
    "starts_at": "starts",
    "ends_at": "ends",
    "prefix": "prefix",
    "track_names": "labs",
    "customer": "customer",
    "lead_sec": "lead",
    "hold_sec": "hold",
    "note": "note",
}
"""The field of the form for each field of the API."""
TIMES = frozenset({"starts_at", "ends_at"})
OVER = frozenset({"ended", "cancelled"})
"""The states of a reservation that is over."""


class MomentField(Field):
    """A date and time in UTC. Its data are Unix seconds."""

    widget = DateTimeLocalInput()

    def _value(self) -> str:
        if self.raw_data:
            return str(self.raw_data[0])
        if self.data is None:
            return ""
        at = datetime.fromtimestamp(self.data, UTC)
        return f"{at:%Y-%m-%dT%H:%M:%S}".removesuffix(":00")

    def process_formdata(self, valuelist: list[Any]) -> None:
        """Read what was typed. Raises `ValueError` with a sentence if it is no time."""
        self.data = None
        text = str(valuelist[0]).strip() if valuelist else ""
        if text:
            try:
                at = datetime.fromisoformat(text)
            except ValueError:
                raise ValueError("Give a date and a time, such as 2026-12-01T09:00.") from None
            self.data = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


class LengthField(StringField):
    """How long something lasts: 3 h, 90 min, 1 h 30 min. Its `seconds` are None if it is empty."""

    seconds: int | None = None

    def process_formdata(self, valuelist: list[Any]) -> None:
        """Read what was typed. Raises `ValueError` with a sentence if it is no length."""
        super().process_formdata(valuelist)
        text = " ".join((self.data or "").split())
        if not text:
            return
        found = _LENGTH.fullmatch(text)
        days, hours, minutes = found.groups() if found else (None, None, None)
        self.seconds = round(float(days or 0) * _DAY + float(hours or 0) * _HOUR + float(minutes or 0) * _MINUTE)
        if not self.seconds:
            self.seconds = None
            raise ValueError("Give a length with its unit, such as 3 h, 90 min, or 1 h 30 min.")


class BookingForm(Form):
    """All that can be said of a reservation."""

    name = StringField(
        "Name of the class", validators=[DataRequired("Give the class a name."), _SHORT, _PLAIN], filters=[trimmed]
    )
    count = IntegerField(
        "How many sandboxes",
        validators=[
            InputRequired("Say how many sandboxes the class needs, as a number."),
            NumberRange(1, _MOST, f"Use a number from 1 to {_MOST:,}."),
        ],
    )
    starts = MomentField("Starts", validators=[InputRequired("Say when the class starts.")])
    length = LengthField("Lasts")
    ends = MomentField("Or ends")
    labs = TextAreaField("Labs of the class")
    prefix = StringField("Only sandboxes whose name starts with", validators=[_SHORT, _PLAIN], filters=[trimmed])
    customer = StringField("Only for tracks of this customer", validators=[_SHORT, _PLAIN], filters=[trimmed])
    lead = FloatField(
        "Set aside from, in minutes before the start",
        validators=[
            InputRequired("Give the minutes, as a number."),
            NumberRange(10, 24 * 60, "Use a number from 10 to 1440."),
        ],
    )
    hold = FloatField(
        "Give unused ones back, in minutes after the start",
        validators=[Optional(), NumberRange(0, 90 * 24 * 60, "Use a number from 0 to 129600.")],
    )
    note = StringField(
        "Note",
        validators=[Length(max=_LONGEST_NOTE, message=f"Use at most {_LONGEST_NOTE} characters.")],
        filters=[trimmed],
    )

    def end(self) -> int | None:
        """Return when the class ends; None if that is not said. A length counts before an end."""
        starts_at: int | None = self.starts.data
        ends_at: int | None = self.ends.data
        if self.length.seconds is None:
            return ends_at
        return None if starts_at is None else starts_at + self.length.seconds

    def check_end(self, known: int | None = None) -> bool:
        """Tell whether it is said once when the class ends; if not, say so at the field. `known`: the end up to now."""
        if self.length.errors or self.ends.errors:
            return False
        if self.length.seconds is None and self.ends.data is None:
            self.length.errors = ["Say how long the class lasts, or when it ends."]
        elif self.length.seconds is not None and self.ends.data not in {None, known, self.end()}:
            self.length.errors = ["Say how long the class lasts or when it ends, not both."]
        else:
            return True
        return False

    def body(self) -> dict[str, Any]:
        """Return the fields as the API takes them, of a form that was found valid."""
        return {
            "name": self.name.data,
            "count": self.count.data,
            "starts_at": self.starts.data,
            "ends_at": self.end(),
            "prefix": self.prefix.data or "",
            "track_names": [lab.strip() for lab in (self.labs.data or "").splitlines() if lab.strip()],
            "customer": self.customer.data,
            "lead_sec": round((self.lead.data or 0) * _MINUTE),
            "hold_sec": None if self.hold.data is None else round(self.hold.data * _MINUTE),
            "note": self.note.data,
        }

    def show(self, reservation: Mapping[str, Any], api_fields: Sequence[str] = tuple(_FIELD_OF)) -> None:
        """Put the values of a reservation into the fields that `api_fields` name, over what was typed."""
        for api_field in api_fields:
            field = self[_FIELD_OF[api_field]]
            field.raw_data = None
            field.data = _shown(api_field, reservation[api_field])

    def take(self, error: Refused) -> list[str]:
        """Put what the API found wrong beside the fields, and return what is about no field of the form."""
        if error.code != "VALIDATION_ERROR":
            return [sentence(error.message)]
        others = []
        for api_field, problems in error.details.items():
            texts = [sentence(str(each)) for each in problems]
            if api_field in _FIELD_OF:
                self[_FIELD_OF[api_field]].errors = [each.replace("starts_at", "the start") for each in texts]
            else:
                others += [f"{api_field}: {each}" for each in texts]
        return others


def new_form() -> BookingForm:
    """Return the form for a new class, as far as it can be filled in."""
    form = BookingForm(formdata=None)
    form.lead.data = DEFAULT_LEAD
    return form


def label_of(api_field: str) -> str:
    """Return what people call a field of the API: the label of its field in the form."""
    return str(getattr(BookingForm, _FIELD_OF[api_field]).args[0])


def text_of(api_field: str, value: Any) -> str | int | None:  # noqa: ANN401 - values of JSON
    """Return a value as people read it. One of `TIMES` stays as it is, for a template."""
    if api_field in TIMES:
        return None if value is None else int(value)
    if value is None or value in ("", []):
        return "nothing"
    return ", ".join(str(_shown(api_field, value)).splitlines())


def _shown(api_field: str, value: Any) -> Any:  # noqa: ANN401 - values of JSON
    """Return a value of the API as its field has it."""
    if api_field == "track_names":
        return "\n".join(value)
    if api_field in {"lead_sec", "hold_sec"} and value is not None:
        minutes = round(value / _MINUTE, 2)
        return int(minutes) if minutes == int(minutes) else minutes
    return value
