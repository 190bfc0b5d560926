"""Runs on tasks whose responses are episodes, with a real service and real environments."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from student_trainer.evaluation import load_evaluation
from student_trainer.run.directory import read_metrics
from student_trainer.settings.dotted import importable_from
from student_trainer.settings.train import TrainConfig
from student_trainer.train import train
from tests.trainer.conftest import settings
from tests.trainer.processes import Server
from tests.trainer.test_run import artefacts, in_directory


@pytest.fixture
def make_run(rooms: Path, student_model_dir: Path, run_server: Server) -> Any:
    def make(task: Mapping[str, Any] = MappingProxyType({}), **sections: Any) -> TrainConfig:
        sections.setdefault("rollout", {}).setdefault("max_new_tokens", 160)
        sections.setdefault("optimizer", {}).setdefault("micro_batch_tokens", 512)
        weights = [{"kind": kind} for kind in sections.pop("weights", ())]
        values = settings(student_model_dir, rooms, **sections)
        del values["data"]["train"]
        values["tasks"] = {
            "rooms": {"kind": "rooms_task:Rooms", "turn_tokens": 12, "at_turn_limit": "act"}
            | dict(task)
        }
        values["teacher"] = {"address": run_server.address, **values.get("teacher", {})}
        values["weights"] = weights
        values["verification"] = {"processes": 2}
        values["checkpoint"] = {"every": 1, **values.get("checkpoint", {})}
        with importable_from([rooms]):
            return TrainConfig.model_validate(values)

    return make


EVALUATION = {"prompts": 2, "frozen_rows": 256, "max_new_tokens": 120, "task_responses": 2}
WITH_TOOLS = """\
{%- for tool in tools or [] %}<|im_start|>system
{{ tool.function.name }}<|im_end|>
{% endfor %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOOLS = {"kind": "tools", "prompts_to_train": 12, "prompts_held_out": 3, "items": 4}


def resumed(run: Path, step: int, path: Path) -> Path:
    """A copy of a run that has come no farther than a step."""
    shutil.copytree(run, path)
    for checkpoint in (path / "checkpoints").iterdir():
        if checkpoint.name > f"step-{step:06d}":
            shutil.rmtree(checkpoint)
    shutil.rmtree(path / "model")
    return path


def test_a_run_on_episodes_is_measured_and_resumes_exactly(make_run: Any, tmp_path: Path) -> None:
    config = make_run(pipeline={"staleness": 1}, evaluation=EVALUATION, report={"rollouts": 3})
    straight = train(in_directory(config, tmp_path / "straight"))
    broken = resumed(straight, 2, tmp_path / "broken")
    train(in_directory(config, broken))
    assert artefacts(straight, 3) == artefacts(broken, 3)
    told = [read_metrics(run / "metrics.jsonl") for run in (straight, broken)]
    for line, again in zip(*told, strict=True):
        assert 1 < line["task_value_episode_turns/rooms"] <= 4
        ends = {k: v for k, v in line.items() if k.startswith("task_value_episode_ended_")}
        assert sum(ends.values()) == pytest.approx(1)
        assert ends["task_value_episode_ended_failed/rooms"] == 0
        assert line["failed_verifications"] == 0
        assert line["tokens"] == line["tokens_used"] + line["masked_tokens"]
        assert {k: v for k, v in line.items() if k.startswith("task_")} == {
            k: v for k, v in again.items() if k.startswith("task_")
        }
    found = load_evaluation(straight / "evaluation" / "before.json").tasks["rooms"]
    assert found.values["episode_turns"] > 1
    assert found.values["words"] >= 0


@pytest.mark.parametrize(
    ("task", "sections"),
    [
        (TOOLS, {"student": {"chat_template": "tools.jinja"}, "data": {"max_prompt_tokens": 250}}),
        ({"form": "text"}, {"rollout": {"stop_strings": [" the"]}}),
        ({}, {"loss": {"support": "student"}, "weights": ["prefix_ratio", "overlap"]}),
        ({}, {"teacher": {"name": "other"}, "loss": {"kind": "sampled_token"}}),
        ({}, {"scoring": {"scored_share": 0.4}, "optimizer": {"updates_per_batch": 3}}),
        ({"turns": 2}, {"rollout": {"max_new_tokens": 40}}),
        ({}, {"weights": ["teacher_surprise"], "reward": {"weight": 1.0}}),
    ],
    ids=["tools", "text", "student's support", "another tokenizer", "in part", "limits", "rewards"],
)
def test_every_part_of_a_step_takes_episodes(
    make_run: Any, rooms: Path, task: dict[str, Any], sections: dict[str, Any]
) -> None:
    if "chat_template" in sections.get("student", {}):
        (rooms / "tools.jinja").write_text(WITH_TOOLS)
        sections = {**sections, "student": {"chat_template": str(rooms / "tools.jinja")}}
    config = make_run(task, run={"steps": 1}, **sections)
    (line,) = read_metrics(train(config) / "metrics.jsonl")
    assert line["task_value_episode_turns/rooms"] >= 1
    assert 0 < line["tokens_used"] <= line["tokens"]
    assert line.get("reward_unscored_responses", 0) == 0
    assert line["dropped_non_finite"] == 0
    assert line["failed_verifications"] == 0
