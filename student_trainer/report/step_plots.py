"""The plots of metrics by step: what each shows and how to read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """Lines over one axis.

    Attributes:
        label: of the axis.
        lines: a key of metrics.jsonl and its label, for each line.
        zero: whether the axis begins at 0. share: whether it goes from 0 to 100%.
    """

    label: str
    lines: tuple[tuple[str, str], ...]
    zero: bool = True
    share: bool = False


# Name, title, note and panels of each.
STEP_PLOTS: tuple[tuple[str, str, str, tuple[Panel, ...]], ...] = (
    (
        "loss",
        "Training loss",
        "Mean over the step's tokens, on the student's own answers to the step's prompts, and on "
        "answers of the data where the run has any.",
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
        "mixing",
        "Answers of the data",
        "Rows of the student's own responses and rows of answers of the data, each by "
        "themselves; the training loss is of both.",
        (
            Panel(
                "nats per token",
                (
                    ("student_loss", "loss, responses"),
                    ("data_loss", "loss, answers"),
                    ("data_nll", "negative log-likelihood, answers"),
                ),
            ),
            Panel("mean length, tokens", (("data_response_length_mean", "answers"),)),
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
        "that no student token expresses; and the classes of the answers' positions.",
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
                    ("realign_coarse_share", "coarse"),
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
