"""``student-trainer doctor`` as a process against a real teacher, healthy and not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from teacher_proto.errors import ConfigurationError

from student_trainer.config import TrainConfig
from student_trainer.doctor import check_clock
from tests.trainer.conftest import settings, write_prompts
from tests.trainer.processes import ENVIRONMENT, PATIENCE, Server, serve


@pytest.fixture(scope="module")
def served(
    tiny_model_dir: Path, other_tokenizer_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    with serve(folder, default=tiny_model_dir, other=other_tokenizer_model_dir) as found:
        yield found


def write_config(folder: Path, model: Path, address: str, **sections: Any) -> Path:
    write_prompts(folder / "prompts.jsonl")
    teacher = {"address": address, "connect_timeout_seconds": 5.0}
    values = settings(model, folder, **{"teacher": teacher, **sections})
    file = folder / "run.toml"
    file.write_text(tomli_w.dumps(values))
    return file


def doctor(config: Path, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    command = [sys.executable, "-m", "student_trainer", "doctor", str(config), *arguments]
    ended = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=PATIENCE, env=ENVIRONMENT
    )
    assert ended.stdout, ended.stderr
    document = json.loads(ended.stdout)
    assert document["exit_code"] == ended.returncode
    return ended.returncode, {finding["check"]: finding for finding in document["checks"]}


def statuses(found: dict[str, dict[str, Any]], status: str) -> set[str]:
    return {name for name, finding in found.items() if finding["status"] == status}


def test_a_run_that_can_start_is_healthy_and_nothing_is_written(
    served: Server, student_model_dir: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, student_model_dir, served.address)
    before = sorted(tmp_path.iterdir())
    code, found = doctor(config)
    assert code == 0, found
    assert statuses(found, "ok") == set(found)
    assert "agree" in found["clock"]["detail"]
    assert found["limits"]["detail"] == "K 16 of 320, 84 tokens of 512"
    assert "6 prompts to train on" in found["data"]["detail"]
    assert "0 nats apart" in found["repeat"]["detail"]
    assert sorted(tmp_path.iterdir()) == before


def test_no_teacher_is_4_and_the_rest_is_still_examined(
    student_model_dir: Path, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path,
        student_model_dir,
        "127.0.0.1:1",
        teacher={"address": "127.0.0.1:1", "connect_timeout_seconds": 0.5},
    )
    code, found = doctor(config)
    assert code == 4
    assert statuses(found, "failed") == {"teacher"}
    assert "teacher-server serve" in found["teacher"]["fix"]
    assert statuses(found, "skipped") == {"clock", "tokenizer", "limits", "repeat"}
    assert statuses(found, "ok") >= {"student", "data", "disk", "device"}


def test_another_tokenizer_is_3_and_a_teacher_not_served_2(
    served: Server, student_model_dir: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, student_model_dir, served.address)
    code, found = doctor(config, "--set", "teacher.name=other")
    assert code == 3
    assert statuses(found, "failed") == {"tokenizer"}
    code, found = doctor(config, "--set", "teacher.name=nobody")
    assert code == 2
    assert "['default', 'other']" in found["teacher"]["fix"]


def test_limits_data_device_and_run_directory_that_will_not_do(
    served: Server, student_model_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    config = write_config(
        tmp_path,
        student_model_dir,
        served.address,
        loss={"top_k": 321},
        data={"train": str(tmp_path / "missing.jsonl")},
        run={"output_dir": str(file / "run")},
    )
    code, found = doctor(config)
    assert code == 2
    assert statuses(found, "failed") == {"disk", "data", "limits"}
    assert "321 is more than the teacher takes" in found["limits"]["detail"]
    assert all(found[name]["fix"] for name in ("disk", "limits"))
    code, found = doctor(config, "--set", "student.device=cuda:3")
    assert "nvidia-smi" in found["device"]["fix"]
    assert found["student"]["status"] == "skipped"


def test_wrong_settings_are_one_finding(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[run]\noutput_dir = 'x'\nstepz = 3\n")
    code, found = doctor(file)
    assert code == 2
    assert list(found) == ["settings"]
    assert "steps" in found["settings"]["detail"] + found["settings"]["fix"]


def test_clocks_that_differ_are_seen(
    served: Server, student_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prompts(tmp_path / "prompts.jsonl")
    values = settings(student_model_dir, tmp_path, teacher={"address": served.address})
    config = TrainConfig.model_validate(values)
    assert "agree" in check_clock(config)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    with pytest.raises(ConfigurationError, match=r"3(599|600|601) s apart") as found:
        check_clock(config)
    assert "timedatectl" in found.value.fix
