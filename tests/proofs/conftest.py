from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proofs.runs import Room
from tests.support.programs import TEACHER, TRAINER, Teacher, Zygote
from tests.trainer.conftest import student_model_dir

__all__ = ["student_model_dir"]


@pytest.fixture(scope="session")
def trainers() -> Iterator[Zygote]:
    with Zygote(TRAINER) as zygote:
        yield zygote


@pytest.fixture(scope="session")
def teachers() -> Iterator[Zygote]:
    with Zygote(TEACHER) as zygote:
        yield zygote


@pytest.fixture
def room(
    tmp_path: Path, request: pytest.FixtureRequest, trainers: Zygote, teachers: Zygote
) -> Iterator[Room]:
    """A room whose teacher is not started; it ends with the test."""
    student: Path = request.getfixturevalue("student_model_dir")
    teacher = Teacher(teachers, tmp_path / "teacher")
    yield Room(tmp_path, student, trainers, teacher)
    teacher.stop()


@pytest.fixture(scope="module")
def shared_teacher(
    tmp_path_factory: pytest.TempPathFactory, teachers: Zygote, tiny_model_dir: Path
) -> Iterator[Teacher]:
    """Serves undisturbed, but for runs that are named after a poison."""
    teacher = Teacher(teachers, tmp_path_factory.mktemp("teacher"))
    teacher.start(tiny_model_dir, [{"poison": True, "call": 7}])
    yield teacher
    teacher.stop()


@pytest.fixture
def served(
    tmp_path: Path, request: pytest.FixtureRequest, trainers: Zygote, shared_teacher: Teacher
) -> Room:
    """A room whose teacher serves."""
    student: Path = request.getfixturevalue("student_model_dir")
    return Room(tmp_path, student, trainers, shared_teacher)


@pytest.fixture(scope="module")
def common(
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    trainers: Zygote,
    shared_teacher: Teacher,
) -> Room:
    """A room for runs that several tests compare with."""
    student: Path = request.getfixturevalue("student_model_dir")
    return Room(tmp_path_factory.mktemp("common"), student, trainers, shared_teacher)
