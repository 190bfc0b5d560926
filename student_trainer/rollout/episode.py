"""How an episode went: a response that was written turn by turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from teacher_proto.types import UInt8

from student_trainer.tasks.base import OF_EPISODES
from student_trainer.tasks.judgement import Judgement

End = Literal["done", "turns", "turn_tokens", "total_tokens", "failed"]
# What has ended an episode, in the order in which they are shown.
ENDS: Mapping[End, str] = {
    "done": "its environment",
    "turns": "the task's `turns`",
    "turn_tokens": "a turn that was cut at the task's `turn_tokens`",
    "total_tokens": "the length limit of the whole response",
    "failed": "a failure of its environment",
}
# Names of the values that are told of every episode.
TOLD = tuple(
    f"{OF_EPISODES}{name}" for name in ("turns", "cut_messages", *(f"ended_{end}" for end in ENDS))
)


@dataclass(frozen=True)
class Episode:
    """Attributes:
    turns: that the student wrote.
    ended: what has ended it.
    cut: messages of its observations that were cut at `observation_characters`.
    judgement: of the environment, or its failure.
    """

    turns: int
    ended: End
    cut: int
    judgement: Judgement

    @property
    def told(self) -> Judgement:
        """The judgement with how the episode went among its values, under names that begin with
        ``episode_``."""
        ended = [float(end == self.ended) for end in ENDS]
        went = dict(zip(TOLD, [float(self.turns), float(self.cut), *ended], strict=True))
        return replace(self.judgement, values={**self.judgement.values, **went})


def episodes_as_bytes(episodes: Sequence[Episode | None]) -> UInt8:
    """uint8 [b]: how the responses of a batch went, as JSON; None of one that is no episode."""
    told = [None if one is None else asdict(one) for one in episodes]
    return np.frombuffer(json.dumps(told).encode("ascii"), np.uint8).copy()


def episodes_of_bytes(told: UInt8) -> list[Episode | None]:
    """The inverse of ``episodes_as_bytes``."""
    return [
        None if one is None else Episode(**{**one, "judgement": Judgement(**one["judgement"])})
        for one in json.loads(told.tobytes())
    ]
