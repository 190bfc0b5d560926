"""How fast an engine has worked while it had work."""

from __future__ import annotations


class Throughput:
    """Tokens per second while the engine is busy; what is long past counts less and less."""

    def __init__(self, window: float = 30.0) -> None:
        self._window = window
        self._tokens = 0.0
        self._busy = 0.0
        self._since: float | None = None

    def observe(self, now: float, *, busy: bool, finished_tokens: int = 0) -> None:
        """Records what ended at ``now`` and whether the engine is busy from then on."""
        if self._since is not None:
            self._busy += max(0.0, now - self._since)
        self._tokens += finished_tokens
        if self._busy > self._window:
            self._busy /= 2
            self._tokens /= 2
        self._since = now if busy else None

    def rate(self) -> float | None:
        """Tokens per second; None before anything finished."""
        if self._busy <= 0 or self._tokens <= 0:
            return None
        return self._tokens / self._busy
