"""``teacher-server probe`` and ``top`` as processes against real servers."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from teacher_proto import TeacherClient
from teacher_proto.client.credentials import ClientCredentials, Identification
from teacher_proto.errors import TeacherUnavailableError
from teacher_proto.types import ScoreRequest, TokenPrompt

from teacher_server.commands.probe import check_serving
from teacher_server.commands.top import fetch, view_between
from tests.server.processes import LONG, ROOT, Program, command, run, serving
from tests.server.running import Running, continuation, eventually, ids, running

TOKENS = 6


@pytest.fixture(scope="module")
def program(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("served")
    with serving(folder, "--model", str(tiny_model_dir), "--dtype", "float32") as found:
        yield found


def score(program: Program, name: str, number: int) -> None:
    """One request of ``TOKENS`` tokens."""
    with TeacherClient(program.facts["grpc_address"], run=name) as client:
        info = client.get_teacher(timeout=LONG).teacher("default")
        request = ScoreRequest(
            request_id=f"{name}-{number}",
            run=name,
            teacher="default",
            tokenizer_hash=info.identity.tokenizer_hash,
            prompt=TokenPrompt(ids(1, 2, 3)),
            continuations=(continuation(4, 5, 6),),
            top_k=4,
            temperature=1.0,
        )
        client.score(request, timeout=LONG)


def nobody(address: str) -> Identification:
    return Identification(ClientCredentials(), address)


def top(program: Program, *arguments: str) -> list[str]:
    url = ("--url", f"http://{program.facts['http_address']}", "--interval", "0.2")
    return command("top", *url, *arguments)


def test_probe_is_0_for_a_server_that_serves(program: Program) -> None:
    ended = run("probe", "--address", program.facts["grpc_address"])
    assert (ended.returncode, ended.stdout) == (0, "serving\n")


def test_probe_is_4_where_nothing_answers_or_something_else(program: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for address in (f"127.0.0.1:{silent.getsockname()[1]}", program.facts["http_address"]):
            ended = run("probe", "--address", address, "--timeout", "1")
            assert ended.returncode == 4
            (line,) = ended.stderr.splitlines()
            assert line.startswith(f"error: {address}: no health service answers")


async def test_probe_refuses_a_server_that_drains(server: Running) -> None:
    engine = server.engines["default"]
    engine.hold()
    last = asyncio.create_task(server.score(server.request()))
    await engine.has_jobs(1)
    await check_serving(server.server.grpc_address, nobody(server.server.grpc_address), LONG)
    server.server.stop()
    with pytest.raises(TeacherUnavailableError) as found:
        await drained(server)
    assert found.value.reason == "NOT_SERVING"
    engine.gate.set()
    await last
    assert await server.task == 0


async def drained(server: Running) -> None:
    """Probes until the answer is no."""
    async with asyncio.timeout(LONG):
        while True:
            await check_serving(
                server.server.grpc_address, nobody(server.server.grpc_address), LONG
            )


def test_top_shows_what_happened_between_two_polls(program: Program) -> None:
    url = f"http://{program.facts['http_address']}/metrics"
    score(program, "first", 0)
    before = fetch(url, nobody(program.facts["http_address"]))
    score(program, "first", 1)
    score(program, "second", 0)
    view = view_between(before, fetch(url, nobody(program.facts["http_address"])), 2.0)
    assert view.ready
    assert view.requests_per_second == 2 / 2
    assert {run.run: run.tokens_per_second for run in view.runs} == {
        "first": TOKENS / 2,
        "second": TOKENS / 2,
    }
    assert {run.run: run.tokens for run in view.runs} == {"first": 2 * TOKENS, "second": TOKENS}
    (teacher,) = view.teachers
    # A token that is judged last is not read.
    assert teacher.tokens_per_second == 2 * (TOKENS - 1) / 2
    assert teacher.batch_fill is not None
    assert 0 < teacher.batch_fill < 1
    assert (teacher.queue_tokens, teacher.inflight_tokens) == (0, 0)


async def test_top_shows_what_waits_by_run(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_at_a_time = {"max_inflight_tokens": 1}
    async with running({"default": tiny_model_dir}, monkeypatch, limits=one_at_a_time) as server:
        engine = server.engines["default"]
        engine.hold()
        requests = [server.request(run=name, request_id="held") for name in ("first", "second")]
        waiting = [asyncio.create_task(server.score(request)) for request in requests]
        await engine.has_jobs(1)
        queue = server.server.service.teachers.get("default").admission.queue
        await eventually(lambda: queue.queued_tokens > 0)
        address = server.server.http_address
        samples = await asyncio.to_thread(fetch, f"http://{address}/metrics", nobody(address))
        view = view_between(samples, samples, 1.0)
        assert view.teachers[0].inflight_tokens == view.teachers[0].queue_tokens == 8
        assert [run.queue_tokens for run in view.runs] == [8]
        assert view.runs[0].queue_age_seconds > 0
        engine.gate.set()
        await asyncio.gather(*waiting)


def test_top_once_is_a_table_or_one_json_line(program: Program) -> None:
    score(program, "first", 2)
    table = subprocess.run(
        top(program, "--once"), capture_output=True, text=True, timeout=LONG, cwd=ROOT, check=True
    ).stdout
    assert "ready" in table
    assert "first" in table
    line = subprocess.run(
        top(program, "--once", "--json"),
        capture_output=True,
        text=True,
        timeout=LONG,
        cwd=ROOT,
        check=True,
    ).stdout
    found = json.loads(line)
    assert found["ready"] is True
    assert "first" in {run["run"] for run in found["runs"]}


def test_top_goes_on_until_it_is_interrupted(program: Program) -> None:
    with subprocess.Popen(
        top(program, "--json"), stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert json.loads(process.stdout.readline())["ready"] is True
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(LONG) == 130


def test_top_where_no_server_is_or_another_one_is_one_line_and_4(program: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    wrong = f"http://{program.facts['http_address']}/livez"
    for url, why in ((f"http://127.0.0.1:{free}", "refused"), (wrong, "404")):
        ended = run("top", "--once", "--url", url)
        assert ended.returncode == 4
        (line,) = ended.stderr.splitlines()
        assert line.startswith(f"error: {url}/metrics: no metrics (")
        assert why in line
    assert httpx.get(wrong).status_code == 200


def test_top_wants_an_interval(program: Program) -> None:
    assert run("top", "--interval", "0").returncode == 2
