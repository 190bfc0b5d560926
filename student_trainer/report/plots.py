"""The report's plots, drawn once for light and once for dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from student_trainer.evaluation.results import Evaluation, FullDivergence, RealignedDivergence
from student_trainer.report.collect import RunFiles
from student_trainer.report.drawing import (
    DARK,
    LIGHT,
    Draw,
    Palette,
    add_legend,
    draw_bars,
    label_steps,
    make_axes,
    render_png,
)
from student_trainer.report.step_plots import STEP_PLOTS, Panel

NAN = float("nan")


@dataclass(frozen=True)
class Plot:
    """A plot as PNG in both palettes.

    Attributes:
        name: of its file, without ``.png``.
        note: how to read it.
    """

    name: str
    title: str
    note: str
    light: bytes
    dark: bytes


def all_plots(run: RunFiles) -> list[Plot]:
    """Every plot that the run has values for, in the order of the report."""
    drawn: list[tuple[str, str, str, Draw]] = []
    if run.before is not None or run.after is not None:
        drawn.append(
            (
                "held_out",
                "Held-out prompts, before and after",
                "Lower divergence and higher agreement are better. Frozen positions were fixed "
                "before training; fresh ones are those of the student's own answers then.",
                lambda figure, palette: _held_out(figure, palette, run),
            )
        )
    for name, title, note, panels in STEP_PLOTS:
        if any(_series(run, key) for panel in panels for key, _ in panel.lines):
            drawn.append((name, title, note, _stepper(run, panels)))
    drawn.append(
        (
            "time",
            "Where a step's time goes",
            "Seconds of the trainer's own thread. The teacher also works while the student "
            "writes; only waiting for it counts here.",
            lambda figure, palette: _time(figure, palette, run),
        )
    )
    return [
        Plot(name, title, note, render_png(draw, LIGHT), render_png(draw, DARK))
        for name, title, note, draw in drawn
    ]


def _steps(run: RunFiles) -> list[int]:
    return [int(row["step"]) for row in run.metrics]


def _series(run: RunFiles, key: str) -> list[float]:
    """The values of a metric by step, NaN for steps without one; empty when no step has one."""
    values = [row.get(key) for row in run.metrics]
    if all(value is None for value in values):
        return []
    return [NAN if value is None else float(value) for value in values]


def _stepper(run: RunFiles, panels: tuple[Panel, ...]) -> Draw:
    def draw(figure: Figure, palette: Palette) -> None:
        steps = _steps(run)
        for axis, panel in zip(make_axes(figure, palette, len(panels)), panels, strict=True):
            for (key, label), colour in zip(panel.lines, palette.series, strict=False):
                values = _series(run, key)
                if values:
                    marker = "o" if len(steps) <= 60 else None
                    axis.plot(
                        steps, values, color=colour, label=label, lw=1.6, marker=marker, ms=2.5
                    )
                if key == "grad_norm" and values:
                    _clipped(axis, palette, run, values)
            axis.set_ylabel(panel.label)
            label_steps(axis, steps)
            if panel.share:
                axis.set_ylim(-0.02, 1.02)
                axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            elif panel.zero:
                axis.set_ylim(bottom=0)
            add_legend(axis, palette, ncols=2)

    return draw


def _clipped(axis: Any, palette: Palette, run: RunFiles, values: Sequence[float]) -> None:
    chosen = [
        (row["step"], v) for row, v in zip(run.metrics, values, strict=True) if row["clipped"]
    ]
    if chosen:
        x, y = zip(*chosen, strict=True)
        axis.plot(x, y, "o", color=palette.series[1], ms=4, label="clipped")


def _held_out(figure: Figure, palette: Palette, run: RunFiles) -> None:
    left, right = make_axes(figure, palette, 2)
    either = run.after or run.before
    across = either is not None and bool(either.frozen_realigned or either.fresh_realigned)
    frozen, fresh = ("frozen_realigned", "fresh_realigned") if across else ("frozen", "fresh")
    draw_bars(
        left,
        palette,
        [
            ("reverse KL\nfrozen", *_pair(run, frozen, "reverse_kl")),
            ("forward KL\nfrozen", *_pair(run, frozen, "forward_kl")),
            ("reverse KL\nfresh", *_pair(run, fresh, "reverse_kl")),
        ],
        "{:.2f}",
    )
    left.set_ylabel("nats, on the support" if across else "nats per position")
    draw_bars(
        right,
        palette,
        [
            ("agreement\nfrozen", *_pair(run, frozen, "agreement")),
            ("agreement\nfresh", *_pair(run, fresh, "agreement")),
        ],
        "{:.0%}",
    )
    right.set_ylabel("same most likely token")
    right.set_ylim(0, 1)
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    add_legend(right, palette, ncols=2)


def _pair(run: RunFiles, where: str, what: str) -> tuple[float, float]:
    def of(evaluation: Evaluation | None) -> float:
        found: FullDivergence | RealignedDivergence | None = (
            getattr(evaluation, where) if evaluation else None
        )
        value: float | None = None if found is None else getattr(found, what)
        return NAN if value is None else value

    return of(run.before), of(run.after)


def _time(figure: Figure, palette: Palette, run: RunFiles) -> None:
    (axis,) = make_axes(figure, palette, 1)
    steps = _steps(run)
    base = [0.0] * len(steps)
    parts = (
        ("rollout_seconds", "student writes"),
        ("teacher_wait_seconds", "waiting for the teacher"),
        ("update_seconds", "update"),
    )
    for (key, label), colour in zip(parts, palette.series, strict=False):
        values = [float(row[key]) for row in run.metrics]
        axis.bar(steps, values, 0.8, bottom=base, color=colour, label=label, linewidth=0)
        base = [low + value for low, value in zip(base, values, strict=True)]
    axis.set_ylabel("seconds")
    axis.set_ylim(0, max(base) * 1.05)
    label_steps(axis, steps)
    add_legend(axis, palette, ncols=3)
