"""How fast a watcher embeds, and whether it is at work at all; by a clock that nobody sets."""

import threading
import time
from collections import deque

_WINDOW_S = 60.0
_LEAST_S = 1.0


class Pace:
    """Tiles that this process has embedded, and the last sign of life of what embeds them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = self._sign = time.monotonic()
        self._tiles = 0
        self._latest: deque[tuple[float, int]] = deque()

    def sign(self) -> None:
        """Note that the watcher is at work or asks for it."""
        self._sign = time.monotonic()

    def embedded(self, tiles: int) -> None:
        """Note so many more tiles."""
        with self._lock:
            self._sign = now = time.monotonic()
            self._tiles += tiles
            self._latest.append((now, tiles))
            self._forget(now)

    @property
    def tiles(self) -> int:
        """All of them."""
        return self._tiles

    @property
    def tiles_per_s(self) -> float:
        """Within the last minute, pauses and all."""
        with self._lock:
            now = time.monotonic()
            self._forget(now)
            seconds = max(min(now - self._begun, _WINDOW_S), _LEAST_S)
            return sum(tiles for _, tiles in self._latest) / seconds

    @property
    def sign_age_s(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._sign

    def _forget(self, now: float) -> None:
        while self._latest and self._latest[0][0] < now - _WINDOW_S:
            self._latest.popleft()
