"""Environments of a user's own: the examples of the page and of the docstring as they stand, and
rows that the student reads alike."""

from __future__ import annotations

import json
import random
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto.errors import ConfigurationError
from transformers import AutoTokenizer

from student_trainer.commands.estimate_time import of_episodes
from student_trainer.data.digest import difference, same_prompts
from student_trainer.environments.environments import Environments
from student_trainer.environments.process import Observed
from student_trainer.evaluate_run import RunEvaluation
from student_trainer.evaluation.accuracy import judged_prompts, measure_tasks, task_result
from student_trainer.prompt_needs import read_prompts
from student_trainer.rollout.base import PromptItem
from student_trainer.rollout.turns.played import thinks_after
from student_trainer.settings.dotted import importable_from
from student_trainer.settings.evaluation import EvaluationSettings, VerificationSettings
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.startup import rollouts
from student_trainer.startup.start import Start
from student_trainer.student.model import load_student
from student_trainer.tasks import environment
from student_trainer.tasks.environment import ActingTask, Observation, Turn
from student_trainer.tasks.judgement import Judgement
from student_trainer.verification.verifiers import Verifiers
from tests.tasks.tools import of_task, response_to
from tests.trainer.conftest import settings

PAGE = (Path(__file__).parents[2] / "docs/environments.md").read_text()
ALIKE = """
from typing import ClassVar

from student_trainer.tasks import Task
from student_trainer.tasks.environment import ActingTask


class Alike(ActingTask):
    secret: int = 0

    def prompts(self, split, read):
        numbers = range(1, 6) if split == "train" else (5, 6, 7, 7)
        for number in numbers:
            row = {"number": number, "secret": self.secret}
            yield f"number {number}", {"prompt": "Guess a number.", **row}


class Large(Alike):
    episode_bytes: ClassVar[int] = 100 << 20


class Judged(Task):
    def prompts(self, split, read):
        for number in range(4) if split == "train" else ():
            yield f"number {number}", {"prompt": f"Guess number {number}.", "number": number}


class Shapes(ActingTask):
    def prompts(self, split, read):
        for number in range(4) if split == "train" else ():
            ask = [{"role": "user", "content": f"Guess number {number}."}]
            system = [{"role": "system", "content": "Be quick."}] if number == 2 else []
            yield f"number {number}", {"messages": [*system, *ask]}
"""
# Takes a system's turn, and no second turn of the user after one.
TEMPLATE = """\
{%- if messages[0].role == 'system' and messages | length > 2 %}{{ raise_exception('one turn') }}
{%- endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """A folder with the modules of the page, and ``alike``."""
    names = ["alike"]
    (tmp_path / "alike.py").write_text(ALIKE)
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        name = re.match(r"# (\w+)\.py", code)
        assert name is not None, "a block says the name of its file"
        names.append(name[1])
        (tmp_path / f"{name[1]}.py").write_text(code)
    assert len(names) == 3
    yield tmp_path
    for one in names:
        sys.modules.pop(one, None)


def config(folder: Path, model: Path, task: dict[str, Any], **student: Any) -> TrainConfig:
    values = settings(
        model,
        folder,
        student=student,
        data={"max_prompt_tokens": 500},
        optimizer={"micro_batch_tokens": 600},
    )
    del values["data"]["train"]
    values["tasks"] = {"own": task}
    with importable_from([folder]):
        return TrainConfig.model_validate(values)


def test_the_game_of_the_page_is_read_and_played(own: Path, student_model_dir: Path) -> None:
    made = config(own, student_model_dir, {"kind": "my_rooms:Guessing"})
    prompts = read_prompts(made)
    assert (len(prompts.train), len(prompts.held_out)) == (200, 20)
    assert not [note for note in prompts.notes if "held-out" in note]
    game = prompts.held_out[0]
    assert game.row is not None
    number = game.row["number"]
    played = Environments(made.tasks or {}, VerificationSettings())
    try:
        episode = played.begin(game)
        heard = []
        for said in ("what?", str(number - 1), str(number + 1), str(number)):
            answer = played.act(episode, Turn(said)).result()
            assert isinstance(answer, Observed), answer
            heard += [one["content"] for one in answer.observation.messages]
        assert heard == ["It is another number.", "It is larger.", "It is smaller."]
        assert answer.observation.done
        assert played.judge(episode).result() == Judgement(1.0)
    finally:
        played.close()


def test_the_tools_of_the_page_are_called(
    own: Path, student_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"question": "What is the capital of France?", "answer": "Paris"}
    (own / "questions.jsonl").write_text(json.dumps(asked) + "\n")
    monkeypatch.chdir(own)
    (text,) = re.findall(r"```toml\n(\[tasks\.capitals\]\n.*?)```", PAGE, re.DOTALL)
    made = config(own, student_model_dir, tomllib.loads(text)["tasks"]["capitals"])
    (question,) = read_prompts(made).train
    assert of_episodes(made).startswith(". Episodes are not estimated (own)")
    assert made.tasks is not None
    played = made.tasks["own"]
    assert isinstance(played, ActingTask)
    assert question.row is not None
    episode = played.environment(question.row)
    call = {"name": "capital", "arguments": {"country": "France"}}
    heard = episode.act(Turn("", f"<tool_call>{json.dumps(call)}</tool_call>", "hermes"))
    assert [one["content"] for one in heard.messages] == ["Paris"]


def test_the_example_of_the_docstring_gives_prompts_for_each_split() -> None:
    assert environment.__doc__ is not None
    (code,) = re.findall(r"\n(    class Guess.*?)\n\n\S", environment.__doc__, re.DOTALL)
    names: dict[str, Any] = {**vars(environment), "random": random}
    exec(compile(textwrap.dedent(code), "environment.py", "exec"), names)
    task = names["Guessing"]()
    rows = {split: [row for _, row in task.prompts(split, None)] for split in ("train", "held_out")}
    texts = {
        split: {row["messages"][0]["content"] for row in found} for split, found in rows.items()
    }
    assert len(texts["train"]) == len(texts["held_out"]) == 100
    assert not texts["train"] & texts["held_out"]
    episode = task.environment(rows["train"][0])
    assert not episode.act(Turn("?")).done
    assert episode.act(Turn(str(rows["train"][0]["number"]))) == Observation(done=True)
    assert episode.verdict().right


def test_rows_that_the_student_reads_alike_are_other_episodes(
    own: Path, student_model_dir: Path
) -> None:
    prompts = read_prompts(config(own, student_model_dir, {"kind": "alike:Alike"}))

    def numbers(found: list[PromptItem]) -> list[int]:
        return [prompt.row["number"] for prompt in found if prompt.row is not None]

    assert numbers(prompts.train) == [1, 2, 3, 4], "5 is held out"
    notes = [note for note in prompts.notes if "read as held-out ones do" in note]
    assert [note.split(" prompts")[0] for note in notes] == ["tasks.own: 4 of 4"]
    judged = judged_prompts(prompts.held_out, "own", EvaluationSettings())
    assert numbers(judged) == [5, 6, 7], "the second 7 is the first"


def test_the_digest_of_prompts_is_also_of_the_rows_that_make_environments(
    own: Path, student_model_dir: Path
) -> None:
    def digest(kind: str, **task: Any) -> str:
        return read_prompts(config(own, student_model_dir, {"kind": kind, **task})).digest

    before, other = digest("alike:Alike"), digest("alike:Alike", secret=1)
    found = difference(before, other)
    assert found is not None
    assert "the rows that make their environments are not the checkpoint's" in found[0]
    assert same_prompts(before, digest("alike:Alike"))
    earlier = re.sub(",episodes=[0-9a-f]{64}$", "", before)
    assert earlier != before
    assert same_prompts(earlier, other), "an earlier version did not say"
    assert not same_prompts(earlier, digest("alike:Judged"))
    assert "episodes" not in digest("alike:Judged")


def test_an_evaluation_of_episodes_that_nothing_plays_is_refused(
    own: Path, student_model_dir: Path
) -> None:
    made = config(own, student_model_dir, {"kind": "my_rooms:Guessing"})
    nothing: Any = None
    with pytest.raises(ConfigurationError, match="nothing is there that plays them"):
        RunEvaluation(made, nothing, nothing, nothing, nothing)
    verifiers = Verifiers(made.tasks or {}, made.verification)
    try:
        with pytest.raises(ConfigurationError, match=r"tasks\.own"):
            measure_tasks(
                nothing, verifiers, [], EvaluationSettings(), RolloutSettings(), seed=0, acting=None
            )
    finally:
        verifiers.close()


def test_a_prompt_of_every_shape_is_checked_before_the_run(
    own: Path, student_model_dir: Path
) -> None:
    (own / "strict.jinja").write_text(TEMPLATE)
    template = str(own / "strict.jinja")
    start = Start(config(own, student_model_dir, {"kind": "alike:Shapes"}, chat_template=template))
    start.prompts = read_prompts(start.config)
    start.student = load_student(start.config.student)
    with start.stack, pytest.raises(ConfigurationError, match="user cannot follow") as raised:
        rollouts.environments(start)
    assert (raised.value.where, "one turn" in str(raised.value)) == ("tasks.own, number 2", True)


@pytest.mark.parametrize(
    ("verification", "ranks", "most"),
    [
        ({}, 1, 8),
        ({"processes": 2}, 1, 0),
        ({"memory_bytes": 800 << 20}, 1, 0),
        ({"memory_bytes": (800 << 20) - 1}, 1, 8),
        ({}, 2, 0),
        ({"memory_bytes": 200 << 20}, 8, 3),
    ],
)
def test_episodes_that_are_too_large_together_are_told_before_the_run(
    own: Path, student_model_dir: Path, verification: dict[str, Any], ranks: int, most: int
) -> None:
    made = config(own, student_model_dir, {"kind": "alike:Large"}).model_copy(
        update={
            "rollout": RolloutSettings(prompts_per_step=4, group_size=2),
            "evaluation": EvaluationSettings(task_responses=1),
            "verification": VerificationSettings(**verification),
        }
    )
    (task,) = (made.tasks or {}).values()
    assert isinstance(task, ActingTask)
    told = rollouts.too_large_together("own", task, 3, made, ranks)
    assert bool(told) == bool(most), told
    if most:
        assert f"up to {most} episodes at once, which take {most * (100 << 20)} bytes" in told


def test_a_generation_prompt_that_opens_thinking_is_seen(student_model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(student_model_dir)
    for text, opened in (
        ("user: hello\nassistant: <think>\n", True), ("<think>", True),
        ("<think>\n\n</think>\n\n", False), ("", False), ("think> <think> it", False),
    ):  # fmt: skip
        ids = np.array(tokenizer.encode(text, add_special_tokens=False), np.int32)
        assert thinks_after(tokenizer, ids) == opened


def test_responses_without_a_judgement_are_not_left_out() -> None:
    responses = [response_to(of_task("t", {}), index, 3) for index in range(2)]
    with pytest.raises(ValueError, match="2 responses have 1 judgements"):
        task_result(responses, [Judgement(1.0)], EvaluationSettings(task_responses=2))
