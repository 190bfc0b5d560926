"""``teacher-server serve --engine vllm`` as a user meets it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from teacher_proto import TeacherClient
from teacher_proto.errors import TeacherUnavailableError
from teacher_proto.types import (
    Continuation,
    ScoreReply,
    ScoreRequest,
    Segment,
    TeacherInfo,
    TokenPrompt,
)

from tests.engines.conformance import ids
from tests.engines.vllm_subjects import OPTIONS
from tests.server.processes import LONG, Program, run, serving
from tests.support.adapters import make_adapter, merged
from tests.support.models import make_tiny_model
from tests.support.reference import plain_logits

pytestmark = pytest.mark.vllm

FLAGS = ["--engine", "vllm", "--max-batch-tokens", "64"]
for name, value in OPTIONS.items():
    FLAGS += ["--set", f"engine.vllm.{name}={str(value).lower()}"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(
        tmp_path_factory.mktemp("models") / "wide", num_attention_heads=2, num_key_value_heads=1
    )


def request(info: TeacherInfo, name: str, count: int, length: int) -> ScoreRequest:
    return ScoreRequest(
        request_id=name,
        run="test",
        teacher=info.name,
        tokenizer_hash=info.identity.tokenizer_hash,
        prompt=TokenPrompt(ids(0, 40, 320)),
        continuations=tuple(
            Continuation((Segment(ids(seed, length, 320)),)) for seed in range(1, count + 1)
        ),
        top_k=16,
        temperature=1.0,
    )


def below(program: Program) -> list[psutil.Process]:
    return psutil.Process(program.process.pid).children(recursive=True)


def still_running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that do not end; one that nobody waits for has ended all the same."""
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        _, alive = psutil.wait_procs(processes, timeout=0.2)
        processes = [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
        if not processes:
            break
    return processes


def assert_scores(asked: ScoreRequest, reply: ScoreReply, logits: Callable[..., Any]) -> None:
    """Every row of a reply against a plain forward."""
    assert isinstance(asked.prompt, TokenPrompt)
    for continuation, scores in zip(asked.continuations, reply.results, strict=True):
        token_ids = continuation.segments[0].token_ids
        rows = logits(np.concatenate([asked.prompt.token_ids, token_ids]))[39:-1]
        rows = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        assert scores.rows.support is not None
        expected = np.take_along_axis(rows, scores.rows.support.ids.astype(np.int64), axis=1)
        np.testing.assert_allclose(scores.rows.support.log_probs, expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(
            scores.rows.sampled.values, rows[np.arange(50), token_ids], rtol=0, atol=1e-4
        )


def test_a_server_scores_over_grpc_and_stops_with_its_engine(model: Path, tmp_path: Path) -> None:
    """A model and an adapter of it, as two teachers on one engine."""
    adapter = make_adapter(tmp_path / "math", model)
    teachers = ("--model", str(model), "--teacher", f"math={adapter}")
    with serving(tmp_path, *teachers, *FLAGS) as program:
        children = below(program)
        assert sum("EngineCore" in " ".join(child.cmdline()) for child in children) == 1
        with TeacherClient(program.facts["grpc_address"], run="test") as client:
            server = client.get_teacher(timeout=LONG)
            info, math = server.teacher("default"), server.teacher("math")
            assert info.engine == "vllm"
            assert info.identity.dtype == "float32"
            assert info.identity.weights_digest == math.identity.weights_digest
            assert info.identity.adapter_digest == ""
            assert len(math.identity.adapter_digest) == 64
            asked = [request(teacher, teacher.name, 3, 50) for teacher in (info, math)]
            sent = [client.submit(one, timeout=LONG) for one in asked]
            replies = [future.result(LONG) for future in sent]
        assert_scores(asked[0], replies[0], plain_logits(model))
        assert_scores(asked[1], replies[1], plain_logits(merged(model, adapter)))
        assert program.end(signal.SIGTERM) == 0
        assert not still_running(children)
        assert "Traceback" not in program.log.read_text()


def test_the_engines_death_ends_the_server_with_1(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--model", str(model), *FLAGS) as program:
        children = below(program)
        (core,) = (c for c in children if "EngineCore" in " ".join(c.cmdline()))
        address = program.facts["grpc_address"]
        with TeacherClient(address, run="test", max_attempts=1) as client:
            info = client.get_teacher(timeout=LONG).teacher("default")
            pending: list[Future[Any]] = [
                client.submit(request(info, str(number), 24, 400), timeout=LONG)
                for number in range(8)
            ]
            pending[0].result(LONG)
            os.kill(core.pid, signal.SIGKILL)
            outcomes = [future.exception(LONG) for future in pending]
        assert isinstance(outcomes[-1], TeacherUnavailableError)
        assert all(o is None or isinstance(o, TeacherUnavailableError) for o in outcomes)
        assert program.process.wait(LONG) == 1
        assert not still_running(children)


def test_a_killed_server_leaves_no_engine_behind(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--model", str(model), *FLAGS) as program:
        children = below(program)
        program.end(signal.SIGKILL)
        assert not still_running(children)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("engine.vllm.tensor_paralel_size=2", "tensor_parallel_size"),
        ("engine.vllm.kv_cache_memory_bytes=4096", "cache blocks"),
        ("engine.device=cuda", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_what_cannot_be_served_ends_before_ready_with_2(
    model: Path, tmp_path: Path, setting: str, says: str
) -> None:
    ready = tmp_path / "ready.json"
    ended = run(
        "serve", "--model", str(model), *FLAGS, "--set", setting, "--ready-file", str(ready),
        "--grpc-port", "0", "--http-port", "0",
    )  # fmt: skip
    assert ended.returncode == 2
    (line,) = [text for text in ended.stderr.splitlines() if text.startswith("error:")]
    assert says in line
    assert "Fix:" in line
    assert not ready.exists()
