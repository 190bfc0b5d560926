"""What every plot is drawn with: palettes, axes, legends and bars."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 150


@dataclass(frozen=True)
class Palette:
    """Colours of a plot; ``series`` are those of its lines."""

    background: str
    text: str
    grid: str
    muted: str
    series: tuple[str, ...]


LIGHT = Palette(
    "#ffffff", "#30363d", "#e3e6ea", "#b4bcc6", ("#2f6fde", "#e0803b", "#2f9e6e", "#a05bc9")
)
DARK = Palette(
    "#161b22", "#c9d1d9", "#2d333b", "#5a636e", ("#6ea8fe", "#f0a35e", "#56c596", "#c792ea")
)

# Draws one plot onto an empty figure.
Draw = Callable[[Figure, Palette], None]


def render_png(draw: Draw, palette: Palette) -> bytes:
    """Draws one plot; returns it as PNG."""
    figure = Figure(figsize=(6.0, 2.7), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_facecolor(palette.background)
    draw(figure, palette)
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor=palette.background, metadata={"Software": None})
    return out.getvalue()


def make_axes(figure: Figure, palette: Palette, count: int) -> list[Any]:
    """``count`` axes side by side, in the colours of the palette."""
    axes = figure.subplots(1, count, squeeze=False)[0]
    for one in axes:
        one.set_facecolor(palette.background)
        one.grid(axis="y", color=palette.grid, linewidth=0.8)
        one.set_axisbelow(True)
        one.tick_params(colors=palette.text, labelsize=8, length=0)
        for side in ("top", "right", "left"):
            one.spines[side].set_visible(False)
        one.spines["bottom"].set_color(palette.grid)
        one.yaxis.label.set_color(palette.text)
        one.xaxis.label.set_color(palette.text)
        one.yaxis.label.set_size(8.5)
        one.xaxis.label.set_size(8.5)
    return list(axes)


def add_legend(axis: Any, palette: Palette, **options: Any) -> None:
    """Adds a legend above the axis, where no data is; a single series has none."""
    if len(axis.get_legend_handles_labels()[1]) > 1:
        place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "borderaxespad": 0.0}
        axis.legend(
            frameon=False,
            fontsize=8,
            labelcolor=palette.text,
            handlelength=1.2,
            columnspacing=1.2,
            **(place | options),
        )


def label_steps(axis: Any, steps: Sequence[int]) -> None:
    """Makes the horizontal axis one of whole steps."""
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if len(steps) == 1:
        axis.set_xlim(steps[0] - 0.5, steps[0] + 0.5)


def draw_bars(
    axis: Any, palette: Palette, groups: Sequence[tuple[str, float, float]], form: str
) -> None:
    """Draws pairs of bars.

    Args:
        groups: name, value before and value after of each pair; NaN draws no bar.
        form: how values are written above the bars, for ``str.format``.
    """
    for side, label in enumerate(("before", "after")):
        values = [group[1 + side] for group in groups]
        places = [index + (side - 0.5) * 0.38 for index in range(len(groups))]
        colour = palette.muted if side == 0 else palette.series[0]
        bars = axis.bar(places, values, 0.34, color=colour, label=label)
        texts = ["" if value != value else form.format(value) for value in values]
        axis.bar_label(bars, texts, fontsize=8, color=palette.text, padding=2)
    axis.set_xticks(range(len(groups)), [group[0] for group in groups])
    axis.margins(y=0.15)
