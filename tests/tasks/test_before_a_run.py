"""What the start of a run finds of its tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from teacher_proto.errors import ConfigurationError

from student_trainer.prompt_needs import read_prompts
from student_trainer.settings.dotted import importable_from
from student_trainer.settings.train import TrainConfig
from student_trainer.startup import rollouts
from student_trainer.startup.start import Start

GOOD = [{"question": f"{n} + {n}?", "answer": f"so #### {2 * n}"} for n in range(100)]


@pytest.fixture
def start(tiny_model_dir: Path, tmp_path: Path) -> Iterator[Any]:
    begun: list[Start] = []

    def make(**tasks: Any) -> Start:
        values = {
            "run": {"name": "a", "output_dir": str(tmp_path / "run")},
            "student": {"model": str(tiny_model_dir), "device": "cpu"},
            "tasks": tasks,
            "verification": {"seconds": 20.0},
        }
        begun.append(Start(TrainConfig.model_validate(values)))
        return begun[-1]

    yield make
    for one in begun:
        one.stack.close()


def tried(start: Start) -> str:
    """What the steps that judge say."""
    rollouts.tasks(start)
    start.prompts = read_prompts(start.config)
    rollouts.verifiers(start)
    start.take_warnings()
    return rollouts.right_answers(start)


def test_right_answers_that_cannot_be_read_are_told_before_the_run(
    start: Any, tmp_path: Path
) -> None:
    """Of a folder of Parquet files as the hub has them, as well as of JSON lines."""
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(GOOD), folder / "train-00000-of-00001.parquet")
    bad = [row | {"answer": "####  "} if n in (3, 4) else row for n, row in enumerate(GOOD[:20])]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in bad))
    settings = {"kind": "math", "answer_after": "####", "form": "text"}
    one = start(
        good={**settings, "train": str(folder)},
        bad={**settings, "train": str(file)},
        talk={"kind": "chat", "train": str(file), "user": "question", "weight": 2},
    )
    assert tried(one) == "an empty response to 70 prompts is judged, and to 2 it cannot be"
    (warning,) = one.take_warnings()
    assert warning.startswith("tasks.bad: no response to 2 of 20 prompts that were tried")
    assert "rows.jsonl, line 4" in warning
    assert "math-verify cannot read the right answer" in warning
    assert [p.row["answer"] for p in one.prompts.train if p.task == "good"] == [
        str(2 * n) for n in range(100)
    ]


def test_a_verifier_that_hangs_keeps_no_run_from_beginning(
    start: Any, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (own_folder / "own_tasks.py").read_text()
    (own_folder / "own_tasks.py").write_text(source.replace('response == "hang"', 'response == ""'))
    monkeypatch.setattr(rollouts, "TRIED", 2)
    with importable_from([own_folder]):
        one = start(does={"kind": "own_tasks:Does", "count": 40})
        found = one.config.verification.model_copy(update={"seconds": 0.5})
        one.config = one.config.model_copy(update={"verification": found})
        assert tried(one) == "an empty response to 2 prompts is judged, and to 2 it cannot be"
    (warning,) = one.take_warnings()
    assert "(time) 'judging it took longer than 0.5 s'" in warning
    monkeypatch.setattr(rollouts, "SECONDS", -1.0)
    assert rollouts.right_answers(one).startswith("an empty response to 0 prompts is judged")


@pytest.mark.parametrize("step", [rollouts.tasks, lambda start: read_prompts(start.config)])
def test_an_error_of_a_task_names_it(start: Any, step: Any) -> None:
    one = start(
        fine={"kind": "reasoning_gym", "family": "gcd", "prompts_to_train": 2},
        odd={"kind": "reasoning_gym", "family": "n_queens"},
    )
    with pytest.raises(ConfigurationError, match="the family 'n_queens' is refused") as caught:
        step(one)
    assert caught.value.where == "tasks.odd"
