"""The charts of metrics by step: what each shows and how to read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepPanel:
    """Metrics over one axis.

    Attributes:
        label: of the axis.
        lines: a key of metrics.jsonl and its label, for each curve.
        zero: whether the axis begins at 0. share: whether it goes from 0 to 100%.
    """

    label: str
    lines: tuple[tuple[str, str], ...]
    zero: bool = True
    share: bool = False


# Title, note and panels of each.
STEP_CHARTS: tuple[tuple[str, str, tuple[StepPanel, ...]], ...] = (
    (
        "Training loss",
        "Mean over the step's tokens, on the student's own answers to the step's prompts, and on "
        "answers of the data where the run has any.",
        (StepPanel("loss, nats per token", (("loss", "loss"),)),),
    ),
    (
        "Answers during training",
        "A falling length with a falling loss would be a student that says less.",
        (
            StepPanel(
                "length, tokens",
                (
                    ("response_length_mean", "mean length"),
                    ("response_length_p10", "10% are no longer"),
                    ("response_length_p50", "median"),
                    ("response_length_p90", "90% are no longer"),
                ),
            ),
            StepPanel("cut at the limit", (("truncated_share", "cut at the limit"),), share=True),
        ),
    ),
    (
        "Repetition",
        "An n-gram that is written at least three times in a row is a loop. Loops that grow are a "
        "student that gets stuck.",
        (
            StepPanel(
                "share",
                (
                    ("loop_tokens_share", "tokens in a loop"),
                    ("looping_share", "answers with a loop"),
                ),
                share=True,
            ),
            StepPanel("longest loop, tokens", (("longest_loop", "longest loop"),)),
        ),
    ),
    (
        "Answers of the data",
        "Rows of the student's own responses and rows of answers of the data, each by "
        "themselves; the training loss is of both.",
        (
            StepPanel(
                "nats per token",
                (
                    ("student_loss", "loss, responses"),
                    ("data_loss", "loss, answers"),
                    ("data_nll", "negative log-likelihood, answers"),
                ),
            ),
            StepPanel("mean length, tokens", (("data_response_length_mean", "answers"),)),
        ),
    ),
    (
        "Gradient norm",
        "Before clipping; and how much was clipped.",
        (
            StepPanel("norm", (("grad_norm", "gradient norm"),)),
            StepPanel(
                "clipped",
                (("clipped_share", "updates"), ("clipped", "steps with a clipped update")),
                share=True,
            ),
        ),
    ),
    (
        "Learning rate",
        "Of each step's last update.",
        (StepPanel("learning rate", (("lr", "learning rate"),)),),
    ),
    (
        "What has moved since the rollout",
        "How far the log-probability of a drawn token is from what it was when it was drawn: near "
        "0 where the same weights wrote and learn.",
        (StepPanel("nats per token", (("rollout_log_prob_gap", "log-probability gap"),)),),
    ),
    (
        "Throughput",
        "Tokens of responses over the whole time of a step.",
        (StepPanel("tokens per second", (("tokens_per_second", "tokens per second"),)),),
    ),
    (
        "Where a step's time goes",
        "Seconds of the trainer's own thread. The teacher also works while the student writes; "
        "only waiting for it counts here.",
        (
            StepPanel(
                "seconds",
                (
                    ("rollout_seconds", "student writes"),
                    ("teacher_wait_seconds", "waiting for the teacher"),
                    ("update_seconds", "update"),
                ),
            ),
        ),
    ),
    (
        "The teacher's support",
        "Mass each side puts on the teacher's K most likely tokens. The loss leaves the "
        "student's mass outside them unconstrained: watch that it does not drift.",
        (
            StepPanel(
                "share",
                (
                    ("teacher_support_mass", "teacher's mass"),
                    ("student_support_mass", "student's mass"),
                    ("sampled_in_support", "sampled token inside"),
                    ("top1_agreement_on_support", "same best token"),
                    ("support_overlap", "overlap of most likely tokens"),
                ),
                share=True,
            ),
        ),
    ),
    (
        "What the teacher knows in the student's tokens",
        "Mass of the teacher's rows that could be settled on student tokens, that is open, and "
        "that no student token expresses; and the classes of the answers' positions.",
        (
            StepPanel(
                "mean mass",
                (
                    ("realign_coverage", "coverage"),
                    ("realign_open_mass", "open"),
                    ("realign_lost_mass", "lost"),
                ),
                share=True,
            ),
            StepPanel(
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
        "The signal of single tokens",
        "The signal of a token that the student drew is log q - log pi. The effective share says "
        "how evenly a side is spread: near 0, few tokens have nearly all of it.",
        (
            StepPanel(
                "share",
                (
                    ("positive_share", "tokens with a positive signal"),
                    ("positive_signal_share", "their part of the whole signal"),
                ),
                share=True,
            ),
            StepPanel(
                "effective share",
                (
                    ("positive_effective_share", "positive"),
                    ("negative_effective_share", "negative"),
                ),
                share=True,
            ),
        ),
    ),
    (
        "The student's distribution",
        "Entropy of the student, and the mean log-ratio of teacher to student at the tokens "
        "the student drew.",
        (
            StepPanel("entropy, nats", (("student_entropy", "entropy"),)),
            StepPanel("log q - log pi, nats", (("log_ratio_mean", "log-ratio"),), zero=False),
        ),
    ),
)
