"""Rollouts by a vLLM server that was started by itself, over HTTP: real server, real sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from teacher_proto.errors import ConfigurationError, LsmError

from student_trainer.rollout.generate import generate
from student_trainer.rollout.vllm.core import DIED
from student_trainer.rollout.vllm.engine import VllmEngine
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.student.model import Student, load_student
from tests.rollout.test_vllm_engine import LONGEST, SETTINGS, assert_the_same, change, prompts

pytestmark = pytest.mark.vllm
PATIENCE = 240.0


@pytest.fixture(scope="module")
def student(wide_student_dir: Path) -> Student:
    return load_student(StudentSettings(model=str(wide_student_dir), device="cpu"))


@pytest.fixture(scope="module")
def server(
    wide_student_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The command of docs/rollouts.md. The socket is bound by vLLM at a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm-server") / "log"
    environment = {
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(wide_student_dir)),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
        *("--worker-extension-cls", "student_trainer.rollout.vllm.local.RolloutWorker"),
        *("--max-model-len", str(LONGEST), "--max-num-seqs", "6", "--enforce-eager"),
        "--enable-scale-out",
        *("--kv-cache-memory-bytes", str(64 * 2**20)),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    address = f"http://127.0.0.1:{port}"
    started = [psutil.Process(process.pid)]
    try:
        pause = threading.Event()
        for _ in range(int(PATIENCE / 0.5)):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-4000:]
                pause.wait(0.5)
        started += started[0].children(recursive=True)
        yield process, address
    finally:
        # One that was killed leaves its engine and workers behind.
        for one in started:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        _, left = psutil.wait_procs(started, timeout=60)
        assert not left


def engine_at(address: str, student: Student, **changes: Any) -> VllmEngine:
    vllm = {"place": "server", "address": address, "answer_seconds": 60}
    settings = RolloutSettings.model_validate({**SETTINGS, "vllm": vllm, **changes})
    return VllmEngine(student, settings, LONGEST)


def test_a_server_is_handed_weights_and_draws_what_transformers_draws(
    server: tuple[Any, str], student: Student
) -> None:
    _, address = server
    engine = engine_at(address, student)
    for version in (1, 2):
        engine.update_weights(version)
        calls: list[Any] = []
        found = engine.generate(prompts(), seed=1, step=version, ended=calls.append)
        assert_the_same(found, generate(student, prompts(), engine._settings, seed=1, step=version))
        assert {rollout.weights_version for rollout in found} == {version}
        assert len(calls) == len(found)
        change(student, version)
    stopped = engine_at(address, student, stop_strings=["e", "t"])
    stopped.update_weights(3)
    found = stopped.generate(prompts(), seed=1, step=4)
    assert_the_same(found, generate(student, prompts(), stopped._settings, seed=1, step=4))


def test_what_is_no_vllm_server_is_one_clear_error(student: Student) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match="does not answer"):
            engine_at(address, student)


def test_a_server_that_dies_while_it_writes_is_an_error(
    server: tuple[subprocess.Popen[bytes], str], student: Student
) -> None:
    """The last test of the module: it ends the server."""
    process, address = server
    engine = engine_at(address, student, max_new_tokens=60)
    engine.update_weights(5)

    def kill(rollouts: Any) -> None:
        process.kill()

    with pytest.raises(LsmError) as died:
        engine.generate(prompts(), seed=1, step=1, ended=kill)
    assert died.value.reason == DIED
    with pytest.raises(LsmError):
        engine.update_weights(6)
