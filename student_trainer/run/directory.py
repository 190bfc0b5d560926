"""The run directory: where each file is, and what happens to the files of an earlier
attempt."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.files import write_bytes, write_text

from student_trainer.run import checkpoint
from student_trainer.run.retention import listing
from student_trainer.settings.dotted import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run's files (docs/training.md)."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def machine(self) -> Path:
        return self.path / "machine.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"


def find_checkpoint(run: RunDirectory, resume: str) -> Path | None:
    """The checkpoint to continue from, or None to start from the beginning.

    Args:
        resume: ``auto``, ``never`` or the path of a checkpoint.

    Raises:
        ConfigurationError: the given checkpoint is damaged; all checkpoints are damaged;
            or ``resume`` is ``never`` and the directory already holds a run.
    """
    if resume == "auto":
        return checkpoint.newest_good(run.checkpoints)
    if resume == "never":
        if run.metrics.exists() or listing(run.checkpoints):
            raise ConfigurationError(
                f"{run.path} already holds a run",
                where="run.output_dir",
                fix='choose another directory, or set checkpoint.resume = "auto" to continue',
            )
        return None
    chosen = Path(resume)
    problem = checkpoint.damage(chosen)
    if problem is not None:
        raise ConfigurationError(
            f"{chosen} is not a good checkpoint: {problem}",
            where="checkpoint.resume",
            fix="give the path of a checkpoints/step-NNNNNN directory, or auto",
        )
    return chosen


def prepare(run: RunDirectory, step: int) -> None:
    """Brings the directory to its state at the end of ``step``: removes later metrics lines.

    At step 0 everything of an earlier attempt is removed: it ended before its first
    checkpoint, so none of it can be used.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    if step == 0:
        if run.metrics.exists():
            log.warning("starting over in %s: an earlier attempt left no checkpoint", run.path)
        run.metrics.unlink(missing_ok=True)
        shutil.rmtree(run.evaluation, ignore_errors=True)
        shutil.rmtree(run.rollouts, ignore_errors=True)
    elif run.metrics.exists():
        kept = [line for line in read_metrics(run.metrics) if line["step"] <= step]
        write_text(run.metrics, "".join(json.dumps(line) + "\n" for line in kept))


def keep_sources(run: RunDirectory, found: Sequence[Source]) -> None:
    """Copies the files of the user's own classes that stood beside the configuration to the same
    places beside the run's ``config.toml``, so that this can be given to ``train`` again."""
    for source in found:
        if source.folder is not None and source.folder != run.path.resolve():
            kept = run.path / source.path.relative_to(source.folder)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(kept, source.path.read_bytes())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without a last line that a killed run left incomplete."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            log.warning("%s: leaving out a line that was not written whole", path)
    return lines


def append_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Appends one line. Raises ValueError for NaN and infinity, which are not JSON."""
    with path.open("a") as file:
        file.write(json.dumps(metrics, allow_nan=False) + "\n")
