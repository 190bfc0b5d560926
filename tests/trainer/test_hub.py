"""Pushing: what is found out before a run, and what a refusal says. The hub is a small
HTTP server on a real socket; the library's whole upload is not imitated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

TOKEN = "hf_canary0123456789"


class Hub(ThreadingHTTPServer):
    """Answers each route with a status; everything else with 404."""

    def __init__(self, statuses: dict[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses = statuses
        self.seen: list[tuple[str, str, bytes]] = []

    @property
    def changes(self) -> list[tuple[str, str, bytes]]:
        """Requests that could change something: route, authorization, body."""
        return [seen for seen in self.seen if not seen[0].startswith(("GET", "HEAD"))]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        route = f"{self.command} {self.path}"
        self.server.seen.append((route, self.headers.get("authorization", ""), body))
        status = self.server.statuses.get(route, 404)
        reply = json.dumps({"name": "owner", "error": "not allowed"}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_GET = do_POST = do_HEAD = _answer

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def hub(statuses: dict[str, int]) -> Iterator[Hub]:
    with Hub(statuses) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "README.md").write_text("card")
    (model / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "run"


def push(run_dir: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    home = str(run_dir.parent / "home")
    return subprocess.run(
        [sys.executable, "-m", "student_trainer", "push", str(run_dir), "--repo", "owner/name"],
        env={**kept, "HF_HOME": home, "HOME": home, **environment},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_offline_and_without_a_token_it_is_refused(run_dir: Path) -> None:
    offline = push(run_dir, HF_HUB_OFFLINE="1", HF_TOKEN=TOKEN)
    assert offline.returncode == 2
    assert "HF_HUB_OFFLINE is set" in offline.stderr
    nameless = push(run_dir)
    assert nameless.returncode == 2
    assert "there is no token for the hub. Fix: set HF_TOKEN" in nameless.stderr


def test_a_token_the_hub_does_not_take(run_dir: Path) -> None:
    with hub({"GET /api/whoami-v2": 401}) as server:
        done = push(run_dir, HF_ENDPOINT=server.address, HF_TOKEN=TOKEN)
    assert done.returncode == 2
    assert "does not take the token (401)" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert not server.changes


def test_a_refused_push_says_how_to_do_it_again(run_dir: Path) -> None:
    with hub({"GET /api/whoami-v2": 200, "POST /api/repos/create": 403}) as server:
        done = push(run_dir, HF_ENDPOINT=server.address, HF_TOKEN=TOKEN)
    assert done.returncode == 1
    assert "the model was not pushed" in done.stderr
    assert f"student-trainer push {run_dir} --repo owner/name" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    ((route, authorization, body),) = server.changes
    assert (route, authorization) == ("POST /api/repos/create", f"Bearer {TOKEN}")
    asked = json.loads(body)
    assert (asked["organization"], asked["name"]) == ("owner", "name")
    assert asked.get("private") is True or asked.get("visibility") == "private"


def test_a_run_without_a_finished_model_has_nothing_to_push(run_dir: Path) -> None:
    (run_dir / "model" / "README.md").unlink()
    with hub({"GET /api/whoami-v2": 200}) as server:
        done = push(run_dir, HF_ENDPOINT=server.address, HF_TOKEN=TOKEN)
    assert done.returncode == 2
    assert "holds no finished model with its card" in done.stderr
    assert not server.changes
