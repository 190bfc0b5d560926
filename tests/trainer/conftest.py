from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from student_trainer.settings.student import StudentSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student, load_student
from tests.support.models import CODE, ENGLISH, make_tiny_model
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.processes import Server, serve

# Tiny models: more threads only wait for each other.
torch.set_num_threads(1)

PROMPTS = (
    "What is the capital of France?",
    "The teacher reads",
    "A short answer",
    "user asks",
    "The weather in the morning was cold, then",
    "student learns from every token",
)


def write_prompts(path: Path, prompts: Sequence[Any] = PROMPTS) -> Path:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    return path


def settings(model: Path, directory: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A small configuration as JSON values; ``sections`` are merged over it."""
    values: dict[str, Any] = {
        "run": {"name": "test", "output_dir": str(directory / "run"), "steps": 3, "seed": 5},
        "student": {"model": str(model), "device": "cpu"},
        "data": {"train": str(directory / "prompts.jsonl"), "max_prompt_tokens": 64},
        "rollout": {
            "group_size": 2,
            "prompts_per_step": 3,
            "max_new_tokens": 20,
            "batch_size": 4,
        },
        "loss": {"kind": "lsm", "top_k": 16},
        "optimizer": {"lr": 1e-3, "micro_batch_tokens": 160},
        "evaluation": {"prompts": 0},
        "report": {"html": False},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return values


@pytest.fixture(scope="session")
def student_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``tiny_model_dir``, with the same tokenizer and other weights; some of
    its responses end early."""
    directory = make_tiny_model(tmp_path_factory.mktemp("models") / "student", seed=7)
    model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] *= 2.5
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def foreign_student_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a smaller vocabulary learnt from the same texts, and ends of turns."""
    folder = tmp_path_factory.mktemp("models") / "foreign"
    directory = make_tiny_model(folder, seed=11, texts=ENGLISH, vocabulary_size=290)
    model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] *= 2.5
    model.save_pretrained(directory)
    return directory


REFUSES = (
    "{% for m in messages if 'secret' in m['content'] %}"
    "{{ raise_exception('no secrets') }}{% endfor %}"
)
LONG = "{% for m in messages if 'long' in m['content'] %}{{ 'x1' * 400 }}{% endfor %}"


@pytest.fixture(scope="session")
def run_server(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model_dir: Path,
    student_model_dir: Path,
    other_tokenizer_model_dir: Path,
) -> Iterator[Server]:
    """A service for whole runs. Its teachers: ``default``; ``twin``, with the same tokenizer and
    other weights; and with another tokenizer ``other``, ``strict``, whose template refuses a
    text and makes another long, and ``short``, which reads few tokens."""
    folder = tmp_path_factory.mktemp("run-server")
    strict = Path(shutil.copytree(other_tokenizer_model_dir, folder / "strict"))
    template = strict / "chat_template.jinja"
    template.write_text(REFUSES + LONG + template.read_text())
    short = make_tiny_model(
        folder / "short", seed=1, texts=CODE, vocabulary_size=352, max_position_embeddings=56
    )
    own = {"default": tiny_model_dir, "twin": student_model_dir}
    foreign = {"other": other_tokenizer_model_dir, "strict": strict, "short": short}
    with serve(folder / "server", **own, **foreign) as running:
        yield running


@pytest.fixture(scope="session")
def teacher(tiny_model_dir: Path) -> LocalTeacher:
    return LocalTeacher(tiny_model_dir)


@pytest.fixture
def make_config(student_model_dir: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    write_prompts(tmp_path / "prompts.jsonl")

    def make(model: Path = student_model_dir, **sections: dict[str, Any]) -> TrainConfig:
        return TrainConfig.model_validate(settings(model, tmp_path, **sections))

    return make


@pytest.fixture
def student(student_model_dir: Path) -> Student:
    return load_student(StudentSettings(model=str(student_model_dir), device="cpu"))
