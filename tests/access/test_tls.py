"""TLS on both wires: who trusts whom, files that are replaced, ports that are mistaken."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from teacher_proto import AsyncTeacherClient
from teacher_proto.client.credentials import ClientCredentials, Identification
from teacher_proto.errors import (
    ConfigurationError,
    ForbiddenError,
    LsmError,
    TeacherUnavailableError,
    UnauthenticatedError,
)

from tests.access.conftest import Guarded
from tests.access.pki import ALICE, BOB, HOSTS, RUNS, Authority, client, write_secret
from tests.server.running import LONG, SCORE, Running, http_client, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def grpc_answer(address: str, credentials: ClientCredentials, run: str = "") -> str:
    """ok, or the reason of the error, told well before the deadline."""
    async with AsyncTeacherClient(address, run=run, credentials=credentials) as asking:
        (found,) = await asyncio.gather(asking.get_teacher(timeout=LONG), return_exceptions=True)
    if not isinstance(found, BaseException):
        return "ok"
    assert isinstance(found, LsmError)
    assert found.exit_code == 2, found
    assert found.fix
    assert "\n" not in str(found)
    return found.reason


async def http_answer(address: str, credentials: ClientCredentials) -> str:
    async with http_client(address, credentials) as http:
        try:
            answer = await http.get("/metrics")
        except httpx.HTTPError:
            return "no connection"
        return "ok" if answer.status_code == 200 else str(answer.json()["error"]["reason"])


async def test_the_matrix_of_who_trusts_whom(mutual: Guarded, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    foreign = stranger.issue("foreign", common_name="alice.trainers.test")
    server = mutual.running.server
    for ca, pair, grpc_result, http_result in (
        (mutual.ca, mutual.alice, "ok", "ok"),
        (mutual.ca, foreign, "CLIENT_NOT_TRUSTED", "no connection"),
        (stranger, mutual.alice, "SERVER_NOT_TRUSTED", "no connection"),
        (stranger, foreign, "SERVER_NOT_TRUSTED", "no connection"),
    ):
        shown = client(ca, pair)
        assert await grpc_answer(server.grpc_address, shown) == grpc_result
        assert await http_answer(server.http_address, shown) == http_result


async def test_certificates_stand_for_runs(mutual: Guarded) -> None:
    server = mutual.running.server
    unmapped = mutual.ca.issue("carol", common_name="carol.trainers.test")
    by_host = mutual.ca.issue("host", "alice.trainers.test")
    none = client(mutual.ca)
    for shown, grpc_result, http_result in (
        (client(mutual.ca, by_host), "ok", "ok"),
        (client(mutual.ca, unmapped), "UNAUTHENTICATED", "UNAUTHENTICATED"),
        (client(mutual.ca, unmapped, BOB), "ok", "ok"),
        (client(mutual.ca, mutual.alice, ALICE), "ok", "ok"),
        (client(mutual.ca, mutual.alice, BOB), "UNAUTHENTICATED", "UNAUTHENTICATED"),
        (none, "CLIENT_NOT_TRUSTED", "no connection"),
        (replace(none, token=ALICE), "CLIENT_NOT_TRUSTED", "no connection"),
    ):
        assert await grpc_answer(server.grpc_address, shown) == grpc_result, shown
        assert await http_answer(server.http_address, shown) == http_result, shown
    await mutual.running.score(mutual.running.request(run=""))
    with pytest.raises(ForbiddenError):
        await mutual.running.score(mutual.running.request(run="bob"))
    assert '"run": "alice"' in mutual.audited()


async def test_everything_is_replaced_without_a_restart(mutual: Guarded, tmp_path: Path) -> None:
    server = mutual.running.server
    (tmp_path / "new").mkdir()
    new = Authority(tmp_path / "new", "ca")
    pair, alice = new.issue("server", *HOSTS), new.issue("alice", common_name="new.alice.test")
    write_secret(mutual.server.cert, pair.cert.read_bytes())
    write_secret(mutual.server.key, pair.key.read_bytes())
    write_secret(mutual.ca.pem.with_name("ca.pem"), new.pem.read_bytes())
    write_secret(mutual.credentials, RUNS.replace("alice.trainers.test", "new.alice.test"))
    for _ in range(2):  # by themselves, and again after a signal
        shown = client(new, alice)
        assert await grpc_answer(server.grpc_address, shown, "alice") == "ok"
        assert await http_answer(server.http_address, shown) == "ok"
        shown = client(new, mutual.alice)
        assert await grpc_answer(server.grpc_address, shown) == "CLIENT_NOT_TRUSTED"
        assert await http_answer(server.http_address, shown) == "no connection"
        server.guard.reload()


async def test_a_removed_run_is_out_on_an_open_connection(mutual: Guarded) -> None:
    await mutual.running.client.get_teacher(timeout=LONG)
    assert (await mutual.running.http.get("/metrics")).status_code == 200
    write_secret(mutual.credentials, f'[[runs.bob.tokens]]\ntoken = "{BOB}"')
    with pytest.raises(UnauthenticatedError):
        await mutual.running.client.get_teacher(timeout=LONG)
    assert (await mutual.running.http.get("/metrics")).status_code == 401


@pytest.fixture
def pki(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


@contextlib.asynccontextmanager
async def encrypted(
    pki: Authority, model: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    pair = pki.issue("server", *HOSTS)
    tls = {"cert": pair.cert, "key": pair.key}
    async with running({"default": model}, monkeypatch, credentials=client(pki), tls=tls) as found:
        yield found
        await found.http.aclose()  # the server would wait for it to say goodbye


async def test_tls_alone_asks_for_no_credentials(
    pki: Authority, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with encrypted(pki, tiny_model_dir, monkeypatch) as found:
        await found.score(found.request())
        assert (await found.http.get("/v1/teacher")).status_code == 200


async def test_mistaken_ports_are_told_at_once(
    pki: Authority,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, secure = ClientCredentials(), client(pki)
    async with encrypted(pki, tiny_model_dir, monkeypatch) as found:
        server = found.server
        assert await grpc_answer(server.grpc_address, plain, "r") == "TLS_EXPECTED"
        assert await grpc_answer(server.http_address, plain, "r") == "TLS_EXPECTED"
        assert await grpc_answer(server.http_address, secure, "r") == "NOT_GRPC"
        # Neither server minds: both still answer.
        await found.score(found.request())
        for address in (server.grpc_address, server.http_address):
            assert await raw(address, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") != b"HTTP/1.1 200"
        assert (await found.http.get("/livez")).status_code == 200


async def test_mistaken_plain_ports_are_told_at_once(
    pki: Authority, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, secure = ClientCredentials(), client(pki)
    async with running({"default": tiny_model_dir}, monkeypatch) as found:
        server = found.server
        assert await grpc_answer(server.grpc_address, secure, "r") == "PLAIN_TEXT_EXPECTED"
        assert await grpc_answer(server.http_address, secure, "r") == "PLAIN_TEXT_EXPECTED"
        assert await grpc_answer(server.http_address, plain, "r") == "NOT_GRPC"
        answer = await raw(server.grpc_address, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not answer.startswith(b"HTTP/1.1 200")
        await found.score(found.request())


async def raw(address: str, say: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(say)
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(12), LONG)
    return b""


async def test_nobody_there_is_still_a_teacher_that_is_not_there() -> None:
    shown = ClientCredentials(tls=True)
    async with AsyncTeacherClient(
        "127.0.0.1:1", run="r", credentials=shown, max_attempts=2
    ) as asking:
        with pytest.raises(TeacherUnavailableError, match="no teacher answers"):
            await asking.get_teacher(timeout=LONG)


async def test_a_token_leaves_this_machine_only_encrypted(pki: Authority, tmp_path: Path) -> None:
    file = write_secret(tmp_path / "token", ALICE)
    for shown in (ClientCredentials(token=ALICE), ClientCredentials(token_file=file)):
        for address in ("teacher.example:50051", "10.0.0.1:50051", "127.0.0.1.example.org:1"):
            with pytest.raises(ConfigurationError) as found:
                AsyncTeacherClient(address, run="r", credentials=shown)
            assert found.value.reason == "TOKEN_IN_PLAIN_TEXT"
            Identification(replace(shown, ca=pki.pem), address)
            Identification(replace(shown, insecure_plaintext=True), address)
        Identification(shown, "127.0.0.1:50051")
        assert ALICE not in repr(shown)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"token": ALICE, "token_file": Path("x")}, "both given"),
        ({"cert": Path("x")}, "cert and key"),
        ({"key": Path("x")}, "cert and key"),
        ({"ca": Path("/nowhere")}, "No such file"),
        ({"token_file": Path("/nowhere")}, "No such file"),
        ({"token": "two words"}, "does not hold a token"),
        ({"token": "line\nbreak"}, "does not hold a token"),
    ],
)
async def test_credentials_that_do_not_fit_are_refused_at_once(
    changes: dict[str, object], part: str
) -> None:
    with pytest.raises(ConfigurationError, match=part) as found:
        AsyncTeacherClient(
            "127.0.0.1:1",
            run="r",
            credentials=ClientCredentials(**changes),  # type: ignore[arg-type]
        )
    assert ALICE not in str(found.value)


async def test_old_protocols_are_not_spoken(mutual: Guarded) -> None:
    context = ssl.create_default_context(cafile=mutual.ca.pem)
    context.load_cert_chain(mutual.alice.cert, mutual.alice.key)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    for address in (mutual.running.server.grpc_address, mutual.running.server.http_address):
        host, _, port = address.rpartition(":")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(host, int(port), ssl=context)


async def test_a_certificate_that_stands_for_no_run_is_refused_before_a_message_is_read(
    mutual: Guarded,
) -> None:
    stranger = mutual.ca.issue("stranger", common_name="nobody.trainers.test")
    credentials = grpc.ssl_channel_credentials(
        mutual.ca.pem.read_bytes(), stranger.key.read_bytes(), stranger.cert.read_bytes()
    )
    address = mutual.running.server.grpc_address
    async with grpc.aio.secure_channel(address, credentials) as channel:
        method: Any = channel.stream_unary(SCORE)
        call = method(timeout=LONG)  # no message is ever sent
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
