"""The results of a comparison, from the records of its runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.errors import ConfigurationError

from student_trainer.study.compare.measured import figures, rounded
from student_trainer.study.compare.settings import CompareSettings
from student_trainer.study.parts.intervals import mean_interval

Record = Mapping[str, Any]
RECOVERED = "recovered"
# What a run says of itself beside its figures.
OF_RUN = ("name", "arm", "seed", "model", "rate")


def results(
    settings: CompareSettings,
    teacher: Sequence[Record],
    grid: Sequence[Record],
    counted: Sequence[Record],
    chosen: Mapping[str, Any],
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """The document of a comparison.

    Args:
        teacher, grid, counted: records of the phases, as far as there are any; a run that has
            failed has ``failed`` in place of what was measured.
        chosen: the learning rates, as ``choose.chosen_rates`` gives them.
        origin: where the comparison comes from.

    Raises:
        ConfigurationError: the runs had several teachers, or one student with several weights.
    """
    good = [one for one in counted if "failed" not in one]
    of_teacher = figures(teacher[0]).get(settings.grid.value) if teacher else None
    found = [run_of(settings, one, of_teacher) for one in good]
    every = [*teacher, *grid, *counted]
    _check_models([one for one in every if "failed" not in one])
    return {
        "study": "compare",
        **origin,
        "digest": settings.digest,
        "commits": sorted({str(one["commit"]) for one in every if "failed" not in one}),
        "settings": settings.model_dump(mode="json"),
        "teacher": figures(teacher[0]) if teacher else None,
        "chosen": dict(chosen),
        "planned": {name: list(arm.seeds) for name, arm in settings.arms.items()},
        "before": _before(settings, good),
        "arms": {
            name: _arm(settings, name, found)
            for name in settings.arms
            if any(run["arm"] == name for run in found)
        },
        "pairs": [
            {"arm": arm, "reference": other, "differences": differences(found, arm, other)}
            for arm, other in settings.pairs
        ],
        "runs": found,
        "failed": {one["run"]["name"]: one["failed"] for one in every if "failed" in one},
        "seconds": rounded(sum(one["seconds"] for one in every if "failed" not in one)),
    }


def run_of(settings: CompareSettings, one: Record, teacher: float | None) -> dict[str, Any]:
    """A counted run as the document has it: its figures, and the course of its evaluations.

    Args:
        teacher: the teacher's own value of ``grid.value``. With it, and where the student began
            below it, there is ``recovered``: the share of the gap between both that is closed.
    """
    found = {key: rounded(value) for key, value in figures(one).items()}
    key = settings.grid.value
    start, end = one["course"][0].get(key), found.get(key)
    if None not in (teacher, start, end) and settings.grid.goal == "max" and start < teacher:
        found[RECOVERED] = rounded((end - start) / (teacher - start))
    return {
        **{name: one["run"][name] for name in OF_RUN},
        "figures": found,
        "course": one["course"],
        "noise": one["noise"],
        "by_position": one["by_position"],
    }


def _before(settings: CompareSettings, counted: Sequence[Record]) -> dict[str, Any]:
    """The untrained students' held-out values, by seed."""
    return {
        str(one["run"]["seed"]): {k: v for k, v in one["course"][0].items() if k != "step"}
        for one in counted
        if one["run"]["arm"] == settings.reference
    }


def _arm(settings: CompareSettings, name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = _by_seed(runs, name)
    names = sorted({key for values in own.values() for key in values})
    (rate,) = {run["rate"] for run in runs if run["arm"] == name}
    return {
        "about": settings.arms[name].about,
        "rate": rate,
        "seeds": sorted(own),
        "values": {key: summary({s: v.get(key) for s, v in own.items()}) for key in names},
        "differences": {}
        if name == settings.reference
        else differences(runs, name, settings.reference),
    }


def differences(runs: Sequence[Mapping[str, Any]], arm: str, reference: str) -> dict[str, Any]:
    """Of every figure the arm's minus the reference's, by seed (``difference``)."""
    own, other = _by_seed(runs, arm), _by_seed(runs, reference)
    return {
        key: difference(
            {seed: values.get(key) for seed, values in own.items()},
            {seed: values.get(key) for seed, values in other.items()},
        )
        for key in sorted({key for values in own.values() for key in values})
    }


def _by_seed(runs: Sequence[Mapping[str, Any]], arm: str) -> dict[int, Mapping[str, float]]:
    return {run["seed"]: run["figures"] for run in runs if run["arm"] == arm}


def _check_models(records: Sequence[Record]) -> None:
    """Raises ConfigurationError where records are of different models under one name."""
    identities = {one["teacher_identity"] for one in records}
    weights: dict[str, set[str]] = {}
    for one in records:
        weights.setdefault(one["run"]["model"], set()).add(one["weights_sha256"])
    different = sorted(name for name, found in weights.items() if len(found) > 1)
    if len(identities) > 1 or different:
        what = f"the student {different[0]}" if different else "the teacher"
        raise ConfigurationError(
            f"runs of different models are in one folder: {what} was not the same in all of them",
            where="--models",
            fix="remove the runs of other models from runs/, or give another --out",
        )


def summary(values: Mapping[int, float | None]) -> dict[str, Any]:
    """The mean over seeds, with its 95% interval where there are two or more: ``mean``, ``low``
    and ``high``, and ``of_seeds``."""
    known = {seed: value for seed, value in sorted(values.items()) if value is not None}
    found: dict[str, Any] = {"of_seeds": {str(seed): v for seed, v in known.items()}}
    if len(known) < 2:
        return {"mean": next(iter(known.values()), None), "low": None, "high": None, **found}
    interval = mean_interval(list(known.values()))
    bounds = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {**{key: rounded(value) for key, value in bounds.items()}, **found}


def difference(
    values: Mapping[int, float | None], reference: Mapping[int, float | None]
) -> dict[str, Any]:
    """``summary`` of the values minus the reference's, seed by seed, over the seeds of both."""
    both: dict[int, float | None] = {}
    for seed, value in values.items():
        other = reference.get(seed)
        if value is not None and other is not None:
            both[seed] = rounded(value - other)
    return summary(both)
