"""A run of two ranks on two tasks, which learns from their scores as well."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from student_trainer.run.directory import read_metrics
from student_trainer.settings.dotted import importable_from
from student_trainer.settings.train import TrainConfig
from tests.distributed.test_runs_of_ranks import (
    UPDATE,
    apart,
    common,
    config,
    finish,
    same_course,
    shared_teacher,
    student_model_dir,
    teachers,
    trainers,
    weights,
)
from tests.proofs.runs import Room

pytestmark = pytest.mark.ranks

__all__ = ["common", "shared_teacher", "student_model_dir", "teachers", "trainers"]

OWN = """
from student_trainer.tasks import Task, Verdict


class Letters(Task):
    def prompts(self, split, read):
        for number in range(9 if split == "train" else 0):
            yield f"number {number}", {"prompt": f"the number {number} is", "letter": "e"}

    def verify(self, row, response):
        found = response.count(row["letter"])
        if found > 3:
            raise RuntimeError("too many of them")
        return Verdict(found / 3, values={"length": len(response)})
"""
TASKS = {
    "letters": {"kind": "ranks_task:Letters"},
    "sums": {
        "kind": "reasoning_gym",
        "family": "chain_sum",
        "parameters": {"max_terms": 2, "max_digits": 1},
        "prompts_to_train": 8,
        "prompts_held_out": 0,
        "form": "text",
        "instruction": "",
    },
}


@pytest.fixture
def own_module() -> Iterator[None]:
    yield
    sys.modules.pop("ranks_task", None)


def on_tasks(room: Room, name: str) -> TrainConfig:
    plain = config(room, name, "stale, two updates, evaluated").model_dump(mode="json")
    folder = Path(plain["run"]["output_dir"]).parent
    (folder / "ranks_task.py").write_text(OWN)
    plain["data"] |= {"train": None, "held_out_fraction": 0.0}
    changed = {
        "tasks": TASKS,
        "verification": {"seconds": 20.0},
        "evaluation": {"prompts": 0},
        "reward": {"weight": 2.0, "normalise": "deviation"},
        "optimizer": plain["optimizer"] | {"lr": 1e-3},
    }
    with importable_from([folder]):
        return TrainConfig.model_validate(plain | changed)


def test_two_ranks_judge_and_learn_as_one_process(common: Room, own_module: None) -> None:
    one = common.finish(on_tasks(common, "one-tasks"))
    two = finish(common, on_tasks(common, "two-tasks"))
    step = same_course(two, one)
    lines = read_metrics(two / "metrics.jsonl")[:step]
    for line in lines:
        assert line["task_responses/letters"] + line["task_responses/sums"] == 8
    assert any(0 < line["task_score/letters"] < 1 for line in lines)
    assert any(line["reward_groups_without_signal_share"] < 1 for line in lines)
    assert any(line["reward_loss"] for line in lines)
    at = f"checkpoints/step-{step:06d}/model"
    assert apart(one / at, two / at, weights(common.student)) < UPDATE
