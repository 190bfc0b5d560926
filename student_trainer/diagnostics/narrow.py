"""Whether the support holds too little of the teacher's mass: a loss that is renormalised on the
support teaches the proportions of its ids and does not see the rest, so that it falls whatever it
teaches. Runs of other losses are not judged (``Loss.renormalised``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEY = "teacher_support_mass"
# In the lines of a teacher with another tokenizer. What its rows lack is in part mass that no K
# would bring (docs/realignment.md, "Reading the masses"), and low coverage has its own warning.
REALIGNED = "realign_failed_share"


@dataclass(frozen=True)
class NarrowRule:
    """When it is said, of the first steps.

    On worked sums (docs/study/compare.md) students got worse where .33 of the teacher's mass was
    outside, and learnt less where .11 was than where .002 was; between .002 and .11 nothing was
    measured. ``outside`` is just below the least that did harm, and above the .06 that the
    quickstart leaves outside with its K of 256 (docs/diagnostics.md).

    Attributes:
        steps: how many; later ones are not judged. Few are enough to tell a support that holds
            too little from the start, and a student that moves away has a rule of its own.
        outside: the teacher's mean mass outside the support is more than this.
    """

    steps: int = 5
    outside: float = 0.1


RULE = NarrowRule()


@dataclass(frozen=True)
class Narrow:
    """A support that holds too little.

    Attributes:
        teacher: whose mass it is, in a run of several teachers; else empty.
        steps: how many the mean is over.
        mass: the teacher's mean mass on the support.
    """

    teacher: str
    steps: int
    mass: float

    @property
    def metric(self) -> str:
        """The key in metrics.jsonl."""
        return f"{KEY}/{self.teacher}" if self.teacher else KEY

    def __str__(self) -> str:
        """As a sentence without its end."""
        whose = f"the mass of teacher {self.teacher}" if self.teacher else "the teacher's mass"
        return (
            f"the support holds {self.mass:.1%} of {whose} (mean of the first {self.steps} steps)"
        )


def k_settings(config: Mapping[str, Any], found: Sequence[Narrow]) -> dict[str, Any]:
    """What sets K for these teachers, each key once: ``teachers.NAME.top_k`` of one that has a K
    of its own, else ``loss.top_k``, with its value; None where the loss has no such setting.

    Args:
        config: the resolved settings, nested.
    """
    teachers = config.get("teachers") or {}
    settings: dict[str, Any] = {}
    for one in found:
        # The metrics of a run of one teacher do not name it.
        name = one.teacher or (next(iter(teachers)) if len(teachers) == 1 else "")
        # A run that was resumed with other teachers has lines of those that it had.
        own = teachers.get(name, {}).get("top_k")
        key = "loss.top_k" if own is None else f"teachers.{name}.top_k"
        settings[key] = config["loss"].get("top_k") if own is None else own
    return settings


def advice(config: Mapping[str, Any], found: Sequence[Narrow]) -> str:
    """What that does and what mends it, as sentences without the last one's end.

    Args:
        config: the resolved settings, nested, of a run of a renormalised loss.
        found: the supports that hold too little, one at least.
    """
    loss = config["loss"]
    of_k = k_settings(config, found)
    shown = {**of_k, **{f"loss.{key}": loss.get(key) for key in ("support", "support_mass")}}
    here = ", ".join(f"{key} = {_written(to)}" for key, to in shown.items() if to is not None)
    mends = [f"a larger {' and '.join(of_k)}"]
    if loss.get("support_mass") is not None:
        mends.insert(0, "a larger loss.support_mass")
    if str(loss.get("support")).startswith("student"):
        mends.append('loss.support = "union", which holds the teacher\'s likeliest ids too')
    if "tail" in loss:
        mends.append(
            'loss.tail = "bucket" (with the teacher\'s tokenizer), which teaches how much the rest '
            "holds, though not what is in it"
        )
    return (
        f"A loss that is renormalised on the support{f' ({here})' if here else ''} teaches the "
        "proportions of its ids and does not see the rest: on worked sums students got worse "
        "while their loss fell where the support held .67 of the teacher's mass, and learnt less "
        "where it held .89 (docs/study/compare.md). Set " + ", or ".join(mends) + _removed(loss)
    )


def _removed(loss: Mapping[str, Any]) -> str:
    mask = loss.get("mask") or {}
    if not (mask.get("remove_from_support") and (mask.get("token_ids") or mask.get("strings"))):
        return ""
    return (
        ". What loss.mask.remove_from_support takes out of the support counts as outside too, and "
        "no larger support brings it back"
    )


def _written(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def narrow_supports(lines: Sequence[Mapping[str, Any]], rule: NarrowRule = RULE) -> list[Narrow]:
    """What a run's steps show: the supports that hold too little, one for each teacher at most.

    Args:
        lines: of metrics.jsonl, in order, of a run whose loss is renormalised.
    """
    watch = NarrowWatch(renormalised=True, rule=rule)
    return [found for line in lines for found in watch.add(line)]


class NarrowWatch:
    """Tells once in a run, and of each of several teachers once, that the support holds too
    little."""

    def __init__(self, *, renormalised: bool, rule: NarrowRule = RULE) -> None:
        """
        Args:
            renormalised: whether the run's loss is; of another, nothing is told.
        """
        self._rule = rule
        self._renormalised = renormalised
        self._masses: dict[str, list[float]] = {}

    def add(self, line: Mapping[str, Any]) -> list[Narrow]:
        """Adds the metrics of a step; what is to be told now."""
        if not self._renormalised:
            return []
        several = [key for key in line if key.startswith(f"{KEY}/")]
        found = []
        for key in several or [KEY]:
            teacher = key.removeprefix(KEY).removeprefix("/")
            realigned = f"{REALIGNED}/{teacher}" if teacher else REALIGNED
            mass = line.get(key)
            if mass is None or not math.isfinite(mass) or realigned in line:
                continue
            masses = self._masses.setdefault(teacher, [])
            masses.append(float(mass))
            if len(masses) != self._rule.steps:
                continue
            mean = sum(masses) / len(masses)
            if 1 - mean > self._rule.outside:
                found.append(Narrow(teacher, len(masses), mean))
        return found
