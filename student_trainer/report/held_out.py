"""The held-out metrics that reports show, for a run with one tokenizer and across two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from student_trainer.evaluation.course.values import PASS_AT


@dataclass(frozen=True)
class HeldOutMetric:
    """A metric of the held-out prompts, before and after the run.

    Attributes:
        label: for people.
        key: in summary.json, without ``_before`` and ``_after``.
        form: how a value is written, for ``str.format``.
        better: -1 when lower is better, 1 when higher is, 0 when neither.
        card: short label and form, when it leads the report's page; else None.
        teacher: the one of several teachers, or the task, that it is of; empty for the only
            teacher, and for all.
    """

    label: str
    key: str
    form: str
    better: int
    card: tuple[str, str] | None = None
    teacher: str = ""

    def at(self, summary: Mapping[str, Any], when: str) -> float | None:
        """The value ``before`` or ``after`` the run; None where it was not measured."""
        end = f"/{self.teacher}" if self.teacher else ""
        value: float | None = summary[f"{self.key}_{when}{end}"]
        return value

    def of(self, teacher: str) -> HeldOutMetric:
        """The same of one of several teachers, or of a task."""
        card = None if self.card is None else (f"{self.card[0]} ({teacher})", self.card[1])
        return replace(self, label=f"{self.label} ({teacher})", card=card, teacher=teacher)


ONE_TOKENIZER = (
    HeldOutMetric(
        "Reverse KL, frozen positions", "reverse_kl", "{:.3f}", -1, ("Reverse KL, nats", "{:.2f}")
    ),
    HeldOutMetric(
        "Forward KL, frozen positions", "forward_kl", "{:.3f}", -1, ("Forward KL, nats", "{:.2f}")
    ),
    HeldOutMetric(
        "Same most likely token, frozen positions",
        "agreement",
        "{:.1%}",
        1,
        ("Same most likely token", "{:.0%}"),
    ),
    HeldOutMetric("Reverse KL, fresh answers", "fresh_reverse_kl", "{:.3f}", -1),
    HeldOutMetric("Forward KL, fresh answers", "fresh_forward_kl", "{:.3f}", -1),
    HeldOutMetric("Same most likely token, fresh answers", "fresh_agreement", "{:.1%}", 1),
)
TWO_TOKENIZERS = (
    HeldOutMetric(
        "Reverse KL on the teacher's support, frozen positions",
        "support_reverse_kl",
        "{:.3f}",
        -1,
        ("Reverse KL on the support, nats", "{:.2f}"),
    ),
    HeldOutMetric(
        "Forward KL on the teacher's support, frozen positions", "support_forward_kl", "{:.3f}", -1
    ),
    HeldOutMetric(
        "Same most likely token, frozen positions",
        "support_agreement",
        "{:.1%}",
        1,
        ("Same most likely token", "{:.0%}"),
    ),
    HeldOutMetric(
        "Student's mass on the support, frozen positions", "support_student_mass", "{:.1%}", 0
    ),
    HeldOutMetric(
        "Teacher's mass on it (coverage), frozen positions", "support_coverage", "{:.1%}", 0
    ),
    HeldOutMetric("Positions masked, frozen", "support_masked_share", "{:.1%}", 0),
    HeldOutMetric("Positions coarse, frozen", "support_coarse_share", "{:.1%}", 0),
    HeldOutMetric(
        "Reverse KL of coarse positions, on their ids and the rest, frozen",
        "support_coarse_reverse_kl",
        "{:.3f}",
        -1,
    ),
    HeldOutMetric(
        "Reverse KL on the teacher's support, fresh answers",
        "fresh_support_reverse_kl",
        "{:.3f}",
        -1,
    ),
    HeldOutMetric("Same most likely token, fresh answers", "fresh_support_agreement", "{:.1%}", 1),
    HeldOutMetric("Coverage, fresh answers", "fresh_support_coverage", "{:.1%}", 0),
    HeldOutMetric("Positions masked, fresh answers", "fresh_support_masked_share", "{:.1%}", 0),
    HeldOutMetric("Positions coarse, fresh answers", "fresh_support_coarse_share", "{:.1%}", 0),
    HeldOutMetric(
        "Teacher's bits per byte of the fresh answers",
        "teacher_bits_per_byte",
        "{:.2f}",
        -1,
        ("Teacher's bits per byte", "{:.2f}"),
    ),
    HeldOutMetric("Student's bits per byte of them", "student_bits_per_byte", "{:.2f}", 0),
)
LENGTHS = (
    HeldOutMetric(
        "Answer length, tokens", "rollout_length", "{:.1f}", 0, ("Answer length, tokens", "{:.0f}")
    ),
    HeldOutMetric("Answers cut at the length limit", "truncated_share", "{:.1%}", 0),
)


OF_TASKS = (
    HeldOutMetric("Mean score", "task_score", "{:.3f}", 0),
    HeldOutMetric("Answer length of the task, tokens", "task_rollout_length", "{:.1f}", 0),
    HeldOutMetric("Answers cut at the length limit", "task_truncated_share", "{:.1%}", 0),
    HeldOutMetric("Answers that could not be judged", "task_failed_verifications", "{:.0f}", 0),
)


def is_across(summary: Mapping[str, Any], teacher: str = "") -> bool:
    """Whether the run's teacher, or this one of several, has another tokenizer."""
    return f"support_reverse_kl_before{f'/{teacher}' if teacher else ''}" in summary


def evaluated_teachers(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of those of several teachers on whose held-out prompts a run was evaluated."""
    start = "frozen_rows/"
    return tuple(key.removeprefix(start) for key in summary if key.startswith(start))


def held_out_metrics(summary: Mapping[str, Any]) -> tuple[HeldOutMetric, ...]:
    """Those the run of this summary has, in the order they are shown."""
    found: list[HeldOutMetric] = []
    names = evaluated_teachers(summary)
    for name in names or ("",):
        table = TWO_TOKENIZERS if is_across(summary, name) else ONE_TOKENIZER
        found += [metric.of(name) for metric in table] if name else table
    return (*_of_tasks(summary), *found, *LENGTHS)


def _of_tasks(summary: Mapping[str, Any]) -> Iterator[HeldOutMetric]:
    """Those of every task that judges, task after task."""
    start = "task_prompts/"
    for name in (key.removeprefix(start) for key in summary if key.startswith(start)):
        end = f"_before/{name}"
        sizes = sorted(
            int(key.removeprefix(PASS_AT).removesuffix(end))
            for key in summary
            if key.startswith(PASS_AT) and key.endswith(end)
        )
        for k in sizes:
            card = ("Right answers", "{:.1%}") if k == 1 else None
            label = f"Right answers, pass@{k}"
            yield HeldOutMetric(label, f"{PASS_AT}{k}", "{:.1%}", 1, card).of(name)
        yield from (metric.of(name) for metric in OF_TASKS)
