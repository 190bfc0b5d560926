from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from teacher_proto.types import Level
from tokenizers import Tokenizer

from tests.server.crossed import upload
from tests.server.running import LONG, Running, running
from tests.support.models import make_tiny_model


@pytest_asyncio.fixture
async def server(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    """One deterministic teacher named ``default``."""
    models = {"default": tiny_model_dir}
    async with running(models, monkeypatch, engine={"deterministic": True}) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tiny_model_dir: Path) -> AsyncIterator[Running]:
    """Like ``server``, one for a whole module; for tests that leave no trace in it."""
    models = {"default": tiny_model_dir}
    with pytest.MonkeyPatch.context() as patch:
        async with running(models, patch, engine={"deterministic": True}) as found:
            yield found


@pytest.fixture(scope="session")
def student_file(other_tokenizer_model_dir: Path) -> bytes:
    return (other_tokenizer_model_dir / "tokenizer.json").read_bytes()


@pytest.fixture(scope="session")
def student(student_file: bytes) -> Tokenizer:
    return Tokenizer.from_str(student_file.decode())


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like ``tiny_model_dir`` with distributions as peaked as those of real models."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "peaked", initializer_range=0.4)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crossed(teacher_dir: Path, student_file: bytes) -> AsyncIterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        async with running({"default": teacher_dir}, patch) as server:
            levels = await server.client.register_tokenizer(upload(student_file), timeout=LONG)
            assert levels == {"default": Level.CROSS}
            yield server
