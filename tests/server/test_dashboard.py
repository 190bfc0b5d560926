"""The Grafana dashboard against a real server's /metrics, through a real Prometheus.

Debian's package ``prometheus`` has the program (``make test-prometheus`` installs
it); where there is none, the test is skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from teacher_proto.errors import InvalidRequestError
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import TextPrompt, TokenizerUpload

from tests.server.processes import LONG, ROOT
from tests.server.running import Running, continuation, running

DASHBOARD = ROOT / "docker/grafana/dashboards/teacher.json"
CONFIG = ROOT / "docker/prometheus/prometheus.yml"
PROGRAM = shutil.which("prometheus")
RUNS = ("first", "second")
# Of one request, prompt and continuations.
TOKENS = 8
# Longer than this test may take, so that what grew in it is seen to its end.
RATE_INTERVAL = "10m"


def panels() -> dict[str, list[str]]:
    """PromQL expressions by the title of their panel."""
    return {
        panel["title"]: [
            target["expr"].replace("$__rate_interval", RATE_INTERVAL) for target in panel["targets"]
        ]
        for panel in json.loads(DASHBOARD.read_text())["panels"]
    }


class Prometheus:
    """A running Prometheus, asked over its HTTP API."""

    def __init__(self, address: str) -> None:
        self._client = httpx.AsyncClient(base_url=f"http://{address}", timeout=LONG)

    async def values(self, expression: str) -> dict[tuple[str, ...], float]:
        """Label values, sorted by label -> value."""
        reply = await self._client.get("/api/v1/query", params={"query": expression})
        document = reply.json()
        assert document["status"] == "success", (expression, document)
        return {
            tuple(value for _, value in sorted(sample["metric"].items())): float(sample["value"][1])
            for sample in document["data"]["result"]
        }

    async def shows(self, expression: str) -> bool:
        found = await self.values(expression)
        return bool(found) and all(math.isfinite(value) for value in found.values())

    async def close(self) -> None:
        await self._client.aclose()


@contextlib.asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[Prometheus]:
    """Prometheus with the repository's configuration, its target and pace changed."""
    assert PROGRAM is not None
    text = CONFIG.read_text()
    token = folder / "token"
    token.write_text("a server without credentials takes any\n")
    for old, new in (
        ("teacher:8080", target),
        ("scrape_interval: 5s", "scrape_interval: 1s"),
        ("/run/secrets/metrics-token", str(token)),
    ):
        assert old in text
        text = text.replace(old, new)
    config, log = folder / "prometheus.yml", folder / "prometheus.log"
    config.write_text(text)
    command = [PROGRAM, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += ["--web.listen-address=127.0.0.1:0", "--log.format=json"]
    with log.open("w") as sink:
        process = await asyncio.create_subprocess_exec(*command, stdout=sink, stderr=sink)
    try:
        async with asyncio.timeout(LONG):
            while not (
                found := re.search(r'"address":"([\d.:]+)".*"Listening on"', log.read_text())
            ):
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.1)
        server = Prometheus(found[1])
        yield server
        await server.close()
    finally:
        process.terminate()
        await process.wait()


async def eventually(server: Prometheus, expressions: list[str]) -> None:
    """Returns once every expression has finite values."""
    missing = expressions
    try:
        async with asyncio.timeout(LONG):
            while missing := [e for e in missing if not await server.shows(e)]:  # noqa: ASYNC110
                await asyncio.sleep(0.3)
    except TimeoutError:
        pytest.fail(f"no values for {missing}")


async def ask(server: Running, number: int, file: bytes) -> None:
    """For each run one request that is answered, and one that is refused; and one in
    another tokenizer, whose file is given."""
    upload = TokenizerUpload(RUNS[0], tokenizer_hash(file), file)
    await server.client.register_tokenizer(upload, timeout=LONG)
    foreign = server.request(
        run=RUNS[0],
        request_id=f"foreign-{number}",
        tokenizer_hash=upload.tokenizer_hash,
        prompt=TextPrompt("The student"),
    )
    await server.score(replace(foreign, continuations=(continuation(*range(260, 300)),)))
    for run in RUNS:
        request = server.request(run=run, request_id=f"{run}-{number}")
        await server.score(request)
        with pytest.raises(InvalidRequestError):
            await server.score(replace(request, request_id=f"{run}-{number}-k", top_k=10**6))


def test_the_dashboard_names_only_metrics_that_exist_and_leaves_none_out() -> None:
    files = (ROOT / "teacher_server/telemetry").glob("*.py")
    source = "".join(file.read_text() for file in files)
    named = set(re.findall(r"lsm_teacher_[a-z_]+", DASHBOARD.read_text()))
    plain = {re.sub(r"_(bucket|total)$", "", name) for name in named}
    assert plain == set(re.findall(r'"(lsm_teacher_[a-z_]+)"', source))


@pytest.mark.skipif(PROGRAM is None, reason="no prometheus here: make test-prometheus installs it")
async def test_every_panel_shows_what_the_server_measures(
    tiny_model_dir: Path,
    other_tokenizer_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = (other_tokenizer_model_dir / "tokenizer.json").read_bytes()
    # One request in flight at a time: a second one waits, and is seen to.
    settings: dict[str, Any] = {"limits": {"max_inflight_tokens": 1}}
    async with (
        running({"default": tiny_model_dir}, monkeypatch, **settings) as server,
        prometheus(tmp_path, server.server.http_address) as watcher,
    ):
        await ask(server, 0, file)
        await eventually(watcher, [f'lsm_teacher_rejections_total{{run="{r}"}}' for r in RUNS])
        await ask(server, 1, file)
        engine = server.engines["default"]
        engine.hold()
        waiting = [
            asyncio.create_task(server.score(server.request(run=run, request_id=f"{run}-held-{n}")))
            for n in range(2)
            for run in RUNS
        ]
        await engine.has_jobs(1)
        await eventually(watcher, [f"sum(lsm_teacher_queue_tokens) == {3 * TOKENS}"])
        await eventually(watcher, [each for found in panels().values() for each in found])
        await check_figures(watcher)
        engine.gate.set()
        await asyncio.gather(*waiting)


async def check_figures(watcher: Prometheus) -> None:
    """The panels' figures against what was sent: two requests a run answered, and two
    more of each run held, of which one is in flight."""
    shown = {title: [await watcher.values(e) for e in found] for title, found in panels().items()}
    assert list(shown["Ready"][0].values()) == [1.0]
    assert set(shown["Tokens/s by run"][0]) == {(run,) for run in RUNS}
    assert sum(shown["Share of each run"][0].values()) == pytest.approx(1.0)
    assert sum(shown["Tokens that wait, by run"][0].values()) == 3 * TOKENS
    assert shown["Tokens that wait, by run"][1][()] == 3 * TOKENS
    assert shown["Tokens inside the engine"][0] == {("default",): TOKENS}
    assert shown["Age of the queue, by run"][1][()] > 0
    assert 0 < shown["Batch fill"][0]["default",] <= 1
    assert shown["Rejections/s by run and reason"][0].keys() == {
        ("LIMIT_EXCEEDED", run) for run in RUNS
    }
    masses = shown["Other tokenizers: mean coverage, open and lost mass of a row"]
    for values in masses:
        assert all(0 <= value <= 1 for value in values.values())
    shares = shown["Other tokenizers: share of rows masked, and coarse"]
    (masked,), (coarse,) = (list(one.values()) for one in shares)
    assert 0 <= masked < 1
    reasons = shown["Other tokenizers: share of rows by reason of a mask"][0]
    assert sum(reasons.values()) == pytest.approx(masked + coarse)
    # K was 4: the histogram's bucket from 1 to 8.
    assert 1 <= shown["K"][0][()] <= 8
