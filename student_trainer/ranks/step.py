"""What all ranks have counted and written in a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from student_trainer.diagnostics.responses import Response
from student_trainer.diagnostics.signal import Signal, no_signal
from student_trainer.distributed.world import World
from student_trainer.update.metrics import COUNTED, Means, UpdateTotals


def totals_of_world(totals: UpdateTotals, world: World) -> UpdateTotals:
    """The totals of a step with what every rank has counted. Losses, norms and what the updates
    were made with are of the whole world already, and the same on every rank."""
    if not world.several:
        return totals
    return _added(totals, world.gather(_plain(totals)))


def responses_of_world(
    responses: Sequence[Response], places: Sequence[int], world: World
) -> list[Response]:
    """The responses of the whole step, in their order.

    Args:
        responses: of this rank.
        places: of these, among all of the step.
    """
    mine = [(p, asdict(one)) for p, one in zip(places, responses, strict=True)]
    every = [one for of_rank in world.gather(mine) for one in of_rank]
    return [Response(**one) for _, one in sorted(every, key=lambda entry: int(entry[0]))]


def _plain(totals: UpdateTotals) -> dict[str, Any]:
    return {
        "counted": {name: getattr(totals, name) for name in COUNTED},
        "refusal": totals.refusal,
        "means": totals.means.plain(),
        "signal": totals.signal.plain(),
        "by_teacher": {name: _plain(one) for name, one in totals.by_teacher.items()},
        "data": None if totals.data is None else _plain(totals.data),
    }


def _added(totals: UpdateTotals, said: Sequence[Mapping[str, Any]]) -> UpdateTotals:
    """``totals`` with what the ranks have counted in place of what this one has."""
    means, signal = Means(), no_signal()
    for one in said:
        means.add_all(Means.of_plain(one["means"]))
        signal = signal.plus(Signal.of_plain(one["signal"]))
    of_data = [one["data"] for one in said if one["data"] is not None]
    return replace(
        totals,
        **{name: sum(one["counted"][name] for one in said) for name in COUNTED},
        refusal=next((one["refusal"] for one in said if one["refusal"]), ""),
        means=means,
        signal=signal,
        by_teacher={
            name: _added(part, [one["by_teacher"][name] for one in said])
            for name, part in totals.by_teacher.items()
        },
        data=_added(UpdateTotals(), of_data) if of_data else None,
    )
