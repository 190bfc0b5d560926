"""One episode as it is written: what the student and the environment have said so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from teacher_proto.types import Int32

from student_trainer.environments.process import Playing
from student_trainer.rollout.base import Rollout
from student_trainer.rollout.engine import ResponseKey
from student_trainer.rollout.episode import End, Episode
from student_trainer.tasks.calling.formats import THINKS
from student_trainer.tasks.environment import ActingTask
from student_trainer.tasks.judgement import Judgement

# More than `<think>` and the white space after it take in any tokenizer.
END_TOKENS = 16


@dataclass
class Played:
    """An episode.

    Attributes:
        key: the response that it is.
        limit: tokens of the whole response at most, observations included.
        playing: it, as its environment knows it.
        turns: those that the student has written.
        cut: messages of observations that were cut.
        ended: what has ended it; None while it goes on.
        judgement: once it is over.
    """

    key: ResponseKey
    task: ActingTask
    limit: int
    playing: Playing
    turns: int = 0
    cut: int = 0
    ended: End | None = None
    judgement: Judgement | None = None
    _parts: list[tuple[Int32, Rollout | None]] = field(default_factory=list)
    _length: int = 0

    @property
    def left(self) -> int:
        """Tokens that the response may still have."""
        return self.limit - self._length

    @property
    def last(self) -> Rollout:
        """The student's last turn."""
        return next(turn for _, turn in reversed(self._parts) if turn is not None)

    @property
    def next_key(self) -> ResponseKey:
        """The student's next turn: its prompt is everything so far, and its random stream that
        of the response for the first turn, and one of its own for each later one."""
        prompt, limit = self.key.prompt, self.left
        if self.task.turn_tokens is not None:
            limit = min(limit, self.task.turn_tokens)
        if not self.turns:
            return replace(self.key, limit=limit)
        read = np.concatenate([prompt.token_ids, *(ids for ids, _ in self._parts)])
        name = f"{prompt.prompt_id}/{self.key.index}/{self.turns + 1}"
        so_far = replace(prompt, prompt_id=name, token_ids=read.astype(np.int32))
        return ResponseKey(so_far, self.key.index, limit)

    def wrote(self, turn: Rollout) -> None:
        """Takes a turn of the student."""
        by_turn = self.task.turn_tokens is not None and self.task.turn_tokens < self.left
        self._add(turn.token_ids, turn)
        self.turns += 1
        if turn.finished:
            return
        if not by_turn:
            self.ended = "total_tokens"
        elif self.task.at_turn_limit == "end":
            self.ended = "turn_tokens"

    def observed(self, ids: Int32) -> None:
        """Takes what follows the turn; ends the episode where that leaves no token for another."""
        if len(ids) >= self.left:
            self.ended = "total_tokens"
        else:
            self._add(ids, None)

    def rollout(self) -> Rollout:
        """The response of an episode that is over."""
        assert self.ended is not None, "it is over"
        assert self.judgement is not None, "it is judged"
        last = self.last
        return Rollout(
            self.key.prompt,
            self.key.index,
            np.concatenate([ids for ids, _ in self._parts]).astype(np.int32),
            self._joined("log_probs"),
            last.finished and self.ended != "total_tokens",
            nucleus_mass=self._joined("nucleus_mass"),
            weights_version=last.weights_version,
            own=np.concatenate([np.full(len(ids), turn is not None) for ids, turn in self._parts]),
            episode=Episode(self.turns, self.ended, self.cut, self.judgement),
        )

    def _joined(self, name: str) -> Any:
        """float32 [n]: values of the student's tokens, NaN at others; None where they are not
        known."""
        found: list[Any] = [
            np.full(len(ids), np.nan, np.float32) if turn is None else getattr(turn, name)
            for ids, turn in self._parts
        ]
        return None if any(one is None for one in found) else np.concatenate(found)

    def _add(self, ids: Int32, turn: Rollout | None) -> None:
        self._parts.append((ids, turn))
        self._length += len(ids)


def text_of(tokenizer: Any, ids: Sequence[int], *, special: bool) -> str:
    """The text of a turn, with or without its special tokens."""
    return str(tokenizer.decode(ids, skip_special_tokens=not special))


def thinks_after(tokenizer: Any, ids: Int32) -> bool:
    """Whether what follows these tokens, int32 [n], begins inside of the student's thinking."""
    end = text_of(tokenizer, ids[-END_TOKENS:].tolist(), special=True)
    return end.rstrip().endswith(THINKS)
