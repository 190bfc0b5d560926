"""Runs on tasks, with a real service, real verifiers and real reasoning-gym."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError

from student_trainer.evaluation import load_evaluation
from student_trainer.report.collect import read_run
from student_trainer.report.summary import summarise
from student_trainer.rewards import RewardSettings
from student_trainer.run.directory import read_metrics
from student_trainer.settings.dotted import importable_from
from student_trainer.settings.train import TrainConfig
from student_trainer.train import train
from tests.trainer.conftest import settings
from tests.trainer.processes import Server
from tests.trainer.test_run import artefacts, in_directory
from tools.reference.trainer_metrics import REWARD_METRICS, TASK_MEASURED, TASK_METRICS

OWN = """
from student_trainer.tasks import Task, Verdict


class Letters(Task):
    begin: int = 0
    count: int = 4

    def prompts(self, split, read):
        first = self.begin + (50 if split == "held_out" else 0)
        for number in range(first, first + self.count):
            yield f"number {number}", {"prompt": f"the number {number} is", "letter": "e"}

    def verify(self, row, response):
        if response.count(row["letter"]) > 2:
            raise RuntimeError("too many of them")
        right = row["letter"] in response
        return Verdict(float(right), values={"length": len(response)})
"""
MakeRun = Callable[..., TrainConfig]


@pytest.fixture
def make_run(tmp_path: Path, student_model_dir: Path, run_server: Server) -> Iterator[MakeRun]:
    (tmp_path / "letters_task.py").write_text(OWN)

    def make(**sections: Any) -> TrainConfig:
        values = settings(student_model_dir, tmp_path, **sections)
        del values["data"]["train"]
        values["tasks"] = {
            "sums": {
                "kind": "reasoning_gym",
                "family": "chain_sum",
                "parameters": {"max_terms": 2, "max_digits": 1},
                "prompts_to_train": 8,
                "prompts_held_out": 3,
                "instruction": "",
                "form": "text",
                "extract": "whole",
                "weight": 2,
                "teacher": "first",
            },
            "letters": {"kind": "letters_task:Letters", "teacher": "second"},
        }
        values["teachers"] = {
            "first": {"address": run_server.address},
            "second": {"address": run_server.address, "name": "twin"},
        }
        values["verification"] = {"seconds": 20.0}
        values["checkpoint"] = {"every": 1, **values.get("checkpoint", {})}
        with importable_from([tmp_path]):
            return TrainConfig.model_validate(values)

    yield make
    sys.modules.pop("letters_task", None)


EVALUATION = {
    "prompts": 2,
    "frozen_rows": 256,
    "max_new_tokens": 48,
    "every": 2,
    "task_responses": 3,
    "pass_at": [2],
}


OF_TASKS = re.compile(r"task_|pass_at_|failed_ver|verification_")


def bare(key: str, *ends: str) -> str:
    """A key as the reference has it, without its task."""
    name = key.partition("/")[0]
    for end in ends:
        name = name.removesuffix(end)
    name = re.sub(r"^pass_at_\d+$", "pass_at_K", name)
    return re.sub(r"^task_value_\w+$", "task_value_NAME", name)


def test_a_run_on_two_tasks_is_measured_and_reported(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(
        make_run(
            run={"steps": 2},
            evaluation=EVALUATION,
            checkpoint={"best": "held_out/pass_at_1/letters", "best_goal": "max"},
            report={"html": True},
        )
    )
    for line in read_metrics(run / "metrics.jsonl"):
        assert (line["task_responses/sums"], line["task_responses/letters"]) == (4, 2)
        assert 0 <= line["task_right_share/letters"] <= 1
        assert line["task_right_share/sums"] == 0, "a student that never saw a sum"
        assert line["failed_verifications"] == line["failed_verifications_raised"]
        assert line["verification_wait_seconds"] >= 0
        assert line["tokens_per_second"] > 0
    points = [
        load_evaluation(run / "evaluation" / name) for name in ("before.json", "step-000002.json")
    ]
    for one in points:
        assert set(one.tasks) == {"sums", "letters"}
        letters = one.tasks["letters"]
        assert (letters.prompts, letters.responses, set(letters.pass_at)) == (
            4,
            3,
            {"pass_at_1", "pass_at_2"},
        )
        assert 0 < letters.pass_at["pass_at_1"] <= letters.pass_at["pass_at_2"] <= 1
        assert set(letters.values) == {"length"}
        assert letters.failures.keys() == {"raised"}
    why = "(raised), the first because 'RuntimeError: too many of them'"
    lines = [one.getMessage() for one in caplog.records if why in one.getMessage()]
    assert sum(one.startswith("held-out prompts of the task letters: ") for one in lines) >= 2
    failing = [
        line["step"] for line in read_metrics(run / "metrics.jsonl") if line["failed_verifications"]
    ]
    assert [
        step for step in failing if any(f"step {step}: task letters" in one for one in lines)
    ] == failing
    summary = summarise(read_run(run))
    assert summary["pass_at_1_after/letters"] == points[-1].tasks["letters"].pass_at["pass_at_1"]
    assert summary["task_prompts/sums"] == 3
    written = {bare(key) for line in read_metrics(run / "metrics.jsonl") for key in line}
    assert {key.name for key in TASK_METRICS} == {key for key in written if OF_TASKS.match(key)}
    told = {bare(key, "_before", "_after") for key in summary} - {"task_prompts"}
    assert {key.name for key in TASK_MEASURED} == {key for key in told if OF_TASKS.match(key)}
    page = (run / "report.html").read_text()
    assert "Right answers, pass@2 (letters)" in page
    assert "Right answers over the run" in page
    assert "Right answers in training" in page


@pytest.mark.parametrize("batches", ["mixed", "alternating"])
def test_a_run_on_tasks_resumes_exactly(make_run: MakeRun, tmp_path: Path, batches: str) -> None:
    config = make_run(data={"batches": batches})
    straight = train(in_directory(config, tmp_path / "straight"))
    broken = tmp_path / "broken"
    train(in_directory(config, broken, steps=2))
    train(in_directory(config, broken))
    told = [read_metrics(folder / "metrics.jsonl") for folder in (straight, broken)]
    of_tasks = [
        [{key: line[key] for key in line if key.startswith(("task_", "failed_"))} for line in lines]
        for lines in told
    ]
    assert of_tasks[0] == of_tasks[1]
    assert artefacts(straight, 3) == artefacts(broken, 3)
    counts = [line["task_responses/sums"] for line in told[0]]
    assert counts == ([4, 4, 4] if batches == "mixed" else [6, 0, 6])


def test_a_run_may_leave_the_responses_of_its_steps_unjudged(
    make_run: MakeRun, tmp_path: Path
) -> None:
    config = make_run(run={"steps": 1})
    off = config.verification.model_copy(update={"training": False})
    run = train(config.model_copy(update={"verification": off}))
    (line,) = read_metrics(run / "metrics.jsonl")
    assert line["task_responses/sums"] == 4
    assert not {key for key in line if "right_share" in key or "verification" in key}
    kept = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert kept["steps"] == 1


def test_a_run_that_learns_from_scores_resumes_exactly(make_run: MakeRun, tmp_path: Path) -> None:
    """Stale batches and several updates of one, in the second of which π is not π_old."""
    config = make_run(
        pipeline={"staleness": 1},
        optimizer={"updates_per_batch": 2, "lr": 1e-2},
        rollout={"group_size": 4, "prompts_per_step": 3},
        reward={"weight": 2.0, "schedule": "linear", "last_weight": 1.0},
    )
    straight = train(in_directory(config, tmp_path / "straight"))
    with pytest.raises(ConfigurationError, match=r"run\.steps"):
        train(in_directory(config, tmp_path / "straight", steps=4))
    broken = Path(shutil.copytree(straight, tmp_path / "broken"))
    shutil.rmtree(broken / "checkpoints" / "step-000003")
    train(in_directory(config, broken))
    assert artefacts(straight, 3) == artefacts(broken, 3)
    told = [read_metrics(folder / "metrics.jsonl") for folder in (straight, broken)]
    keys = {key.name for key in REWARD_METRICS}
    of_rewards = [[{key: line[key] for key in keys} for line in lines] for lines in told]
    assert of_rewards[0] == of_rewards[1]
    assert [line["reward_weight"] for line in told[0]] == [2.0, 1.5, 1.0]
    for line in told[0]:
        assert {key.partition("/")[0] for key in line if key.startswith("reward_")} == keys
        assert line["reward_unscored_responses"] == line["failed_verifications"]
    assert any(line["reward_groups_without_signal_share"] < 1 for line in told[0])
    assert any(line["reward_ratio_clipped"] for line in told[0])
    without = train(
        in_directory(config.model_copy(update={"reward": RewardSettings()}), tmp_path / "without")
    )
    assert artefacts(without, 3) != artefacts(straight, 3)
    (first, *_), (other, *_) = told[0], read_metrics(without / "metrics.jsonl")
    assert first["task_score/letters"] == other["task_score/letters"]
    assert not {key for key in other if key.startswith("reward_")}


def test_the_loss_of_each_task_is_that_of_its_rows(make_run: MakeRun) -> None:
    run = train(make_run(run={"steps": 1}))
    (line,) = read_metrics(run / "metrics.jsonl")
    assert line["task_loss/sums"] == pytest.approx(line["loss/first"], rel=1e-5)
    assert line["task_loss/letters"] == pytest.approx(line["loss/second"], rel=1e-5)
