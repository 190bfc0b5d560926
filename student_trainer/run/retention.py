"""Which checkpoints of a directory are kept: the newest few and the best."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Literal

from teacher_proto.program.files import remove_folder

log = logging.getLogger(__name__)

Goal = Literal["min", "max"]
# Begins the names of folders that are being written or deleted, not checkpoints.
UNFINISHED = ".tmp-"


def listing(directory: Path) -> list[Path]:
    """The checkpoints of a directory, newest first, damaged ones included."""
    found = [p for p in directory.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def best_checkpoint(checkpoints: list[Path], goal: Goal) -> Path | None:
    """The checkpoint with the best score, the earliest among equals; None when none has a
    score."""
    scored = [(score, step_of(p), p) for p in checkpoints if (score := _score(p)) is not None]
    if not scored:
        return None
    sign = 1 if goal == "min" else -1
    return min(scored, key=lambda entry: (sign * entry[0], entry[1]))[2]


def delete_old_checkpoints(directory: Path, step: int, keep: int, goal: Goal) -> None:
    """Deletes all but the newest ``keep`` checkpoints and the best of those up to ``step``.

    Those of a later step belong to an attempt that the run went back before: they are
    deleted too, each with a warning.
    """
    found = listing(directory)
    current = [p for p in found if step_of(p) <= step]
    kept = {*current[:keep], best_checkpoint(current, goal)}
    for old in found:
        if old in kept:
            continue
        if step_of(old) > step:
            log.warning("removing %s: the run went back before it", old)
        remove_folder(old, prefix=UNFINISHED)


def _score(checkpoint: Path) -> float | None:
    try:
        score = json.loads((checkpoint / "state.json").read_text())["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged, or of a run without a metric to be best by
    return float(score) if isinstance(score, int | float) else None
