"""``Trainer``: the run of the command line, in a Python program, with callbacks."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.settings_show import to_toml

from student_trainer import Trainer
from student_trainer.evaluation import load_evaluation
from student_trainer.events import (
    CallbackError,
    CheckpointSaved,
    EvaluationEnded,
    Event,
    RolloutsWritten,
    RunEnded,
    RunStarted,
    ScoresArrived,
    StepEnded,
    check_callbacks,
)
from student_trainer.run.directory import read_metrics
from student_trainer.run.signals import Stopped
from student_trainer.settings.train import TrainConfig
from tests.trainer.conftest import settings, write_prompts
from tests.trainer.processes import Server
from tests.trainer.test_run import artefacts, in_directory, losses

MakeConfig = Callable[..., TrainConfig]


class MendedError(Exception):
    """What a callback of these tests raises."""


@pytest.fixture
def config(make_config: MakeConfig, run_server: Server) -> MakeConfig:
    def make(**sections: dict[str, Any]) -> TrainConfig:
        return make_config(teacher={"address": run_server.address}, **sections)

    return make


async def nothing_awaits(event: Event) -> None:
    """A callback that would never run."""


def told(event: Event) -> tuple[Any, ...]:
    step = getattr(event, "when", getattr(event, "step", None))
    return type(event).__name__, step


def test_callbacks_hear_of_everything_in_order_and_change_nothing(
    config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Dropout draws from the generator that the callback draws from too.
    others = write_prompts(tmp_path / "held_out.jsonl", ["How long does it take?", "Name it."])
    every = config(
        student={"lora": {"rank": 2, "dropout": 0.2}},
        pipeline={"staleness": 1},
        checkpoint={"every": 2},
        evaluation={"prompts": 2},
        data={"held_out": str(others)},
    )
    heard: list[tuple[str, Event]] = []
    threads = set()

    def first(event: Event) -> None:
        torch.rand(7)
        threads.add(threading.current_thread())
        heard.append(("first", event))

    run = Trainer(in_directory(every, tmp_path / "heard"), [
        first, lambda event: heard.append(("second", event)),
    ], quiet=True)  # fmt: skip
    result = run.train()
    assert capsys.readouterr().out == ""
    assert [name for name, _ in heard] == ["first", "second"] * (len(heard) // 2)
    assert threads == {threading.current_thread()}
    events = [event for name, event in heard if name == "first"]
    assert [told(event) for event in events] == [
        ("RunStarted", 0),
        ("EvaluationEnded", "before"),
        ("RolloutsWritten", 1), ("RolloutsWritten", 2),
        ("ScoresArrived", 1), ("StepEnded", 1),
        ("RolloutsWritten", 3),
        ("ScoresArrived", 2), ("StepEnded", 2), ("CheckpointSaved", 2),
        ("ScoresArrived", 3), ("StepEnded", 3), ("CheckpointSaved", 3),
        ("EvaluationEnded", "after"),
        ("RunEnded", None),
    ]  # fmt: skip
    check_contents(events, result.path)
    assert events[-1] == RunEnded(result)
    assert result.path == tmp_path / "heard"
    assert result.summary["steps"] == 3

    alone = Trainer(in_directory(every, tmp_path / "alone")).train().path
    assert losses(alone) == losses(result.path)
    assert artefacts(alone, 3) == artefacts(result.path, 3)


def check_contents(events: list[Event], path: Path) -> None:
    lines = read_metrics(path / "metrics.jsonl")
    written: dict[int, Any] = {}
    for event in events:
        match event:
            case RunStarted():
                assert event.path == path
                assert event.config.run.output_dir == path
            case RolloutsWritten():
                written[event.step] = event.rollouts
                assert event.written_after == max(event.step - 2, 0)
            case ScoresArrived():
                assert event.rollouts == written[event.step]
                assert len(event.rollouts) == len(event.scores) == 6
                for rollout, scores in zip(event.rollouts, event.scores, strict=True):
                    assert scores.rows.support is not None
                    assert scores.rows.support.ids.shape == (len(rollout.token_ids), 16)
                tokens = sum(len(rollout.token_ids) for rollout in event.rollouts)
                assert lines[event.step - 1]["tokens"] == tokens
            case StepEnded():
                assert event.metrics == lines[event.step - 1]
            case CheckpointSaved():
                assert event.path == path / "checkpoints" / f"step-{event.step:06d}"
            case EvaluationEnded():
                assert event.path == path / "evaluation" / f"{event.when}.json"
                assert event.evaluation == load_evaluation(event.path)


@pytest.mark.parametrize("at", [RolloutsWritten, ScoresArrived, StepEnded])
def test_a_callback_that_raises_loses_nothing(
    config: MakeConfig, tmp_path: Path, at: type[Event]
) -> None:
    """The run ends with an error that says who raised and at what; the complete steps are
    saved, and the run that goes on is the one that nothing ended."""
    two = config(checkpoint={"every": 50}, optimizer={"updates_per_batch": 2})
    straight = Trainer(in_directory(two, tmp_path / "straight")).train().path
    broken = in_directory(two, tmp_path / "broken")
    after: list[Event] = []

    def fragile(event: Event) -> None:
        after.append(event)
        if isinstance(event, at) and event.step == 2:
            raise MendedError("not today")

    with pytest.raises(CallbackError) as caught:
        Trainer(broken, [fragile]).train()
    error = caught.value
    assert "fragile raised MendedError" in error.what
    assert f"at {at.__name__}: not today" in error.what
    assert error.where == "step 2"
    assert error.reason == "CALLBACK"
    assert isinstance(error.__cause__, MendedError)
    assert told(after[-1]) == (at.__name__, 2)
    complete = 1 if at is RolloutsWritten else 2
    assert [step for step, _ in losses(broken.run.output_dir)] == [*range(1, complete + 1)]
    folders = [path.name for path in (broken.run.output_dir / "checkpoints").iterdir()]
    assert folders == [f"step-{complete:06d}"]

    resumed: list[Event] = []
    Trainer(broken, [resumed.append]).train()
    assert told(resumed[0]) == ("RunStarted", complete)
    assert losses(broken.run.output_dir) == losses(straight)
    assert artefacts(broken.run.output_dir, 3) == artefacts(straight, 3)


def test_a_callback_that_raises_at_the_end_leaves_the_model(
    config: MakeConfig, tmp_path: Path
) -> None:
    class Publish:
        def __call__(self, event: Event) -> None:
            if isinstance(event, RunEnded):
                raise SystemError

    one = config(run={"steps": 1})
    with pytest.raises(CallbackError, match="Publish raised SystemError at RunEnded"):
        Trainer(one, [Publish()]).train()
    assert (one.run.output_dir / "model" / "model.safetensors").is_file()
    assert Trainer(one).train().summary["steps"] == 1


def test_a_callback_that_exits_ends_the_run_with_its_state_saved(config: MakeConfig) -> None:
    settings = config(checkpoint={"every": 50})

    def stop(event: Event) -> None:
        if isinstance(event, StepEnded):
            raise SystemExit(3)

    with pytest.raises(SystemExit) as caught:
        Trainer(settings, [stop]).train()
    assert caught.value.code == 3
    assert (settings.run.output_dir / "checkpoints" / "step-000001").is_dir()


def test_a_signal_lets_callbacks_finish_and_written_batches_are_told_once(
    config: MakeConfig,
) -> None:
    stale = config(checkpoint={"every": 50}, pipeline={"staleness": 1})
    heard: list[tuple[Any, ...]] = []

    def end(event: Event) -> None:
        if isinstance(event, StepEnded):
            os.kill(os.getpid(), signal.SIGTERM)
        heard.append(told(event))

    with pytest.raises(Stopped):
        Trainer(stale, [end]).train()
    first = [("RolloutsWritten", 1), ("RolloutsWritten", 2), ("ScoresArrived", 1), ("StepEnded", 1)]
    assert heard == [("RunStarted", 0), *first]
    assert (stale.run.output_dir / "checkpoints" / "step-000001").is_dir()
    resumed: list[Event] = []
    Trainer(stale, [resumed.append]).train()
    assert [told(event) for event in resumed[:3]] == [
        ("RunStarted", 1), ("RolloutsWritten", 3), ("ScoresArrived", 2),
    ]  # fmt: skip


def test_callbacks_of_an_iterator_are_kept() -> None:
    heard: list[Event] = []
    (kept,) = check_callbacks(iter([heard.append]))
    kept(StepEnded(1, {}))
    assert heard == [StepEnded(1, {})]


def test_settings_come_as_an_object_as_values_or_as_a_file(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config()
    file = tmp_path / "run.toml"
    file.write_text(to_toml(made))
    monkeypatch.setenv("LSM_TRAINER__ROLLOUT__TOP_P", "0.7")
    changed = made.rollout.model_copy(update={"top_p": 0.7})
    expected = made.model_copy(update={"rollout": changed})
    assert Trainer(made).config == made
    assert Trainer(file).config == Trainer(str(file)).config == expected
    values = made.model_dump(mode="json", exclude_none=True)
    assert Trainer(values).config == expected
    assert Trainer("recipe:laptop-cpu").config.rollout.top_p == 0.7


@pytest.mark.parametrize(
    ("given", "callbacks", "where", "what"),
    [
        ({"rollout": {"top_q": 0.5}}, [], "rollout.top_q (the given values)", "not a setting"),
        ({"rollout": {"top_p": 2}}, [], "", "rollout.top_p = 2 (the given values)"),
        ({"teacher": {"token": "x"}}, [], "teacher.token", "secret"),
        (7, [], "config", "a int is no configuration"),
        ({}, print, "callbacks", "builtins.print is no list"),
        ({}, [print, "loud"], "callbacks[1]", "a str cannot be called"),
        ({}, None, "callbacks", "a NoneType is no list"),
        ({}, [print, nothing_awaits], "callbacks[1]", "nothing_awaits is a coroutine"),
        ({"loss": {"kind": "lsm", "mask": {7: 1}}}, [], "loss.mask", "the key 7 is a int"),
    ],
)
def test_what_cannot_be_a_run_is_refused_when_it_is_made(
    student_model_dir: Path, tmp_path: Path, given: Any, callbacks: Any, where: str, what: str
) -> None:
    values = settings(student_model_dir, tmp_path, **given) if isinstance(given, dict) else given
    with pytest.raises(ConfigurationError) as caught:
        Trainer(values, callbacks)
    assert caught.value.where == where
    assert what in caught.value.what
    assert not (tmp_path / "run").exists()


def test_rollouts_are_those_that_the_step_learns_from(config: MakeConfig) -> None:
    """The log-probabilities of an event's rollouts, from the model that wrote them."""
    found: list[np.ndarray] = []

    def keep(event: Event) -> None:
        if isinstance(event, RolloutsWritten):
            found.extend(rollout.log_probs for rollout in event.rollouts)

    run = Trainer(config(run={"steps": 1}), [keep]).train().path
    (line,) = read_metrics(run / "metrics.jsonl")
    lengths = [len(array) for array in found]
    assert line["tokens"] == sum(lengths)
    assert line["response_length_mean"] == pytest.approx(np.mean(lengths))


def test_every_event_is_in_the_documents() -> None:
    page = (Path(__file__).parents[2] / "docs" / "python_api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page.partition("## Events")[2], re.MULTILINE)
    assert set(rows) == {kind.__name__ for kind in get_args(Event)}
