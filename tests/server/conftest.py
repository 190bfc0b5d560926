from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.server.running import Running, running


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
