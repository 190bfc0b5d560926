"""Episodes whose turns a real vLLM writes: those that the transformers engine writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from teacher_proto.types import TextPrompt

from student_trainer.data.rendering import PromptReader
from student_trainer.environments.environments import Environments
from student_trainer.rollout.base import PromptItem
from student_trainer.rollout.engines.transformers import TransformersEngine
from student_trainer.rollout.turns.acting import Acting
from student_trainer.rollout.turns.engine import TurnsEngine
from student_trainer.rollout.turns.template import TurnTemplate
from student_trainer.rollout.vllm.engine import VllmEngine
from student_trainer.settings.data import DataSettings
from student_trainer.settings.dotted import importable_from, load_dotted
from student_trainer.settings.evaluation import VerificationSettings
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student
from student_trainer.tasks.environment import ActingTask
from tests.rollout.test_vllm_engine import OPTIONS, assert_the_same
from tests.turns.conftest import rooms  # noqa: F401  (a fixture)

pytestmark = pytest.mark.vllm

SETTINGS = {"group_size": 3, "batch_size": 6, "max_new_tokens": 140}


def test_turns_are_written_by_vllm(wide_student: Student, rooms: Path) -> None:  # noqa: F811
    with importable_from([rooms]):
        kind = load_dotted("rooms_task:Rooms", ActingTask, "tasks.rooms.kind")
    task = kind.model_validate({"turn_tokens": 12, "at_turn_limit": "act"})
    environments = Environments({"rooms": task}, VerificationSettings())
    reader = PromptReader(wide_student.tokenizer, DataSettings(train="x"), "2026-11-30T00:00:00")
    acting = Acting(wide_student, environments, TurnTemplate(reader, wide_student.terminators))
    prompts = []
    for turns in (1, 2, 3):
        text = f"You are in room {turns}."
        ids = np.array(wide_student.tokenizer(text)["input_ids"], np.int32)
        row = {"turns": turns}
        prompts.append(PromptItem(text, ids, TextPrompt(text), task="rooms", row=row))
    settings = RolloutSettings.model_validate(SETTINGS)
    of_vllm = RolloutSettings.model_validate(
        {**SETTINGS, "engine": "vllm", "vllm": {"options": OPTIONS}}
    )
    own = TurnsEngine(TransformersEngine(wide_student, settings), acting, settings)
    other = TurnsEngine(VllmEngine(wide_student, of_vllm, 200), acting, of_vllm)
    try:
        found = []
        for engine in (own, other):
            engine.update_weights(4)
            found.append(engine.generate(prompts, seed=2, step=1))
    finally:
        other.close()
        environments.close()
    assert_the_same(found[1], found[0])
    assert [one.episode for one in found[1]] == [one.episode for one in found[0]]
    assert {one.weights_version for one in found[1]} == {4}
    assert [one.episode.turns for one in found[1] if one.episode] == [1] * 3 + [2] * 3 + [3] * 3
