"""What a run shows while it goes on: its held-out curve, the responses that it keeps, its lines."""

from __future__ import annotations

import errno
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from teacher_proto.errors import ConfigurationError, LsmError
from teacher_proto.program.entrypoint import run_program
from teacher_proto.program.settings_show import to_toml
from teacher_proto.rows import Rows

from student_trainer import Trainer, cli
from student_trainer.evaluate_run import RunEvaluation
from student_trainer.evaluation.course.points import read_points
from student_trainer.events import (
    CheckpointSaved,
    EvaluationEnded,
    Event,
    RolloutsWritten,
    ScoresArrived,
    StepEnded,
)
from student_trainer.report.table import findings_text
from student_trainer.report.verdict import run_findings
from student_trainer.run.directory import read_metrics
from student_trainer.run.progress import CLEAR, loading
from student_trainer.run.retention import listing
from student_trainer.settings.train import TrainConfig
from student_trainer.watch import keeper
from student_trainer.watch.files import load
from student_trainer.watch.kept import teacher_log_probs
from student_trainer.watch.row_losses import means_by_position
from tests.trainer.conftest import settings, write_prompts
from tests.trainer.processes import Server
from tests.trainer.test_run import artefacts, in_directory, losses

MakeConfig = Callable[..., TrainConfig]
HELD_OUT = {"prompts": 3, "max_new_tokens": 12, "every": 2}
FRESH = "held_out/fresh_reverse_kl"


@pytest.fixture
def config(make_config: MakeConfig, run_server: Server, tmp_path: Path) -> MakeConfig:
    others = write_prompts(tmp_path / "held_out.jsonl", ["How long?", "Name it.", "Why so?"])

    def make(**sections: dict[str, Any]) -> TrainConfig:
        sections["evaluation"] = {**HELD_OUT, **sections.get("evaluation", {})}
        sections["run"] = {"steps": 5, **sections.get("run", {})}
        data = {"held_out": str(others)}
        return make_config(teacher={"address": run_server.address}, data=data, **sections)

    return make


class Killed(Exception):
    """What ends a run at a place that a test chooses."""


def told(events: list[Event]) -> list[tuple[Any, ...]]:
    kept = (StepEnded, EvaluationEnded, CheckpointSaved)
    return [
        (type(event).__name__, getattr(event, "when", None), event.step)
        for event in events
        if isinstance(event, kept)
    ]


def test_the_curve_is_in_order_and_a_resumed_run_goes_on_with_it(
    config: MakeConfig, tmp_path: Path
) -> None:
    """Dropout draws from the generator that an evaluation must leave alone."""
    lora = {"lora": {"rank": 2, "dropout": 0.2, "merge_final": False}}
    every = config(student=lora, checkpoint={"every": 3, "best": FRESH, "keep": 1})
    events: list[Event] = []
    straight = Trainer(in_directory(every, tmp_path / "straight"), [events.append], quiet=True)
    result = straight.train()
    curve = [(point.step, point.value("fresh_reverse_kl")) for point in read_points(
        result.path / "evaluation"
    )]  # fmt: skip
    assert [step for step, _ in curve] == [0, 2, 4, 5]
    # A step that is evaluated is saved where it is the best so far, and others as they are due.
    # The untrained student has no checkpoint, so it is not compared with.
    best = {s for s, value in curve[1:] if value <= min(v for t, v in curve[1:] if t <= s)}
    expected: list[tuple[Any, ...]] = [("EvaluationEnded", "before", 0)]
    for step in range(1, 6):
        expected.append(("StepEnded", None, step))
        if step in (3, 5):
            expected.append(("CheckpointSaved", None, step))
        if step in (2, 4, 5):
            expected.append(("EvaluationEnded", "during", step))
        if step in best | {5}:  # that of 5 again, with its value
            expected.append(("CheckpointSaved", None, step))
    assert told(events) == [*expected, ("EvaluationEnded", "after", 5)]
    after = json.loads((result.path / "evaluation" / "after.json").read_text())
    assert after == json.loads((result.path / "evaluation" / "step-000005.json").read_text())

    alone = config(student=lora, checkpoint={"every": 3}, evaluation={"every": 0})
    path = Trainer(in_directory(alone, tmp_path / "alone"), quiet=True).train().path
    assert losses(path) == losses(result.path)
    assert artefacts(path, 5) == artefacts(result.path, 5), "an evaluation draws nothing"

    broken = in_directory(every, tmp_path / "broken")

    def end(event: Event) -> None:
        if isinstance(event, EvaluationEnded) and event.step == 4:
            raise Killed

    with pytest.raises(Exception, match="Killed"):
        Trainer(broken, [end], quiet=True).train()
    again = Trainer(broken, quiet=True).train().path
    assert losses(again) == losses(result.path)
    assert artefacts(again, 5) == artefacts(result.path, 5)
    assert curve == [
        (point.step, point.value("fresh_reverse_kl")) for point in read_points(again / "evaluation")
    ]


def test_an_evaluation_that_a_run_could_not_make_is_made_when_it_resumes(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(run={"steps": 3}, checkpoint={"best": FRESH})
    real = RunEvaluation.during

    def fails(self: RunEvaluation, step: int) -> Any:
        raise Killed

    monkeypatch.setattr(RunEvaluation, "during", fails)
    with pytest.raises(Killed):
        Trainer(made, quiet=True).train()
    monkeypatch.setattr(RunEvaluation, "during", real)
    events: list[Event] = []
    path = Trainer(made, [events.append], quiet=True).train().path
    assert told(events)[0] == ("EvaluationEnded", "during", 2)
    assert [point.step for point in read_points(path / "evaluation")] == [0, 2, 3]
    states = [json.loads((c / "state.json").read_text()) for c in listing(path / "checkpoints")]
    values = {p.step: p.value("fresh_reverse_kl") for p in read_points(path / "evaluation")}
    assert all(state["score"] == values[state["step"]] for state in states)


@pytest.mark.parametrize(
    "sections",
    [{}, {"pipeline": {"staleness": 1}, "optimizer": {"lr": 0.3, "updates_per_batch": 2}}],
)
def test_a_run_without_patience_ends_early_and_stays_ended(
    config: MakeConfig, caplog: pytest.LogCaptureFixture, sections: dict[str, Any]
) -> None:
    """A rate at which the student only gets worse."""
    made = config(
        **{
            "run": {"steps": 9},
            "evaluation": {"every": 1, "patience": 2},
            "optimizer": {"lr": 0.3},
            "checkpoint": {"best": FRESH, "every": 100, "keep": 1},
            **sections,
        }
    )
    caplog.set_level("INFO", "student_trainer")
    events: list[Event] = []
    path = Trainer(made, [events.append], quiet=True).train().path
    points = read_points(path / "evaluation")
    values = [point.value("fresh_reverse_kl") or 0.0 for point in points]
    steps = len(points) - 1
    assert steps < 9
    assert min(values) == values[-3], "two evaluations without a better one"
    assert f"has not been better for 2 evaluations: the run ends after step {steps}" in caplog.text
    assert len(read_metrics(path / "metrics.jsonl")) == steps
    saved = [event.step for event in events if isinstance(event, CheckpointSaved)]
    assert saved[-1] == steps
    assert saved[0] == 1, "the best after a step, though the untrained student is better"
    model = (path / "model" / "model.safetensors").read_bytes()
    events.clear()
    again = Trainer(made, [events.append], quiet=True).train()
    assert again.summary["steps"] == steps
    assert not [event for event in events if isinstance(event, StepEnded | CheckpointSaved)]
    assert (path / "model" / "model.safetensors").read_bytes() == model


def test_a_checkpoint_that_is_due_is_there_before_the_evaluation(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(run={"steps": 2}, checkpoint={"every": 2})

    def at_once(self: RunEvaluation, step: int) -> Any:
        steps = [path.name for path in listing(made.run.output_dir / "checkpoints")]
        raise Killed(steps)

    monkeypatch.setattr(RunEvaluation, "during", at_once)
    with pytest.raises(Killed, match="step-000002"):
        Trainer(made, quiet=True).train()


def test_a_disk_without_space_for_kept_responses_loses_no_step(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(
        run={"steps": 3}, evaluation={"prompts": 0, "every": 0}, report={"rollouts_every": 2}
    )
    straight = Trainer(in_directory(made, tmp_path / "straight"), quiet=True).train().path
    real = keeper.save

    def full(path: Path, records: Any) -> None:
        raise OSError(errno.ENOSPC, "no space", str(path))

    monkeypatch.setattr(keeper, "save", full)
    with pytest.raises(LsmError, match=r"cannot write .*step-000002\.jsonl"):
        Trainer(made, quiet=True).train()
    run = made.run.output_dir
    assert [path.name for path in listing(run / "checkpoints")] == ["step-000002"]
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2]
    monkeypatch.setattr(keeper, "save", real)
    Trainer(made, quiet=True).train()
    assert losses(run) == losses(straight)
    assert artefacts(run, 3) == artefacts(straight, 3)


def test_settings_that_cannot_be_judged_are_refused(config: MakeConfig) -> None:
    with pytest.raises(ValidationError, match=r"set evaluation\.every above 0"):
        config(evaluation={"every": 0}, checkpoint={"best": FRESH})
    with pytest.raises(ValidationError, match=r"say which, with checkpoint\.best"):
        config(evaluation={"patience": 2}, checkpoint={"best": "loss"})
    with pytest.raises(ConfigurationError, match="no held-out prompts to evaluate on"):
        Trainer(config(evaluation={"prompts": 0}), quiet=True).train()
    wrong = config(checkpoint={"best": "held_out/lost"})
    for _ in range(2):  # the second time from the file
        with pytest.raises(ConfigurationError, match=r"measures no .lost.(.|\n)*held_out/fresh"):
            Trainer(wrong, quiet=True).train()


def test_the_responses_that_are_kept_say_what_both_sides_say(
    config: MakeConfig, tmp_path: Path
) -> None:
    made = config(
        run={"steps": 3},
        evaluation={"prompts": 0, "every": 0},
        report={"rollouts_every": 2, "rollouts": 4},
        optimizer={"updates_per_batch": 2},
        loss={"kind": "lsm", "top_k": 16},
    )
    scored: dict[int, ScoresArrived] = {}
    written: dict[int, int] = {}

    def listen(event: Event) -> None:
        if isinstance(event, ScoresArrived):
            scored[event.step] = event
        if isinstance(event, RolloutsWritten):
            written[event.step] = event.written_after

    path = Trainer(made, [listen], quiet=True).train().path
    assert sorted(p.name for p in (path / "rollouts").iterdir()) == [
        "step-000002.jsonl.gz", "step-000003.jsonl.gz",
    ]  # fmt: skip
    records = load(path / "rollouts" / "step-000002.jsonl.gz")
    assert len(records) == 4
    means = [record["loss"] for record in records]
    assert means == sorted(means, reverse=True)
    event = scored[2]
    for record in records:
        rollout = event.rollouts[record["place"]]
        support = event.scores[record["place"]].rows.support
        assert support is not None
        assert record["ids"] == rollout.token_ids.tolist()
        assert record["student_log_probs"] == pytest.approx(rollout.log_probs, abs=1e-5)
        assert (record["step"], record["written_after"]) == (2, written[2])
        sampled = event.scores[record["place"]].rows.sampled
        assert sampled is not None
        assert record["teacher_log_probs"] == pytest.approx(sampled.values, abs=1e-5)
        unasked = replace(event.scores[record["place"]], rows=Rows(support=support))
        here = (support.ids == rollout.token_ids[:, None]) & support.valid
        found = teacher_log_probs(rollout, unasked)
        assert np.isfinite(found).tolist() == here.any(-1).tolist()
        assert found[here.any(-1)] == pytest.approx(sampled.values[here.any(-1)], abs=1e-5)
        assert [row[0] for row in record["top_ids"]] == support.ids[:, 0].tolist()
        assert all(len(record[name]) == len(record["ids"]) for name in (
            "texts", "losses", "support_mass", "top_log_probs", "top_texts",
        ))  # fmt: skip
        known = [value for value in record["losses"] if value is not None]
        assert record["loss"] == pytest.approx(np.mean(known), abs=1e-4)
        assert record["losses"][record["worst"][0]] == max(known)
    # The step's loss is the mean over all rows of all responses.
    lines = read_metrics(path / "metrics.jsonl")
    everything = config(
        run={"steps": 3, "output_dir": str(tmp_path / "all")},
        evaluation={"prompts": 0, "every": 0},
        report={"rollouts_every": 2, "rollouts": 100},
    )
    Trainer(everything, quiet=True).train()
    line = read_metrics(tmp_path / "all" / "metrics.jsonl")[1]
    of_rows = [
        value
        for record in load(tmp_path / "all" / "rollouts" / "step-000002.jsonl.gz")
        for value in record["losses"]
        if value is not None
    ]
    assert len(of_rows) == line["tokens_used"]
    assert np.mean(of_rows) == pytest.approx(line["loss"], abs=1e-4)
    assert all(len(line["loss_by_position"]) == 6 for line in lines), "20 tokens at most"


def test_positions_are_in_bins_that_double() -> None:
    losses = [np.array([1, 2, 3, 5, np.nan], np.float32), np.array([3], np.float32)]
    assert means_by_position(losses) == [2.0, 2.0, 4.0]
    assert means_by_position([np.full(3, np.nan, np.float32)]) == []


def test_a_run_off_a_terminal_prints_short_lines_and_a_closing(
    run_server: Server,
    student_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_prompts(tmp_path / "prompts.jsonl")
    held_out = write_prompts(tmp_path / "held_out.jsonl", ["What is 1?", "What is 2?"])
    values = settings(
        student_model_dir,
        tmp_path,
        run={"steps": 2},
        teacher={"address": run_server.address},
        data={"held_out": str(held_out)},
        evaluation={"prompts": 2, "frozen_rows": 0, "max_new_tokens": 8},
        rollout={"max_new_tokens": 2},
    )
    (tmp_path / "run.toml").write_text(to_toml(TrainConfig.model_validate(values)))
    assert run_program(cli.run, ["train", str(tmp_path / "run.toml")]) == 0
    first, second, *rest = capsys.readouterr().out.splitlines()
    form = r"step {}/2  loss \d\.\d{{4}}  length \d+  cut \d+%  \d+ tokens/s"
    assert re.fullmatch(form.format(1), first)
    assert re.fullmatch(form.format(2), second)
    closing = "\n".join(rest)
    assert "2 held-out prompts, 0 frozen positions" in closing
    assert "Reverse KL, fresh answers" in closing
    assert findings_text(run_findings(tmp_path / "run")).plain in closing
    assert f"{tmp_path / 'run' / 'model'}  the trained student" in closing


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_what_is_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    out, file = Terminal(), io.StringIO()
    for stream in (out, file):
        with loading(stream=stream) as begins:
            begins("student")
    assert out.getvalue() == f"{CLEAR}student …\r{CLEAR}"
    assert file.getvalue() == ""
