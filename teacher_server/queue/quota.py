"""Tokens per minute of each run: token buckets, pure and without a clock."""

from __future__ import annotations

from dataclasses import dataclass

from teacher_proto.errors import InvalidRequestError, OverloadedError

from teacher_server.queue.policy import RunPolicy

MINUTE = 60.0
# Full buckets are forgotten once there are this many, and twice what was left last time.
SPARE = 64


@dataclass
class _Bucket:
    """``level`` tokens at time ``at``, for a quota of ``per_minute``."""

    per_minute: int
    level: float
    at: float

    def fill(self, per_minute: int, now: float) -> None:
        """Up to ``now``, and to a quota that changed."""
        gained = max(0.0, now - self.at) * self.per_minute / MINUTE
        self.level = min(self.level + gained, float(per_minute))
        self.per_minute, self.at = per_minute, now


class Quotas:
    """What each run has left of its ``tokens_per_minute``.

    A bucket holds the tokens of one minute and starts full: over any t seconds at most
    ``tokens_per_minute * (1 + t / 60)`` tokens are taken, and on top what requests that have
    begun take beyond what was held for them, which is missing afterwards. A request counts when
    it is accepted, whether or not it is computed in the end; a refused one does not count.
    Times are seconds of a monotonic clock.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}
        self._sweep_at = SPARE

    def check(self, policy: RunPolicy, tokens: int, now: float) -> None:
        """Passes when ``take`` may follow.

        Raises:
            OverloadedError: not now; ``retry_after`` is when the run's bucket has enough.
            InvalidRequestError: more at once than a minute's quota, which no bucket holds.
        """
        quota = policy.tokens_per_minute
        if quota is None:
            return
        if tokens > quota:
            raise InvalidRequestError(
                f"{tokens} tokens are more than the run may ask for in a minute, "
                f"tokens_per_minute={quota}",
                where="run",
                fix="split the group, or raise the run's tokens_per_minute on the server",
                reason="LIMIT_EXCEEDED",
            )
        missing = tokens - self._bucket(policy.run, quota, now).level
        if missing > 0:
            raise OverloadedError(
                f"run {policy.run!r} has used its quota, tokens_per_minute={quota}: "
                f"{missing:.0f} of {tokens} tokens are missing",
                where="run",
                fix="retry after the hinted time, or raise the run's tokens_per_minute on the "
                "server",
                reason="QUOTA_EXCEEDED",
                retry_after=missing * MINUTE / quota,
            )

    def take(self, policy: RunPolicy, tokens: int, now: float) -> None:
        """Counts tokens that ``check`` allowed at the same time, or of a request that has begun."""
        if policy.tokens_per_minute is not None:
            self._bucket(policy.run, policy.tokens_per_minute, now).level -= tokens

    def give_back(self, policy: RunPolicy, tokens: int, now: float) -> None:
        """Returns tokens that were taken for a request and that it did not use."""
        if policy.tokens_per_minute is not None:
            self._bucket(policy.run, policy.tokens_per_minute, now).level += tokens

    def _bucket(self, run: str, quota: int, now: float) -> _Bucket:
        bucket = self._buckets.get(run)
        if bucket is None:
            self._forget_full(now)
            bucket = self._buckets[run] = _Bucket(quota, float(quota), now)
        bucket.fill(quota, now)
        return bucket

    def _forget_full(self, now: float) -> None:
        if len(self._buckets) < self._sweep_at:
            return
        for bucket in self._buckets.values():
            bucket.fill(bucket.per_minute, now)
        self._buckets = {r: b for r, b in self._buckets.items() if b.level < b.per_minute}
        self._sweep_at = max(SPARE, 2 * len(self._buckets))
