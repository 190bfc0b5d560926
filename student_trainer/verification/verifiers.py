"""The processes that judge the responses of a run, as many as ``verification.processes``."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.settings.dotted import sources
from student_trainer.settings.evaluation import VerificationSettings
from student_trainer.student.model import Student
from student_trainer.tasks import Task
from student_trainer.tasks.base import MAX_VALUES
from student_trainer.tasks.environment import ActingTask
from student_trainer.tasks.judgement import Judgement, failed
from student_trainer.verification.process import VerifierProcess

# Seconds between two looks whether a signal ends the run.
LOOK_SECONDS = 0.2


class Verifiers:
    """Judges responses of several tasks, in threads that wait for the processes.

    Attributes:
        judged: names of the tasks whose responses are judged, here or by their environments.
        tasks: those whose responses are judged here, by name.
    """

    def __init__(self, tasks: Mapping[str, Task], settings: VerificationSettings) -> None:
        """
        Args:
            tasks: every task of the run, by name; those that do not judge are left alone.
        """
        self.judged = [name for name, task in tasks.items() if task.verifies]
        self.tasks = {
            name: task
            for name, task in tasks.items()
            if task.verifies and not isinstance(task, ActingTask)
        }
        folders = list(
            dict.fromkeys(
                source.folder
                for task in self.tasks.values()
                for source in sources(task)
                if source.folder is not None
            )
        )
        self._processes = [
            VerifierProcess(
                self.tasks, folders, seconds=settings.seconds, memory_bytes=settings.memory_bytes
            )
            for _ in range(settings.processes)
        ]
        self._idle: queue.SimpleQueue[VerifierProcess] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        # Names of values that each task has had.
        self._names: dict[str, set[str]] = {name: set() for name in self.tasks}
        self._naming = threading.Lock()
        self._threads = ThreadPoolExecutor(settings.processes, thread_name_prefix="verifier")

    def start(self) -> str:
        """Starts the first process; returns what it has for a network: ``of its own`` or
        ``refused``. The others start when they are needed.

        Raises:
            ConfigurationError: it does not start, or a task cannot be prepared in it.
        """
        return self._threads.submit(self._start).result()

    def judges(self, prompt: PromptItem) -> bool:
        """Whether the responses to a prompt are judged."""
        return prompt.task in self.tasks

    def submit(
        self, prompt: PromptItem, response: str, *, insist: bool = False
    ) -> Future[Judgement]:
        """The judgement of a response to a prompt of ``tasks``, once it is there.

        Args:
            insist: where no process can be started, the future has a ConfigurationError after a
                second attempt, and not a failed judgement at once.
        """
        row = prompt.row or {}
        return self._threads.submit(self._judge, prompt.task, row, response, insist)

    def submit_rollouts(
        self, student: Student, rollouts: Sequence[Rollout], *, insist: bool = False
    ) -> list[Future[Judgement] | None]:
        """As ``submit`` for each rollout; None for those that are not judged. An episode is
        judged already."""
        return [self._submitted(student, rollout, insist) for rollout in rollouts]

    def close(self) -> None:
        """Ends the processes. What is not judged yet gets a failed judgement, or none."""
        for process in self._processes:
            process.interrupt()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.close()

    def _submitted(
        self, student: Student, rollout: Rollout, insist: bool
    ) -> Future[Judgement] | None:
        if rollout.episode is not None:
            known: Future[Judgement] = Future()
            known.set_result(rollout.episode.told)
            return known
        if not self.judges(rollout.prompt):
            return None
        return self.submit(rollout.prompt, response_text(student, rollout), insist=insist)

    def _start(self) -> str:
        process = self._idle.get()
        try:
            return process.start()
        finally:
            self._idle.put(process)

    def _judge(self, task: str, row: Mapping[str, Any], response: str, insist: bool) -> Judgement:
        process = self._idle.get()
        try:
            judged = process.judge(task, row, response, insist=insist)
        finally:
            self._idle.put(process)
        with self._naming:
            names = self._names[task] | set(judged.values)
            if len(names) > MAX_VALUES:
                return failed(
                    "raised",
                    f"with it the verdicts of the task have {len(names)} names of values, and may "
                    f"have {MAX_VALUES}",
                )
            self._names[task] = names
        return judged


def waited(
    futures: Sequence[Future[Judgement] | None], stopped: Callable[[], bool]
) -> list[Judgement | None]:
    """The judgements, in order; None where there is no future. Once ``stopped``, those that have
    not begun are not waited for.

    Raises:
        ConfigurationError: as ``Verifiers.submit`` that insists.
    """
    left = {future for future in futures if future is not None}
    while left:
        _, left = wait(left, timeout=LOOK_SECONDS)
        if stopped():
            for future in left:
                future.cancel()
            break
    return [None if future is None else _result(future) for future in futures]


def _result(future: Future[Judgement]) -> Judgement:
    if future.cancelled():
        return failed("stopped", "a signal ends the run")
    return future.result()


def response_text(student: Student, rollout: Rollout) -> str:
    """What the student wrote, without the token that ended it and without special tokens."""
    ids = rollout.token_ids.tolist()
    if rollout.ended_by_token(student.terminators):
        ids = ids[:-1]
    return str(student.tokenizer.decode(ids, skip_special_tokens=True))
