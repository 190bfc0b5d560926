from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.proofs.ledger import Proof
from tests.proofs.runs import Room
from tests.support.programs import TEACHER, TRAINER, Teacher, Zygote
from tests.trainer.conftest import student_model_dir

__all__ = ["student_model_dir"]
FAILURE: pytest.StashKey[str] = pytest.StashKey()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.when == "call" and not report.passed:
        value = call.excinfo.value if call.excinfo else None
        item.stash[FAILURE] = f"{type(value).__name__}: {value}"[:500]


@pytest.fixture
def proof(request: pytest.FixtureRequest) -> Iterator[Proof]:
    """The proof of a test named ``test_proof_NN_...``; its entry is written whatever happens."""
    found = re.match(r"test_proof_(\d\d)_", request.node.name)
    assert found is not None
    proof = Proof(int(found[1]))
    proof.say(request.node.name)
    yield proof
    proof.write(request.node.stash.get(FAILURE, ""))


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
    teacher.start(tiny_model_dir, [{"poison": True, "call": 9}])
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
