"""Which models the laboratory of text games has, and how each is trained."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from student_trainer.study.games.training import Schedule
from student_trainer.tasks.textworld import TextWorldTask

TASK = TextWorldTask(
    game="coin_collector",
    rooms=8,
    quest_length=4,
    turns=12,
    turn_tokens=8,
    form="text",
    instruction="",
    commands="free",
    games_to_train=600,
    games_held_out=200,
)
# Figures of a model -> the least and the most that it may be.
TEACHER_BARS, STUDENT_BARS = {"won": (0.8, 1.0)}, {"won": (0.1, 0.4)}

PACKAGE = Path(__file__).parents[2]
# The files that make games, texts and networks.
DECIDING = (
    "study/games/tokenizer.py",
    "study/games/training.py",
    "study/games/transcripts.py",
    "study/lab/network.py",
    "study/lab/training.py",
    "tasks/games/scene.py",
    "tasks/games/textworld_game.py",
    "tasks/text_game.py",
    "tasks/textworld.py",
)


@dataclass(frozen=True)
class Run:
    """One training, which leaves a teacher at its end or a student on its way.

    Attributes:
        name: of the model.
        seed: of its weights at the start and the order of its examples.
        stop: the update after which it is left; None for a teacher, which is left at the end.
        measured: games on which it is measured.
    """

    name: str
    seed: int
    schedule: Schedule
    stop: int | None = None
    measured: int = 200

    @property
    def role(self) -> Literal["teacher", "student"]:
        return "teacher" if self.stop is None else "student"


TEACHER = Schedule(steps=800)
STUDENT_STOP = 60


def runs(seed: int, students: int) -> list[Run]:
    """The runs of the laboratory, the teacher first.

    Args:
        seed: of the whole laboratory; every run has one of its own.
        students: how many there are besides the teacher.
    """
    base = 1000 * seed
    return [
        Run("games-teacher", base, TEACHER),
        *(
            Run(f"games-student-{number}", base + number, TEACHER, STUDENT_STOP)
            for number in range(1, students + 1)
        ),
    ]


def quick(run: Run) -> tuple[Run, TextWorldTask]:
    """The same with few steps and games and no bar to reach, and its task."""
    schedule = replace(run.schedule, steps=4, warmup=2, tokens=256, plays=1)
    stop = None if run.stop is None else 2
    task = TASK.model_copy(update={"games_to_train": 8, "games_held_out": 4, "turns": 3})
    return replace(run, schedule=schedule, stop=stop, measured=4), task


def digest(run: Run, task: TextWorldTask) -> str:
    """Twelve hexadecimal digits of what decides a run's model: the run, its task, the version of
    textworld, and the files that turn them into a network.

    Raises:
        ConfigurationError: textworld is not installed.
    """
    decided = {
        "run": asdict(run),
        "task": task.model_dump(mode="json"),
        "textworld": task.version_of_textworld,
    }
    sha = hashlib.sha256(json.dumps(decided, sort_keys=True).encode())
    for name in DECIDING:
        sha.update((PACKAGE / name).read_bytes())
    return sha.hexdigest()[:12]
