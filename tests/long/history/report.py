"""A verdict in words."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tests.long.history.certainty import Certainties
from tests.long.history.checker import Promise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.long.history.checker import Verdict
    from tests.long.history.record import History

SHOWN = 5
"""The number of violations of a promise that are shown in full."""


def summarize(history: History) -> str:
    """Return the calls and the faults of a run as text."""
    known = Certainties(history)
    statuses = Counter(f"{call.kind} {call.status or 'unanswered'}" for call in history.calls)
    waits = sorted(
        wiped_at - lease.over_from
        for lease in known.leases.values()
        if (wiped_at := known.wiped_at(lease.sandbox_id, lease.over_from)) is not None
    )
    struck = Counter[str]()
    for fault in history.faults:
        struck[fault.name] += fault.hits
    lines = [
        f"seed {history.terms.seed}: calls {len(history.calls)}, leases {len(known.leases)}",
        f"seen: scans {len(history.scans)}, deletes {len(history.deletes)}, faults {len(history.faults)}",
        "calls: " + ", ".join(f"{number} {what}" for what, number in sorted(statuses.items())),
        *(f"fault: {name}, struck {number} times" for name, number in sorted(struck.items())),
    ]
    if waits:
        middle, last = waits[len(waits) // 2], waits[-1]
        lines.append(f"from the end of a lease to its confirmed wipe: median {middle:.1f} s, longest {last:.1f} s")
    return "\n".join(lines)


def describe(verdict: Verdict) -> str:
    """Return for each promise the number of checks, the verdict, and the first violations as text."""
    return "\n".join(_lines(verdict))


def _lines(verdict: Verdict) -> Iterator[str]:
    for promise in Promise:
        broken = [violation for violation in verdict.violations if violation.promise is promise]
        times = "once" if len(broken) == 1 else f"{len(broken)} times"
        yield f"{promise.value}. {promise.sentence}: {f'BROKEN {times}' if broken else 'kept'}"
        looked_at = ", ".join(f"{number} {what}" for what, number in sorted(verdict.examined[promise].items()))
        yield f"     looked at {looked_at or 'nothing'}"
        for violation in broken[:SHOWN]:
            yield f"   - {violation.text}"
            for record in violation.evidence:
                yield f"       {record}"
