"""What cannot work on several ranks is an error on every rank, before anything is lost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.program.settings_show import to_toml

from student_trainer.settings.train import TrainConfig
from tests.proofs.runs import Room, metrics
from tests.proofs.test_ranks_killed import STEPS, config_of, finish, ranks, straight
from tests.support.faults import disabled
from tests.support.forwarder import Forwarder
from tests.support.models import make_tiny_model
from tests.support.ranks import Ranks, start_ranks
from tests.trainer.conftest import write_prompts
from tests.trainer.processes import PATIENCE

pytestmark = pytest.mark.ranks

__all__ = ["straight"]


def refused(started: Ranks, *needles: str, code: int = 2) -> None:
    """Checks that every rank ends with this code, and says each of these."""
    codes = started.wait()
    assert codes == [code] * len(codes), [started.errors(rank) for rank in range(len(codes))]
    for rank in range(len(codes)):
        said = started.errors(rank)
        assert "Traceback" not in said
        assert all(needle in said for needle in needles), said


def test_ranks_with_different_settings_are_refused(served: Room) -> None:
    config = config_of(served, "settings")
    folder = config.run.output_dir.parent
    other = {1: {"LSM_TRAINER__OPTIMIZER__LR": "0.5"}}
    started = start_ranks(served.trainers, served.arguments(config), folder, environment=other)
    refused(started, "optimizer.lr", "rank 1")
    assert not (config.run.output_dir / "metrics.jsonl").exists()


def test_ranks_with_different_data_are_refused(served: Room) -> None:
    config = config_of(served, "data", data={"train": "prompts.jsonl"})
    folder = config.run.output_dir.parent
    write_prompts(folder / "prompts.jsonl")
    (folder / "elsewhere").mkdir()
    write_prompts(folder / "elsewhere" / "prompts.jsonl", ["Another prompt", "one more"])
    inside = {0: folder, 1: folder / "elsewhere"}
    started = start_ranks(served.trainers, served.arguments(config), folder, inside=inside)
    refused(started, "train prompts of rank 0 and of rank 1 differ")


def test_ranks_with_different_versions_are_refused(served: Room) -> None:
    config = config_of(served, "versions")
    unknown = disabled("student_trainer.startup.ranks:version")
    refused(ranks(served, config, {1: unknown}), "versions of rank 0 and of rank 1", "lsm-distill")


def test_a_step_that_ranks_cannot_share_is_refused(served: Room) -> None:
    config = config_of(served, "uneven", rollout={"prompts_per_step": 3})
    refused(ranks(served, config), "rollout.prompts_per_step", "2 ranks cannot share")


def test_a_checkpoint_of_another_model_is_refused(
    served: Room, straight: Path, tmp_path: Path
) -> None:
    model = make_tiny_model(tmp_path / "wider", seed=3, hidden_size=80)
    values: dict[str, Any] = {
        "run": {"steps": STEPS + 2},
        "student": {"model": str(model)},
        "checkpoint": {"resume": str(straight / "checkpoints" / f"step-{STEPS:06d}")},
    }
    refused(ranks(served, config_of(served, "other-model", **values)), "student.model")


def test_a_teacher_that_answers_one_rank_alone_ends_both(served: Room, straight: Path) -> None:
    with Forwarder(served.teacher.address) as forwarder:
        address = {"address": forwarder.address, "timeout_seconds": 3.0}
        config = config_of(served, "cut", teacher=address, run={"steps": 1000})
        started = ranks(served, config)
        wait_for_steps(config, 2)
        forwarder.cut(started.children[1].pid)
        codes = started.wait()
    assert all(code > 0 for code in codes), codes
    assert "rank 1" in started.errors(0), started.errors(0)
    assert "teacher" in started.errors(1), started.errors(1)
    made = len(metrics(config.run.output_dir))
    assert made >= 2
    went_on = config_of(
        served,
        "cut",
        run={"steps": made + 1},
        checkpoint={"every": 2, "allow_changed": ["teacher"]},
    )
    finish(served, went_on)
    assert [line["step"] for line in metrics(config.run.output_dir)] == list(range(1, made + 2))
    common = min(made, STEPS)
    assert metrics(config.run.output_dir)[:common] == metrics(straight)[:common]


def wait_for_steps(config: TrainConfig, count: int) -> None:
    """Waits until so many lines of metrics are written."""
    path, pause = config.run.output_dir / "metrics.jsonl", threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        if path.exists() and len(path.read_text().splitlines()) >= count:
            return
        pause.wait(0.02)
    pytest.fail(f"{path} has no {count} lines: {to_toml(config)}")
