"""What is kept of a cell, and the worst cell of each figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.realign.cell import Cell

# A cell as ``summary`` gives it.
Found = Mapping[str, Any]
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


def sides(found: Found) -> tuple[str, str]:
    """Student and teacher."""
    student, teacher = found["pair"].split(" <- ")
    return student, teacher


def _has_gemma_teacher(found: Found) -> bool:
    return sides(found)[1] in GEMMA


def _merges(found: Found) -> bool:
    return bool(set(sides(found)) & set(MERGING))


def _far_beyond_open(found: Found) -> float:
    return float(sum(far["excess"] > far["open_mass"] for far in found["far"]))


Figure = tuple[Callable[[Found], bool], Callable[[Found], float | None]]


def _texts(names: Sequence[str], gemma: bool) -> Callable[[Found], bool]:
    return lambda found: found["text"] in names and _has_gemma_teacher(found) == gemma


def _told(found: Found) -> float:
    """The smaller, the worse: what is missing of it."""
    share = found["told_share"]
    return 0.0 if share is None else 1.0 - share


FIGURES: dict[str, Figure] = {
    "excess_tv": (lambda c: not _merges(c), lambda c: c["excess_upper"]),
    "excess_tv_tekken_gemma": (_merges, lambda c: c["excess_upper"]),
    "rows_far": (lambda c: True, lambda c: float(len(c["far"]))),
    "rows_far_beyond_open": (lambda c: True, _far_beyond_open),
    "causality_tv": (lambda c: True, lambda c: c["causality"]),
    "masked_english": (_texts(ENGLISH, False), lambda c: c["masked"]),
    "masked_code": (_texts(CODE, False), lambda c: c["masked"]),
    "masked_chinese": (_texts(CHINESE, False), lambda c: c["masked"]),
    "masked_digits": (_texts(DIGITS, False), lambda c: c["masked"]),
    "masked_gemma_teachers": (
        lambda c: _has_gemma_teacher(c) and c["text"] not in CODE,
        lambda c: c["masked"],
    ),
    "masked_gemma_teachers_code": (_texts(CODE, True), lambda c: c["masked"]),
    "masked_other_texts": (
        lambda c: (
            not _has_gemma_teacher(c) and c["text"] not in (*ENGLISH, *CODE, *CHINESE, *DIGITS)
        ),
        lambda c: c["masked"],
    ),
    "coarse": (lambda c: True, lambda c: c["coarse"]),
    "not_told": (lambda c: True, _told),
    "extra_rows_per_token": (lambda c: True, lambda c: c["extra_rows_per_token"]),
    "walk_us_per_token": (lambda c: True, lambda c: c["microseconds"]),
}


def worst(cells: Sequence[Found]) -> tuple[dict[str, float | None], dict[str, str]]:
    """NAME_worst -> the worst cell's value, None where there is no such cell; NAME_worst_cell
    -> the pair and text."""
    values: dict[str, float | None] = {}
    names: dict[str, str] = {}
    for name, (belongs, value) in FIGURES.items():
        every = [(value(cell), cell) for cell in cells if belongs(cell)]
        some = [(number, cell) for number, cell in every if number is not None]
        top = max(some, key=lambda pair: pair[0], default=None)
        values[f"{name}_worst"] = top[0] if top else None
        if top:
            names[f"{name}_worst_cell"] = f"{top[1]['pair']}, {top[1]['text']}"
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


def line(found: Found) -> str:
    """A cell for the screen."""

    def shown(name: str) -> str:
        return "-" if found[name] is None else f"{found[name]:.4f}"

    masked, coarse, extra = (found[n] for n in ("masked", "coarse", "extra_rows_per_token"))
    return (
        f"{found['pair']:24} {found['text']:10} excess {shown('excess')} "
        f"(95% {shown('excess_upper')}, most {shown('excess_most')}, far {len(found['far'])}) "
        f"causality {shown('causality')} masked {masked:.3f} coarse {coarse:.3f} "
        f"told {shown('told_share')} extra {extra:.2f} walk {found['microseconds']:.0f} us "
        f"({found['judged']} judged, {found['not_judged']} not)"
    )
