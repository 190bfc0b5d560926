"""The learning rate of each arm, by the runs of the grid. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.errors import ConfigurationError

from student_trainer.study.compare.settings import CompareSettings, GridSettings

TIE = "reverse_kl"
# The reason of an error that a rate may be to blame for.
NOT_FINITE = "NON_FINITE"


def chosen_rates(
    settings: CompareSettings, records: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What each arm's runs decide: ``rate``, and the means of every rate, ``tried``. Arms whose
    grid is not complete are left out.

    Args:
        records: of finished or failed runs of the grid (``measured.record``). A rate at which a
            run was not finite is not chosen. A run that failed for another reason says nothing
            of its rate: it is as one that is not made.

    Raises:
        ConfigurationError: a run did not measure the value that decides.
    """
    found = {}
    for arm in settings.arms:
        own = [
            one
            for one in records
            if one["run"]["arm"] == arm and one.get("reason", NOT_FINITE) == NOT_FINITE
        ]
        if len(own) < len(settings.grid.rates) * len(settings.grid.seeds):
            continue
        tried = [_tried(settings.grid, rate, own) for rate in settings.grid.rates]
        whole = [one for one in tried if not one["failed"]]
        if whole:
            found[arm] = {"rate": min(whole, key=_order(settings.grid))["rate"], "tried": tried}
    return found


def _tried(grid: GridSettings, rate: float, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = [one for one in records if one["run"]["rate"] == rate]
    good = [one["course"][-1] for one in own if "failed" not in one]
    for end in good:
        if grid.value not in end:
            raise ConfigurationError(
                f"no evaluation measured {grid.value!r}",
                where="grid.value",
                fix=f"name one of {', '.join(key for key in end if key != 'step')}",
            )
    return {
        "rate": rate,
        grid.value: _mean([end.get(grid.value) for end in good]),
        TIE: _mean([end.get(TIE) for end in good]),
        "failed": len(own) - len(good),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _order(grid: GridSettings) -> Any:
    sign = -1 if grid.goal == "max" else 1

    def key(tried: Mapping[str, Any]) -> tuple[float, float, float]:
        value, tie = tried[grid.value], tried[TIE]
        return (
            math.inf if value is None else sign * value,
            math.inf if tie is None else tie,
            tried["rate"],
        )

    return key
