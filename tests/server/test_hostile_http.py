"""What is no HTTP, or HTTP that takes and takes: refused as JSON, counted, recorded."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from teacher_proto.client.credentials import ClientCredentials

from teacher_server.http.models import ErrorBody
from tests.access.pki import ALICE, RUNS_WITHOUT_CERTIFICATES, write_secret
from tests.server.raw_http import ask, connected
from tests.server.running import Running, eventually, running
from tests.server.test_scoring import http_body

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = f"Authorization: Bearer {ALICE}\r\n".encode()
JSON = b"Host: x\r\nContent-Type: application/json\r\n" + TOKEN
POST = b"POST /v1/score HTTP/1.1\r\n" + JSON
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SECONDS = 0.3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Running, Path]]:
    """A server behind tokens whose times are short, and its audit file."""
    folder = tmp_path_factory.mktemp("hasty")
    file = write_secret(folder / "runs.toml", RUNS_WITHOUT_CERTIFICATES)
    audit = folder / "audit.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        async with running(
            {"default": tiny_model_dir},
            patch,
            credentials=ClientCredentials(token=ALICE),
            run="alice",
            access={"credentials_file": file, "audit_file": audit},
            limits={"body_seconds": SECONDS, "header_seconds": SECONDS},
        ) as found:
            yield found, audit


async def counted(server: Running, reason: str) -> float:
    text = (await server.http.get("/metrics")).text
    return sum(
        float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("lsm_teacher_requests_total") and f'reason="{reason}"' in line
    )


NO_HTTP = {
    "both lengths": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\n",
    "a list of lengths": POST + b"Content-Length: 3, 3\r\n\r\n",
    "other lengths": POST + b"Content-Length: 3\r\ncontent-length: 4\r\n\r\n",
    "no number": POST + b"Content-Length: +3\r\n\r\n",
    "a hundred digits": POST + b"Content-Length: " + b"9" * 100 + b"\r\n\r\n",
    "gzip, chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "encoded twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked in 1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "folded": POST + b"X: a\r\n b\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /livez\r\n\r\n",
    "a space before the colon": POST + b"X : a\r\n\r\n",
    "a NUL": POST + b"X: \x00\r\n\r\n",
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00",
    "a text": b"hello there\r\n",
}


@pytest.mark.parametrize("request_bytes", NO_HTTP.values(), ids=list(NO_HTTP))
async def test_what_is_no_http_is_told_so(
    hasty: tuple[Running, Path], request_bytes: bytes
) -> None:
    server, audit = hasty
    before = await counted(server, "MALFORMED_HTTP")
    answer = await ask(server.server.http_address, request_bytes)
    assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
    error = ErrorBody.model_validate_json(answer.body).error
    assert error.reason == "MALFORMED_HTTP"
    assert error.what
    assert error.fix
    assert ALICE not in answer.body.decode()
    assert await counted(server, "MALFORMED_HTTP") == before + 1
    assert "MALFORMED_HTTP" in audit.read_text()


@pytest.mark.parametrize("chunked", [False, True])
async def test_what_follows_a_body_is_looked_at_as_well(
    hasty: tuple[Running, Path], chunked: bool
) -> None:
    server, _ = hasty
    body = json.dumps(http_body()).encode()
    first = POST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    if chunked:
        first = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    async with connected(server.server.http_address) as peer:
        await peer.send(first + first + NO_HTTP["two lengths"] + first)
        assert [(await peer.answer()).status for _ in range(3)] == [200, 200, 400]
        assert await peer.rest() == b""


@pytest.mark.parametrize(
    "head",
    [
        b"X: " + b"a" * 17_000,
        b"".join(b"X%d: a\r\n" % n for n in range(101)),
        b"Cookie: " + b"a=b; " * 4000,
    ],
)
async def test_large_heads_are_refused(hasty: tuple[Running, Path], head: bytes) -> None:
    server, _ = hasty
    answer = await ask(server.server.http_address, b"GET /livez HTTP/1.1\r\nHost: x\r\n" + head)
    assert (answer.status, answer.error["reason"]) == (431, "HEADERS_TOO_LARGE")


@pytest.mark.parametrize("path", [b"/" + b"%41" * 6000, b"/livez?" + b"a=b&" * 5000])
async def test_long_paths_are_refused(hasty: tuple[Running, Path], path: bytes) -> None:
    server, _ = hasty
    answer = await ask(server.server.http_address, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (answer.status, answer.error["reason"]) == (431, "HEADERS_TOO_LARGE")


@pytest.mark.parametrize(
    "body",
    [
        b"1\r\na\r\n" * 20_000,
        b"1;" + b"a" * 8000 + b"\r\na\r\n" + (b"1;" + b"a" * 8000 + b"\r\na\r\n") * 20,
    ],
    ids=["one byte each", "extensions"],
)
async def test_a_body_that_is_mostly_framing_is_refused(
    hasty: tuple[Running, Path], body: bytes
) -> None:
    server, _ = hasty
    async with connected(server.server.http_address) as peer:
        await peer.send(CHUNKED + body)
        answer = await peer.answer()
        assert (answer.status, answer.error["reason"]) == (400, "MALFORMED_HTTP")
        assert "framing" in answer.error["what"]
        assert "chunks of 1024 bytes" in answer.error["fix"]


async def test_chunks_of_a_few_bytes_are_read(hasty: tuple[Running, Path]) -> None:
    server, _ = hasty
    body = json.dumps(http_body()).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    assert (await ask(server.server.http_address, CHUNKED + chunks)).status == 200


@pytest.mark.parametrize("body", [b"x\r\n", b"3\r\nabcd\r\n", b"-1\r\n", b"3\nabc\n"])
async def test_chunks_that_are_none_are_refused(hasty: tuple[Running, Path], body: bytes) -> None:
    server, _ = hasty
    answer = await ask(server.server.http_address, CHUNKED + body)
    if answer.status != 504:  # a line that does not end as one does is waited for
        assert (answer.status, answer.error["reason"]) == (400, "MALFORMED_HTTP")


@pytest.mark.parametrize("path", [b"/v1/score", b"/v1/tokenizers", b"/v1/render"])
async def test_a_body_that_does_not_come_is_waited_for_so_long(
    hasty: tuple[Running, Path], path: bytes
) -> None:
    server, audit = hasty
    head = POST.replace(b"/v1/score", path) + b"Content-Length: 1000\r\n\r\n"
    async with connected(server.server.http_address) as peer:
        await peer.send(head + b'{"prompt":')
        answer = await peer.answer()
        assert (answer.status, answer.error["reason"]) == (504, "BODY_TOO_SLOW")
        assert "limits.body_seconds" in answer.error["what"]
        assert await peer.rest() == b""
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    line = lines[-1]
    assert (line["method"], line["status"]) == (f"POST {path.decode()}", "504")
    assert (line["run"], line["reason"]) == ("alice", "BODY_TOO_SLOW")


async def test_a_body_is_asked_for_after_its_caller_is_let_in(
    hasty: tuple[Running, Path],
) -> None:
    server, _ = hasty
    head = POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    async with connected(server.server.http_address) as peer:
        await peer.send(head.replace(TOKEN, b""))
        assert (await peer.answer()).status == 401
    async with connected(server.server.http_address) as peer:
        await peer.send(head)
        assert (await peer.answer()).status == 100
        await peer.send(b"{}")
        assert (await peer.answer()).status == 400


async def test_head_of_live_and_ready_is_answered(hasty: tuple[Running, Path]) -> None:
    server, _ = hasty
    for path in (b"/livez", b"/readyz"):
        async with connected(server.server.http_address) as peer:
            for _ in range(2):
                await peer.send(b"HEAD " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = await peer.answer(head_only=True)
                assert (answer.status, answer.body) == (200, b"")
                assert int(answer.headers["content-length"]) > 0


async def test_the_audit_log_says_why(hasty: tuple[Running, Path]) -> None:
    server, audit = hasty
    await server.http.post("/v1/score", json=http_body(top_k=-1))
    await server.http.get("/nowhere")
    await server.http.get("/v1/teacher", params={"teacher": "none"})
    lines = [json.loads(line) for line in audit.read_text().splitlines()[-3:]]
    assert [(line["status"], line["reason"]) for line in lines] == [
        ("400", "INVALID_REQUEST"),
        ("404", "NOT_FOUND"),
        ("404", "UNKNOWN_TEACHER"),
    ]


async def test_a_caller_who_leaves_is_no_failure(
    hasty: tuple[Running, Path], caplog: pytest.LogCaptureFixture
) -> None:
    server, audit = hasty
    paths = ("/v1/score", "/v1/tokenizers", "/v1/render")
    before = await counted(server, "CLIENT_CLOSED")
    with caplog.at_level(logging.INFO):
        for number, path in enumerate(paths, 1):
            async with connected(server.server.http_address) as peer:
                head = POST.replace(b"/v1/score", path.encode())
                await peer.send(head + b"Content-Length: 1000\r\n\r\n{")
            # One after the other: beside another that waits, one that has left is not opened.
            await eventually(lambda n=number: audit.read_text().count("CLIENT_CLOSED") >= n)
    assert await counted(server, "CLIENT_CLOSED") == before + len(paths)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
