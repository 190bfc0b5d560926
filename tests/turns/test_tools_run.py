"""A run on the task ``tools`` of a student that calls them: it was fitted to do so on the spot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.types import ChatMessage, ChatPrompt
from transformers import AutoModelForCausalLM

from student_trainer.data.rendering import PromptReader
from student_trainer.evaluation import load_evaluation
from student_trainer.rollout.turns.template import TurnTemplate
from student_trainer.run.directory import read_metrics
from student_trainer.settings.data import DataSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import load_student
from student_trainer.tasks.calling.shop import price_list
from student_trainer.tasks.tools import ToolsTask
from student_trainer.train import train
from tests.trainer.conftest import settings
from tests.trainer.processes import Server
from tests.trainer.test_run import artefacts, in_directory
from tests.turns.test_runs import WITH_TOOLS, resumed

TASK = {
    "kind": "tools", "prompts_to_train": 3, "prompts_held_out": 2, "items": 3, "terms": 1,
    "instruction": "",
}  # fmt: skip
LONGEST_FIT = 400


@pytest.fixture(scope="module")
def calling_student_dir(student_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that looks up the price and answers, for the questions of ``TASK``."""
    folder = Path(shutil.copytree(student_model_dir, tmp_path_factory.mktemp("models") / "calling"))
    (folder / "chat_template.jinja").write_text(WITH_TOOLS)
    student = load_student(StudentSettings(model=str(folder), device="cpu"))
    conversations = [one for split in ("train", "held_out") for one in _shown(student, split)]
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        _fit(model, conversations)
    model.save_pretrained(folder)
    return folder


def _shown(student: Any, split: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Conversations that do well: the ids, and which of them are the student's."""
    reader = PromptReader(student.tokenizer, DataSettings(train="x"), "2026-11-30T00:00:00")
    template = TurnTemplate(reader, student.terminators)
    prices, found = price_list(0, TASK["items"]), []  # type: ignore[arg-type]
    for _, row in ToolsTask.model_validate(TASK).prompts(split, None):  # type: ignore[arg-type]
        asked = row["messages"][0]["content"]
        thing = next(name for name in prices if name in asked)
        source = ChatPrompt(
            (ChatMessage("user", asked),), template_arguments={"tools": row["tools"]}
        )
        call = json.dumps({"name": "look_up", "arguments": {"key": thing}})
        heard = template.following(
            source, [{"role": "tool", "content": prices[thing], "name": "look_up"}], ended=True
        )
        ids, own = [], []
        for text, is_own in (
            (reader.render(source, "it"), False),
            (f"<tool_call>{call}</tool_call><|im_end|>", True),
            (heard, False),
            (f"<answer>{row['answer']}</answer><|im_end|>", True),
        ):
            part = (
                student.tokenizer(text, add_special_tokens=False)["input_ids"]
                if isinstance(text, str)
                else text.tolist()
            )
            ids += part
            own += [is_own] * len(part)
        found.append((np.array(ids), np.array(own)))
    return found


def _fit(model: Any, conversations: list[tuple[np.ndarray, np.ndarray]]) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    width = max(len(ids) for ids, _ in conversations)
    ids = torch.zeros(len(conversations), width, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    for row, (own_ids, own) in enumerate(conversations):
        ids[row, : len(own_ids)] = torch.from_numpy(own_ids)
        labels[row, : len(own_ids)] = torch.from_numpy(np.where(own, own_ids, -100))
    model.train()
    for _ in range(LONGEST_FIT):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss.detach()) < 0.005:
            return
    raise AssertionError(f"the student has not learnt it: {float(loss.detach())}")


def test_a_run_of_a_student_that_calls_tools_resumes_exactly(
    calling_student_dir: Path, run_server: Server, tmp_path: Path
) -> None:
    values = settings(
        calling_student_dir,
        tmp_path,
        data={"max_prompt_tokens": 200},
        rollout={"max_new_tokens": 250, "prompts_per_step": 2},
        optimizer={"lr": 1e-6, "micro_batch_tokens": 512},
        evaluation={"prompts": 2, "max_new_tokens": 250, "frozen_rows": 0, "task_responses": 2},
        checkpoint={"every": 1},
    )
    del values["data"]["train"]
    values |= {"tasks": {"shop": TASK}, "teacher": {"address": run_server.address}}
    config = TrainConfig.model_validate(values)
    straight = train(in_directory(config, tmp_path / "straight"))
    again = train(in_directory(config, resumed(straight, 1, tmp_path / "broken")))
    assert artefacts(straight, 3) == artefacts(again, 3)
    for line in read_metrics(straight / "metrics.jsonl"):
        assert line["task_right_share/shop"] > 0.7
        assert line["task_value_calls/shop"] > 0.9
        assert line["task_value_failed_calls/shop"] < 0.2
        assert line["task_value_episode_turns/shop"] > 1.9
    before = load_evaluation(straight / "evaluation" / "before.json").tasks["shop"]
    assert before.pass_at["pass_at_1"] > 0.7
    assert before.values["episode_ended_done"] > 0.9
