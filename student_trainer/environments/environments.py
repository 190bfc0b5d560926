"""The processes of a run's environments, as many as ``verification.processes``."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from student_trainer.environments.process import EnvironmentProcess, Observed, Playing
from student_trainer.rollout.base import PromptItem
from student_trainer.rollout.episode import TOLD
from student_trainer.settings.dotted import sources
from student_trainer.settings.evaluation import VerificationSettings
from student_trainer.tasks import Task
from student_trainer.tasks.base import MAX_VALUES
from student_trainer.tasks.environment import ActingTask, Turn
from student_trainer.tasks.judgement import Judgement, failed


class Environments:
    """Plays episodes of several tasks. An episode stays with one process, and each process has a
    thread that waits for it.

    Attributes:
        tasks: those that act, by name.
    """

    def __init__(self, tasks: Mapping[str, Task], settings: VerificationSettings) -> None:
        """
        Args:
            tasks: every task of the run, by name.
        """
        self.tasks = {name: one for name, one in tasks.items() if isinstance(one, ActingTask)}
        found = (source.folder for task in self.tasks.values() for source in sources(task))
        folders = list(dict.fromkeys(folder for folder in found if folder is not None))
        self._processes = [
            EnvironmentProcess(self.tasks, folders, memory_bytes=settings.memory_bytes)
            for _ in range(settings.processes)
        ]
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix="environments") for _ in self._processes
        ]
        self._numbers = itertools.count()
        # Names of values that each task has had.
        self._names: dict[str, set[str]] = {name: set() for name in self.tasks}
        self._naming = threading.Lock()

    def start(self) -> str:
        """Starts the first process; returns what it has for a network, as
        ``Verifiers.start``.

        Raises:
            ConfigurationError: it does not start, or a task cannot be prepared in it.
        """
        return self._threads[0].submit(self._processes[0].start).result()

    def begin(self, prompt: PromptItem) -> Playing:
        """An episode of a prompt whose task acts. Nothing is started for it yet."""
        return Playing(next(self._numbers), prompt.task, prompt.row or {})

    def act(self, episode: Playing, turn: Turn) -> Future[Observed | Judgement]:
        """What the environment answers to a turn, once it has, or why the episode has failed.
        Where no process can be started, twice in a row, the future has a ConfigurationError: that
        says nothing of the episode, and is no end of it."""
        place = self._place(episode)
        return self._threads[place].submit(self._processes[place].act, episode, turn)

    def judge(self, episode: Playing) -> Future[Judgement]:
        """The verdict of an episode that is over, which is forgotten; as ``act``."""
        return self._threads[self._place(episode)].submit(self._judge, episode)

    def forget(self, episode: Playing) -> None:
        """Forgets an episode that nobody plays any further."""
        place = self._place(episode)
        self._threads[place].submit(self._processes[place].end, episode)

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.interrupt()
        for thread in self._threads:
            thread.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.close()

    def _place(self, episode: Playing) -> int:
        return episode.number % len(self._processes)

    def _judge(self, episode: Playing) -> Judgement:
        process = self._processes[self._place(episode)]
        judged = process.judge(episode)
        process.end(episode)
        with self._naming:
            names = self._names[episode.task] | set(judged.values)
            most = MAX_VALUES - len(TOLD)
            if len(names) > most:
                return failed(
                    "raised",
                    f"with it the verdicts of the task have {len(names)} names of values, and may "
                    f"have {most} beside those of every episode",
                )
            self._names[episode.task] = names
        return judged
