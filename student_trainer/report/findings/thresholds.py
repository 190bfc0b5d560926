"""Every number that a finding compares with."""

from __future__ import annotations

from dataclasses import dataclass

from student_trainer.diagnostics.leaving import RULE as LEAVING
from student_trainer.diagnostics.leaving import LeavingRule
from student_trainer.diagnostics.narrow import RULE as NARROW
from student_trainer.diagnostics.narrow import NarrowRule


@dataclass(frozen=True)
class Thresholds:
    """When something is found. Shares and probabilities in [0, 1], the rest in the metric's unit.

    Attributes:
        least_steps: fewer steps are judged by nothing that compares steps.
        window: share of the steps that "early" and "recent" are, at least three of them.
        cut_warning, cut_problem: answers that are cut at the length limit.
        clipped: steps of which a gradient was clipped.
        entropy, entropy_fall: nats, and the part of the early entropy, below both of which the
            student's entropy has collapsed.
        support_fall: how much of the student's mass leaves the support.
        leaving: when less of it leaves the support while the loss falls.
        narrow: when the support holds too little of the teacher's mass.
        left_out: rows without a loss.
        wait: time of a step in which the trainer waits for the teacher.
        gap_fresh, gap_stale: nats between the rollout's log-probability of a token and the
            update's; where the weights are the same, and where they have moved in between.
        loss_rise: recent loss over early loss.
        refused: responses that the teacher refuses. non_finite: rows that are not finite.
        shorter: recent length over early length.
        unjudged: responses of tasks that cannot be judged.
    """

    least_steps: int = 6
    window: float = 0.25
    cut_warning: float = 0.5
    cut_problem: float = 0.9
    clipped: float = 0.95
    entropy: float = 0.3
    entropy_fall: float = 0.5
    support_fall: float = 0.1
    leaving: LeavingRule = LEAVING
    narrow: NarrowRule = NARROW
    left_out: float = 0.1
    wait: float = 0.3
    gap_fresh: float = 0.05
    gap_stale: float = 0.5
    loss_rise: float = 1.2
    refused: float = 0.01
    non_finite: float = 0.001
    shorter: float = 0.5
    unjudged: float = 0.01


THRESHOLDS = Thresholds()
