"""Which task a prompt of a step is of, which teacher scores it, and what cannot be meant."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError

from student_trainer.commands.dry_run import not_here
from student_trainer.data.files.named import named_datasets
from student_trainer.data.order import PromptOrder
from student_trainer.prompt_needs import read_prompts
from student_trainer.report.model_card import _data, _header
from student_trainer.settings.resolve import config_of, resolve_config

PROMPTS = {
    "one": [f"the number {n} is" for n in range(10)],
    "two": [f"a word of {n} letters" for n in range(4)],
    "held": ["a word of 3 letters", "and another one"],
    "other": ["one more", "and the last"],
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for name, texts in PROMPTS.items():
        lines = [json.dumps({"prompt": text}) + "\n" for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return {name: str(tmp_path / f"{name}.jsonl") for name in PROMPTS}


@pytest.fixture
def values(tiny_model_dir: Path, tmp_path: Path, files: dict[str, str]) -> dict[str, Any]:
    return {
        "run": {"output_dir": str(tmp_path / "run"), "steps": 4},
        "student": {"model": str(tiny_model_dir), "device": "cpu"},
        "rollout": {"prompts_per_step": 4, "group_size": 2, "max_new_tokens": 20},
        "data": {"max_prompt_tokens": 64},
        "loss": {"top_k": 16},
        "tasks": {
            "first": {"kind": "chat", "train": files["one"], "weight": 3},
            "second": {"kind": "chat", "train": files["two"], "held_out": files["held"]},
        },
    }


def order(values: dict[str, Any], batches: str) -> tuple[PromptOrder, list[str]]:
    values["data"] = {**values["data"], "batches": batches}
    config = config_of(values)
    prompts = read_prompts(config)
    made = PromptOrder.of(7, prompts.train, config.shares, turn=config.turn)
    return made, [prompt.task for prompt in prompts.train]


def test_mixed_batches_have_every_task_by_its_weight(values: dict[str, Any]) -> None:
    made, tasks = order(values, "mixed")
    taken = [tasks[index] for index in made.take(0, 40)]
    for step in range(10):
        assert Counter(taken[4 * step : 4 * step + 4]) == {"first": 3, "second": 1}
    assert [made.take(p, 1)[0] for p in range(40)] == made.take(0, 40), "by position alone"


def test_alternating_batches_have_one_task_each_in_a_weighted_round(
    values: dict[str, Any],
) -> None:
    made, tasks = order(values, "alternating")
    taken = made.take(0, 96)
    steps = [{tasks[index] for index in taken[4 * step : 4 * step + 4]} for step in range(24)]
    assert all(len(of_step) == 1 for of_step in steps)
    assert Counter(name for of_step in steps for name in of_step) == {"first": 18, "second": 6}
    for start in range(0, 24, 4):
        assert Counter(n for s in steps[start : start + 4] for n in s)["second"] == 1
    # Every epoch of a task has each of its prompts once.
    second = [index for index in taken if tasks[index] == "second"]
    assert all(len(set(second[n : n + 3])) == 3 for n in range(0, 24, 3))
    assert [made.take(p, 3) for p in range(0, 96, 3)] == [taken[p : p + 3] for p in range(0, 96, 3)]


def test_a_prompt_that_is_held_out_is_left_out_of_the_training(values: dict[str, Any]) -> None:
    prompts = read_prompts(config_of(values))
    assert Counter(prompt.task for prompt in prompts.train) == {"first": 10, "second": 3}
    assert [prompt.task for prompt in prompts.held_out] == ["second", "second"]
    assert any("1 of 4 prompts to train on are held out too" in note for note in prompts.notes)
    assert prompts.train[0].row == {"prompt": PROMPTS["one"][0]}
    values["tasks"]["second"]["train"] = values["tasks"]["second"]["held_out"]
    with pytest.raises(ConfigurationError, match="all of its 2 prompts"):
        read_prompts(config_of(values))


@pytest.mark.parametrize("batches", ["mixed", "alternating"])
def test_a_task_of_weight_0_is_evaluated_and_not_trained_on(
    values: dict[str, Any], files: dict[str, str], batches: str
) -> None:
    values["teachers"] = {"big": {"name": "big"}, "small": {"name": "small"}}
    values["tasks"]["first"]["teacher"] = "big"
    values["tasks"]["second"]["teacher"] = "small"
    _, before = order(values, batches)
    expected = [before[index] for index in order(values, batches)[0].take(0, 40)]
    values["tasks"] = {
        "only": {"kind": "chat", "held_out": files["other"], "weight": 0, "teacher": "big"},
        **values["tasks"],
    }
    made, tasks = order(values, batches)
    assert [tasks[index] for index in made.take(0, 40)] == expected
    prompts = read_prompts(config_of(values))
    assert {prompt.task for prompt in prompts.train} == {"first", "second"}
    assert Counter(p.task for p in prompts.held_out) == {"only": 2, "second": 2}
    assert prompts.first(7, "small").task == "second"
    values["tasks"]["second"]["weight"] = 0
    assert "no task to train on names teachers.small" in refused(values)


def test_each_task_goes_to_its_teacher(values: dict[str, Any]) -> None:
    values["teachers"] = {"big": {"name": "big"}, "small": {"name": "small"}}
    values["tasks"]["first"]["teacher"] = "big"
    values["data"]["teacher"] = "small"
    prompts = read_prompts(config_of(values))
    assert {(p.task, p.teacher) for p in (*prompts.train, *prompts.held_out)} == {
        ("first", "big"),
        ("second", "small"),
    }


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        resolve_config(values=values)
    return str(caught.value)


TWO = {"big": {"name": "big"}, "small": {"name": "small"}}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"data": {"train": "a.jsonl"}}, "data.train and tasks exclude each other"),
        ({"data": {"held_out": "a.jsonl"}}, "data.held_out and tasks exclude each other"),
        ({"data": {"held_out_fraction": 0.1}}, "every task has held-out prompts of its own"),
        ({"data": {"columns": {"user": "q"}}}, "a task has settings of its own for them"),
        ({"tasks": {}}, "tasks is empty"),
        ({"tasks": {"Sums": {"kind": "chat", "train": "a"}}}, "lower-case letters and digits"),
        ({"tasks": {"api_key": {"kind": "chat", "train": "a"}}}, "hide the task's settings"),
        ({"tasks": {"a": {"kind": "chats", "train": "a"}}}, "did you mean chat?"),
        ({"tasks": {"a": {"kind": "chats", "train": "a"}}}, "tasks.a.kind (the given values): "),
        ({"tasks": {"a": {"kind": "b.c:D"}}}, "tasks.a.kind (the given values): "),
        ({"tasks": {"a": {"train": "a"}}}, "tasks.a.kind (the given values): is required"),
        ({"tasks": {"a": {"kind": "chat", "train": "a", "tain": "b"}}}, "tasks.a.train?"),
        ({"tasks": {"a": {"kind": "chat"}}}, "tasks.a: train is required"),
        ({"tasks": {"a": {"kind": "chat", "train": "a", "weight": -1}}}, "tasks.a.weight"),
        ({"tasks": {"a": {"kind": "chat", "train": "a", "weight": 0}}}, "name its prompts in held"),
        ({"tasks": {"a": {"kind": "chat", "held_out": "a", "weight": 0}}}, "every task has weight"),
        ({"tasks": {"a": {"kind": "chat", "train": "a", "teacher": "x"}}}, "no [teachers.NAME]"),
        ({"teachers": TWO}, "several teachers: say which one scores the responses to tasks.first"),
        ({"teachers": TWO, "data": {"teacher": "big"}}, "no task to train on names teachers.small"),
        (
            {"teachers": TWO, "tasks": {"a": {"kind": "chat", "train": "a", "teacher": "x"}}},
            "tasks.a.teacher is 'x', which is none of the teachers (big, small)",
        ),
        ({"mixing": {"share": 0.5}}, "mixing learns from answers of data.train"),
        ({"tasks": {"a": {"kind": "no_such:Task"}}}, "there is no module no_such"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    values: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    assert said in refused({**values, **more})


def test_a_run_has_prompts_of_files_or_of_tasks(values: dict[str, Any]) -> None:
    without = {name: section for name, section in values.items() if name != "tasks"}
    assert "data.train" in refused(without)
    assert "describe tasks in [tasks.NAME]" in refused(without)
    alternating = {**without, "data": {"train": "a.jsonl", "batches": "alternating"}}
    assert "orders tasks, and there are no [tasks.NAME]" in refused(alternating)


def test_a_task_of_ones_own_is_found_beside_the_configuration(
    values: dict[str, Any], own_folder: Path
) -> None:
    file = own_folder / "run.toml"
    file.write_text('[tasks.words]\nkind = "own_tasks:Words"\ncount = 3\n')
    config = resolve_config([file], values={**values, "tasks": {}}).settings
    assert config.tasks is not None
    prompts = read_prompts(config)
    assert [prompt.row for prompt in prompts.train] == [
        {"prompt": f"the word {n} is", "answer": n} for n in range(3)
    ]
    assert len(prompts.held_out) == 3
    file.write_text('[tasks.words]\nkind = "own_tasks:Words"\ncounts = 3\n')
    with pytest.raises(ConfigurationError, match=r"did you mean tasks\.words\.count"):
        resolve_config([file], values={**values, "tasks": {}})


def test_a_task_that_gives_no_prompts_or_other_rows_is_named(
    values: dict[str, Any], own_folder: Path
) -> None:
    text = (own_folder / "own_tasks.py").read_text()
    for row, said in (
        ('{"question": "a"}', "this one has none"),
        ('{"prompt": "a", "messages": []}', "messages and prompt"),
    ):
        (own_folder / "own_tasks.py").write_text(
            text.replace('{"prompt": f"the word {number} is", "answer": number}', row)
        )
        assert said in own_refused(values, own_folder)
    raising = text.replace(
        "begin = 100 if", "raise RuntimeError('by itself')\n        begin = 100 if"
    )
    (own_folder / "own_tasks.py").write_text(raising)
    assert "giving its prompts to train on raises RuntimeError: by itself" in own_refused(
        values, own_folder
    )
    (own_folder / "own_tasks.py").write_text(text.replace("default=6", "default=0"))
    assert "gives no prompt to train on" in own_refused(values, own_folder)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("(1, 2)", "a tuple becomes a list"),
        ("{1: 2}", "a key a text"),
        ("float('nan')", "not JSON compliant"),
        ("{1, 2}", "set is not JSON serializable"),
    ],
)
def test_a_row_that_the_judge_would_get_otherwise_is_refused(
    values: dict[str, Any], own_folder: Path, extra: str, said: str
) -> None:
    file = own_folder / "own_tasks.py"
    file.write_text(file.read_text().replace('"answer": number', f'"answer": {extra}'))
    told = own_refused(values, own_folder)
    assert said in told
    assert "tasks.words, word 0: the row is not what JSON says of it" in told


def test_a_dry_run_fetches_no_dataset_of_a_task(
    values: dict[str, Any], files: dict[str, str]
) -> None:
    assert not_here(config_of(values)) == ""
    values["tasks"]["second"]["held_out"] = "no-such/dataset"
    assert "no-such/dataset is not on this machine" in not_here(config_of(values))
    values["tasks"]["second"] = {"kind": "math", "train": "no-such/other", "revision": "abc"}
    config = config_of(values)
    assert "no-such/other is not on this machine" in not_here(config)
    assert [(one.name, one.on_hub, one.revision) for one in named_datasets(config, "train")] == [
        (files["one"], False, None),
        ("no-such/other", True, "abc"),
    ]
    assert '- "no-such/other"' in _header(config), "of the model card"
    assert _data(config).endswith("second (math), one.jsonl, no-such/other at revision abc")


def own_refused(values: dict[str, Any], folder: Path) -> str:
    (folder / "run.toml").write_text('[tasks.words]\nkind = "own_tasks:Words"\n')
    with pytest.raises(ConfigurationError, match=r"tasks\.words") as caught:
        read_prompts(resolve_config([folder / "run.toml"], values={**values, "tasks": {}}).settings)
    return str(caught.value)
