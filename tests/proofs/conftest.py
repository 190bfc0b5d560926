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
    """A room whose teacher is not started; its programs end with it."""
    student: Path = request.getfixturevalue("student_model_dir")
    yield Room(tmp_path, student, trainers, Teacher(teachers, tmp_path / "teacher"))
    trainers.stop()
    teachers.stop()


@pytest.fixture
def served(room: Room, tiny_model_dir: Path) -> Room:
    """A room with an undisturbed teacher, but for runs that are named after a poison."""
    room.teacher.start(tiny_model_dir, [{"poison": True, "call": 7}])
    return room
