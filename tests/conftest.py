"""Fixtures that every folder of tests shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny models gain nothing from threads, and threads of several processes that share
# few cores wait for each other. Set before torch is imported; subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


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
