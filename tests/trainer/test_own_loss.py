"""A loss of a user's own, beside the configuration: the worked example through the real program."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from teacher_proto.errors import EXIT_CONFIGURATION

from student_trainer.cli import main
from tests.trainer.conftest import write_prompts
from tests.trainer.processes import ENVIRONMENT, Server

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_loss"
KIND = "skewed:SkewedReverseKl"
Sets = list[str]


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before, root = dict(sys.modules), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for name in sys.modules.keys() - before.keys():
        if name == "skewed":
            del sys.modules[name]
    root.handlers[:], _ = handlers, root.setLevel(level)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example's folder, copied: its file can be changed."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "own"))


@pytest.fixture
def sets(tmp_path: Path, student_model_dir: Path, run_server: Server) -> Sets:
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    values = {
        "student.model": student_model_dir,
        "student.device": "cpu",
        "teacher.address": run_server.address,
        "data.train": prompts,
        "run.output_dir": tmp_path / "run",
        "evaluation.prompts": 0,
        "report.html": "false",
    }
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def train(config: Path, sets: Sets, *more: str) -> int:
    return main(["train", str(config), *sets, *more])


def metrics(tmp_path: Path) -> list[dict[str, float]]:
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_example_trains_and_its_run_can_be_given_to_train_again(
    folder: Path, sets: Sets, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "student_trainer", "train", str(folder / "run.toml"), *sets]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert len(losses) == 3
    assert all(0 < loss < 1.61 for loss in losses), "at most -log(0.2)"
    kept = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["loss"]
    assert (kept["kind"], kept["skew"]) == (KIND, 0.2)
    assert (tmp_path / "run" / "skewed.py").read_text() == (EXAMPLE / "skewed.py").read_text()
    # The settings file that the run wrote, with the class's file that it kept beside it.
    shutil.rmtree(folder)
    assert main(["train", str(tmp_path / "run" / "config.toml"), "--set", "run.steps=4"]) == 0
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4]

    capfd.readouterr()
    source = tmp_path / "run" / "skewed.py"
    source.write_text(source.read_text() + "# another\n")
    assert train(tmp_path / "run" / "config.toml", [], "--set", "run.steps=5") == EXIT_CONFIGURATION
    said = capfd.readouterr().err
    assert f"other code of your own: {source} has changed" in said
    assert "name modules in checkpoint.allow_changed" in said
    allowed = ("--set", 'checkpoint.allow_changed=["modules"]')
    assert train(tmp_path / "run" / "config.toml", [], "--set", "run.steps=5", *allowed) == 0
    assert len(metrics(tmp_path)) == 5

    source.unlink()
    capfd.readouterr()
    assert train(tmp_path / "run" / "config.toml", [], "--set", "run.steps=6") == EXIT_CONFIGURATION
    said = capfd.readouterr().err
    assert f"loss.kind (file {tmp_path}/run/config.toml): there is no module skewed" in said
    assert "put skewed.py beside the configuration file" in said
    other = ("--set", "loss={kind = 'lsm'}", "--set", "run.steps=6")
    assert train(folder / "run.toml", sets, *other) == EXIT_CONFIGURATION


def test_dry_run_and_doctor_know_it(
    folder: Path, sets: Sets, capfd: pytest.CaptureFixture[str]
) -> None:
    config = folder / "run.toml"
    assert train(config, sets, "--dry-run", "--set", "loss.skew=0.3") == 0
    shown = capfd.readouterr().out
    assert f'loss.kind = "{KIND}" (file {config})' in shown
    assert "loss.skew = 0.3 (flag --set)" in shown
    assert 'loss.coarse = "bucket" (default)' in shown
    assert main(["doctor", str(config), *sets]) == 0
    assert KIND in capfd.readouterr().out


def test_the_environment_can_set_it(
    folder: Path,
    sets: Sets,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LSM_TRAINER__LOSS__SKEW", "0.4")
    assert train(folder / "run.toml", sets, "--dry-run") == 0
    assert "loss.skew = 0.4 (env LSM_TRAINER__LOSS__SKEW)" in capfd.readouterr().out
    monkeypatch.setenv("LSM_TRAINER__LOSS__SKEWED", "0.4")
    assert train(folder / "run.toml", sets, "--dry-run") == EXIT_CONFIGURATION
    said = capfd.readouterr().err
    assert "loss.skewed (env LSM_TRAINER__LOSS__SKEWED): is not a setting" in said
    assert "did you mean loss.skew?" in said


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("loss.skew=1.5", "loss.skew = 1.5 (flag --set): Input should be less than 1"),
        ("loss.sqew=0.5", "loss.sqew (flag --set): is not a setting. Fix: did you mean loss.skew?"),
        ("loss.top_k=1", "loss.top_k = 1 (flag --set): top_k must be at least 2"),
        ("loss.kind=skewed:Skewed", "loss.kind (flag --set): the module skewed ("),
        ("loss.kind=skewed:Skewed", "did you mean skewed:SkewedReverseKl?"),
        ("loss.kind=skew:Skewed", "loss.kind (flag --set): there is no module skew"),
        ("loss.kind=lms", "loss.kind (flag --set): there is no kind 'lms'. Fix: did you mean lsm?"),
        ("loss.kind=json:JSONDecoder", "does not extend student_trainer.losses.parts.loss.Loss"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_step(
    override: str,
    says: str,
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", str(folder / "run.toml"), "--set", override]) == EXIT_CONFIGURATION
    assert says in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
