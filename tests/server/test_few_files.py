"""A server that may open few files, and many who open connections and ask nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.server.processes import ROOT, serving
from tests.server.raw_http import ask
from tests.server.running import LONG
from tests.server.test_scoring import http_body

FILES = 256
IDLE = 300

# An HTTP server with room for more connections than files, and no teachers.
WITHOUT_FILES = """
import asyncio, resource, socket, sys
from starlette.responses import PlainTextResponse
from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.settings.limits import LimitSettings
from teacher_server.http.server import HttpServer
from teacher_server.telemetry.log import configure_logging

async def main():
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = PlainTextResponse("held")
    gate = asyncio.Event()
    async def app(scope, receive, send):
        if scope["path"] == "/held":
            await gate.wait()
        await held(scope, receive, send)
    server = HttpServer(app, listener, None, ConnectionBounds(1000, 1000), LimitSettings())
    configure_logging("info", sys.stderr)
    server.start()
    print(listener.getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    gate.set()
    await asyncio.to_thread(sys.stdin.readline)
    await server.stop()

asyncio.run(main())
"""


@contextlib.contextmanager
def opened(address: str, count: int) -> Iterator[list[socket.socket]]:
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection((host, int(port)), LONG))
            for _ in range(count)
        ]


def test_idle_connections_do_not_starve_a_server_of_few_files(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    limited = ["bash", "-c", f'ulimit -n {FILES} && exec "$@"', "limited"]
    start = [*limited, sys.executable, "-m", "teacher_server", "serve"]
    with (
        serving(tmp_path, "--model", str(tiny_model_dir), start=start) as server,
        opened(server.facts["http_address"], IDLE) as peers,
    ):
        url = f"http://{server.facts['http_address']}"
        for peer in peers[: IDLE // 2]:  # some are half-way through their headers
            with contextlib.suppress(OSError):
                peer.sendall(b"GET /livez HTTP/1.1\r\nX: ")
        for _ in range(3):
            for path in ("/livez", "/readyz"):
                assert httpx.get(f"{url}{path}", timeout=LONG).status_code == 200
            answer = httpx.post(f"{url}/v1/score", json=http_body(), timeout=LONG)
            assert answer.status_code == 200
        cut = [
            line
            for line in httpx.get(f"{url}/metrics").text.splitlines()
            if line.startswith("lsm_teacher_connections_cut_total") and "gave_way" in line
        ]
        assert float(cut[0].split()[-1]) >= IDLE - FILES
        assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < FILES
        log = server.log.read_text()
        assert log.count("gave way") == 1
        assert len(log) < 16 * 1024


async def test_a_server_without_files_serves_on_and_says_so_once() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        WITHOUT_FILES,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = f"127.0.0.1:{int(await process.stdout.readline())}"
        with opened(address, 200):
            assert await get(address, "/livez") == 200
        held = [asyncio.create_task(get(address, "/held")) for _ in range(100)]
        # Busy connections give way to nobody: those that found no file are turned away.
        for answered in itertools.islice(asyncio.as_completed(held), 20):
            assert await answered is None
        process.stdin.write(b"\n")
        answers = await asyncio.gather(*held)
        assert answers.count(200) >= 20
        assert await get(address, "/livez") == 200
    finally:
        _, errors = await asyncio.wait_for(process.communicate(b"\n"), LONG)
    lines = [json.loads(line) for line in errors.decode().splitlines()]
    assert 1 <= len(lines) <= 2
    assert all("no file was left" in line["event"] for line in lines)


async def get(address: str, path: str) -> int | None:
    """The answer's status; None when the connection ended without one."""
    try:
        return (await ask(address, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())).status
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
