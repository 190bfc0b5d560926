"""The worst cell of each figure, and its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.realign.cell import Cell

# Of a standard normal: one side in twenty is beyond it.
NINETY_FIVE = 1.645
ENGLISH, CODE = ("prose", "licence"), ("code",)
CHINESE = ("chinese", "translated")
DIGITS = ("digits",)
GEMMA = ("gemma", "gemma2", "gemma3")
MERGING = (*GEMMA, "mistral_nemo")


def upper_bound(values: Sequence[float]) -> float:
    """Of the mean, 95%."""
    if len(values) < 2:
        return float("nan")
    return float(np.mean(values) + NINETY_FIVE * np.std(values, ddof=1) / len(values) ** 0.5)


def sides(cell: Cell) -> tuple[str, str]:
    """Student and teacher."""
    student, teacher = cell.pair.split(" <- ")
    return student, teacher


def _has_gemma_teacher(cell: Cell) -> bool:
    return sides(cell)[1] in GEMMA


def _merges(cell: Cell) -> bool:
    return bool(set(sides(cell)) & set(MERGING))


def _far_beyond_open(cell: Cell) -> float:
    return float(sum(far.excess > far.open_mass for far in cell.far))


Figure = tuple[Callable[[Cell], bool], Callable[[Cell], float]]


def _texts(names: Sequence[str], gemma: bool) -> Callable[[Cell], bool]:
    return lambda cell: cell.text in names and _has_gemma_teacher(cell) == gemma


def _told(cell: Cell) -> float:
    """The smaller, the worse: what is missing of it."""
    return 1.0 - cell.told / cell.truth if cell.truth else 0.0


FIGURES: dict[str, Figure] = {
    "excess_tv": (lambda c: not _merges(c), lambda c: upper_bound(c.excess)),
    "excess_tv_tekken_gemma": (_merges, lambda c: upper_bound(c.excess)),
    "rows_far": (lambda c: True, lambda c: float(len(c.far))),
    "rows_far_beyond_open": (lambda c: True, _far_beyond_open),
    "causality_tv": (lambda c: True, lambda c: float(np.mean(c.causality or [0.0]))),
    "masked_english": (_texts(ENGLISH, False), lambda c: c.masked),
    "masked_code": (_texts(CODE, False), lambda c: c.masked),
    "masked_chinese": (_texts(CHINESE, False), lambda c: c.masked),
    "masked_digits": (_texts(DIGITS, False), lambda c: c.masked),
    "masked_gemma_teachers": (
        lambda c: _has_gemma_teacher(c) and c.text not in CODE,
        lambda c: c.masked,
    ),
    "masked_gemma_teachers_code": (_texts(CODE, True), lambda c: c.masked),
    "masked_other_texts": (
        lambda c: not _has_gemma_teacher(c) and c.text not in (*ENGLISH, *CODE, *CHINESE, *DIGITS),
        lambda c: c.masked,
    ),
    "coarse": (lambda c: True, lambda c: c.coarse),
    "not_told": (lambda c: True, _told),
    "extra_rows_per_token": (lambda c: True, lambda c: c.extra_rows / c.teacher_tokens),
    "walk_us_per_token": (lambda c: True, lambda c: c.microseconds),
}


def worst(cells: Sequence[Cell]) -> tuple[dict[str, float | None], dict[str, str]]:
    """NAME_worst -> the worst cell's value, None where there is no such cell; NAME_worst_cell
    -> the pair and text."""
    values: dict[str, float | None] = {}
    names: dict[str, str] = {}
    for name, (belongs, value) in FIGURES.items():
        found = [(value(cell), cell) for cell in cells if belongs(cell)]
        found = [pair for pair in found if np.isfinite(pair[0])]
        top = max(found, key=lambda pair: pair[0], default=None)
        values[f"{name}_worst"] = top[0] if top else None
        if top:
            names[f"{name}_worst_cell"] = f"{top[1].pair}, {top[1].text}"
    return values, names


def summary(cell: Cell) -> dict[str, Any]:
    """A cell for the results file: means and bounds in the place of lists."""
    lists = ("excess", "noise", "causality")
    means = {name: float(np.mean(getattr(cell, name) or [float("nan")])) for name in lists}
    return asdict(cell) | {
        **{name: value if np.isfinite(value) else None for name, value in means.items()},
        "excess_upper": upper_bound(cell.excess) if len(cell.excess) > 1 else None,
        "excess_most": max(cell.excess, default=None),
        "judged": len(cell.excess),
        "compared": len(cell.causality),
        "told_share": cell.told / cell.truth if cell.truth else None,
        "extra_rows_per_token": cell.extra_rows / max(1, cell.teacher_tokens),
    }


def line(cell: Cell) -> str:
    """A cell for the screen."""
    found = summary(cell)

    def shown(name: str) -> str:
        return "-" if found[name] is None else f"{found[name]:.4f}"

    return (
        f"{cell.pair:24} {cell.text:10} excess {shown('excess')} (95% {shown('excess_upper')}, "
        f"most {shown('excess_most')}, far {len(cell.far)}) causality {shown('causality')} masked "
        f"{cell.masked:.3f} coarse {cell.coarse:.3f} told {shown('told_share')} extra "
        f"{found['extra_rows_per_token']:.2f} walk {cell.microseconds:.0f} us "
        f"({found['judged']} judged, {cell.not_judged} not)"
    )
