"""``student-trainer doctor`` against a real teacher: healthy as a process, and every failure."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from teacher_proto.errors import ConfigurationError

from student_trainer import cli
from student_trainer.commands.examination import EXAMINATION, clock
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.start import Start
from student_trainer.startup.steps import STEPS
from student_trainer.teacher.mask_reasons import EXPLAINED
from tests.trainer.conftest import settings, write_prompts
from tests.trainer.processes import ENVIRONMENT, PATIENCE, Server, serve

EVERY = (*STEPS, *EXAMINATION)


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


Doctor = Callable[..., tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """The program in this process: exit code and findings by check."""

    def ask(*arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
        code = cli.main(["doctor", *arguments, "--json"])
        document = json.loads(capsys.readouterr().out)
        assert document["exit_code"] == code
        return code, {finding["check"]: finding for finding in document["checks"]}

    return ask


def statuses(found: dict[str, dict[str, Any]], status: str) -> set[str]:
    return {name for name, finding in found.items() if finding["status"] == status}


def test_a_run_that_can_start_is_healthy_and_nothing_is_written(
    served: Server, student_model_dir: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, student_model_dir, served.address)
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-m", "student_trainer", "doctor", str(config)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env=ENVIRONMENT, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    *lines, verdict = ended.stdout.splitlines()
    assert verdict == f"{1 + len(EVERY)} checks, nothing is wrong"
    assert all(line.startswith("ok ") for line in lines)
    for detail in (
        "this machine's and the teacher's agree",
        "K 16 of 320, 84 tokens of 512",
        "6 prompts to train on",
        "lie 0 nats apart",
        "there is one tokenizer",
    ):
        assert detail in ended.stdout
    assert sorted(tmp_path.iterdir()) == before


def test_no_teacher_is_4_and_the_rest_is_still_examined(
    doctor: Doctor, student_model_dir: Path, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path,
        student_model_dir,
        "127.0.0.1:1",
        teacher={"address": "127.0.0.1:1", "connect_timeout_seconds": 0.5},
    )
    code, found = doctor(str(config))
    assert code == 4
    assert statuses(found, "failed") == {"teacher"}
    assert "teacher-server serve" in found["teacher"]["fix"]
    beyond = {"teacher"}
    for step in EVERY:
        beyond |= {step.name} if beyond & set(step.needs) else set()
    assert beyond >= {"clock", "resume", "tokenizer", "limits", "held out", "repeat"}
    assert statuses(found, "skipped") == beyond - {"teacher"}
    assert statuses(found, "ok") >= {"student", "data", "disk", "device"}


def test_another_tokenizer_is_told_by_its_level_and_a_teacher_not_served_is_2(
    doctor: Doctor, served: Server, student_model_dir: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, student_model_dir, served.address)
    code, found = doctor(str(config), "--set", "teacher.name=other")
    assert code == 0
    assert "level CROSS" in found["tokenizer"]["detail"]
    assert "tokens scored twice lie 0 nats apart" in found["repeat"]["detail"]
    told = re.search(r"of (\d+) positions of a response (\d+) are masked and (\d+) coarse(.*)",
                     found["rows"]["detail"])  # fmt: skip
    assert told, found["rows"]["detail"]
    assert "level CROSS" in found["rows"]["detail"]
    reasons = dict(re.findall(r"([A-Z_]+) (\d+)", told[4]))
    assert sum(map(int, reasons.values())) == int(told[2]) + int(told[3])
    assert set(reasons) <= set(EXPLAINED)
    code, found = doctor(str(config), "--set", "teacher.name=other", "--set", "loss.tail=bucket")
    assert code == 2
    assert statuses(found, "failed") == {"tokenizer"}
    code, found = doctor(str(config), "--set", "teacher.name=nobody")
    assert code == 2
    assert "['default', 'other']" in found["teacher"]["fix"]


def test_limits_data_device_and_run_directory_that_will_not_do(
    doctor: Doctor, served: Server, student_model_dir: Path, tmp_path: Path
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
    code, found = doctor(str(config))
    assert code == 2
    assert statuses(found, "failed") == {"run directory", "disk", "data", "limits"}
    assert "321 is more than the teacher takes" in found["limits"]["detail"]
    assert all(found[name]["fix"] for name in ("disk", "limits"))
    code, found = doctor(str(config), "--set", "student.device=cuda:3")
    assert "nvidia-smi" in found["device"]["fix"]
    assert found["student"]["status"] == "skipped"


def test_wrong_settings_are_one_finding(doctor: Doctor, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[run]\noutput_dir = 'x'\nstepz = 3\n")
    code, found = doctor(str(file))
    assert code == 2
    assert list(found) == ["settings"]
    assert "steps" in found["settings"]["detail"] + found["settings"]["fix"]


def test_clocks_that_differ_are_seen(
    served: Server, student_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prompts(tmp_path / "prompts.jsonl")
    values = settings(student_model_dir, tmp_path, teacher={"address": served.address})
    config = TrainConfig.model_validate(values)
    assert "agree" in clock(Start(config))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    with pytest.raises(ConfigurationError, match=r"3(599|600|601) s apart") as found:
        clock(Start(config))
    assert "timedatectl" in found.value.fix
