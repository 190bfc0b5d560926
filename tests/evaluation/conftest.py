"""A real teacher process and real links to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from teacher_proto.types import TextPrompt
from transformers import AutoModelForCausalLM, AutoTokenizer

from student_trainer.quickstart.server import TeacherProcess
from student_trainer.rollout.base import PromptItem
from student_trainer.settings.student import StudentSettings
from student_trainer.settings.teacher import TeacherSettings
from student_trainer.student.model import Student, load_student
from student_trainer.teacher.link import TeacherLink

# 2,560 bytes a full row of 320 ids: 23 rows a request, less than a chunk.
SMALL_REPLIES = ("--set", "limits.max_reply_bytes=65536", "--device", "cpu", "--dtype", "float32")
TEXTS = (
    "The teacher reads",
    "A short answer is",
    "What is the capital of France?",
    "the weather in the morning",
    "user asks and",
    "every token of it",
    "how likely it finds",
    "The capital",
)


@pytest.fixture(scope="session")
def teacher_process(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TeacherProcess]:
    folder = tmp_path_factory.mktemp("teacher")
    with TeacherProcess(
        tiny_model_dir, folder / "log", folder / "ready.json", arguments=SMALL_REPLIES
    ) as process:
        yield process


@pytest.fixture(scope="session")
def noisy_model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with noise on every weight: a student that differs from its teacher."""
    folder = tmp_path_factory.mktemp("noisy")
    shutil.copytree(tiny_model_dir, folder, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def load(folder: Path) -> Student:
    return load_student(StudentSettings(model=str(folder), device="cpu"))


@pytest.fixture
def same_student(tiny_model_dir: Path) -> Student:
    return load(tiny_model_dir)


@pytest.fixture
def noisy_student(noisy_model_dir: Path) -> Student:
    return load(noisy_model_dir)


@pytest.fixture
def link(teacher_process: TeacherProcess, same_student: Student) -> Iterator[TeacherLink]:
    settings = TeacherSettings(address=teacher_process.grpc_address)
    with TeacherLink(settings, same_student, run="test") as made:
        yield made


@pytest.fixture(scope="session")
def held_out(tiny_model_dir: Path) -> list[PromptItem]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    return [
        PromptItem(f"p{i}", np.array(tokenizer(text)["input_ids"], np.int32), TextPrompt(text))
        for i, text in enumerate(TEXTS)
    ]
