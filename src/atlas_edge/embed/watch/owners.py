"""Which of the watchers that share a journal are still alive."""

import sqlite3
import time
from collections.abc import Callable

from atlas_edge.system.process import ProcessId

_DEAD_S = 60.0
"""A watcher of another machine or container that shows no sign of life for so long has ended."""
_LOOK_S = 0.5


class Owners:
    """The watchers that have claimed slides, as one of them sees the others.

    Args:
        me: The one that looks.
    """

    def __init__(self, me: str) -> None:
        self._me = me
        self._beats: dict[str, tuple[int, float]] = {}

    def orphans(self, running: list[sqlite3.Row]) -> list[sqlite3.Row]:
        """Those of the rows that are being embedded whose watcher has ended, or waits for work."""
        owners = {row["owner"]: row["beat"] for row in running}
        self._beats = {owner: beat for owner, beat in self._beats.items() if owner in owners}
        return [row for row in running if not self._is_alive(row["owner"], owners[row["owner"]])]

    def wait_for_signs(self, running: Callable[[], list[sqlite3.Row]], on_wait: Callable[[], None]) -> None:
        """Look until every watcher that was alive only for all that is known has counted on, or counts as ended.

        Args:
            running: Reads the rows that are being embedded.
            on_wait: Called before the first pause.
        """
        first: dict[str, int] | None = None
        while True:
            rows = running()
            if any(_is_running(row["owner"]) for row in rows if row["owner"] != self._me):
                return
            alive = {row["owner"]: row["beat"] for row in rows if self._is_alive(row["owner"], row["beat"])}
            if first is None:
                first = alive
                if alive:
                    on_wait()
            if not alive or any(first.get(owner) != beat for owner, beat in alive.items()):
                return
            time.sleep(_LOOK_S)

    def _is_alive(self, owner: str | None, beat: int) -> bool:
        if owner is None or owner == self._me:
            return False
        alive = _is_running(owner)
        if alive is not None:
            return alive
        # Of another machine or container nothing is known but that it counts on; timed by our own clock.
        counted, since = self._beats.get(owner, (None, 0.0))
        if counted != beat:
            self._beats[owner] = (beat, time.monotonic())
            return True
        return time.monotonic() - since < _DEAD_S


def _is_running(owner: str | None) -> bool | None:
    """Whether an owner's process runs; None where that cannot be known from here."""
    process = ProcessId.parse(owner.split("/")[1]) if owner and owner.count("/") == 2 else None
    return process.is_running() if process is not None else None
