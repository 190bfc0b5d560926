from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proofs.service.teacher import Watched, teacher
from tests.support.models import make_tiny_model


@pytest.fixture(scope="session")
def long_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like ``tiny_model_dir``, for sequences of 8192 tokens."""
    folder = tmp_path_factory.mktemp("models") / "long"
    return make_tiny_model(folder, max_position_embeddings=8192)


@pytest.fixture(scope="session")
def plain(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One deterministic server process that the quick forms share; none of them may stop it."""
    folder = tmp_path_factory.mktemp("plain")
    with teacher(tiny_model_dir, folder, "engine.deterministic=true") as server:
        yield server


@pytest.fixture(scope="session")
def student_file(other_tokenizer_model_dir: Path) -> bytes:
    """The tokenizer.json of a student whose tokenizer is not the teacher's."""
    return (other_tokenizer_model_dir / "tokenizer.json").read_bytes()
