"""The experiment and its sweep over horizons, from settings to figures. Nothing is written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from student_trainer.study.parts.intervals import log_slope, mean_interval
from student_trainer.study.variance.settings import VarianceSettings
from student_trainer.study.variance.training import (
    Trained,
    train_students,
    train_teachers,
)
from student_trainer.study.variance.walk import TASKS

# A curve has so many points, each the mean of neighbouring updates.
POINTS = 50
Note = Callable[[str], None]


def students(settings: VarianceSettings, note: Note) -> dict[str, Any]:
    """One student for each seed and discount at the main horizon, and their teachers."""
    note(f"teachers of {settings.horizon} moves, {settings.teacher_steps} updates")
    teachers = train_teachers(settings, settings.horizon, settings.teacher_steps)
    note(f"{len(settings.seeds) * len(settings.gammas)} students, {settings.steps} updates")
    trained = train_students(settings, teachers, settings.gammas, settings.horizon, settings.steps)
    return {
        "teachers": [
            {
                "seed": seed,
                "task": task,
                "miss": float(teachers.misses[t, s]),
                "sigma": float(teachers.sigmas[t, s]),
            }
            for t, task in enumerate(TASKS)
            for s, seed in enumerate(settings.seeds)
        ],
        "students": [
            {"seed": seed, "gamma": gamma, **_run(trained, s * len(settings.gammas) + g)}
            for s, seed in enumerate(settings.seeds)
            for g, gamma in enumerate(settings.gammas)
        ],
    }


def sweep(settings: VarianceSettings, note: Note) -> list[dict[str, Any]]:
    """Variances at the start and late in training for each horizon, seed and the two outer
    discounts. Teachers are trained anew for each horizon."""
    found = []
    for horizon in settings.horizons:
        note(f"teachers and students of {horizon} moves")
        teachers = train_teachers(settings, horizon, settings.horizon_teacher_steps)
        gammas = settings.sweep_gammas
        batches = settings.start_batches * len(TASKS)
        start = train_students(settings, teachers, gammas, horizon, batches, learn=False)
        trained = train_students(settings, teachers, gammas, horizon, settings.horizon_steps)
        for s, seed in enumerate(settings.seeds):
            for g, gamma in enumerate(gammas):
                run = s * len(gammas) + g
                found.append(
                    {
                        "horizon": horizon,
                        "seed": seed,
                        "gamma": gamma,
                        "start": _finite(start.variances[:, run].mean()),
                        "late": _finite(late(trained.variances[:, run]).mean()),
                        "teacher_sigma": float(teachers.sigmas[:, s].mean()),
                    }
                )
    return found


def exponents(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exponent b of variance = a T^b for each discount, at the start and late: the slope of
    each seed, and Student's 95% interval of their mean over seeds. A seed without a finite
    variance at some horizon has no slope, and then there is no mean; a single seed has no
    interval."""
    found = []
    for when in ("start", "late"):
        for gamma in sorted({row["gamma"] for row in rows}):
            slopes: list[float | None] = []
            for seed in dict.fromkeys(row["seed"] for row in rows):
                own = [row for row in rows if row["gamma"] == gamma and row["seed"] == seed]
                known = [row for row in own if row[when] is not None and row[when] > 0]
                slopes.append(
                    log_slope([row["horizon"] for row in own], [row[when] for row in own])
                    if len(known) == len(own)
                    else None
                )
            got = [slope for slope in slopes if slope is not None]
            whole = len(got) == len(slopes)
            interval = mean_interval(got) if whole and len(got) > 1 else None
            found.append(
                {
                    "when": when,
                    "gamma": gamma,
                    "of_seeds": slopes,
                    "mean": sum(got) / len(got) if whole else None,
                    "low": interval.low if interval else None,
                    "high": interval.high if interval else None,
                }
            )
    return found


def verdict(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether the late variance grows with the discount in every seed, and how many times that of
    the lowest discount it is at the highest; None for a seed with a variance that is not finite."""
    grows, ratios = {}, {}
    for seed in dict.fromkeys(run["seed"] for run in runs):
        own = [run["late_variance"] for run in runs if run["seed"] == seed]
        known = all(value is not None for value in own)
        grows[str(seed)] = all(a < b for a, b in itertools.pairwise(own)) if known else None
        ratios[str(seed)] = own[-1] / own[0] if known and own[0] else None
    return {
        "late_variance_grows_with_gamma": grows,
        "late_variance_highest_to_lowest_gamma": ratios,
    }


def late(values: Tensor) -> Tensor:
    """The last quarter of a run's updates, [steps, ...]."""
    return values[-(len(values) // 4) :]


def _run(trained: Trained, run: int) -> dict[str, Any]:
    variances, misses = trained.variances[:, run], trained.misses[:, run]
    bad = torch.nonzero(~(variances.isfinite() & misses.isfinite())).flatten()
    of_task = {
        task: _finite(late(misses)[(t - len(misses) + len(late(misses))) % len(TASKS) :: 2].mean())
        for t, task in enumerate(TASKS)
    }
    return {
        "late_variance": _finite(late(variances).mean()),
        "late_variance_median": _finite(late(variances).median()),
        "late_miss": of_task,
        "not_finite_from": int(bad[0]) + 1 if len(bad) else None,
        "curve": [_finite(part.mean()) for part in variances.chunk(min(POINTS, len(variances)))],
    }


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
