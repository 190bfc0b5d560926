"""The results as tables in Markdown and as a picture, from the document alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from student_trainer.study.parts.written import markdown_table, new_figure, save_figure

UNKNOWN = "not finite"
# What the paper's bounds say of the exponents of the lowest and of the highest discount.
BOUNDS = (2, 4)


def table(document: Mapping[str, Any]) -> str:
    """Late variances and misses by seed and discount, the teachers, and the exponents."""
    seeds = document["settings"]["seeds"]
    gammas = document["settings"]["gammas"]
    runs = {(run["seed"], run["gamma"]): run for run in document["students"]}
    found = document["figures"]
    parts = ["Late variance of the output layer's gradient (mean of the last quarter):\n\n"]
    parts.append(
        markdown_table(
            ("seed", *(f"gamma {g:g}" for g in gammas), "highest / lowest", "grows with gamma"),
            [
                (
                    str(seed),
                    *(_number(runs[seed, g]["late_variance"]) for g in gammas),
                    _number(found["late_variance_highest_to_lowest_gamma"][str(seed)]),
                    _yes(found["late_variance_grows_with_gamma"][str(seed)]),
                )
                for seed in seeds
            ],
        )
    )
    parts.append("\nDistance of the last place from the target, late, left / right task:\n\n")
    parts.append(
        markdown_table(
            ("seed", "teachers", "teachers' sigma", *(f"gamma {g:g}" for g in gammas)),
            [
                (
                    str(seed),
                    *_teachers(document, seed),
                    *(
                        " / ".join(map(_number, runs[seed, g]["late_miss"].values()))
                        for g in gammas
                    ),
                )
                for seed in seeds
            ],
        )
    )
    if document["horizons"]:
        parts.append("\nExponent of the variance in T, mean over seeds with its 95% interval:\n\n")
        parts.append(
            markdown_table(
                ("gamma", "when", "exponent", "of the seeds", "the paper's bound"),
                [_exponent(row, document) for row in document["exponents"]],
            )
        )
    return "".join(parts)


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Writes the picture: variance over the updates, late variance by discount, variance by
    horizon."""
    settings = document["settings"]
    figure, (course, by_gamma, by_horizon) = new_figure("variance", 3, 16, 4.2)
    for g, gamma in enumerate(settings["gammas"]):
        for number, run in enumerate(r for r in document["students"] if r["gamma"] == gamma):
            places = [
                settings["steps"] * (i + 0.5) / len(run["curve"]) for i in range(len(run["curve"]))
            ]
            label = f"gamma {gamma:g}" if number == 0 else None
            course.plot(places, _gaps(run["curve"]), color=f"C{g}", linewidth=1, label=label)
    course.set(yscale="log", xlabel="update", ylabel="variance", title="one line for each seed")
    course.legend(fontsize=8)
    for s, seed in enumerate(settings["seeds"]):
        own = [run for run in document["students"] if run["seed"] == seed]
        values = _gaps([run["late_variance"] for run in own])
        by_gamma.plot([r["gamma"] for r in own], values, "o-", color=f"C{s}", label=f"seed {seed}")
    by_gamma.set(yscale="log", xlabel="gamma", ylabel="variance", title="late in training")
    by_gamma.legend(fontsize=8)
    for g, gamma in enumerate(sorted({row["gamma"] for row in document["horizons"]})):
        for when, style in (("start", "o"), ("late", "x")):
            own = [row for row in document["horizons"] if row["gamma"] == gamma]
            by_horizon.plot(
                [row["horizon"] for row in own],
                _gaps([row[when] for row in own]),
                style,
                color=f"C{g}",
                label=f"gamma {gamma:g}, {when}",
            )
    by_horizon.set(xlabel="horizon T", ylabel="variance", title="by horizon, each seed")
    if document["horizons"]:
        by_horizon.set(xscale="log", yscale="log")
        by_horizon.set_xticks(settings["horizons"], labels=map(str, settings["horizons"]))
        by_horizon.minorticks_off()
        by_horizon.legend(fontsize=8)
    save_figure(figure, path)


def _teachers(document: Mapping[str, Any], seed: int) -> tuple[str, str]:
    own = [teacher for teacher in document["teachers"] if teacher["seed"] == seed]
    return tuple(" / ".join(_number(t[key]) for t in own) for key in ("miss", "sigma"))  # type: ignore[return-value]


def _exponent(row: Mapping[str, Any], document: Mapping[str, Any]) -> tuple[str, ...]:
    highest = row["gamma"] == document["settings"]["gammas"][-1]
    shown = UNKNOWN
    if row["mean"] is not None:
        bounds = "no interval" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"
        shown = f"{row['mean']:.2f} ({bounds})"
    return (
        f"{row['gamma']:g}",
        row["when"],
        shown,
        ", ".join(UNKNOWN if b is None else f"{b:.2f}" for b in row["of_seeds"]),
        str(BOUNDS[highest]),
    )


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3g}"


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: UNKNOWN}[value]


def _gaps(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
