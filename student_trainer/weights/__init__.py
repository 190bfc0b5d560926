"""Weights of rows: what ``weights`` of the settings names, a class and a file each
(docs/losses.md). ``WEIGHTS`` has them by kind."""

from __future__ import annotations

from student_trainer.weights.base import Fact, ResponseRows, RowWeight, sum_before
from student_trainer.weights.origin import Origin
from student_trainer.weights.overlap import Overlap
from student_trainer.weights.place import Place
from student_trainer.weights.prefix_importance import PrefixImportance
from student_trainer.weights.prefix_ratio import PrefixRatio
from student_trainer.weights.teacher_entropy import TeacherEntropy
from student_trainer.weights.teacher_surprise import TeacherSurprise

WEIGHTS: dict[str, type[RowWeight]] = {
    kind.model_fields["kind"].default: kind
    for kind in (
        PrefixRatio,
        PrefixImportance,
        Overlap,
        TeacherEntropy,
        TeacherSurprise,
        Place,
        Origin,
    )
}

__all__ = ["WEIGHTS", "Fact", "ResponseRows", "RowWeight", "sum_before"]
