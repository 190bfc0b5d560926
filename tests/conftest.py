"""Fixtures that every folder of tests shares."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.support.old_tree import Tree

# How long an example takes says nothing where other work runs beside the tests.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny models gain nothing from threads, and threads of several processes that share
# few cores wait for each other. Set before torch is imported; subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A program that runs in this process sets its logs up; the next test has none of it."""
    loggers = [logging.getLogger(name) for name in ("", "teacher_server", "student_trainer")]
    before = [(one, one.handlers[:], one.level, one.propagate) for one in loggers]
    yield
    for one, handlers, level, propagate in before:
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)


@pytest.fixture(scope="session")
def gpu() -> str:
    """The device for tests that need a GPU; without one they are skipped."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return "cuda"


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random Llama, vocabulary 320, with a real byte-level tokenizer and chat template."""
    from tests.support.models import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_tokenizer_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture as ``tiny_model_dir`` over a different vocabulary of 352."""
    from tests.support.models import CODE, make_tiny_model

    return make_tiny_model(
        tmp_path_factory.mktemp("models") / "other", seed=1, texts=CODE, vocabulary_size=352
    )


@pytest.fixture(scope="session")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """An earlier state of the project, out of the history (tests/support/old_tree.py)."""
    from tests.support.old_tree import unpack

    return unpack(tmp_path_factory.mktemp("old") / "tree")
