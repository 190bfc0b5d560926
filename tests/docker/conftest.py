from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.docker.engine import Engine, engine
from tests.docker.images import Images, build_images
from tests.proofs.conftest import proof, pytest_runtest_makereport

__all__ = ["proof", "pytest_runtest_makereport"]


@pytest.fixture(scope="session")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine(tmp_path_factory.mktemp("engine")) as found:
        yield found


@pytest.fixture(scope="session")
def images(containers: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    found = build_images(containers, tmp_path_factory.mktemp("build"))
    yield found
    containers.run("image", "rm", found.teacher, found.trainer)
