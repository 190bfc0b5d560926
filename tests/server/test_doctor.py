"""``teacher-server doctor``: a healthy set-up as a process, and one failure of each kind."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import EngineError
from teacher_proto.rows import Rows, Support, Values

from teacher_server import cli
from teacher_server.commands.doctor import HALF_TOLERANCE, Loaded, apart, check_repeat
from tests.server.processes import run

FREE = ("--grpc-port", "0", "--http-port", "0")


Doctor = Callable[..., tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """The program in this process: exit code and findings by check."""

    def ask(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
        code = cli.main(["doctor", "--json", *arguments])
        document = json.loads(capsys.readouterr().out)
        assert document["exit_code"] == code
        assert document["healthy"] == (code == 0)
        return code, {finding["check"]: finding for finding in document["checks"]}

    return ask


def test_a_healthy_setup_is_a_table_and_0(tiny_model_dir: Path) -> None:
    ended = run("doctor", "--model", str(tiny_model_dir), "--dtype", "float32", *FREE)
    assert ended.returncode == 0, ended.stdout
    *lines, verdict = ended.stdout.splitlines()
    assert verdict == "9 checks, nothing is wrong"
    assert all(line.startswith("ok ") for line in lines)
    checks = [line.split("  ")[1].strip() or line for line in lines]
    assert len(checks) == 9
    assert "K up to 320, sequences up to 512 tokens" in ended.stdout
    assert "320 ids, hash " in ended.stdout


def test_wrong_settings_end_it_with_their_fix(doctor: Doctor) -> None:
    code, found = doctor("--model", "m", "--set", "limits.max_queue_token=3")
    assert code == 2
    assert list(found) == ["settings"]
    assert "max_queue_tokens" in found["settings"]["detail"] + found["settings"]["fix"]


def test_every_failure_is_told_at_once_with_its_fix(doctor: Doctor, tmp_path: Path) -> None:
    """A model that is not there, a device that is not there, a taken port, no credentials."""
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, found = doctor(
            *("--model", str(tmp_path / "nothing"), "--device", "cuda:7"),
            *("--host", "0.0.0.0", "--grpc-port", port, "--http-port", "0"),
        )
    assert code == 2
    failed = {name for name, finding in found.items() if finding["status"] == "failed"}
    assert failed == {"credentials", "ports", "tokenizer of default", "device of default"}
    assert all(found[name]["fix"] for name in failed)
    assert "there is no such folder" in found["tokenizer of default"]["detail"]
    assert "in use" in found["ports"]["detail"]
    assert "nvidia-smi" in found["device of default"]["fix"]
    for name in ("limits of default", "repeat of default"):
        assert found[name]["status"] == "skipped"


def test_limits_beyond_the_model_s_are_refused(doctor: Doctor, tiny_model_dir: Path) -> None:
    model = ("--model", str(tiny_model_dir), *FREE)
    code, found = doctor(*model, "--set", "limits.max_top_k=321")
    assert code == 2
    assert found["limits of default"]["detail"] == (
        "limits.max_top_k: 321 is more than the teacher's 320 ids"
    )
    code, found = doctor(*model, "--max-length", "513")
    assert code == 2
    assert "513" in found["limits of default"]["detail"]


def test_a_clock_behind_the_files_is_seen(
    doctor: Doctor, tiny_model_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_model_dir.iterdir():
        (copy / file.name).symlink_to(file)
    late = copy / "late.txt"
    late.write_text("")
    os.utime(late, (time.time() + 7200,) * 2)
    code, found = doctor("--model", str(copy), *FREE, "--quick")
    assert code == 2
    assert "late.txt was written 7" in found["clock"]["detail"]
    assert found["tokenizer of default"]["status"] == "ok"


def test_a_folder_that_cannot_be_written_to_is_seen(
    doctor: Doctor, tiny_model_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    code, found = doctor(
        *("--model", str(tiny_model_dir), *FREE, "--quick", "--ready-file", str(file / "x")),
    )
    assert code == 2
    assert found["disk"]["fix"]


def test_scores_that_disagree_fail() -> None:
    import numpy as np

    left, right = np.zeros((2, 3), np.float32), np.full((2, 3), -1e-3, np.float32)
    rows = [
        Rows(
            Support(np.zeros((2, 3), np.int32), x, np.full(2, 3, np.int32)),
            Values(x[:, 0], np.ones(2, np.bool_)),
        )
        for x in (left, right)
    ]
    assert apart(*rows) == pytest.approx(1e-3)
    for dtype, deterministic, distance, fine in (
        ("float32", False, 4e-5, True),
        ("float32", False, 1e-3, False),
        ("float32", True, 1e-6, False),
        ("bfloat16", False, HALF_TOLERANCE / 2, True),
    ):
        loaded = Loaded(320, 512, dtype, deterministic, distance)
        if fine:
            check_repeat(loaded)
        else:
            with pytest.raises(EngineError, match="--deterministic"):
                check_repeat(loaded)
