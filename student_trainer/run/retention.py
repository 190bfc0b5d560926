"""Which checkpoints of a directory stay: the newest few and the best."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Literal

log = logging.getLogger(__name__)

Goal = Literal["min", "max"]


def listing(directory: Path) -> list[Path]:
    """Checkpoints of a directory, newest first, good or not."""
    found = [p for p in directory.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def best(checkpoints: list[Path], goal: Goal) -> Path | None:
    """The one with the best score, the earliest among equals; None when none has a score."""
    scored = [(score, step_of(p), p) for p in checkpoints if (score := _score(p)) is not None]
    if not scored:
        return None
    sign = 1 if goal == "min" else -1
    return min(scored, key=lambda entry: (sign * entry[0], entry[1]))[2]


def prune(directory: Path, step: int, keep: int, goal: Goal, temporary: str) -> None:
    """Removes all but the newest ``keep`` and the best of those up to ``step``.

    Later ones are of an attempt that was given up, since the run went back
    before them: they go too, and are named.

    Args:
        temporary: prefix of directories that are not checkpoints.
    """
    found = listing(directory)
    current = [p for p in found if step_of(p) <= step]
    kept = {*current[:keep], best(current, goal)}
    for old in found:
        if old in kept:
            continue
        if step_of(old) > step:
            log.warning("removing %s: the run went back before it", old)
        doomed = directory / f"{temporary}old-{old.name}"
        old.rename(doomed)
        shutil.rmtree(doomed)


def _score(checkpoint: Path) -> float | None:
    try:
        score = json.loads((checkpoint / "state.json").read_text())["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged, or of a run without a metric to be best by
    return float(score) if isinstance(score, int | float) else None
