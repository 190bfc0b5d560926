"""Several teachers of one run: which one scores a row, and what its loss counts for, judged by a
float64 computation over full logits; and whole runs over real services."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import threading
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from teacher_proto.errors import (
    ConfigurationError,
    ContractMismatchError,
    TeacherUnavailableError,
)
from teacher_proto.program.settings_show import to_toml
from teacher_proto.rows import required
from teacher_proto.types import ContinuationScores, ScoreReply, ScoreRequest
from transformers import AutoModelForCausalLM

from student_trainer.commands.doctor import run_checks
from student_trainer.commands.dry_run import compare_tokenizers, look
from student_trainer.commands.estimate import estimated_memory
from student_trainer.commands.shared import resolve
from student_trainer.data import load_prompts
from student_trainer.diagnostics.responses import responses_of
from student_trainer.events import Event, StepEnded
from student_trainer.loop import TrainingLoop
from student_trainer.pipeline import Pipeline
from student_trainer.report.held_out import held_out_metrics
from student_trainer.rollout.base import Rollout
from student_trainer.rollout.engine import make_engine
from student_trainer.rollout.generate import generate
from student_trainer.run.checkpoint import load_state
from student_trainer.run.directory import read_metrics
from student_trainer.run.pending_batches import PendingBatch, _prompts
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student, load_student
from student_trainer.teacher.teachers import Teachers
from student_trainer.train import Trainer, train
from student_trainer.update.metrics import UpdateTotals, step_metrics
from student_trainer.update.updater import Updater
from tests.support.replies import make_reply
from tests.support.scripted_teacher import serving_in_thread
from tests.trainer.coarse_case import told
from tests.trainer.conftest import PROMPTS
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.processes import Server, serve
from tests.trainer.test_pipeline import of_scripted_teacher
from tests.trainer.test_run import artefacts, in_directory, resumed_exactly
from tests.trainer.test_update import assert_close
from tools.reference.trainer_metrics import METRICS

MakeConfig = Callable[..., TrainConfig]
A, B = "alpha", "beta"
TWO = {A: {"address": "a:1"}, B: {"address": "b:1"}}


def write_rows(path: Path, names: Sequence[Any], **columns: Any) -> Path:
    """The prompts, each with the name of its teacher."""
    rows = [
        {"prompt": text, "teacher": names[n % len(names)], **columns}
        for n, text in enumerate(PROMPTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def several(make_config: MakeConfig, tmp_path: Path) -> MakeConfig:
    """A configuration whose rows name two teachers in turn."""
    write_rows(tmp_path / "named.jsonl", [A, B])

    def make(teachers: Any = TWO, **sections: Any) -> TrainConfig:
        data = {
            "train": str(tmp_path / "named.jsonl"),
            "columns": {"teacher": "teacher"},
            **sections.pop("data", {}),
        }
        return make_config(teachers=teachers, data=data, **sections)

    return make


# Settings.

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"teachers": TWO, "teacher": {"name": "x"}}, "teacher and teachers exclude each other"),
    ({"teachers": {}}, "teachers is empty"),
    ({"teachers": {"A": {}}}, r"teachers\.A: a teacher's name is lower-case"),
    ({"teachers": {"a__b": {}}}, r"teachers\.a__b: a teacher's name"),
    ({"teachers": {"secret": {}}}, "would hide the teacher's settings"),
    ({"teachers": {A: {}, B: {}}}, r"teachers\.alpha and teachers\.beta are one teacher"),
    ({"teachers": TWO, "data": {"columns": {}}}, r"need a column .* \(data\.columns\.teacher\)"),
    ({"teachers": TWO, "data": {"teacher": "gamma"}}, "'gamma', which is none of the teachers"),
    ({"teachers": {A: {"top_k": 1}}}, r"teachers\.alpha\.top_k = 1: top_k must be at least 2"),
    ({"teachers": {A: {"weight": 0}}}, "greater than 0"),
    (
        {"teachers": {A: {"top_k": 4}}, "loss": {"support": "student"}},
        "asks for none of the teacher's own ids",
    ),
]


@pytest.mark.parametrize(("sections", "said"), REFUSED)
def test_settings_that_cannot_be_meant_are_refused(
    several: MakeConfig, sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        several(**sections)


@pytest.mark.parametrize("data", [{"teacher": A}, {"columns": {"teacher": "teacher"}}])
def test_one_teacher_is_not_chosen(make_config: MakeConfig, data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"there are no \[teachers\.NAME\]"):
        make_config(data=data)


def test_a_run_without_a_teacher_is_refused(make_config: MakeConfig) -> None:
    values = make_config().model_dump(mode="json")
    with pytest.raises(ValidationError, match="there is no teacher"):
        TrainConfig.model_validate({**values, "teacher": None})


def test_settings_of_several_teachers_are_written_and_read_again(several: MakeConfig) -> None:
    config = several({A: {"weight": 0.5, "address": "a:1"}, B: {"top_k": 4}})
    text = to_toml(config)
    assert "[teacher]" not in text
    assert TrainConfig.model_validate(tomllib.loads(text)) == config


def test_several_teachers_beside_the_only_one_of_a_recipe_are_refused(
    several: MakeConfig, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(to_toml(several()))
    arguments = argparse.Namespace(configs=["recipe:paper-math", str(file)], overrides=[])
    with pytest.raises(ConfigurationError, match="teacher and teachers exclude") as caught:
        resolve(arguments)
    assert "paper-math" in caught.value.where
    assert "leave [teacher] out" in caught.value.fix
    assert "student-trainer recipes NAME" in caught.value.fix


def test_a_teachers_token_is_given_in_the_environment_or_a_file(
    several: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(to_toml(several()))
    arguments = argparse.Namespace(configs=[str(file)], overrides=[])
    monkeypatch.setenv("LSM_TRAINER__TEACHERS__BETA__TOKEN", "sesame" * 8)
    read = resolve(arguments).settings.teachers or {}
    assert read[A].token is None
    assert read[B].token is not None
    assert read[B].token.get_secret_value() == "sesame" * 8
    arguments.overrides = ["teachers.alpha.token=sesame"]
    with pytest.raises(ConfigurationError, match="where others may read it") as caught:
        resolve(arguments)
    assert caught.value.where == "teachers.alpha.token"
    assert "teachers.alpha.token_file" in caught.value.fix


# Data.


def prompts_of(config: TrainConfig, student: Student) -> Any:
    names = list(config.named_teachers)
    return load_prompts(config.data, student.tokenizer, teachers=names)


def test_a_row_is_scored_by_the_teacher_that_it_names_or_the_default(
    several: MakeConfig, student: Student, tmp_path: Path
) -> None:
    write_rows(tmp_path / "named.jsonl", [A, None, B])
    found = prompts_of(several(data={"teacher": B}), student)
    assert [prompt.teacher for prompt in found.train] == [A, B, B] * 2
    assert found.first(5, A).teacher == A
    write_rows(tmp_path / "named.jsonl", [None])
    alone = several({A: {}}, data={"columns": {}})
    assert {prompt.teacher for prompt in prompts_of(alone, student).train} == {A}


def test_names_that_no_teacher_has_are_told_with_their_rows(
    several: MakeConfig, student: Student, tmp_path: Path
) -> None:
    write_rows(tmp_path / "named.jsonl", [A, "gama", None])
    with pytest.raises(ConfigurationError) as caught:
        prompts_of(several(), student)
    error = caught.value
    place = tmp_path / "named.jsonl"
    assert f"2 rows name 'gama' ({place}, line 2, {place}, line 5)" in error.what
    assert f"2 rows name no teacher ({place}, line 3, {place}, line 6)" in error.what
    assert "the teachers are alpha, beta" in error.what
    assert error.where == "data.train"
    assert "data.teacher" in error.fix
    write_rows(tmp_path / "named.jsonl", ["x" * 9])
    with pytest.raises(ConfigurationError, match=r"line 5, \.\.\.\)"):
        prompts_of(several(), student)
    write_rows(tmp_path / "named.jsonl", [7])
    with pytest.raises(ConfigurationError, match="holds 7, and a teacher's name is a text"):
        prompts_of(several(), student)
    write_rows(tmp_path / "named.jsonl", [A, B])
    held_out = write_rows(tmp_path / "held.jsonl", [A, "gama"])
    with pytest.raises(ConfigurationError, match="3 rows name 'gama'") as caught:
        prompts_of(several(data={"held_out": str(held_out)}), student)
    assert caught.value.where == "data.held_out"


def test_a_teacher_that_no_row_names_is_refused(
    several: MakeConfig, student: Student, tmp_path: Path
) -> None:
    write_rows(tmp_path / "named.jsonl", [A])
    with pytest.raises(ConfigurationError, match="no train prompt names teacher beta") as caught:
        prompts_of(several(), student)
    assert caught.value.where == "teachers.beta"


def test_which_teacher_scores_a_row_is_part_of_what_a_run_reads(
    several: MakeConfig, make_config: MakeConfig, student: Student, tmp_path: Path
) -> None:
    one = load_prompts(make_config().data, student.tokenizer)
    assert "teachers=" not in one.digest, "as before there were several"
    first = prompts_of(several(), student).digest
    write_rows(tmp_path / "named.jsonl", [B, A])
    second = prompts_of(several(), student).digest
    assert first != second
    assert first.partition(",teachers=")[0] == second.partition(",teachers=")[0]


def test_a_dry_run_checks_the_names_without_a_service(several: MakeConfig, tmp_path: Path) -> None:
    seconds = {"connect_timeout_seconds": 0.3}
    nobody = {A: {"address": "127.0.0.1:1", **seconds}, B: {"address": "127.0.0.1:2", **seconds}}
    config = several(nobody)
    assert "6 prompts to train on" in dict(look(config))["data"]
    told = compare_tokenizers(config)
    assert told.startswith("alpha: not compared (no ")
    assert "; beta: not compared (no " in told
    write_rows(tmp_path / "named.jsonl", [A, B, "gamma"])
    with pytest.raises(ConfigurationError, match="2 rows name 'gamma'"):
        dict(look(config))


# The loss.

KA, KB = 16, 5


class Mixed:
    """Rollouts of prompts that two teachers of one tokenizer score, with a K each."""

    def __init__(self, config: TrainConfig, a: LocalTeacher, b: LocalTeacher) -> None:
        torch.manual_seed(0)
        self.config = config
        self.student = load_student(config.student)
        self.updater = Updater(self.student, config)
        prompts = prompts_of(config, self.student).train
        self.rollouts = generate(self.student, prompts, config.rollout, seed=0, step=1)
        self.scores = [
            (a.score([r], KA) if r.prompt.teacher == A else b.score([r], KB))[0]
            for r in self.rollouts
        ]

    def gradients(self) -> tuple[UpdateTotals, dict[str, torch.Tensor]]:
        figures = UpdateTotals.of_teachers(self.config.named_teachers)
        self.updater.gradients(self.rollouts, self.scores.__getitem__, figures, 1)
        masters = self.updater.optimizer.masters
        return figures, {n: m.grad.clone() for n, m in masters.items() if m.grad is not None}


def row_losses(model: Any, rollout: Rollout, score: ContinuationScores) -> torch.Tensor:
    """float64 [n] with gradient: LSM by its definition over full logits."""
    ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
    rows = model(torch.from_numpy(ids)[None]).logits[0][len(rollout.prompt.token_ids) - 1 : -1]
    assert score.rows.support is not None
    p = rows.gather(-1, torch.from_numpy(score.rows.support.ids.astype(np.int64))).log_softmax(-1)
    q = torch.from_numpy(score.rows.support.log_probs).double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def expected(
    case: Mixed, folder: Path, mean: str, balance: str, weights: dict[str, float]
) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    """The loss, its gradient and each teacher's own loss, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    parts: dict[str, list[torch.Tensor]] = {A: [], B: []}
    for rollout, score in zip(case.rollouts, case.scores, strict=True):
        losses = row_losses(model, rollout, score)
        parts[rollout.prompt.teacher].append(losses if mean == "token" else losses.mean()[None])
    joined = {name: torch.cat(found) for name, found in parts.items()}
    if balance == "rows":
        count = sum(len(found) for found in joined.values())
        loss = sum(weights[name] * found.sum() for name, found in joined.items()) / count
    else:
        loss = sum(weights[name] * found.mean() for name, found in joined.items()) / 2
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    own = {name: float(found.detach().mean()) for name, found in joined.items()}
    return float(loss.detach()), gradients, own


@pytest.mark.parametrize("balance", ["rows", "teachers"])
@pytest.mark.parametrize("mean", ["token", "sequence"])
@pytest.mark.parametrize("budget", [84, 4000])
def test_the_loss_of_two_teachers_is_that_of_its_definition(
    several: MakeConfig,
    teacher: LocalTeacher,
    student_model_dir: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
    mean: str,
    balance: str,
    budget: int,
) -> None:
    """In micro-batches of both teachers' rows, of which the second has rather fewer."""
    write_rows(tmp_path / "named.jsonl", [A, A, B])
    weights = {A: 0.25, B: 3.0}
    config = several(
        {
            name: {**TWO[name], "weight": weights[name], "top_k": k}
            for name, k in ((A, KA), (B, KB))
        },
        loss={"mean": mean, "balance": balance},
        optimizer={"micro_batch_tokens": budget},
    )
    other = LocalTeacher(tiny_model_dir)
    with torch.no_grad():
        other.model.lm_head.weight.mul_(0.5)
    case = Mixed(config, teacher, other)
    figures, gradients = case.gradients()
    loss, reference, own = expected(case, student_model_dir, mean, balance, weights)
    assert figures.losses == [pytest.approx(loss, abs=1e-6)]
    assert_close(gradients, {n: g.float() for n, g in reference.items()})
    line = step_metrics(figures, responses_of(case.rollouts))
    for name in (A, B):
        assert line[f"loss/{name}"] == pytest.approx(own[name], abs=1e-6)
        its = [r for r in case.rollouts if r.prompt.teacher == name]
        assert line[f"tokens/{name}"] == sum(len(r.token_ids) for r in its)
    assert line["tokens"] == line[f"tokens/{A}"] + line[f"tokens/{B}"]
    assert line["tokens_used"] == line["tokens"]
    inside = [figures.by_teacher[name].means.mean("sampled_in_support") or 0 for name in (A, B)]
    every = sum(share * figures.by_teacher[n].used for share, n in zip(inside, (A, B), strict=True))
    assert line["sampled_in_support"] == pytest.approx(every / figures.whole().used)
    assert abs(loss - sum(own.values()) / 2) > 1e-3, "weights and balance make a difference"


def test_rows_of_several_teachers_have_the_losses_that_they_have_alone(
    several: MakeConfig, teacher: LocalTeacher
) -> None:
    """One of the teachers has another tokenizer: some of its rows are masked, some coarse."""
    config = several(
        {A: {**TWO[A], "top_k": KB}, B: {**TWO[B]}},
        loss={"top_k": KA},
        optimizer={"micro_batch_tokens": 4000},
    )
    mixed = Mixed(config, teacher, teacher)
    for place, rollout in enumerate(mixed.rollouts):
        if rollout.prompt.teacher == B:
            mixed.scores[place] = told(teacher, rollout)
        else:
            mixed.scores[place] = teacher.score([rollout], KB)[0]
    mixed.updater = Updater(mixed.student, config, realigned={B})
    figures, together = mixed.gradients()
    assert figures.by_teacher[B].coarse > 0
    assert figures.by_teacher[B].unusable > 0
    assert figures.by_teacher[A].coarse == figures.by_teacher[A].unusable == 0
    total, count = 0.0, 0
    added: dict[str, torch.Tensor] = {}
    for name in (A, B):
        alone = several({name: {**TWO[name], "top_k": KB if name == A else None}},
                        data={"columns": {}}, loss={"top_k": KA},
                        optimizer={"micro_batch_tokens": 4000})  # fmt: skip
        places = [p for p, r in enumerate(mixed.rollouts) if r.prompt.teacher == name]
        updater = Updater(mixed.student, alone, realigned={B} & {name})
        of_it = UpdateTotals()
        rollouts, scores = ([of[p] for p in places] for of in (mixed.rollouts, mixed.scores))
        updater.gradients(rollouts, scores.__getitem__, of_it, 1)
        assert of_it.losses == [pytest.approx(figures.by_teacher[name].losses[0], abs=1e-6)]
        assert of_it.used == figures.by_teacher[name].used
        assert of_it.coarse == figures.by_teacher[name].coarse
        total, count = total + of_it.losses[0] * of_it.used, count + of_it.used
        for key, master in updater.optimizer.masters.items():
            assert master.grad is not None
            added[key] = added.get(key, 0) + master.grad * of_it.used
    assert figures.losses == [pytest.approx(total / count, abs=1e-6)]
    assert_close(together, {key: gradient / count for key, gradient in added.items()})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_of_gradients_that_are_set_aside_is_estimated(
    several: MakeConfig, dtype: str
) -> None:
    sizes = []
    for balance in ("rows", "teachers"):
        config = several(loss={"balance": balance}, student={"dtype": dtype})
        student = load_student(config.student)
        sizes.append(estimated_memory(config, student).optimizer)
    optimizer = Updater(student, config).optimizer
    optimizer.set_aside(0.5)
    assert optimizer._aside is not None
    held = sum(kept.numel() * kept.element_size() for kept in optimizer._aside)
    assert sizes[1] - sizes[0] == held
    optimizer.take_back()
    assert optimizer._aside is None


# Whole runs.


@pytest.fixture
def three(
    several: MakeConfig, run_server: Server, student_model_dir: Path, tmp_path: Path
) -> MakeConfig:
    """A run with three teachers, one of them across tokenizers."""
    write_rows(tmp_path / "named.jsonl", ["one", "two", "across"])
    write_rows(tmp_path / "held.jsonl", ["one", "across", "two"])
    rows = [json.loads(line) for line in (tmp_path / "held.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**row, "prompt": f"{row['prompt']} so"}) + "\n" for row in rows)
    (tmp_path / "held.jsonl").write_text(text)

    def make(**sections: Any) -> TrainConfig:
        served = {"one": "default", "two": "twin", "across": "other"}
        teachers = {n: {"address": run_server.address, "name": s} for n, s in served.items()}
        teachers["two"] |= {"top_k": 5, "weight": 2.0}
        return several(
            teachers,
            run={"steps": 3, **sections.pop("run", {})},
            checkpoint={"every": 1},
            pipeline={"staleness": 1},
            **sections,
        )

    return make


@pytest.mark.parametrize("balance", ["rows", "teachers"])
def test_a_run_with_three_teachers_resumes_to_the_byte(
    three: MakeConfig, tmp_path: Path, balance: str
) -> None:
    straight = resumed_exactly(three(loss={"balance": balance}), tmp_path)
    state = load_state(straight / "checkpoints" / "step-000003")
    assert list(state.teachers) == ["one", "two", "across"]
    assert len({identity.digest for identity in state.teachers.values()}) == 3
    for line in read_metrics(straight / "metrics.jsonl"):
        names = [name for name in state.teachers if line.get(f"loss/{name}") is not None]
        assert names, "some of a step's three prompts are learnt from"
        for name, identity in state.teachers.items():
            assert line[f"teacher_identity/{name}"] == identity.digest
            asked = line[f"tokens/{name}"] > 0
            assert (line[f"teacher_wait_seconds/{name}"] > 0) == asked
        assert "realign_coverage/one" not in line
        assert {key.partition("/")[0] for key in line} <= {key.name for key in METRICS}
        if line["tokens/across"]:
            assert line["realign_coverage/across"] is not None


def test_a_run_with_three_teachers_is_evaluated_and_told_by_teacher(
    three: MakeConfig, tmp_path: Path
) -> None:
    config = three(
        data={"held_out": str(tmp_path / "held.jsonl")},
        evaluation={"prompts": 6, "frozen_rows": 256, "max_new_tokens": 32, "top_k": 48},
        optimizer={"lr": 3e-3},
        report={"html": True},
    )
    run = train(config)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["reverse_kl_before/one"] > summary["reverse_kl_after/one"]
    assert summary["reverse_kl_before/two"] == pytest.approx(0, abs=1e-6), "it is the student"
    assert summary["support_reverse_kl_before/across"] > 0
    assert summary["reverse_kl_before/across"] is None
    assert summary["reverse_kl_before"] is None, "different teachers have no common mean"
    assert summary["held_out_prompts"] == 6
    assert [summary[f"held_out_prompts/{n}"] for n in ("one", "two", "across")] == [2, 2, 2]
    rows = [summary[f"frozen_rows/{name}"] for name in ("one", "two", "across")]
    assert summary["frozen_rows"] == sum(rows) > 0
    assert summary["rollout_length_before"] > 0
    told = {metric.teacher for metric in held_out_metrics(summary)}
    assert told == {"one", "two", "across", ""}
    page = (run / "report.html").read_text()
    assert "Reverse KL, frozen positions (two)" in page
    assert "teacher across identity" in page
    card = (run / "model" / "README.md").read_text()
    state = load_state(run / "checkpoints" / "step-000003")
    for name, identity in state.teachers.items():
        assert f"### {name}" in card
        assert identity.digest in card


def test_doctor_tells_of_every_teacher(three: MakeConfig) -> None:
    checks = run_checks(three)
    assert checks.exit_code == 0, checks.render(as_json=False)
    found = {finding.check: finding.detail for finding in checks.findings}
    for step in ("teacher", "clock", "tokenizer", "limits", "readings", "repeat", "rows"):
        for name in ("one", "two", "across"):
            assert f"{name}: " in found[step], step
    assert "two: K 5 of 320" in found["limits"]
    assert found["repeat"].count("scored twice lie 0 nats apart") == 3


@pytest.mark.parametrize(
    ("top_k", "where", "said"),
    [({"two": {"top_k": 321}}, "teachers.two.top_k", "321 is more than teacher two takes"),
     ({}, "loss.top_k", "400 is more than teacher one takes")],
)  # fmt: skip
def test_a_teacher_that_takes_no_such_k_is_named_with_its_setting(
    three: MakeConfig, top_k: dict[str, Any], where: str, said: str
) -> None:
    values = three(loss={"top_k": 400 if not top_k else 16}).model_dump(mode="json")
    for name, more in top_k.items():
        values["teachers"][name] |= more
    with pytest.raises(ConfigurationError, match=said) as caught:
        train(TrainConfig.model_validate(values))
    assert caught.value.where == where


def test_poor_realignment_is_warned_of_once_also_when_a_step_has_none_of_the_teachers_prompts(
    several: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = several()
    links: Any = dict.fromkeys((A, B))
    loop: Any = SimpleNamespace(teachers=Teachers(config, links), _coverage_low=set())
    poor = {"step": 1, "tokens/alpha": 9, "tokens/beta": 9, "realign_coverage/beta": 0.5}
    without = {"step": 2, "tokens/alpha": 9, "tokens/beta": 0}
    better = {**poor, "step": 4, "realign_coverage/beta": 0.95}
    for line in (poor, without, {**poor, "step": 3}, better, {**poor, "step": 5}):
        TrainingLoop._warn(loop, line)
    told = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert told == ["step 1", "step 5"]
    assert "the rows of teacher beta" in caplog.text


def test_the_students_own_ids_are_those_that_the_teacher_of_the_row_has(
    several: MakeConfig, student: Student
) -> None:
    rollout = {"prompts_per_step": len(PROMPTS)}
    config = several(loss={"support": "student", "top_k": 8}, rollout=rollout)

    def link(limit: int) -> Any:
        sent: Future[Any] = Future()
        return SimpleNamespace(
            id_limit=limit, realigned=False, submit_rollouts=lambda *_, **__: sent
        )

    links = {A: link(student.drawn_below), B: link(100)}
    prompts = prompts_of(config, student).train
    pipeline = Pipeline(
        config, student, make_engine(student, config.rollout), Teachers(config, links), prompts
    )
    highest = dict.fromkeys(links, 0)
    for written in pipeline.fill(1, 0, 0).parts:
        ids, name = required(written.support_ids, "support_ids"), written.prompt.teacher
        highest[name] = max(highest[name], int(ids.max()))
    assert highest[B] < 100 <= highest[A]


def test_a_prompt_of_two_teachers_is_not_taken_for_the_others(
    several: MakeConfig, student: Student, tmp_path: Path
) -> None:
    """Rows that the student reads alike, in a batch of a checkpoint that is not where it was."""
    rows = [{"prompt": text, "teacher": name} for text in PROMPTS[:3] for name in (A, B)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "named.jsonl").write_text(text)
    config = several()
    prompts = prompts_of(config, student).train
    links: Any = dict.fromkeys((A, B))
    pipeline = Pipeline(
        config, student, make_engine(student, config.rollout), Teachers(config, links), prompts
    )
    size = config.rollout.group_size
    placed = [p.prompt_id for p in pipeline.prompts_at(0) for _ in range(size)]
    entry = PendingBatch(1, 0, 0, tuple(placed))
    kept = _prompts(entry, pipeline)
    assert kept is not None
    assert [p.teacher for p in kept] == [p.teacher for p in pipeline.prompts_at(0)
                                         for _ in range(size)]  # fmt: skip
    moved = PendingBatch(1, 3, 0, tuple(placed))
    later = [p.prompt_id for p in pipeline.prompts_at(3) for _ in range(size)]
    assert later != placed
    assert _prompts(moved, pipeline) is None
    alone = Pipeline(config, student, make_engine(student, config.rollout), Teachers(config, links),
                     [p for p in prompts if p.teacher == A])  # fmt: skip
    found = _prompts(moved, alone)
    assert found is not None
    assert [p.prompt_id for p in found] == placed


def test_a_run_does_not_go_on_with_another_teacher_of_the_name(
    three: MakeConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = three(run={"steps": 2})
    train(in_directory(config, run, steps=1))
    teachers = {name: one.model_dump() for name, one in (config.teachers or {}).items()}
    for settings in teachers.values():
        settings["attempts"] = 3  # may change
    swapped = {**teachers, "two": {**teachers["two"], "name": "default"},
               "one": {**teachers["one"], "name": "twin"}}  # fmt: skip
    values = config.model_dump(mode="json")
    asked = {**teachers, "one": {**teachers["one"], "prompt": "student"}}
    other = TrainConfig.model_validate({**values, "teacher": None, "teachers": asked})
    with pytest.raises(ConfigurationError, match=r"teachers\.one\.prompt \('own' to 'student'\)"):
        train(in_directory(other, run, steps=2))
    other = TrainConfig.model_validate({**values, "teacher": None, "teachers": swapped})
    with pytest.raises(ConfigurationError, match=r"teachers\.one\.name \('default' to 'twin'\)"):
        train(in_directory(other, run, steps=2))
    allowed = {**values["checkpoint"], "allow_changed": ["teachers.one.name", "teachers.two.name"]}
    other = TrainConfig.model_validate(
        {**values, "teacher": None, "teachers": swapped, "checkpoint": allowed}
    )
    with pytest.raises(ContractMismatchError, match="teacher one's identity is") as caught:
        train(in_directory(other, run, steps=2))
    assert caught.value.where == "teachers.one.name"
    same = TrainConfig.model_validate({**values, "teacher": None, "teachers": teachers})
    assert len(read_metrics(train(in_directory(same, run, steps=2)) / "metrics.jsonl")) == 2


def test_a_run_goes_on_when_a_teacher_is_there_again(
    several: MakeConfig, run_server: Server, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """One of two teachers goes after the first step: the next one is not made, nothing is lost,
    and the run ends as it would have."""
    with serve(tmp_path / "first", twin=tiny_model_dir) as second:
        teachers = {
            A: {"address": run_server.address},
            B: {"address": second.address, "name": "twin", "attempts": 1},
        }
        config = several(teachers, run={"steps": 2}, checkpoint={"every": 1})
        straight = train(in_directory(config, tmp_path / "straight"))

        def leaves(event: Event) -> None:
            if isinstance(event, StepEnded):
                second.stop()

        broken = in_directory(config, tmp_path / "broken")
        with pytest.raises(TeacherUnavailableError, match=re.escape(second.address)):
            Trainer(broken, [leaves]).train()
        assert [line["step"] for line in read_metrics(tmp_path / "broken" / "metrics.jsonl")] == [1]
    port = int(second.address.rpartition(":")[2])
    with serve(tmp_path / "again", port=port, twin=tiny_model_dir):
        train(broken)
    assert artefacts(tmp_path / "broken", 2) == artefacts(straight, 2)


def test_a_teacher_that_is_away_keeps_nobody_from_asking_the_others(
    several: MakeConfig, student: Student, make_config: MakeConfig
) -> None:
    rollouts, identity, server = of_scripted_teacher(make_config, student)
    back = threading.Event()

    async def away(request: ScoreRequest, context: Any) -> ScoreReply:
        assert await asyncio.to_thread(back.wait, 60)
        return make_reply(request, identity=identity)

    async def there(request: ScoreRequest, context: Any) -> ScoreReply:
        return make_reply(request, identity=identity)

    named = [
        replace(r, prompt=replace(r.prompt, teacher=(A, B)[n % 2])) for n, r in enumerate(rollouts)
    ]
    with serving_in_thread() as (first, at_first), serving_in_thread() as (second, at_second):
        first.info = second.info = server
        first.script, second.script = [away] * len(named), [there] * len(named)
        at = {A: {"address": at_first}, B: {"address": at_second, "top_k": 2}}
        config = several(at, loss={"top_k": 4})
        with Teachers.connect(config, student) as teachers:
            sent = [(r, teachers.submit_rollouts([r])) for r in named]
            scores = [future.result(60)[0] for r, future in sent if r.prompt.teacher == B]
            assert {required(one.rows.support, "support").ids.shape[1] for one in scores} == {2}
            waiting = [future for r, future in sent if r.prompt.teacher == A]
            assert waiting
            assert not any(future.done() for future in waiting)
            back.set()
            scores = [future.result(60)[0] for future in waiting]
            assert {required(one.rows.support, "support").ids.shape[1] for one in scores} == {4}
