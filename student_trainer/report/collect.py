"""Everything that a report shows, read from a run directory. Nothing here needs torch."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings_keys import flatten

from student_trainer.evaluation.course.points import Point, read_points
from student_trainer.evaluation.files import load_evaluation
from student_trainer.evaluation.results import Evaluation
from student_trainer.watch.files import file_of, kept_steps, load


@dataclass(frozen=True)
class RunFiles:
    """What the files of a run hold.

    Attributes:
        config: the resolved settings.
        metrics: the lines of metrics.jsonl, in order, at least one.
        before, after: the evaluations; None for one that does not exist.
        points: the evaluations during the run, the one before it first.
        kept_step, kept: the last step of which responses are kept, and their records, the largest
            loss first.
        machine: versions and hardware of the machine that trained (``machine.json``).
    """

    path: Path
    config: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    before: Evaluation | None
    after: Evaluation | None
    points: list[Point] = field(default_factory=list)
    kept_step: int = 0
    kept: list[dict[str, Any]] = field(default_factory=list)
    machine: Mapping[str, Any] = field(default_factory=dict)


def read_run(path: Path) -> RunFiles:
    """Reads a run. Raises ConfigurationError, with the file's name, when a file is missing or
    unreadable."""
    if not path.is_dir():
        raise ConfigurationError(
            "there is no such directory", where=str(path), fix="give the directory of a run"
        )
    evaluation = path / "evaluation"
    steps = kept_steps(path / "rollouts")
    kept_step = steps[-1] if steps else 0
    return RunFiles(
        path=path,
        config=_config(path / "config.toml"),
        metrics=_metrics(path / "metrics.jsonl"),
        before=_evaluation(evaluation / "before.json"),
        after=_evaluation(evaluation / "after.json"),
        points=read_points(evaluation),
        kept_step=kept_step,
        kept=load(file_of(path / "rollouts", kept_step)) if steps else [],
        machine=_machine(path / "machine.json"),
    )


def setting_texts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Dotted keys and their values as text, in order."""
    return [
        (key, value if isinstance(value, str) else json.dumps(value, default=str))
        for key, value in flatten(config).items()
    ]


def _config(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error


def _metrics(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break  # a run that was killed can leave its last line unfinished
            raise _unreadable(path, f"line {number}: {error}") from error
        if not isinstance(row, dict) or "step" not in row:
            raise _unreadable(path, f"line {number} is not the metrics of a step")
        rows.append(row)
    if not rows:
        raise ConfigurationError(
            "it holds no step", where=str(path), fix="wait for the run's first step"
        )
    return rows


def _machine(path: Path) -> Mapping[str, Any]:
    """Empty for a run of before it was kept."""
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    return found


def _evaluation(path: Path) -> Evaluation | None:
    return load_evaluation(path) if path.exists() else None


def _missing(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"the run has no {path.name}",
        where=str(path),
        fix="give the output_dir of a run of student-trainer train",
    )


def _unreadable(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"it cannot be read: {why}", where=str(path), fix="restore the file, or run again"
    )
