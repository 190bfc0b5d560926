"""The results of a comparison as tables in Markdown and as a picture, from the document alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from student_trainer.study.parts.written import markdown_table, new_figure, save_figure

NONE = "none"
COLUMNS = 5  # values in a table


def table(document: Mapping[str, Any]) -> str:
    """Means of the arms, differences to the reference and of further pairs, and how the rates were
    chosen; of a few values in each table."""
    settings = document["settings"]
    names = [name for name in settings["values"] if _known(document, name)]
    done = sum(len(arm["seeds"]) for arm in document["arms"].values())
    planned = sum(map(len, document["planned"].values()))
    parts = [f"{done} of {planned} counted runs. Means over seeds, with 95% intervals:\n"]
    groups = [names[at : at + COLUMNS] for at in range(0, len(names), COLUMNS)]
    parts += [f"\n{_means(document, group)}" for group in groups]
    parts.append(f"\nMinus `{settings['reference']}`, by seed, with 95% intervals:\n")
    others = {
        name: arm["differences"]
        for name, arm in document["arms"].items()
        if name != settings["reference"]
    }
    parts += [f"\n{_differences(others, group)}" for group in groups]
    for pair in document["pairs"]:
        parts.append(f"\n`{pair['arm']}` minus `{pair['reference']}`:\n")
        rows = {pair["arm"]: pair["differences"]}
        parts += [f"\n{_differences(rows, group)}" for group in groups]
    if document["chosen"]:
        parts.append("\nLearning rates: the value that chose, and the reverse KL:\n\n")
        parts.append(_rates(document))
    unknown = [name for name in settings["values"] if name not in names]
    if unknown and done:
        parts.append(f"\nNo run has {', '.join(unknown)}.\n")
    for name, words in document["failed"].items():
        parts.append(f"\n{name} failed: {words.splitlines()[-1]}\n")
    return "".join(parts)


def _means(document: Mapping[str, Any], names: Sequence[str]) -> str:
    rows = [
        (
            name,
            f"{arm['rate']:g}",
            str(len(arm["seeds"])),
            *(_interval(arm["values"].get(key)) for key in names),
        )
        for name, arm in document["arms"].items()
    ]
    rows = [_before(document, names), _teacher(document, names), *rows]
    return markdown_table(("arm", "rate", "seeds", *names), rows)


def _differences(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """A table of the differences of some arms, each over the seeds that both sides have."""
    cells = [
        (
            name,
            str(max((len(one["of_seeds"]) for one in found.values()), default=0)),
            *(_interval(found.get(key), signed=True) for key in names),
        )
        for name, found in rows.items()
    ]
    return markdown_table(("arm", "seeds", *names), cells)


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Writes the picture: the value that chose the rates over the steps for the arms with the most
    seeds, and each arm's difference to the reference."""
    figure, (course, differences) = new_figure("compare", 2, 13, 5.5)
    arms, key = document["arms"], document["settings"]["grid"]["value"]
    most = max((len(arm["seeds"]) for arm in arms.values()), default=0)
    for place, name in enumerate(n for n, arm in arms.items() if len(arm["seeds"]) == most):
        steps, means = _mean_course(document, name, key)
        course.plot(steps, means, "o-", color=f"C{place % 10}", label=name, linewidth=1)
    course.set(xlabel="step", ylabel=key, title="means over seeds")
    others = [name for name in arms if name != document["settings"]["reference"]]
    for place, name in enumerate(reversed(others)):
        found = arms[name]["differences"].get(key)
        if found is None or found["mean"] is None:
            continue
        differences.plot(list(found["of_seeds"].values()), [place] * len(found["of_seeds"]), "|")
        differences.plot([found["mean"]], [place], "ko", markersize=4)
        if found["low"] is not None:
            differences.plot([found["low"], found["high"]], [place, place], "k-", linewidth=1)
    differences.axvline(0, color="grey", linewidth=0.8)
    differences.set_yticks(range(len(others)), labels=others[::-1], fontsize=8)
    reference = document["settings"]["reference"]
    differences.set(xlabel=f"{key}, minus {reference}", title="seeds, means and 95% intervals")
    if arms:
        course.legend(fontsize=8)
    save_figure(figure, path)


def _known(document: Mapping[str, Any], name: str) -> bool:
    return any(name in arm["values"] for arm in document["arms"].values())


def _before(document: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    seeds = document["before"]
    cells = []
    for name in names:
        known = [values[name] for values in seeds.values() if values.get(name) is not None]
        cells.append(_number(sum(known) / len(known)) if known else "")
    return ("before", "", str(len(seeds)), *cells)


def _teacher(document: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    values = document["teacher"] or {}
    costs = ("tokens", "seconds")
    cells = [
        _number(values[name]) if name in values and not name.endswith(costs) else ""
        for name in names
    ]
    return ("teacher", "", "", *cells)


def _rates(document: Mapping[str, Any]) -> str:
    grid = document["settings"]["grid"]
    rows = []
    for name, one in document["chosen"].items():
        cells = []
        for tried in one["tried"]:
            told = NONE
            if not tried["failed"]:
                value, tie = tried[grid["value"]], tried["reverse_kl"]
                told = f"{_number(value)} / {_number(tie)}"
            cells.append(f"**{told}**" if tried["rate"] == one["rate"] else told)
        rows.append((name, *cells))
    return markdown_table(("arm", *(f"{rate:g}" for rate in grid["rates"])), rows)


def _mean_course(document: Mapping[str, Any], arm: str, key: str) -> tuple[list[int], list[float]]:
    """Of the steps at which every run of the arm was evaluated."""
    runs = [run for run in document["runs"] if run["arm"] == arm]
    courses = [{one["step"]: one[key] for one in run["course"] if key in one} for run in runs]
    steps = sorted(set.intersection(*(set(course) for course in courses)))
    return steps, [sum(course[step] for course in courses) / len(courses) for step in steps]


def _interval(found: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    if found is None or found["mean"] is None:
        return ""
    mean = _number(found["mean"], signed=signed)
    if found["low"] is None:
        return mean
    return f"{mean} ({_number(found['low'])} to {_number(found['high'])})"


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return NONE
    if abs(value) >= 1000:
        return f"{value:+,.0f}" if signed else f"{value:,.0f}"
    return f"{value:+.3g}" if signed else f"{value:.3g}"
