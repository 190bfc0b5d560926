"""What a run of a comparison leaves: a record of JSON values, and the figures that are made of it.
Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from student_trainer.diagnostics.bins import position_label

T = TypeVar("T")

# Metrics of a step that a record keeps, each a list with a value for every step.
KEPT = (
    "loss",
    "grad_norm",
    "clipped_share",
    "student_entropy",
    "response_length_mean",
    "truncated_share",
    "loop_tokens_share",
    "looping_share",
    "teacher_support_mass",
    "student_support_mass",
    "support_overlap",
    "sampled_in_support",
    "top1_agreement_on_support",
    "log_ratio_mean",
    "positive_share",
    "positive_signal_share",
    "positive_effective_share",
    "ratio_clipped",
    "step_seconds",
)
# Metrics of a step with a value for each bin of places in a response: the log-ratio of teacher to
# student, and how many tokens it is the mean of.
BY_POSITION = ("log_ratio_by_position", "signal_tokens_by_position")
LATE = 0.25  # the last part of the steps, over which late figures are means


def record(
    described: Mapping[str, Any],
    course: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    noise: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The record of a run.

    Args:
        described: the run, as it was planned.
        course: of each evaluation its values, and ``step``.
        lines: of metrics.jsonl.
        noise: of the gradient, as ``noise.Noise``.
        facts: more of it: seconds, and where the code is from.
    """
    steps = {key: [rounded(line.get(key)) for line in lines] for key in KEPT}
    tokens = sum(line["tokens"] for line in lines)
    return {
        "run": dict(described),
        **facts,
        "course": [{key: rounded(value) for key, value in one.items()} for one in course],
        "steps": {
            key: values for key, values in steps.items() if any(v is not None for v in values)
        },
        "noise": [{key: rounded(value) for key, value in one.items()} for one in noise],
        "by_position": {
            name: by_position(part)
            for name, part in zip(("early", "late"), ends(lines), strict=True)
        },
        "teacher_tokens": tokens,
        "student_tokens": tokens + sum(line.get("teacher_tokens_saved", 0) for line in lines),
    }


def figures(one: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a finished run: held-out values after the last step by their names, and of
    the steps ``grad_norm`` and ``clipped_share`` over all of them, ``late_NAME`` over the last
    quarter, ``noise`` as the geometric mean over the batches where it was measured, tokens and
    seconds."""
    found = {key: value for key, value in one["course"][-1].items() if value is not None}
    found.pop("step", None)
    for key, values in one["steps"].items():
        _, late = ends(values)
        if (mean := _mean(late)) is not None:
            found[f"late_{key}"] = mean
    for key in ("grad_norm", "clipped_share"):
        if (mean := _mean(one["steps"].get(key, ()))) is not None:
            found[key] = mean
    known = [noise["noise"] for noise in one["noise"] if noise["noise"]]
    if known:
        found["noise"] = math.exp(math.fsum(map(math.log, known)) / len(known))
    if (share := signal_share(one["noise"])) is not None:
        found["gradient_signal_share"] = share
    found |= {key: one[key] for key in ("teacher_tokens", "student_tokens")}
    if (seconds := training_seconds(one)) is not None:
        found["training_seconds"] = seconds
    return found


def training_seconds(one: Mapping[str, Any]) -> float | None:
    """The seconds of all steps of a run, each as the mean of those steps in which no noise was
    measured, which takes time of its own; None without such a step."""
    seconds = one["steps"].get("step_seconds", [])
    measured = {noise["step"] for noise in one["noise"]}
    mean = _mean([value for step, value in enumerate(seconds, 1) if step not in measured])
    return None if mean is None else mean * len(seconds)


def signal_share(noise: Sequence[Mapping[str, Any]]) -> float | None:
    """Which share of an update's squared gradient is not the noise of its responses, over the
    updates where it was measured; by chance it may be below 0. None without any.

    With M parts, sum |g_m - g|^2 / (M - 1) estimates the variance of a part's gradient, and an M-th
    of it that of their mean g. What |g|^2 has more than that, in the mean over the updates, is the
    square of the gradient without noise. ``noise`` itself cannot tell: without any signal it is
    M (M - 1) in the mean, however noisy the gradient is.
    """
    known = [one for one in noise if one["noise"] is not None and one["parts"] > 1]
    squares = math.fsum(one["norm"] ** 2 for one in known)
    of_noise = math.fsum(
        one["noise"] * one["norm"] ** 2 / (one["parts"] * (one["parts"] - 1)) for one in known
    )
    return 1 - of_noise / squares if squares else None


def ends(values: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """The first and the last quarter."""
    count = max(1, round(len(values) * LATE))
    return values[:count], values[-count:]


def by_position(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of every bin of places in a response that has tokens: ``places``, ``tokens``, and the mean
    ``log_ratio`` of teacher to student over them, nats."""
    # A step's ratios end at its last place that has one.
    pairs = [[line.get(name, []) for name in BY_POSITION] for line in lines]
    found = []
    for place in range(max((len(tokens) for _, tokens in pairs), default=0)):
        known = [
            (ratios[place], tokens[place])
            for ratios, tokens in pairs
            if place < len(ratios) and ratios[place] is not None
        ]
        total = sum(count for _, count in known)
        if total:
            weighed = math.fsum(mean * count for mean, count in known)
            entry = {"places": position_label(place), "tokens": total}
            found.append({**entry, "log_ratio": rounded(weighed / total)})
    return found


def rounded(value: Any) -> Any:
    """A number at six significant digits; anything else as it is."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
