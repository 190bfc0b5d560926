"""A chart: its curves, and the SVG that shows them. A script of the page adds values on hover."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from student_trainer.report.page.drawing.heat import Heat, draw_heat
from student_trainer.report.page.drawing.scales import (
    Values,
    smoothed,
    span,
    thinned,
    ticks,
    written,
)

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 30
# Classes c0, c1, ... of the page's style have the colours.
COLOURS = 8


@dataclass(frozen=True)
class Curve:
    """Attributes:
    label: for people.
    x: places, ascending.
    y: values; None where there is none.
    low, high: of each value's interval, or empty.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()

    @property
    def known(self) -> bool:
        """Whether it has a value."""
        return any(value is not None for value in self.y)


@dataclass(frozen=True)
class Panel:
    """Curves over one axis.

    Attributes:
        label: of the vertical axis.
        zero: whether the axis shows 0. share: whether it goes from 0 to 100%.
        x_label: of the horizontal axis.
        x_ticks: places and labels on the horizontal axis; empty for round numbers.
        points: whether single values are measured ones that a line only joins.
    """

    label: str
    curves: Sequence[Curve]
    zero: bool = True
    share: bool = False
    x_label: str = "step"
    x_ticks: Sequence[tuple[float, str]] = ()
    points: bool = False

    @property
    def known(self) -> bool:
        """Whether a curve has a value."""
        return any(curve.known for curve in self.curves)


@dataclass(frozen=True)
class Chart:
    """Attributes:
    note: how to read it.
    """

    title: str
    note: str
    panels: Sequence[Panel | Heat] = field(default_factory=tuple)


@dataclass(frozen=True)
class _Frame:
    """Maps values to places in the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        low, high = self.x
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def down(self, value: float) -> float:
        low, high = self.y
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def outside(self, value: float) -> bool:
        return not self.y[0] <= value <= self.y[1]


def draw(panel: Panel | Heat) -> str:
    """One panel as HTML: an SVG, its legend, and its values for the script, or those of a heat map
    in its cells. Every text is escaped."""
    if isinstance(panel, Heat):
        return draw_heat(panel)
    curves = [curve for curve in panel.curves if curve.known]
    thin = [thinned(curve.x, curve.y) for curve in curves]
    edges = [value for c in curves for value in (*c.low, *c.high) if value is not None]
    every = np.concatenate([np.array(edges, np.float64), *(y for _, y in thin)])
    places = np.concatenate([x for x, _ in thin])
    first, last = float(places.min()), float(places.max())
    if first == last:
        first, last = first - 0.5, last + 0.5
    frame = _Frame((first, last), span(every, zero=panel.zero, share=panel.share))
    parts = [*_axes(panel, frame)]
    for number, (curve, (x, y)) in enumerate(zip(curves, thin, strict=True)):
        parts += _curve(panel, frame, curve, x, y, number % COLOURS)
    names = ", ".join(curve.label for curve in curves)
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" '
        f'aria-label="{escape(f"{panel.label} by {panel.x_label}: {names}")}">'
        f"{''.join(parts)}</svg>"
    )
    return (
        f'<div class="panel">{_legend(panel, curves)}{svg}{_data(panel, frame, curves, thin)}</div>'
    )


def _axes(panel: Panel, frame: _Frame) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in ticks(*frame.y):
        y = frame.down(value)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>'
            f'<text class="tick end" x="{LEFT - 6}" y="{y + 3.5:.1f}">'
            f"{written(value, share=panel.share)}</text>"
        )
    marks = panel.x_ticks or [
        (value, written(value)) for value in ticks(*frame.x, 6) if value == int(value)
    ]
    for place, label in marks:
        parts.append(
            f'<text class="tick middle" x="{frame.across(place):.1f}" y="{bottom + 15}">'
            f"{escape(label)}</text>"
        )
    parts.append(
        f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>'
        f'<text class="tick end" x="{right}" y="{HEIGHT - 3}">{escape(panel.x_label)}</text>'
    )
    return parts


def _curve(
    panel: Panel, frame: _Frame, curve: Curve, x: Values, y: Values, number: int
) -> list[str]:
    parts = []
    if curve.low:
        for place, low, high in zip(curve.x, curve.low, curve.high, strict=True):
            if low is not None and high is not None:
                parts.append(
                    f'<path class="bar c{number}" d="M{frame.across(place):.1f} '
                    f'{frame.down(low):.1f}V{frame.down(high):.1f}"/>'
                )
    smooth = None if panel.points else smoothed(y)
    parts.append(_path(frame, x, y, f"c{number}" + (" raw" if smooth is not None else "")))
    if smooth is not None:
        parts.append(_path(frame, x, smooth, f"c{number}"))
    known = np.isfinite(y)
    dots = [
        (float(a), float(b))
        for a, b in zip(x[known], y[known], strict=True)
        if panel.points or known.sum() <= 40 or frame.outside(float(b))
    ]
    for a, b in dots:
        kind = "out" if frame.outside(b) else "dot"
        parts.append(
            f'<circle class="{kind} c{number}" cx="{frame.across(a):.1f}" '
            f'cy="{frame.down(b):.1f}" r="2.4"/>'
        )
    return parts


def _path(frame: _Frame, x: Values, y: Values, classes: str) -> str:
    """A line through the values, broken where there is none."""
    steps, pen = [], "M"
    for place, value in zip(x.tolist(), y.tolist(), strict=True):
        if value != value:
            pen = "M"
            continue
        steps.append(f"{pen}{frame.across(place):.1f} {frame.down(value):.1f}")
        pen = "L"
    return f'<path class="line {classes}" d="{"".join(steps)}"/>'


def _legend(panel: Panel, curves: Sequence[Curve]) -> str:
    names = [escape(panel.label)]
    if len(curves) > 1 or curves[0].label != panel.label:
        names += [
            f'<span class="key c{number % COLOURS}"></span>{escape(curve.label)}'
            for number, curve in enumerate(curves)
        ]
    return f'<div class="legend">{"".join(f"<span>{name}</span>" for name in names)}</div>'


def _data(
    panel: Panel,
    frame: _Frame,
    curves: Sequence[Curve],
    thin: Sequence[tuple[Values, Values]],
) -> str:
    """What the script needs to say the values at a place."""
    content: dict[str, Any] = {
        "x": frame.x,
        "box": [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM, WIDTH],
        "share": panel.share,
        "unit": panel.x_label,
        "names": {str(place): name for place, name in panel.x_ticks},
        "curves": [
            {
                "label": curve.label,
                "x": [_short(value) for value in x.tolist()],
                "y": [_short(value) for value in y.tolist()],
            }
            for curve, (x, y) in zip(curves, thin, strict=True)
        ],
    }
    return f'<script type="application/json">{json_in_page(content)}</script>'


def json_in_page(content: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace("&", "\\u0026")


def _short(value: float) -> float | int | None:
    if value != value:
        return None
    short = float(f"{value:.4g}") if abs(value) < 1000 else round(value, 1)
    return int(short) if short == int(short) else short
