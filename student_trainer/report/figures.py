"""The held-out figures people are shown: of a run with one tokenizer, and across two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shown:
    """A figure with values before and after.

    Attributes:
        label, key, form: key without ``_before`` and ``_after`` in summary.json.
        better: -1 when lower is, 1 when higher is, 0 when neither.
        card: short label and form where it leads the report's page; None elsewhere.
    """

    label: str
    key: str
    form: str
    better: int
    card: tuple[str, str] | None = None


SAME = (
    Shown(
        "Reverse KL, frozen positions", "reverse_kl", "{:.3f}", -1, ("Reverse KL, nats", "{:.2f}")
    ),
    Shown(
        "Forward KL, frozen positions", "forward_kl", "{:.3f}", -1, ("Forward KL, nats", "{:.2f}")
    ),
    Shown(
        "Same most likely token, frozen positions",
        "agreement",
        "{:.1%}",
        1,
        ("Same most likely token", "{:.0%}"),
    ),
    Shown("Reverse KL, fresh answers", "fresh_reverse_kl", "{:.3f}", -1),
    Shown("Forward KL, fresh answers", "fresh_forward_kl", "{:.3f}", -1),
    Shown("Same most likely token, fresh answers", "fresh_agreement", "{:.1%}", 1),
)
ACROSS = (
    Shown(
        "Reverse KL on the teacher's support, frozen positions",
        "support_reverse_kl",
        "{:.3f}",
        -1,
        ("Reverse KL on the support, nats", "{:.2f}"),
    ),
    Shown(
        "Forward KL on the teacher's support, frozen positions", "support_forward_kl", "{:.3f}", -1
    ),
    Shown(
        "Same most likely token, frozen positions",
        "support_agreement",
        "{:.1%}",
        1,
        ("Same most likely token", "{:.0%}"),
    ),
    Shown("Student's mass on the support, frozen positions", "support_student_mass", "{:.1%}", 0),
    Shown("Teacher's mass on it (coverage), frozen positions", "support_coverage", "{:.1%}", 0),
    Shown("Positions masked, frozen", "support_masked_share", "{:.1%}", 0),
    Shown(
        "Reverse KL on the teacher's support, fresh answers",
        "fresh_support_reverse_kl",
        "{:.3f}",
        -1,
    ),
    Shown("Same most likely token, fresh answers", "fresh_support_agreement", "{:.1%}", 1),
    Shown("Coverage, fresh answers", "fresh_support_coverage", "{:.1%}", 0),
    Shown("Positions masked, fresh answers", "fresh_support_masked_share", "{:.1%}", 0),
    Shown(
        "Teacher's bits per byte of the fresh answers",
        "teacher_bits_per_byte",
        "{:.2f}",
        -1,
        ("Teacher's bits per byte", "{:.2f}"),
    ),
    Shown("Student's bits per byte of them", "student_bits_per_byte", "{:.2f}", 0),
)
LENGTHS = (
    Shown(
        "Answer length, tokens", "rollout_length", "{:.1f}", 0, ("Answer length, tokens", "{:.0f}")
    ),
    Shown("Answers cut at the length limit", "truncated_share", "{:.1%}", 0),
)


def is_across(summary: Mapping[str, Any]) -> bool:
    """Whether the run's teacher has another tokenizer."""
    return "support_reverse_kl_before" in summary


def shown_figures(summary: Mapping[str, Any]) -> tuple[Shown, ...]:
    return (*(ACROSS if is_across(summary) else SAME), *LENGTHS)
