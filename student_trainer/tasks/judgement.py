"""What becomes of a response that is to be judged: a score, or a failure of a known kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from student_trainer.tasks.base import RIGHT

Failure = Literal[
    "time", "memory", "output", "raised", "ended", "replay", "start", "unjudged", "stopped"
]
# What each kind of failure means, in the order in which they are shown.
FAILURES: Mapping[Failure, str] = {
    "time": "took longer than `verification.seconds`, or a turn of it than `turn_seconds`",
    "memory": "took more than `verification.memory_bytes`",
    "output": "printed more than a MiB",
    "raised": "made the verifier or environment raise an error, or return what it may not",
    "ended": "ended the process",
    "replay": "its environment answered otherwise when its turns were made again",
    "start": "had no process, because none could be started",
    "unjudged": "the verifier cannot judge, as it says itself",
    "stopped": "had not begun when a signal ended the run",
}


@dataclass(frozen=True)
class Judgement:
    """Of one response.

    Attributes:
        score: in [0, 1]; None where there is none.
        failure: why there is none, as a key of FAILURES; empty where there is one.
        reason: the same in words.
        values: further numbers, by name.
    """

    score: float | None
    failure: Failure | Literal[""] = ""
    reason: str = ""
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def begun(self) -> bool:
        """Whether judging it began: what never did says nothing of the response."""
        return self.failure not in ("start", "stopped")

    @property
    def right(self) -> bool:
        """A response that could not be judged is not right."""
        return self.score is not None and self.score >= RIGHT


def failed(kind: Failure, reason: str) -> Judgement:
    """The judgement of a response that has no score."""
    return Judgement(None, kind, reason)


def failures(judged: Iterable[Judgement]) -> dict[str, int]:
    """How many failed, by kind; only kinds that there were, in the order of FAILURES."""
    found = Counter(one.failure for one in judged)
    return {kind: found[kind] for kind in FAILURES if found[kind]}


def told(judged: Iterable[Judgement]) -> list[str]:
    """A part of a sentence for each kind of failure that there was: how many of the responses,
    and the reason of the first, in which what cannot be printed is escaped."""
    every = list(judged)
    first: dict[str, str] = {}
    for one in every:
        first.setdefault(one.failure, one.reason)
    return [
        f"{count} of {len(every)} responses cannot be judged ({kind}), the first because "
        f"{first[kind]!a}"
        for kind, count in failures(every).items()
    ]
