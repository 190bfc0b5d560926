"""The report's plots, drawn once for light and once for dark pages. PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from student_trainer.evaluation.results import Divergence, Evaluation, RealignedDivergence
from student_trainer.report.collect import RunFiles

DPI = 150
NAN = float("nan")


@dataclass(frozen=True)
class Palette:
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


@dataclass(frozen=True)
class Plot:
    """A plot in both palettes; ``name`` is its file's, ``note`` says how to read it."""

    name: str
    title: str
    note: str
    light: bytes
    dark: bytes


Draw = Callable[[Figure, Palette], None]


def all_plots(run: RunFiles) -> list[Plot]:
    """Every plot the run has figures for, in the report's order."""
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
        Plot(name, title, note, render(draw, LIGHT), render(draw, DARK))
        for name, title, note, draw in drawn
    ]


@dataclass(frozen=True)
class Panel:
    label: str
    lines: tuple[tuple[str, str], ...]
    zero: bool = True
    share: bool = False


STEP_PLOTS: tuple[tuple[str, str, str, tuple[Panel, ...]], ...] = (
    (
        "loss",
        "Training loss",
        "Mean over the step's tokens, on the student's own answers to the step's prompts.",
        (Panel("loss, nats per token", (("loss", "loss"),)),),
    ),
    (
        "lengths",
        "Answers during training",
        "A falling length with a falling loss would be a student that says less.",
        (
            Panel("mean length, tokens", (("response_length_mean", "mean length"),)),
            Panel("cut at the limit", (("truncated_share", "cut at the limit"),), share=True),
        ),
    ),
    (
        "gradient",
        "Gradient norm",
        "Before clipping; dots are steps that were clipped.",
        (Panel("norm", (("grad_norm", "gradient norm"),)),),
    ),
    (
        "support",
        "The teacher's support",
        "Mass each side puts on the teacher's K most likely tokens. The loss leaves the "
        "student's mass outside them unconstrained: watch that it does not drift.",
        (
            Panel(
                "share",
                (
                    ("teacher_support_mass", "teacher's mass"),
                    ("student_support_mass", "student's mass"),
                    ("sampled_in_support", "sampled token inside"),
                    ("top1_agreement_on_support", "same best token"),
                ),
                share=True,
            ),
        ),
    ),
    (
        "realignment",
        "What the teacher knows in the student's tokens",
        "Mass of the teacher's rows that could be settled on student tokens, that is open, and "
        "that no student token expresses; and how the positions of the answers were judged.",
        (
            Panel(
                "mean mass",
                (
                    ("realign_coverage", "coverage"),
                    ("realign_open_mass", "open"),
                    ("realign_lost_mass", "lost"),
                ),
                share=True,
            ),
            Panel(
                "share of positions",
                (
                    ("realign_aligned_share", "aligned"),
                    ("realign_mid_share", "inside a token"),
                    ("realign_special_share", "special"),
                    ("realign_masked_share", "masked"),
                ),
                share=True,
            ),
        ),
    ),
    (
        "student",
        "The student's distribution",
        "Entropy of the student, and the mean log-ratio of teacher to student at the tokens "
        "the student drew.",
        (
            Panel("entropy, nats", (("student_entropy", "entropy"),)),
            Panel("log q - log pi, nats", (("log_ratio_mean", "log-ratio"),), zero=False),
        ),
    ),
)


def render(draw: Draw, palette: Palette) -> bytes:
    """One figure as PNG."""
    figure = Figure(figsize=(6.0, 2.7), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_facecolor(palette.background)
    draw(figure, palette)
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor=palette.background, metadata={"Software": None})
    return out.getvalue()


def _axes(figure: Figure, palette: Palette, count: int) -> list[Any]:
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


def _legend(axis: Any, palette: Palette, **options: Any) -> None:
    """A legend above the axis, where no data is; none for a single series."""
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


def _steps(run: RunFiles) -> list[int]:
    return [int(row["step"]) for row in run.metrics]


def _series(run: RunFiles, key: str) -> list[float]:
    """Values by step, NaN where a step has none; empty when no step has one."""
    values = [row.get(key) for row in run.metrics]
    if all(value is None for value in values):
        return []
    return [NAN if value is None else float(value) for value in values]


def _step_axis(axis: Any, steps: Sequence[int]) -> None:
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if len(steps) == 1:
        axis.set_xlim(steps[0] - 0.5, steps[0] + 0.5)


def _stepper(run: RunFiles, panels: tuple[Panel, ...]) -> Draw:
    def draw(figure: Figure, palette: Palette) -> None:
        steps = _steps(run)
        for axis, panel in zip(_axes(figure, palette, len(panels)), panels, strict=True):
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
            _step_axis(axis, steps)
            if panel.share:
                axis.set_ylim(-0.02, 1.02)
                axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            elif panel.zero:
                axis.set_ylim(bottom=0)
            _legend(axis, palette, ncols=2)

    return draw


def _clipped(axis: Any, palette: Palette, run: RunFiles, values: Sequence[float]) -> None:
    chosen = [
        (row["step"], v) for row, v in zip(run.metrics, values, strict=True) if row["clipped"]
    ]
    if chosen:
        x, y = zip(*chosen, strict=True)
        axis.plot(x, y, "o", color=palette.series[1], ms=4, label="clipped")


def _held_out(figure: Figure, palette: Palette, run: RunFiles) -> None:
    left, right = _axes(figure, palette, 2)
    either = run.after or run.before
    across = either is not None and bool(either.frozen_realigned or either.fresh_realigned)
    frozen, fresh = ("frozen_realigned", "fresh_realigned") if across else ("frozen", "fresh")
    _bars(
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
    _bars(
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
    _legend(right, palette, ncols=2)


def _pair(run: RunFiles, where: str, what: str) -> tuple[float, float]:
    def of(evaluation: Evaluation | None) -> float:
        found: Divergence | RealignedDivergence | None = (
            getattr(evaluation, where) if evaluation else None
        )
        return NAN if found is None else float(getattr(found, what))

    return of(run.before), of(run.after)


def _bars(
    axis: Any, palette: Palette, groups: Sequence[tuple[str, float, float]], form: str
) -> None:
    for side, label in enumerate(("before", "after")):
        values = [group[1 + side] for group in groups]
        places = [index + (side - 0.5) * 0.38 for index in range(len(groups))]
        colour = palette.muted if side == 0 else palette.series[0]
        bars = axis.bar(places, values, 0.34, color=colour, label=label)
        texts = ["" if value != value else form.format(value) for value in values]
        axis.bar_label(bars, texts, fontsize=8, color=palette.text, padding=2)
    axis.set_xticks(range(len(groups)), [group[0] for group in groups])
    axis.margins(y=0.15)


def _time(figure: Figure, palette: Palette, run: RunFiles) -> None:
    (axis,) = _axes(figure, palette, 1)
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
    _step_axis(axis, steps)
    _legend(axis, palette, ncols=3)
