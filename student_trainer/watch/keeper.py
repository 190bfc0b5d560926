"""Which responses of a run are kept, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from teacher_proto.types import ContinuationScores

from student_trainer.distributed.world import ALONE, World
from student_trainer.rollout.base import Rollout
from student_trainer.settings.run import ReportSettings
from student_trainer.student.model import Student
from student_trainer.watch.files import COLUMNS, file_of, save, table
from student_trainer.watch.kept import by_loss, worst_first
from student_trainer.watch.row_losses import RowLosses

# Called with a step, a name, columns and rows.
Table = Callable[[int, str, Sequence[str], Sequence[Sequence[Any]]], None]


class Keeper:
    """Keeps the responses with the largest loss of every so many steps, and of the run's last
    one by ``run.steps``: a run that ends earlier keeps none more."""

    def __init__(
        self,
        settings: ReportSettings,
        steps: int,
        student: Student,
        folder: Path,
        world: World = ALONE,
    ) -> None:
        """
        Args:
            steps: of the whole run.
            folder: where the files go; rank 0 writes them.
        """
        self._settings = settings
        self._steps = steps
        self._student = student
        self._folder = folder
        self._world = world
        self._untold: tuple[int, list[tuple[Any, ...]]] | None = None

    def keep(
        self,
        step: int,
        written_after: int,
        rollouts: Sequence[Rollout],
        scores: Callable[[], Sequence[ContinuationScores]],
        losses: RowLosses,
        places: Sequence[int],
    ) -> None:
        """Keeps responses of a step that is complete, where that is due.

        Args:
            rollouts: of the step, as far as they are scored.
            scores: returns one for each of ``rollouts``.
            places: of ``rollouts``, among all of the step.
        """
        every = self._settings.rollouts_every
        if not every or (step % every and step != self._steps):
            return
        count = self._settings.rollouts
        world = self._world
        mine = world.each(
            lambda: worst_first(
                self._student, step, written_after, rollouts, scores(), losses, places, count
            )
        )
        found = [record for of_rank in world.gather(mine) for record in of_rank]
        records = sorted(found, key=by_loss)[:count]
        world.on_first(lambda: save(file_of(self._folder, step), records))
        self._untold = step, table(records)

    def tell(self, to: Table) -> None:
        """Gives a table of what was kept last to trackers, once."""
        if self._untold is not None:
            step, rows = self._untold
            self._untold = None
            to(step, "rollouts", COLUMNS, rows)
