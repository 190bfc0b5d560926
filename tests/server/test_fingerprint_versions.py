"""Programs of two releases whose tokenizer fingerprints differ: each says in one line which
side to upgrade."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from teacher_proto.errors import ContractMismatchError, InvalidRequestError, LsmError
from teacher_proto.tokenizer_hash import hash_version, other_version, tokenizer_hash
from tokenizers import Tokenizer

from teacher_server.workers.process import Facts, StudentProcess, open_tokenizer
from tests.server.crossed import request, upload
from tests.server.running import LONG, Running, running
from tests.support.fingerprint_v1 import fingerprint_v1

pytestmark = pytest.mark.asyncio(loop_scope="module")


def fingerprints_by(hash_of: Callable[[str | bytes], str], patch: pytest.MonkeyPatch) -> None:
    """A server started now fingerprints tokenizers so."""

    async def opened(process: StudentProcess, file: bytes, *rest: Any) -> Facts:
        return replace(await open_tokenizer(process, file, *rest), hash=hash_of(file))

    patch.setattr("teacher_server.teachers.tokenizer.tokenizer_hash", hash_of)
    patch.setattr("teacher_server.workers.pool.open_tokenizer", opened)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def old_server(tiny_model_dir: Path) -> AsyncIterator[Running]:
    """A server whose fingerprints are of the first version."""
    with pytest.MonkeyPatch.context() as patch:
        fingerprints_by(fingerprint_v1, patch)
        async with running({"default": tiny_model_dir}, patch) as found:
            yield found


def one_line(error: LsmError, side: str) -> None:
    assert "\n" not in str(error)
    assert "version 1 of the fingerprint" in error.what
    assert "by version 2" in error.what
    assert f"upgrade {side} to the other side's release" in error.fix


async def test_an_old_client_is_told_to_upgrade_when_it_registers(
    shared: Running, student_file: bytes, tiny_model_dir: Path
) -> None:
    for file in (student_file, (tiny_model_dir / "tokenizer.json").read_bytes()):
        old = fingerprint_v1(file)
        with pytest.raises(InvalidRequestError) as found:
            await shared.client.register_tokenizer(upload(file, tokenizer_hash=old), timeout=LONG)
        assert found.value.reason == "TOKENIZER_HASH_VERSION"
        one_line(found.value, "the client")


async def test_an_old_client_is_told_to_upgrade_when_it_asks(
    shared: Running, tiny_model_dir: Path
) -> None:
    old = fingerprint_v1((tiny_model_dir / "tokenizer.json").read_bytes())
    with pytest.raises(ContractMismatchError) as found:
        await shared.score(shared.request(tokenizer_hash=old))
    assert found.value.reason == "UNKNOWN_TOKENIZER"
    one_line(found.value, "the client")
    body = {
        "request_id": "one",
        "prompt": {"text": "Hi"},
        "continuations": [{"token_ids": [1]}],
        "top_k": 1,
        "temperature": 1,
        "tokenizer_hash": old,
    }
    answer = await shared.http.post("/v1/score", json=body)
    assert answer.status_code == 412
    assert "upgrade the client" in answer.json()["error"]["fix"]


async def test_clients_that_echo_the_servers_fingerprint_get_equal_results(
    shared: Running, old_server: Running
) -> None:
    """An old client that computes no fingerprint asks both servers alike."""
    new, old = [await one.score(one.request()) for one in (shared, old_server)]
    assert hash_version(new.identity.tokenizer_hash) == 2
    assert hash_version(old.identity.tokenizer_hash) == 1
    for a, b in zip(new.results, old.results, strict=True):
        assert (a.rows.support.ids == b.rows.support.ids).all()
        assert a.rows.support.log_probs == pytest.approx(b.rows.support.log_probs, abs=1e-4)


async def test_a_new_client_says_that_an_old_server_has_to_be_upgraded(
    old_server: Running, student_file: bytes, student: Tokenizer
) -> None:
    with pytest.raises(ContractMismatchError) as found:
        await old_server.client.register_tokenizer(upload(student_file), timeout=LONG)
    assert found.value.reason == "TOKENIZER_HASH_VERSION"
    one_line(found.value, "the server")
    with pytest.raises(ContractMismatchError) as found:
        await old_server.score(request(old_server, student_file, student.encode("Hi").ids))
    assert found.value.reason == "TOKENIZER_HASH_VERSION"
    one_line(found.value, "the server")


async def test_a_new_client_does_not_read_how_an_old_server_words_it(
    old_server: Running, student_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_it(named: str, found: str) -> None:
        if named != found:
            raise InvalidRequestError("another", where="header.tokenizer_hash", fix="another")

    monkeypatch.setattr("teacher_server.tokenizers.pairs.check_uploaded_hash", refuse_it)
    with pytest.raises(ContractMismatchError) as found:
        await old_server.client.register_tokenizer(upload(student_file), timeout=LONG)
    assert found.value.reason == "TOKENIZER_HASH_VERSION"
    one_line(found.value, "the server")


async def test_a_wrong_fingerprint_of_the_server_s_version_is_answered_as_it_is(
    shared: Running, student_file: bytes
) -> None:
    wrong = upload(student_file, tokenizer_hash="v2-" + "a" * 64)
    with pytest.raises(InvalidRequestError, match="the file's hash is") as found:
        await shared.client.register_tokenizer(wrong, timeout=LONG)
    assert found.value.where == "header.tokenizer_hash"


async def test_tokenizers_kept_by_an_old_server_are_left_alone(
    tiny_model_dir: Path, student_file: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"folder": str(tmp_path)}
    for old in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            hash_of = fingerprint_v1 if old else tokenizer_hash
            fingerprints_by(hash_of, patch)
            models = {"default": tiny_model_dir}
            async with running(models, patch, tokenizers=settings) as server:
                before = await server.client.get_teacher(timeout=LONG)
                assert len(before.teacher("default").tokenizers) == 1
                mine = upload(student_file, tokenizer_hash=hash_of(student_file))
                await server.client.register_tokenizer(mine, timeout=LONG)
    kept = [json.loads(path.read_bytes()) for path in (tmp_path / "contents").iterdir()]
    assert {one["tokenizer_hash"] for one in kept} == {
        fingerprint_v1(student_file),
        tokenizer_hash(student_file),
    }
    assert len(list((tmp_path / "runs").iterdir())) == 2


async def test_versions() -> None:
    known = {"v2-" + "a" * 64: 2, "v13-" + "0" * 64: 13, "f" * 64: 1}
    for fingerprint, version in known.items():
        assert hash_version(fingerprint) == version
    for other in ("", "v2-", "v0-" + "a" * 64, "v2-" + "A" * 64, "a" * 63, "own", "v2-" + "a" * 65):
        assert hash_version(other) is None
        assert other_version(other, here="here", there="there") is None
    assert other_version("v2-" + "a" * 64, here="here", there="there") is None
    _, fix = other_version("v3-" + "a" * 64, here="here", there="there") or ("", "")
    assert fix.startswith("upgrade here to")
    _, fix = other_version("a" * 64, here="here", there="there") or ("", "")
    assert fix.startswith("upgrade there to")
