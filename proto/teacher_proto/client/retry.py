"""When a call is sent again, and after how long. Times are seconds."""

from __future__ import annotations

import random
from dataclasses import dataclass

from teacher_proto.errors import LsmError, TeacherUnavailableError


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential back-off with full jitter.

    Attributes:
        max_attempts: sends at most; None leaves the caller's deadline as the only end.
        first_delay: upper bound of the first wait; it doubles with every attempt.
        longest_delay: upper bound of every wait that the server did not ask for.
    """

    max_attempts: int | None = None
    first_delay: float = 0.1
    longest_delay: float = 1.0

    def allows(self, error: LsmError, attempts: int) -> bool:
        """Whether the same work may be sent again after ``attempts`` sends.

        Only a teacher that is not there, or an error that names a time to come
        back, is worth another attempt: scoring is pure, so a repeat is safe.
        """
        if self.max_attempts is not None and attempts >= self.max_attempts:
            return False
        return isinstance(error, TeacherUnavailableError) or error.retry_after is not None

    def delay(self, error: LsmError, attempts: int, source: random.Random) -> float:
        """Seconds to wait before the next send: never less than the server asked for."""
        bound = min(self.first_delay * 2.0 ** min(attempts - 1, 30), self.longest_delay)
        jitter = source.uniform(0.0, bound)
        return jitter if error.retry_after is None else error.retry_after + jitter
