"""Show operators the pool: one sandbox, or a page of them. Nothing here changes a record."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from broker_common.core.errors import InvalidInput, SandboxNotFound
from broker_common.core.sandbox import Sandbox
from broker_common.core.store import SandboxPage, Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker_common.core.leases import Leases
    from broker_common.core.sandbox import Status
    from broker_common.core.store import SandboxStore


class Inventory:
    """Reads sandboxes for operators."""

    def __init__(self, *, store: SandboxStore, leases: Leases) -> None:
        self._store = store
        self._leases = leases

    def read(self, sandbox_id: str) -> Sandbox:
        """Return a sandbox or its tombstone; raises `SandboxNotFound` or `UnreadableRecord`."""
        sandbox = self._store.get(sandbox_id)
        if sandbox is None:
            raise SandboxNotFound(f"there is no sandbox {sandbox_id!r}")
        (shown,) = self.show([sandbox])
        return shown

    def last_sync(self) -> int | None:
        """Return when a sync last succeeded; None before the first, or if that cannot be read."""
        watermark = self._store.read_watermark()
        return None if watermark is None else watermark.synced_at

    def list_sandboxes(self, status: Status | None, *, limit: int, cursor: str | None) -> SandboxPage:
        """List sandboxes of one status, or all if `status` is None, as `Reports.list_sandboxes` does."""
        page = self._store.list_sandboxes(status, limit=limit, cursor=cursor)
        return replace(page, sandboxes=self.show(page.sandboxes))

    def list_of_track(self, track_id: str, status: Status | None, *, limit: int, cursor: str | None) -> SandboxPage:
        """List the sandboxes that a track holds, of one status or of all, in the order of their ids.

        Raises `InvalidInput` if `cursor` is not one that this method returned for the same track.
        """
        after = _read_cursor(track_id, cursor) if cursor is not None else ""
        held = sorted(self._leases.find_held(track_id=track_id), key=lambda each: each.sandbox_id)
        remaining = [
            each
            for each in held
            if each.sandbox_id > after and (isinstance(each, Unreadable) or status in {None, each.status})
        ]
        page = remaining[:limit]
        return SandboxPage(
            self.show(each for each in page if isinstance(each, Sandbox)),
            _write_cursor(track_id, page[-1].sandbox_id) if len(remaining) > limit else None,
            tuple(each for each in page if isinstance(each, Unreadable)),
        )

    def show(self, sandboxes: Iterable[Sandbox]) -> tuple[Sandbox, ...]:
        """Return the sandboxes; free ones get the time of the last sync as `last_synced`.

        Sync does not write a record that has not changed, so the record's own `last_synced` may be older.
        """
        shown = tuple(sandboxes)
        if not any(sandbox.is_free for sandbox in shown):
            return shown
        watermark = self._store.read_watermark()
        if watermark is None:
            return shown
        return tuple(
            replace(sandbox, last_synced=max(sandbox.last_synced or 0, watermark.synced_at))
            if sandbox.is_free
            else sandbox
            for sandbox in shown
        )


def _write_cursor(track_id: str, after: str) -> str:
    content = json.dumps(["track", track_id, after], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode()


def _read_cursor(track_id: str, cursor: str) -> str:
    try:
        match json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True)):
            # Only a cursor that `_write_cursor` made is accepted, not another spelling of the same content.
            case ["track", str(), str(after)] if cursor == _write_cursor(track_id, after):
                return after
    except (ValueError, RecursionError):
        pass
    raise InvalidInput("cursor: is not one of this track's list; use one that the list returned, or leave it out")
