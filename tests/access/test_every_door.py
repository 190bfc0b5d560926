"""Every route and method: nobody without credentials gets past health and the pages' files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from starlette.routing import Route
from teacher_proto import AsyncTeacherClient
from teacher_proto.client.credentials import ClientCredentials
from teacher_proto.errors import ContractMismatchError, ForbiddenError, UnauthenticatedError
from teacher_proto.page.files import page_files
from teacher_proto.status import WRITE_FAILED
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import Level, TextPrompt, TokenizerUpload
from teacher_proto.v1 import service_pb2

from teacher_server.access.strangers import Strangers
from teacher_server.http.app import make_app
from teacher_server.http.pages import page_paths
from teacher_server.queue.policy import RunPolicy
from teacher_server.scoring import service as service_module
from tests.access.pki import ALICE, BOB, OLD
from tests.server.crossed import file_of, upload
from tests.server.crossed import request as crossed_request
from tests.server.running import LONG, Running, http_client
from tests.server.test_scoring import http_body

pytestmark = pytest.mark.asyncio(loop_scope="module")

BAD = {
    "none": [],
    "wrong": ["Bearer wrong-token-0123456789abcdef"],
    "expired": [f"Bearer {OLD}"],
    "basic": [f"Basic {ALICE}"],
    "bare": [ALICE],
    "empty": ["Bearer "],
    "two": [f"Bearer {ALICE}", f"Bearer {ALICE}"],
    "longer": [f"Bearer {ALICE}0"],
}
PAGES = {"/", "/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"}
PUBLIC_PATHS = {"/livez", "/readyz", "/page/app/main.js", *PAGES}
PATHS = {
    "/v1/render",
    "/v1/score",
    "/v1/teacher",
    "/v1/tokenizers",
    "/metrics",
    "/openapi.json",
    *PUBLIC_PATHS,
}
VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "X")
TRICKS = (
    "//",
    "/page",
    "/page/",
    "/page/../metrics",
    "/page/app/../../metrics",
    "/page/app/%2e%2e/%2e%2e/metrics",
    "/page/app/main.js/",
    "/page/app/main.js/../../../metrics",
    "/page/../files.py",
    "/docs/",
    "/docs/../metrics",
    "//livez",
    "/livez/",
    "/livez/..",
    "/livez/../metrics",
    "/livez/%2e%2e/metrics",
    "/livez%2f..%2fmetrics",
    "/livez%00",
    "/livez%0A",
    "/%0A",
    "/docs%0A",
    "/page/app/main.js%0A",
    "/livez;/metrics",
    "/livez%3fx",
    "/livez%23",
    "/LIVEZ",
    "/./livez",
    "/metrics/../livez",
    "/metrics%2f..%2flivez",
    "/metrics?/livez",
    "/metrics#/livez",
    "//metrics",
    "/metrics/",
    "/%6detrics",
    "http://x/metrics",
    "/nowhere",
    "/docs/oauth2-redirect",
    "/redoc",
    "/v1/score?path=/livez",
    "*",
)


async def status(server: Running, verb: str, path: str, shown: Sequence[str]) -> int:
    """The status of one raw request: no client library touches the path."""
    host, _, port = server.server.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [f"{verb} {path} HTTP/1.1", "Host: x", "Connection: close", "X-Original-URL: /livez"]
    lines += [f"Authorization: {value}" for value in shown]
    writer.write("\r\n".join([*lines, "Content-Length: 0", "", ""]).encode())
    answer = await asyncio.wait_for(reader.read(), LONG)
    writer.close()
    return int(answer.split(b" ", 2)[1])


async def test_the_routes_are_all_known(guarded: Running) -> None:
    server = guarded.server
    app = make_app(server.service, server.guard, timeout_seconds=1)
    routes = {route.path for route in app.routes if isinstance(route, Route)}
    assert routes == PATHS | page_paths()
    public = page_paths()
    assert public >= PAGES
    assert all(path in PAGES or path.startswith("/page/") for path in public)
    assert all(isinstance(route, Route) for route in app.routes)


@pytest.mark.parametrize("path", sorted(PATHS))
async def test_every_route_and_verb(guarded: Running, path: str) -> None:
    for verb in VERBS:
        for name, shown in BAD.items():
            code = await status(guarded, verb, path, shown)
            if path in PUBLIC_PATHS:
                assert code in (200, 405), (verb, path, name, code)
            else:
                assert code in (400, 401) if verb == "CONNECT" else code == 401, (verb, name, code)
    for token in (ALICE, BOB):
        assert await status(guarded, "GET", path, [f"Bearer {token}"]) in (200, 405)


@pytest.mark.parametrize("path", TRICKS)
async def test_no_path_is_a_trick(guarded: Running, path: str) -> None:
    for verb in ("GET", "POST", "OPTIONS"):
        for shown in ([], BAD["wrong"]):
            assert await status(guarded, verb, path, shown) in (400, 401), (verb, path)


async def test_the_public_files_are_those_of_every_server(guarded: Running) -> None:
    """Nothing that is answered to everybody depends on the server that answers it."""
    host, _, port = guarded.server.http_address.rpartition(":")
    held = {**page_files()}
    for path in sorted(page_paths()):
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as nobody:
            answer = await nobody.get(path)
            kept = {"if-none-match": answer.headers["etag"]}
            again = await nobody.get(path, headers=kept)
        assert (answer.status_code, again.status_code, again.content) == (200, 304, b"")
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        name = {"/": "index.html", "/docs": "docs.html"}.get(path, path.removeprefix("/page/"))
        if name in held:
            assert answer.content == held.pop(name)
    assert held == {}


async def test_a_large_file_is_sent_compressed_to_who_takes_it(guarded: Running) -> None:
    path = "/docs/swagger-ui-bundle.js"
    plain = await guarded.http.get(path, headers={"accept-encoding": "identity, gzip;q=0"})
    assert "content-encoding" not in plain.headers
    packed = await guarded.http.get(path, headers={"accept-encoding": "br, gzip;q=0.5"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 2
    assert {plain.headers["vary"], packed.headers["vary"]} == {"Accept-Encoding"}
    tags = [plain.headers["etag"], packed.headers["etag"]]
    assert tags[1] == f"W/{tags[0]}"
    for kept in (*tags, f'"other", {tags[1]}', f"{tags[0]},"):
        again = await guarded.http.get(path, headers={"if-none-match": kept})
        assert again.status_code == 304, kept
    other = await guarded.http.get(path, headers={"if-none-match": '"other"'})
    assert other.status_code == 200


async def test_a_refusal_says_how_to_come_in(guarded: Running) -> None:
    answer = await guarded.http.get("/metrics", headers={"authorization": f"Bearer {OLD}"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert error["reason"] == "TOKEN_EXPIRED"
    assert error["where"] == "authorization"
    assert OLD not in answer.text


def services() -> dict[str, list[str]]:
    found = [
        service_pb2.DESCRIPTOR.services_by_name["TeacherScoringService"],
        health_pb2.DESCRIPTOR.services_by_name["Health"],
        reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
    ]
    listed = {service.full_name: list(service.methods_by_name) for service in found}
    return listed | {"grpc.reflection.v1.ServerReflection": ["ServerReflectionInfo"]}


METHODS = [f"/{service}/{name}" for service, names in services().items() for name in names]
PUBLIC_METHODS = {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}
METHOD_TRICKS = (
    "//grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Check/",
    "/grpc.health.v1.Health/check",
    "/grpc.health.v1.Health/Nothing",
    "/grpc.health.v1.Health/../teacher_proto.v1.TeacherScoringService/GetTeacher",
    "/grpc.health.v1.Health/Check/../../teacher_proto.v1.TeacherScoringService/GetTeacher",
    "/teacher_proto.v1.TeacherScoringService/GetTeacher?/grpc.health.v1.Health/Check",
    "/teacher_proto.v1.TeacherScoringService/Nothing",
    "/teacher_proto.v1.teacherscoringservice/GetTeacher",
    "/nothing.Service/Method",
    "/",
)


async def code(server: Running, method: str, shown: Sequence[str]) -> grpc.StatusCode:
    """The status that the server ends a call of ``method`` with."""
    while (found := await _code(server, method, shown)) is None:
        pass
    return found


async def _code(server: Running, method: str, shown: Sequence[str]) -> grpc.StatusCode | None:
    """The call's status; None when grpc.aio lost it to a write that came too late."""
    async with grpc.aio.insecure_channel(server.server.grpc_address) as channel:
        call: Any = channel.stream_stream(method)(
            iter([b""]), metadata=[("authorization", value) for value in shown], timeout=LONG
        )
        if method.endswith("Watch"):
            await call.read()
            call.cancel()
            return grpc.StatusCode.OK
        try:
            async for _ in call:
                break
            found: grpc.StatusCode = await call.code()
        except grpc.aio.AioRpcError as error:
            found = error.code()
        lost = found is grpc.StatusCode.INTERNAL and await call.details() == WRITE_FAILED
        return None if lost else found


async def test_the_services_are_all_known(guarded: Running) -> None:
    async with grpc.aio.insecure_channel(guarded.server.grpc_address) as channel:
        method: Any = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        replies = method(
            iter([asked]), metadata=[("authorization", f"Bearer {ALICE}")], timeout=LONG
        )
        listed = [s.name async for r in replies for s in r.list_services_response.service]
    assert sorted(listed) == sorted(services())


@pytest.mark.parametrize("method", METHODS)
async def test_every_method(guarded: Running, method: str) -> None:
    for name, shown in BAD.items():
        found = await code(guarded, method, shown)
        refused = found is grpc.StatusCode.UNAUTHENTICATED
        assert refused == (method not in PUBLIC_METHODS), (name, found)
    good = await code(guarded, method, [f"Bearer {ALICE}"])
    assert good is not grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("method", METHOD_TRICKS)
async def test_no_method_is_a_trick(guarded: Running, method: str) -> None:
    for shown in ([], BAD["wrong"]):
        assert await code(guarded, method, shown) in (
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.UNIMPLEMENTED if method == "/" else grpc.StatusCode.UNAUTHENTICATED,
        )
    known = await code(guarded, method, [f"Bearer {ALICE}"])
    assert known is grpc.StatusCode.UNIMPLEMENTED


async def test_the_client_is_told_what_it_lacks(guarded: Running) -> None:
    address = guarded.server.grpc_address
    for token, reason in (("", "UNAUTHENTICATED"), (OLD, "TOKEN_EXPIRED")):
        async with AsyncTeacherClient(
            address, run="alice", credentials=ClientCredentials(token=token)
        ) as client:
            with pytest.raises(UnauthenticatedError) as found:
                await client.get_teacher(timeout=LONG)
        assert found.value.reason == reason
        assert found.value.exit_code == 2
        assert found.value.fix


async def test_a_run_is_charged_for_itself_alone(
    guarded: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies: list[RunPolicy] = []
    score = service_module.score

    def noting(context: Any, *arguments: Any) -> Any:
        policies.append(context.policy)
        return score(context, *arguments)

    monkeypatch.setattr(service_module, "score", noting)
    for run, request_id in (("alice", "a"), ("", "b")):
        await guarded.score(guarded.request(run=run, request_id=request_id))
    with pytest.raises(ForbiddenError) as found:
        await guarded.score(guarded.request(run="bob"))
    assert found.value.reason == "RUN_MISMATCH"
    upload = TokenizerUpload(run="bob", tokenizer_hash="0" * 64, file=b"{}")
    with pytest.raises(ForbiddenError):
        await guarded.client.register_tokenizer(upload, timeout=LONG)
    for run, expected in (("bob", 403), ("alice", 200), (None, 200)):
        answer = await guarded.http.post("/v1/score", json=http_body(teacher="default", run=run))
        assert answer.status_code == expected, answer.text
    assert policies == [RunPolicy("alice", 2.0, 1, 60000)] * 4
    runs = (await guarded.http.get("/metrics")).text
    assert 'lsm_teacher_scored_tokens_total{run="alice"}' in runs
    assert 'run="bob"' not in runs


async def test_a_wrong_run_is_told_before_any_work(guarded: Running) -> None:
    async with AsyncTeacherClient(
        guarded.server.grpc_address, run="bob", credentials=ClientCredentials(token=ALICE)
    ) as client:
        with pytest.raises(ForbiddenError, match="run 'alice'"):
            await client.get_teacher(timeout=LONG)


async def test_teachers_beyond_those_allowed_are_not_there(guarded: Running) -> None:
    bob = ClientCredentials(token=BOB)
    async with (
        AsyncTeacherClient(guarded.server.grpc_address, run="bob", credentials=bob) as client,
        http_client(guarded.server.http_address, bob) as http,
    ):
        info = await client.get_teacher(timeout=LONG)
        assert [t.name for t in info.teachers] == ["default"]
        listed = (await http.get("/v1/teacher")).json()["teachers"]
        assert [t["name"] for t in listed] == ["default"]
        await client.score(guarded.request(run="bob"), timeout=LONG)
        for name in ("other", "no-such-teacher"):
            with pytest.raises(ForbiddenError) as found:
                await client.score(guarded.request(run="bob", teacher="other"), timeout=LONG)
            assert found.value.reason == "TEACHER_FORBIDDEN"
            assert (await http.get(f"/v1/teacher?teacher={name}")).status_code == 403
            answer = await http.post("/v1/score", json=http_body(teacher=name, run="bob"))
            assert answer.status_code == 403
    assert [t.name for t in guarded.info.teachers] == ["default", "other"]


async def test_rendering_is_allowed_as_scoring_is(guarded: Running) -> None:
    bob = ClientCredentials(token=BOB)
    prompts = [TextPrompt("hello")]
    (own,) = await guarded.client.render(prompts, teacher="other", timeout=LONG)
    assert own.text == "hello"
    async with (
        AsyncTeacherClient(guarded.server.grpc_address, run="bob", credentials=bob) as client,
        AsyncTeacherClient(guarded.server.grpc_address, run="alice", credentials=bob) as posing,
        http_client(guarded.server.http_address, bob) as http,
    ):
        await client.render(prompts, teacher="default", timeout=LONG)
        for caller, teacher, reason in (
            (client, "other", "TEACHER_FORBIDDEN"),
            (posing, "default", "RUN_MISMATCH"),
        ):
            with pytest.raises(ForbiddenError) as found:
                await caller.render(prompts, teacher=teacher, timeout=LONG)
            assert found.value.reason == reason
        for named, expected in (
            ({"teacher": "default"}, 200),
            ({"teacher": "other"}, 403),
            ({"teacher": "default", "run": "alice"}, 403),
        ):
            answer = await http.post("/v1/render", json={"prompts": [{"text": "hello"}]} | named)
            assert answer.status_code == expected, answer.text


async def test_a_run_s_tokenizers_are_its_own(
    guarded: Running, other_tokenizer_model_dir: Path
) -> None:
    """Others neither see nor use nor drop what a run registered, on neither wire."""
    file = file_of(other_tokenizer_model_dir)
    named = tokenizer_hash(file)
    mine = upload(file, run="alice")
    await guarded.client.register_tokenizer(mine, timeout=LONG)
    bob = ClientCredentials(token=BOB)
    query = {"tokenizer_hash": named}
    async with (
        AsyncTeacherClient(guarded.server.grpc_address, run="bob", credentials=bob) as client,
        AsyncTeacherClient(guarded.server.grpc_address, run="", credentials=bob) as nameless,
        AsyncTeacherClient(guarded.server.grpc_address, run="alice", credentials=bob) as posing,
        http_client(guarded.server.http_address, bob) as http,
    ):
        for other in (client, nameless):
            assert (await other.list_tokenizers(timeout=LONG)).total == 0
            assert await other.drop_tokenizer(named, timeout=LONG) is False
        for call in (posing.list_tokenizers, partial(posing.drop_tokenizer, named)):
            with pytest.raises(ForbiddenError) as found:
                await call(timeout=LONG)
            assert found.value.reason == "RUN_MISMATCH"
        info = (await client.get_teacher(timeout=LONG)).teacher("default")
        assert named not in info.tokenizers
        assert (await http.get("/v1/tokenizers")).json() == {"tokenizers": [], "total": 0}
        dropped = await http.delete("/v1/tokenizers", params=query)
        assert dropped.json() == {"dropped": False}
        for verb in ("GET", "DELETE"):
            posed = await http.request(verb, "/v1/tokenizers", params=query | {"run": "alice"})
            assert posed.status_code == 403
            assert posed.json()["error"]["reason"] == "RUN_MISMATCH"
        with pytest.raises(ContractMismatchError) as unknown:
            await client.score(crossed_request(guarded, file, [1, 2, 3], run="bob"), timeout=LONG)
        assert unknown.value.reason == "UNKNOWN_TOKENIZER"
        body = http_body(teacher="default", run="bob", tokenizer_hash=named)
        answer = await http.post("/v1/score", json=body)
        assert answer.json()["error"]["reason"] == "UNKNOWN_TOKENIZER"
    (one,) = (await guarded.client.list_tokenizers(timeout=LONG)).tokenizers
    assert (one.run, one.tokenizer_hash, one.file_bytes) == ("alice", named, len(file))
    assert one.levels == {"default": Level.CROSS, "other": Level.SAME}
    info = (await guarded.client.get_teacher(timeout=LONG)).teacher("default")
    assert info.tokenizers[named] is Level.CROSS
    (listed,) = (await guarded.http.get("/v1/tokenizers")).json()["tokenizers"]
    assert listed["content"] == one.content
    assert listed["levels"] == {"default": "CROSS", "other": "SAME"}
    dropped = await guarded.http.delete("/v1/tokenizers", params=query)
    assert dropped.json() == {"dropped": True}
    assert await guarded.client.drop_tokenizer(named, timeout=LONG) is False
    audited = [json.loads(line) for line in audit_text(guarded).splitlines()]
    seen = {(line["method"], line["run"]) for line in audited if "method" in line}
    service = "/teacher_proto.v1.TeacherScoringService"
    for method in ("GET", "DELETE"):
        assert {(f"{method} /v1/tokenizers", run) for run in ("alice", "bob")} <= seen
    for method in ("ListTokenizers", "DropTokenizer"):
        assert {(f"{service}/{method}", run) for run in ("alice", "bob")} <= seen


async def test_a_run_never_gets_another_run_s_reply(guarded: Running) -> None:
    request = guarded.request(run="", request_id="shared-id")
    bob = ClientCredentials(token=BOB)
    engine = guarded.engines["default"]
    engine.jobs.clear()
    await guarded.score(guarded.request(run="alice", request_id="shared-id"))
    async with AsyncTeacherClient(guarded.server.grpc_address, run="", credentials=bob) as client:
        await client.score(request, timeout=LONG)
    assert len(engine.jobs) == 2


def audit_path(server: Running) -> Path:
    return server.server.guard.audit._path  # type: ignore[union-attr]


def audit_text(server: Running) -> str:
    return audit_path(server).read_text()


async def test_the_audit_log_has_every_call_and_no_contents(guarded: Running) -> None:
    path = audit_path(guarded)
    guarded.server.guard.audit._strangers = Strangers()  # type: ignore[union-attr]
    before = len(path.read_text().splitlines())
    assert path.stat().st_mode & 0o777 == 0o600
    await guarded.score(guarded.request(run="alice", request_id="audited"))
    await guarded.http.get("/metrics?secret=canary")
    await guarded.http.get("/canary-path", headers={"authorization": f"Bearer {OLD}"})
    await guarded.http.get("/livez")
    await code(guarded, "/canary.Service/Canary", [])
    await code(guarded, "/grpc.health.v1.Health/Check", [])
    text = path.read_text()
    lines = [json.loads(line) for line in text.splitlines()[before:]]
    seen = [(x["surface"], x["method"], x["run"], x["request_id"], x["status"]) for x in lines]
    assert seen == [
        ("grpc", "/teacher_proto.v1.TeacherScoringService/Score", "alice", "audited", "OK"),
        ("http", "GET /metrics", "alice", "", "200"),
        ("http", "GET (unknown)", "", "", "401"),
        ("grpc", "(unknown)", "", "", "UNAUTHENTICATED"),
    ]
    assert lines[2]["reason"] == "TOKEN_EXPIRED"
    for line in lines:
        assert line["time"]
        assert line["peer"]
    for secret in (ALICE, BOB, OLD, "canary"):
        assert secret not in text


async def test_a_call_that_cannot_be_recorded_fails_until_it_can(
    guarded: Running, tmp_path: Path
) -> None:
    guard = guarded.server.guard
    path = guard.audit._path  # type: ignore[union-attr]
    moved = path.rename(path.with_name("moved.jsonl"))
    path.symlink_to("/dev/full")
    guard.reload()
    try:
        with pytest.raises(Exception, match="No space left") as found:
            await guarded.score(guarded.request(run="alice", request_id="full"))
        assert found.value.reason == "AUDIT_FAILED"  # type: ignore[attr-defined]
        answer = await guarded.http.get("/v1/teacher")
        assert answer.status_code == 503
        assert answer.json()["error"]["reason"] == "AUDIT_FAILED"
        assert (await guarded.http.get("/livez")).status_code == 200
        bad = {"authorization": f"Bearer {OLD}"}
        assert (await guarded.http.get("/metrics", headers=bad)).status_code == 401
    finally:
        path.unlink()
        moved.rename(path)
        guard.reload()
    await guarded.score(guarded.request(run="alice", request_id="full"))
    assert json.loads(path.read_text().splitlines()[-1])["request_id"] == "full"
