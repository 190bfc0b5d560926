"""The charts of metrics that are lists over bins: early and late in the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from student_trainer.diagnostics.bins import PROBABILITY_BINS, Int64, probability_label
from student_trainer.report.page.charts import Chart, Curve, Panel
from student_trainer.report.page.drawing.heat import Heat

Lines = Sequence[Mapping[str, Any]]
Bins = list[float | None]


@dataclass(frozen=True)
class BinChart:
    """Attributes:
    key: of metrics.jsonl.
    label, x_label: of the axes.
    mark: the label of a bin, which begins there.
    joined: makes the lists of several steps one.
    counts: of metrics.jsonl, how many tokens a value of the list is the mean of, by bin: a list
        or a table whose rows add up to it. None where no metric tells.
    """

    title: str
    note: str
    key: str
    label: str
    x_label: str
    mark: Callable[[int], str]
    joined: Callable[[Lines, BinChart], Bins]
    counts: str | None = None
    zero: bool = True


def charts_of_bins(metrics: Lines) -> list[Chart]:
    """A chart for each list: the first and the last third of the steps."""
    third = max(1, len(metrics) // 3)
    parts = {"first steps": metrics[:third]}
    if len(metrics) > 1:
        parts["last steps"] = metrics[-third:]
    return [_chart(one, parts) for one in CHARTS]


def heat_charts(metrics: Lines) -> list[Chart]:
    """The teacher's and the student's probability of the sampled tokens, in the last third of the
    steps that know them; nothing where none does."""
    told = [row["tokens_by_probabilities"] for row in metrics if row.get("tokens_by_probabilities")]
    if not told:
        return []
    counts = np.sum(told[-max(1, len(told) // 3) :], 0)
    edges = [probability_label(place) for place in range(PROBABILITY_BINS)]
    heat = Heat(
        "Tokens by both probabilities", "teacher's probability", "student's probability",
        counts.tolist(), edges,
    )  # fmt: skip
    note = (
        "The tokens that the student drew in the last third of the steps. On the dashed line both "
        "sides agree. Below it the teacher thinks less of a token than the student did: its signal "
        "is negative. Darker cells have more tokens, on a logarithmic scale."
    )
    return [Chart("Teacher's probability against the student's", note, [heat])]


def _chart(one: BinChart, parts: Mapping[str, Lines]) -> Chart:
    needed = [one.key] if one.counts is None else [one.key, one.counts]
    lists = {
        name: one.joined([row for row in rows if all(row.get(key) for key in needed)], one)
        for name, rows in parts.items()
    }
    width = max((len(bins) for bins in lists.values()), default=0)
    curves = [Curve(name, [float(p) for p in range(len(b))], b) for name, b in lists.items()]
    marks = [(float(place), one.mark(place)) for place in range(width)]
    panel = Panel(one.label, curves, one.zero, x_label=one.x_label, x_ticks=marks, points=True)
    return Chart(one.title, one.note, [panel])


def _means(rows: Lines, one: BinChart) -> Bins:
    """The mean of each bin over the tokens of all steps; where their counts are not known, over
    the steps that have it."""
    width = max((len(row[one.key]) for row in rows), default=0)
    sums, counts = np.zeros(width), np.zeros(width)
    for row in rows:
        known = np.array([value is not None for value in row[one.key]])
        values = np.array([value or 0.0 for value in row[one.key]])
        of_bin = known if one.counts is None else known * _counts(row[one.counts])[: len(known)]
        sums[: len(values)] += of_bin * values
        counts[: len(values)] += of_bin
    return [float(sums[b] / counts[b]) if counts[b] else None for b in range(width)]


def _counts(told: Sequence[Any]) -> Int64:
    """int64 [bins], of a list [bins] or of a table [bins, ...]."""
    counts: Int64 = np.reshape(np.array(told, np.int64), (len(told), -1)).sum(1)
    return counts


def _shares(rows: Lines, one: BinChart) -> Bins:
    """Each bin's share of everything that is counted in all steps; none after the last that has
    any."""
    width = max((len(row[one.key]) for row in rows), default=0)
    sums = [sum(row[one.key][p] for row in rows if p < len(row[one.key])) for p in range(width)]
    return [count / sum(sums) for count in np.trim_zeros(sums, "b")]


def _first_place(place: int) -> str:
    return str(2 ** (place - 1)) if place else "0"


CHARTS = (
    BinChart(
        "Loss by position",
        "Mean over the steps of their mean loss of the tokens from this place of a response to the "
        "next mark. Where late tokens have most of the loss, long answers drift.",
        "loss_by_position",
        "nats per token",
        "token of the response",
        _first_place,
        _means,
    ),
    BinChart(
        "Log-ratio by position",
        "Mean log q - log pi at the tokens that the student drew. Where it falls with the place, "
        "the teacher finds long answers ever less likely: its signal there is about a text that it "
        "would not have written.",
        "log_ratio_by_position",
        "log q - log pi, nats",
        "token of the response",
        _first_place,
        _means,
        "signal_tokens_by_position",
    ),
    BinChart(
        "Log-ratio by the teacher's probability",
        "Mean log q - log pi at tokens of which the teacher's probability is at most this, down to "
        "the next mark. Tokens that the teacher finds unlikely carry most of the negative signal.",
        "log_ratio_by_probability",
        "log q - log pi, nats",
        "teacher's probability",
        probability_label,
        _means,
        "tokens_by_probabilities",
    ),
    BinChart(
        "Lengths of answers",
        "Share of the answers that have from so many tokens up to the next mark.",
        "responses_by_length",
        "share of answers",
        "tokens",
        lambda place: str(2**place),
        _shares,
    ),
)
