"""One run of a comparison, made by the trainer's own steps, loop and evaluations."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from teacher_proto.program.files import write_bytes

from student_trainer.distributed.world import ALONE
from student_trainer.evaluate_run import RunEvaluation
from student_trainer.evaluation.course.points import file_of, read_points
from student_trainer.evaluation.course.values import curve_values
from student_trainer.loop import TrainingLoop
from student_trainer.run.directory import RunDirectory, prepare, read_metrics
from student_trainer.run.lock import locked
from student_trainer.run.progress import Progress
from student_trainer.run.signals import Stopper
from student_trainer.settings.train import TrainConfig
from student_trainer.startup import steps
from student_trainer.startup.start import Start, make
from student_trainer.study.compare.measured import record
from student_trainer.study.compare.noise import MeasuredUpdater
from student_trainer.study.compare.plan import Planned
from student_trainer.study.compare.settings import NoiseSettings

WEIGHTS = "*.safetensors"


class MeasuredLoop(TrainingLoop):
    """The trainer's loop, with the noise of the gradient measured, and evaluated as all arms are.

    Attributes:
        updater: its updater.
    """

    updater: MeasuredUpdater

    def __init__(
        self, start: Start, stopper: Stopper, evaluated: TrainConfig, noise: NoiseSettings
    ):
        """
        Args:
            evaluated: the run's settings, but with the rollouts of the evaluations.
        """
        super().__init__(
            start.config,
            start.student,
            start.engine,
            start.teachers,
            start.prompts,
            start.run,
            stopper,
            start.now,
            verifiers=start.verifiers,
            acting=start.acting,
        )
        self.evaluation = RunEvaluation(
            evaluated,
            start.student,
            start.teachers,
            start.prompts,
            start.run,
            start.verifiers,
            start.acting,
        )
        self.updater = MeasuredUpdater(
            start.student,
            start.config,
            start.teachers.realigned,
            every=noise.every,
            parts=noise.parts,
        )


def make_run(
    planned: Planned,
    config: TrainConfig,
    evaluated: TrainConfig,
    noise: NoiseSettings,
    before: Path,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Makes a run from its beginning, and returns its record (``measured.record``).

    Args:
        config: its settings; what an earlier attempt has left in its directory is removed.
        evaluated: the same with the rollouts of the evaluations.
        before: folder with the evaluation of the untrained student, which runs with one student
            and seed share; it is made here if it is not there.
        facts: added to the record.

    Raises:
        LsmError: as ``Trainer.train``.
    """
    began = time.monotonic()
    run = RunDirectory(config.run.output_dir)
    shutil.rmtree(run.path, ignore_errors=True)
    with locked(run.path), Start(config, holds_lock=True) as start:
        make(steps.steps_of(ALONE), start)
        with Stopper() as stopper:
            loop = MeasuredLoop(start, stopper, evaluated, noise)
            prepare(run, 0)
            _evaluate_before(loop.evaluation, run, before)
            if planned.phase != "teacher":
                with Progress(config.run.steps, 0, quiet=True) as progress:
                    loop.run_steps(progress)
    lines = read_metrics(run.metrics) if planned.phase != "teacher" else []
    return record(
        planned.described(),
        _course(run),
        lines,
        [asdict(one) for one in loop.updater.noise],
        {
            **facts,
            "seconds": round(time.monotonic() - began, 1),
            "weights_sha256": _digest_of_weights(Path(config.student.model)),
            "teacher_identity": next(iter(loop.teachers.identities.values())).digest,
        },
    )


def _evaluate_before(evaluation: RunEvaluation, run: RunDirectory, before: Path) -> None:
    names = ("frozen.json", file_of(run.evaluation, 0).name)
    if all((before / name).is_file() for name in names):
        run.evaluation.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(before / name, run.evaluation / name)
    evaluation.before(0)
    before.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_bytes(before / name, (run.evaluation / name).read_bytes())


def _course(run: RunDirectory) -> Sequence[dict[str, Any]]:
    return [
        {"step": point.step, **curve_values(point.evaluation)}
        for point in read_points(run.evaluation)
    ]


def _digest_of_weights(model: Path) -> str:
    """sha256 over the model's weights, hexadecimal."""
    sha = hashlib.sha256()
    for path in sorted(model.glob(WEIGHTS)):
        sha.update(path.read_bytes())
    return sha.hexdigest()
