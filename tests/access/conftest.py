from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from teacher_proto.client.credentials import ClientCredentials

from tests.access.pki import (
    ALICE,
    HOSTS,
    RUNS,
    RUNS_WITHOUT_CERTIFICATES,
    Authority,
    Pair,
    client,
    write_secret,
)
from tests.server.running import Running, running


@dataclass(frozen=True)
class Guarded:
    """A running server, its files and its authorities."""

    running: Running
    credentials: Path
    audit: Path
    ca: Authority
    server: Pair
    alice: Pair

    def audited(self) -> str:
        return self.audit.read_text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(
    tiny_model_dir: Path,
    other_tokenizer_model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Running]:
    """Two teachers behind tokens, in plain text on loopback; the clients are alice's."""
    folder = tmp_path_factory.mktemp("guarded")
    file = write_secret(folder / "runs.toml", RUNS_WITHOUT_CERTIFICATES)
    models = {"default": tiny_model_dir, "other": other_tokenizer_model_dir}
    with pytest.MonkeyPatch.context() as patch:
        async with running(
            models,
            patch,
            credentials=ClientCredentials(token=ALICE),
            run="alice",
            access={"credentials_file": file, "audit_file": folder / "audit.jsonl"},
        ) as found:
            yield found


@pytest_asyncio.fixture(loop_scope="module")
async def mutual(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Guarded]:
    """One teacher behind TLS that asks for client certificates; the clients are alice's."""
    ca = Authority(tmp_path, "ca")
    server = ca.issue("server", *HOSTS)
    alice = ca.issue("alice", common_name="alice.trainers.test")
    file = write_secret(tmp_path / "runs.toml", RUNS)
    audit = tmp_path / "audit.jsonl"
    async with running(
        {"default": tiny_model_dir},
        monkeypatch,
        credentials=client(ca, alice),
        run="alice",
        access={"credentials_file": file, "audit_file": audit},
        tls={"cert": server.cert, "key": server.key, "client_ca": ca.pem},
    ) as found:
        yield Guarded(found, file, audit, ca, server, alice)
