"""A process of environments, as the trainer sees it. What it knows of an episode is lost with it:
the episode is then rebuilt from its turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from student_trainer.environments.inside import LONGEST
from student_trainer.tasks import Row
from student_trainer.tasks.environment import ActingTask, Observation, Turn
from student_trainer.tasks.judgement import Judgement, failed
from student_trainer.verification.child import ChildProcess, judgement_of

MODULE = "student_trainer.environments.inside"
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Observed:
    """What an environment has answered to a turn.

    Attributes:
        cut: how many of its messages are cut.
    """

    observation: Observation
    cut: int = 0


@dataclass
class Playing:
    """An episode that goes on.

    Attributes:
        number: its own in all processes.
        turns: those that were made, with what the environment answered.
        start: the start of the process that knows it; 0 where none does.
    """

    number: int
    task: str
    row: Row
    turns: list[tuple[Turn, Observed]] = field(default_factory=list)
    start: int = 0


class EnvironmentProcess(ChildProcess):
    """One process with the environments of many episodes."""

    def __init__(
        self, tasks: Mapping[str, ActingTask], folders: Sequence[Path], *, memory_bytes: int
    ) -> None:
        """Arguments as of ``ChildProcess``."""
        super().__init__(
            MODULE,
            tasks,
            folders,
            what="the process of environments",
            memory_bytes=memory_bytes,
            longest=LONGEST,
        )
        self._tasks = tasks
        # Numbers of the episodes that the process knows, or knew when it ended.
        self._held: set[int] = set()

    def act(self, episode: Playing, turn: Turn) -> Observed | Judgement:
        """What the environment answers, or why the episode has failed.

        Raises:
            ConfigurationError: no process can be started, twice in a row.
        """
        answered = self._alone_where_short(
            episode, lambda: self._rebuilt(episode) or self._turn(episode, turn)
        )
        if isinstance(answered, Observed):
            episode.turns.append((turn, answered))
        return answered

    def judge(self, episode: Playing) -> Judgement:
        """The verdict of an episode that is over; errors as of ``act``."""

        def judged() -> Judgement:
            lost = self._rebuilt(episode)
            if lost is not None:
                return lost
            said = self._asked(episode, {"judge": episode.number}, "judging its episode")
            return said if isinstance(said, Judgement) else judgement_of(said)

        return self._alone_where_short(episode, judged)

    def end(self, episode: Playing) -> None:
        """Forgets an episode. What its ``close`` raises, or breaks, is nobody's failure."""
        if episode.start and episode.start == self.running:
            self._asked(episode, {"end": episode.number}, "closing its environment")
        episode.start = 0
        self._held.discard(episode.number)

    def _alone_where_short(self, episode: Playing, attempt: Callable[[], Answer]) -> Answer:
        """What an attempt gives. Its memory is that of all episodes of the process: where it is
        too little for them together, the episode is tried once more, alone in a new process."""
        answer = attempt()
        if not (isinstance(answer, Judgement) and answer.failure == "memory"):
            return answer
        if self._held <= {episode.number}:
            return answer
        return attempt()

    def _rebuilt(self, episode: Playing) -> Judgement | None:
        """Makes an episode known to the process, where it is not; a failure where that cannot
        be."""
        if episode.start and episode.start == self.running:
            return None
        message = {"begin": episode.number, "task": episode.task, "row": episode.row}
        said = self._asked(episode, message, "making its environment")
        if isinstance(said, Judgement):
            return said
        episode.start = self.running
        for number, (turn, before) in enumerate(episode.turns):
            again = self._turn(episode, turn)
            if isinstance(again, Judgement):
                return again
            if again != before:
                return failed(
                    "replay",
                    f"its process had ended, and made again its turn {number + 1} is answered "
                    "otherwise",
                )
        return None

    def _turn(self, episode: Playing, turn: Turn) -> Observed | Judgement:
        message = {
            "act": episode.number,
            "turn": asdict(turn),
        }
        said = self._asked(episode, message, "answering its turn")
        if isinstance(said, Judgement):
            return said
        try:
            return Observed(
                Observation([dict(one) for one in said["messages"]], bool(said["done"])),
                int(said["cut"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            return failed("raised", "an answer that is no observation")

    def _asked(
        self, episode: Playing, message: Mapping[str, Any], doing: str
    ) -> Mapping[str, Any] | Judgement:
        if not self.running:
            self._held = set()
        self._held.add(episode.number)
        held = len(self._held)
        together = "alone in its process" if held == 1 else f"with {held} episodes in its process"
        seconds = self._tasks[episode.task].turn_seconds
        said = self.ask(message, seconds, doing=doing, insist=True)
        if isinstance(said, Judgement) and said.failure == "memory":
            return failed("memory", f"{said.reason}, {together}")
        return said
