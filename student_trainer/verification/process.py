"""A process that judges responses, as the trainer sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from student_trainer.tasks import Row, Task
from student_trainer.tasks.judgement import Judgement
from student_trainer.verification.child import ChildProcess, judgement_of

MODULE = "student_trainer.verification.inside"


class VerifierProcess(ChildProcess):
    """One process that judges."""

    def __init__(
        self,
        tasks: Mapping[str, Task],
        folders: Sequence[Path],
        *,
        seconds: float,
        memory_bytes: int,
    ) -> None:
        """
        Args:
            tasks: those that it judges, by name.
            folders: where modules of a user's own are.
            seconds: that one response may take.
            memory_bytes: of address space, beside what it has once its tasks are ready.
        """
        what = "the process that judges responses"
        super().__init__(MODULE, tasks, folders, what=what, memory_bytes=memory_bytes)
        self._seconds = seconds

    def judge(self, task: str, row: Row, response: str, *, insist: bool = False) -> Judgement:
        """Judges a response. Whatever it does, there is a judgement.

        Args:
            insist: where no process can be started, waits and tries once more.

        Raises:
            ConfigurationError: with ``insist``, there is no process the second time either.
        """
        message = {"task": task, "row": row, "response": response}
        said = self.ask(message, self._seconds, doing="judging it", insist=insist)
        return said if isinstance(said, Judgement) else judgement_of(said)
