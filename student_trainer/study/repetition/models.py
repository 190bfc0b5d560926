"""The models that are probed: a student, and a teacher in this process or behind a service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from teacher_proto.errors import ConfigurationError
from torch import Tensor

from student_trainer.evaluation.rows import (
    Selection,
    compared_ids,
    cut_blocks,
    full_rows,
    shared_ids,
    student_hidden,
)
from student_trainer.settings.student import StudentSettings
from student_trainer.student.head import head_logits
from student_trainer.student.model import Student, load_student
from student_trainer.teacher.link import TeacherLink


class Teacher(Protocol):
    """A teacher's rows over the ids that are compared."""

    def log_probs(self, selection: Selection) -> Tensor:
        """float64 [R, V], nats."""


def load_model(path: str, option: str) -> Student:
    """A model in float32 on the CPU.

    Raises:
        ConfigurationError: it cannot be loaded; ``option`` is said to be wrong.
    """
    try:
        return load_student(StudentSettings(model=path, device="cpu", dtype="float32"))
    except ConfigurationError as error:
        raise ConfigurationError(
            error.what, where=f"{option} {path}", fix=error.fix, reason=error.reason
        ) from error


@torch.no_grad()
def model_logits(model: Student, selection: Selection, ids: Tensor) -> Tensor:
    """float64 [R, V] logits of a model at ``ids``, int64 [V]."""
    hidden = student_hidden(model, [selection], 1)
    return head_logits(model.head, hidden)[:, ids].double()


class LocalTeacher:
    """A teacher in this process."""

    def __init__(self, model: Student, ids: Tensor) -> None:
        """
        Args:
            ids: int64 [V], the ids that are compared.
        """
        self._model, self._ids = model, ids

    def log_probs(self, selection: Selection) -> Tensor:
        return torch.log_softmax(model_logits(self._model, selection, self._ids), -1)


class ServedTeacher:
    """A teacher behind a service, which returns whole distributions."""

    def __init__(self, link: TeacherLink, student: Student) -> None:
        """
        Raises:
            ConfigurationError: the service does not return so many ids at once.
        """
        self._link = link
        try:
            self._count = shared_ids(student, link)
        except ConfigurationError as error:
            raise ConfigurationError(
                error.what,
                where="--teacher",
                fix="raise limits.max_top_k on the server, or give the teacher as --model",
            ) from error
        self.ids = compared_ids(student, self._count)

    def log_probs(self, selection: Selection) -> Tensor:
        parts = list(full_rows(self._link, cut_blocks([selection]), self._count))
        found = torch.cat([torch.from_numpy(part.log_probs) for part in parts])[:, self.ids]
        return torch.log_softmax(found.double(), -1)


def local_ids(teacher: Student, student: Student | None) -> Tensor:
    """int64 [V]: the ids that both can write, or the teacher alone.

    Raises:
        ConfigurationError: they have different tokenizers.
    """
    if student is None:
        return compared_ids(teacher, teacher.drawn_below)
    if student.tokenizer_hash != teacher.tokenizer_hash:
        raise ConfigurationError(
            "the student has another tokenizer than the teacher, so that their rows are not over "
            "the same tokens",
            where="--student",
            fix="give a student with the teacher's tokenizer, or leave --student out",
        )
    shared = min(teacher.vocabulary_size, student.vocabulary_size)
    ids = compared_ids(student, shared)
    return ids[torch.isin(ids, compared_ids(teacher, shared))]


def check_finite(rows: Sequence[Tensor], what: str) -> None:
    """Raises ConfigurationError where a model's rows are not finite."""
    if not all(bool(each.isfinite().all()) for each in rows):
        raise ConfigurationError(
            "its rows are not finite",
            where=what,
            fix="check its weights; a model in a wider dtype may help",
        )
