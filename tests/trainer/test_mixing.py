"""Answers of the data in the steps of a run: which, as which tokens, with which loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from teacher_proto.errors import ConfigurationError

from student_trainer.data import load_prompts
from student_trainer.data.rendering import PromptReader
from student_trainer.diagnostics.responses import responses_of
from student_trainer.pipeline import Pipeline
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.engine import make_engine
from student_trainer.rollout.plan import step_plan
from student_trainer.run.checkpoint import TrainState, load_state
from student_trainer.run.directory import read_metrics
from student_trainer.run.resume import pending_batches_usable
from student_trainer.settings.rollout import MixingSettings, RolloutSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.answers import AnswerRules, read_answers
from student_trainer.startup.inputs import with_answers
from student_trainer.startup.start import Start, make
from student_trainer.startup.steps import STEPS
from student_trainer.student.model import Student
from student_trainer.teacher.teachers import Teachers
from student_trainer.train import train
from student_trainer.update.metrics import UpdateTotals, step_metrics
from tests.trainer import test_teachers
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.processes import Server
from tests.trainer.test_pipeline import Recorder
from tests.trainer.test_run import (
    artefacts,
    in_directory,
    interrupted_after,
    losses,
    resumed_exactly,
)
from tests.trainer.test_update import Case, assert_close

MakeConfig = Callable[..., TrainConfig]
ANSWERS = ("Paris.", "what the student wrote", "is not a better answer", "the assistant answers",
           "the sun came and the day was warm", "every token")  # fmt: skip
several, three = test_teachers.several, test_teachers.three  # fixtures
COLUMN = {"columns": {"response": "answer"}}


def write_rows(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts = ("user asks", "The teacher", "A short answer", "The weather", "in the morning", "so")
    return write_rows(
        tmp_path, [{"prompt": p, "answer": a} for p, a in zip(texts, ANSWERS, strict=True)]
    )


@pytest.fixture
def mixed(make_config: MakeConfig, rows: Path) -> MakeConfig:
    def make(*model: Path, **sections: Any) -> TrainConfig:
        sections["data"] = {**COLUMN, **sections.get("data", {})}
        weights = sections.pop("weights", [])
        config = make_config(*model, **{"mixing": {"share": 0.34}, **sections})
        return TrainConfig.model_validate({**config.model_dump(), "weights": weights})

    return make


def answered(config: TrainConfig, student: Student) -> list[PromptItem]:
    return with_answers(load_prompts(config.data, student.tokenizer), config, student)[0].train


# Which answers, and where.


@pytest.mark.parametrize("share", [0.01, 0.1, 1 / 3, 0.5, 1.0])
@pytest.mark.parametrize("groups", [1, 3, 16])
def test_a_step_has_the_share_to_within_a_group_and_many_have_it_exactly(
    share: float, groups: int
) -> None:
    mixing = MixingSettings(share=share)
    exact = Fraction(repr(share)) * groups
    rollout = RolloutSettings(prompts_per_step=groups, group_size=2)
    total = 0
    for step in range(1, 60):
        plan = step_plan(rollout, mixing, step)
        assert plan.answers_before == 2 * total
        count = len(plan.answered)
        assert count in (math.floor(exact), math.ceil(exact))
        total += count
        assert total == math.floor(step * exact)
        places = [*plan.own_places, *plan.answer_places]
        assert sorted(places) == list(range(groups * 2))
        assert plan.own_prompts == groups - count == len(plan.own_places) / 2


def test_a_cold_start_comes_first_and_then_the_share() -> None:
    rollout = RolloutSettings(prompts_per_step=4, group_size=2)

    def groups(**mixing: Any) -> list[int]:
        settings = MixingSettings(**mixing)
        return [len(step_plan(rollout, settings, step).answered) for step in range(1, 7)]

    assert groups() == [0] * 6
    assert groups(cold_start_steps=2) == [4, 4, 0, 0, 0, 0]
    assert groups(cold_start_steps=2, share=0.25) == [4, 4, 1, 1, 1, 1]
    assert groups(cold_start_steps=3, cold_start_share=0.5) == [2, 2, 2, 0, 0, 0]
    assert groups(share=0.375) == [1, 2, 1, 2, 1, 2]


def test_every_update_on_a_step_has_its_part_of_the_answers() -> None:
    plan = step_plan(RolloutSettings(prompts_per_step=8), MixingSettings(share=0.5), 1)
    assert [sum(start <= group < start + 2 for group in plan.answered)
            for start in range(0, 8, 2)] == [1, 1, 1, 1]  # fmt: skip


def test_which_answers_a_step_has_depends_on_seed_and_step_alone(
    mixed: MakeConfig, student: Student, teacher: LocalTeacher
) -> None:
    def pipeline(**sections: Any) -> Pipeline:
        config = mixed(**sections)
        recorder: Any = Recorder(teacher)
        teachers = Teachers(config, {"default": recorder})
        return Pipeline(
            config,
            student,
            make_engine(student, config.rollout),
            teachers,
            answered(config, student),
        )

    def ids(prompts: Sequence[PromptItem]) -> list[str]:
        return [prompt.prompt_id for prompt in prompts]

    one = pipeline()
    position, seen = 0, []
    for step in range(1, 5):
        batch = one.fill(step, position, step - 1)
        position = one.after(batch)
        one.drop(batch)
        of_data = [r.prompt for r in batch.rollouts if r.origin == "data"]
        assert ids(of_data) == ids(pipeline().answers_of(step)), "asked for the first time"
        seen += ids(of_data)
    assert position == 8, "two of each step's three prompts are the student's to answer"
    assert len(set(seen[:6])) == 6, "every answer comes before one comes again"
    assert ids(pipeline(run={"seed": 6}).answers_of(1)) != seen[:2]
    assert ids(pipeline(rollout={"max_new_tokens": 18}).answers_of(3)) == seen[4:6]


def test_an_answer_is_a_request_of_its_own_and_the_others_are_written_as_before(
    mixed: MakeConfig, make_config: MakeConfig, student: Student, teacher: LocalTeacher
) -> None:
    config = mixed(pipeline={"send": "group"}, scoring={"max_scored_tokens": 4})
    recorder: Any = Recorder(teacher)
    teachers = Teachers(config, {"default": recorder})
    pipeline = Pipeline(
        config, student, make_engine(student, config.rollout), teachers, answered(config, student)
    )
    batch = pipeline.fill(1, 0, 0)
    plan = pipeline.plan(1)
    assert [r.origin for r in batch.rollouts].count("data") == len(plan.answer_places) == 2
    for place in plan.answer_places:
        answer = batch.rollouts[place]
        assert answer.prompt.response_ids is not None
        np.testing.assert_array_equal(answer.token_ids, answer.prompt.response_ids)
        assert np.isnan(answer.log_probs).all()
        assert answer.finished
        assert len(batch.parts[place].token_ids) == min(4, answer.length)
    alone = [group for group in recorder.sent if group[0].origin == "data"]
    assert [len(group) for group in alone] == [1, 1]
    assert [len(group) for group in recorder.sent if group[0].origin == "student"] == [2, 2]
    other: Any = Recorder(teacher)
    teachers = Teachers(make_config(), {"default": other})
    plain = Pipeline(make_config(), student, pipeline.engine, teachers, pipeline.prompts).fill(
        1, 0, 0
    )
    own = [r.token_ids.tolist() for r in batch.rollouts if r.origin == "student"]
    assert own == [r.token_ids.tolist() for r in plain.rollouts][:4]


def test_a_step_of_answers_alone_asks_the_engine_for_nothing(
    mixed: MakeConfig, student: Student, teacher: LocalTeacher
) -> None:
    """An engine that sleeps is not woken, and no weights are handed over."""
    config = mixed(mixing={"cold_start_steps": 2}, run={"steps": 3})
    recorder: Any = Recorder(teacher)
    teachers = Teachers(config, {"default": recorder})
    calls: list[Any] = []

    class Engine:
        inner = make_engine(student, config.rollout)

        def update_weights(self, version: int) -> None:
            calls.append(version)
            self.inner.update_weights(version)

        def generate(self, *arguments: Any, **named: Any) -> list[Rollout]:
            calls.append(f"writes {named['step']}")
            return self.inner.generate(*arguments, **named)

    engine: Any = Engine()
    pipeline = Pipeline(config, student, engine, teachers, answered(config, student))
    for step in (1, 2, 3):
        pipeline.drop(pipeline.fill(step, 0, step - 1))
    assert calls == [2, "writes 3"]


# As which tokens.


def rules(tokenizer: Any, most: int = 100, completes: int | None = None) -> AnswerRules:
    end = tokenizer.eos_token_id
    return AnswerRules(
        terminators=frozenset({end, tokenizer.pad_token_id}),
        end=end,
        most=most,
        drawn=lambda token: token != completes,
        completed=lambda ids: 0,
    )


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS = CHAT.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
OPEN_END = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.mark.parametrize(
    ("template", "answer", "text", "as_they_are"),
    [
        (CHAT, "the sun came", "the sun came<|im_end|>", 0),
        (CHAT, "\nthe sun", "\nthe sun<|im_end|>", 0),
        (THINKS, " the sun came\n", "<think>\n\n</think>\n\nthe sun came<|im_end|>", 0),
        (OPENS, "so</think>the sun", "so</think>the sun<|im_end|>", 1),
        (OPEN_END, "the sun came", "the sun came<|im_end|>", 0),
    ],
    ids=["chat", "a line break first", "thinking is closed", "thinking is open", "no end"],
)
def test_an_answer_goes_on_as_the_template_does(
    make_config: MakeConfig,
    student: Student,
    tmp_path: Path,
    template: str,
    answer: str,
    text: str,
    as_they_are: int,
) -> None:
    tokenizer = student.tokenizer
    tokenizer.chat_template = template
    turn = [{"role": "user", "content": "user asks"}]
    write_rows(tmp_path, [{"messages": turn, "answer": answer}])
    config = make_config(data=COLUMN, mixing={"share": 1.0})
    prompts = load_prompts(config.data, tokenizer)
    reader = PromptReader(tokenizer, config.data, prompts.now)
    (found,), count = read_answers(prompts.train, reader, tokenizer, rules(tokenizer))
    assert found.response_ids is not None
    assert tokenizer.decode(found.response_ids) == text
    assert found.response_ids[-1] == tokenizer.eos_token_id
    assert count == as_they_are
    both = [*found.token_ids.tolist(), *found.response_ids.tolist()]
    assert tokenizer.decode(both) == tokenizer.decode(found.token_ids) + text
    if template == CHAT:
        whole = tokenizer.apply_chat_template(
            [*turn, {"role": "assistant", "content": answer}], tokenize=False
        )
        assert tokenizer.decode(both) + "\n" == whole


def test_the_answer_to_a_text_is_ended_by_the_end_of_a_text(
    mixed: MakeConfig, student: Student
) -> None:
    for prompt, answer in zip(answered(mixed(), student), ANSWERS, strict=True):
        assert prompt.response_ids is not None
        assert student.tokenizer.decode(prompt.response_ids) == f"{answer}<|im_end|>"


def test_a_stop_string_ends_an_answer_as_it_ends_a_response(
    mixed: MakeConfig, student: Student
) -> None:
    stops = {"stop_strings": ["warm"]}
    found = answered(mixed(rollout=stops), student)
    texts = [student.tokenizer.decode(prompt.response_ids) for prompt in found]
    assert texts[4] == "the sun came and the day was warm"
    assert texts[0] == "Paris.<|im_end|>"
    with pytest.raises(ConfigurationError, match=r"line 5 \(its token \d+ completes a text of"):
        answered(mixed(rollout={"stop_strings": ["sun"]}), student)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "x"}, "there is no column 'answer'"),
        ({"prompt": "x", "answer": None}, "it is null"),
        ({"prompt": "x", "answer": ["a"]}, "it is of type list and no text"),
        ({"prompt": "x", "answer": ""}, "it is empty"),
        ({"prompt": "x", "answer": " \n"}, "it is empty"),
    ],
)
def test_rows_without_an_answer_are_named_before_a_model_is_loaded(
    make_config: MakeConfig, student: Student, tmp_path: Path, row: dict[str, Any], why: str
) -> None:
    good = {"prompt": "the sun", "answer": "came"}
    write_rows(tmp_path, [good, row, good | {"prompt": "so"}, row | {"prompt": "y"}])
    config = make_config(data=COLUMN, mixing={"share": 0.5})
    with pytest.raises(ConfigurationError) as refused:
        load_prompts(config.data, student.tokenizer)
    assert "2 of 4 rows have no answer that can be learnt from" in str(refused.value)
    assert f"prompts.jsonl, line 2 ({why}); " in str(refused.value)
    assert f"prompts.jsonl, line 4 ({why})" in str(refused.value)
    assert refused.value.where == "data.columns.response"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("the sun<|im_end|> came", r"it holds <\|im_end\|>, which ends a response"),
        ("the student learns from every token of it " * 4, r"it has \d+ tokens with its end, more"),
    ],
)
def test_answers_that_no_response_could_be_are_named_before_the_first_step(
    make_config: MakeConfig, run_server: Server, tmp_path: Path, answer: str, why: str
) -> None:
    good = {"prompt": "the sun", "answer": "came"}
    write_rows(tmp_path, [good, {"prompt": "so", "answer": answer}])
    config = make_config(
        teacher={"address": run_server.address}, data=COLUMN, mixing={"share": 0.5}
    )
    with (
        Start(config) as start,
        pytest.raises(ConfigurationError, match=rf"1 of 2 rows .* line 2 \({why}"),
    ):
        make(STEPS, start)


def test_an_answer_that_the_student_cannot_write_is_named(
    make_config: MakeConfig, student: Student, rows: Path
) -> None:
    config = make_config(data=COLUMN, mixing={"share": 0.5})
    prompts = load_prompts(config.data, student.tokenizer)
    reader = PromptReader(student.tokenizer, config.data, prompts.now)
    first = student.tokenizer("Paris", add_special_tokens=False)["input_ids"][0]
    with pytest.raises(ConfigurationError, match=rf"line 1 \(it has the token {first}, which"):
        read_answers(
            prompts.train, reader, student.tokenizer, rules(student.tokenizer, completes=first)
        )


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"mixing": {"share": 0}}, "greater than 0"),
        ({"mixing": {"share": 1.2}}, "less than or equal to 1"),
        ({"mixing": {"share": float("nan")}}, "less than or equal to 1"),
        ({"mixing": {"cold_start_steps": -1}}, "greater than or equal to 0"),
        ({"mixing": {"nll_weight": 0.5}}, "no step has any: set share or"),
        ({"mixing": {"cold_start_share": 0.5, "share": 0.5}}, "set cold_start_steps"),
        ({"mixing": {}}, "names answers, and no step has any"),
        ({"data": {"columns": {}}}, "set data.columns.response"),
        ({"loss": {"kind": "sampled_token"}}, "sampled_token is a policy gradient"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(
    mixed: MakeConfig, sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        mixed(**sections)


# With which loss.


class MixedCase(Case):
    """A student whose update has responses of its own and answers of the data."""

    def __init__(self, config: TrainConfig, teacher: LocalTeacher) -> None:
        super().__init__(config, teacher)
        prompts = answered(config, self.student)
        own = self.rollouts[:4]
        own = [replace(r, log_probs=r.log_probs - np.float32(0.3)) for r in own]
        self.rollouts = [own[0], *map(Rollout.of_data, prompts[:3]), *own[1:]]
        self.scores = teacher.score(self.rollouts, config.loss.top_k)


def reference(
    case: MixedCase, mean: str, *, nll: float = 0.0, data: float = 1.0, stale: bool = False
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """LSM, and at the tokens of answers the negative log-likelihood, over full logits in
    float64; and what is told of it."""
    case.student.module.zero_grad()
    losses, told = [], {"student_loss": [], "data_loss": [], "data_nll": []}
    for rollout, score in zip(case.rollouts, case.scores, strict=True):
        ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
        logits = case.student.causal_model(torch.from_numpy(ids)[None]).logits[0].double()
        rows = logits[len(rollout.prompt.token_ids) - 1 : -1]
        assert score.rows.support is not None
        p = rows.gather(-1, torch.from_numpy(score.rows.support.ids.astype(np.int64)))
        p = p.log_softmax(-1)
        q = torch.from_numpy(score.rows.support.log_probs).double().log_softmax(-1)
        loss = (p.exp() * (p - q)).sum(-1)
        tokens = torch.from_numpy(rollout.token_ids.astype(np.int64))
        own = rows.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        if rollout.origin == "data":
            told["data_loss"] += loss.tolist()
            told["data_nll"] += (-own).tolist()
            loss = data * (loss - nll * own)
        else:
            told["student_loss"] += loss.tolist()
            if stale:
                ratio = (own.detach() - torch.from_numpy(rollout.log_probs)).exp()
                loss = loss * ratio.clamp(max=2.0)
        losses.append(loss)
    total = torch.cat(losses).mean() if mean == "token" else torch.stack(
        [loss.mean() for loss in losses]).mean()  # fmt: skip
    total.backward()  # type: ignore[no-untyped-call]
    parameters = case.student.module.named_parameters()
    means = {name: float(np.mean(values)) for name, values in told.items()}
    gradients = {n: p.grad.clone() for n, p in parameters if p.grad is not None}
    return {"loss": float(total.detach()), **means}, gradients


@pytest.mark.parametrize("mean", ["token", "sequence"])
@pytest.mark.parametrize(
    ("nll", "data", "stale"),
    [(0.0, 1.0, False), (0.5, 1.0, False), (0.5, 0.25, True), (0.0, 1.0, True)],
)
def test_the_loss_is_one_mean_over_both(
    mixed: MakeConfig, teacher: LocalTeacher, mean: str, nll: float, data: float, stale: bool
) -> None:
    config = mixed(
        loss={"mean": mean},
        mixing={"share": 0.5, "nll_weight": nll},
        weights=[{"kind": "origin", "data": data}] if data != 1 else [],
    )
    case, totals = MixedCase(config, teacher), UpdateTotals()
    case.updater.gradients(case.rollouts, case.scores.__getitem__, totals, 1, stale)
    masters = case.updater.optimizer.masters
    gradients = {n: m.grad.clone() for n, m in masters.items() if m.grad is not None}
    told, expected = reference(case, mean, nll=nll, data=data, stale=stale)
    assert totals.losses == [pytest.approx(told["loss"], abs=1e-6)]
    assert_close(gradients, expected)
    line = step_metrics(totals, responses_of(case.rollouts))
    assert line["student_loss"] == pytest.approx(told["student_loss"], abs=1e-6)
    assert line["data_loss"] == pytest.approx(told["data_loss"], abs=1e-6)
    assert ("data_nll" in line) == (nll > 0)
    if nll:
        assert line["data_nll"] == pytest.approx(told["data_nll"], abs=1e-5)


def test_a_weight_of_answers_reads_the_student_that_is_updated(
    mixed: MakeConfig, teacher: LocalTeacher
) -> None:
    """There is no other: no student drew them."""
    seen: list[Any] = []

    config = mixed(weights=[{"kind": "prefix_ratio"}, {"kind": "prefix_importance"}])
    case = MixedCase(config, teacher)
    weights = case.updater.objective._weights
    assert weights is not None
    call = weights._response
    weights._response = lambda *given: seen.append(call(*given)) or seen[-1]  # type: ignore
    case.gradients()
    answers = [rows for rows in seen if rows.origin == "data"]
    assert len(answers) == 3
    for rows in answers:
        rollout = next(r for r in case.rollouts if r.token_ids is rows.token_ids)
        ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
        with torch.no_grad():
            logits = case.student.causal_model(torch.from_numpy(ids)[None]).logits[0].double()
        own = logits[len(rollout.prompt.token_ids) - 1 : -1].log_softmax(-1)
        tokens = torch.from_numpy(rollout.token_ids.astype(np.int64))[:, None]
        expected = teacher.log_probs(rollout).gather(-1, tokens) - own.gather(-1, tokens)
        np.testing.assert_allclose(rows.log_ratio, expected[:, 0].numpy(), atol=1e-5)
        assert (rows.moved == 0).all()


def test_what_is_told_of_the_student_is_of_its_own_responses(
    mixed: MakeConfig, make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    mixed_case = MixedCase(mixed(pipeline={"staleness": 1}), teacher)
    own_case = MixedCase(mixed(pipeline={"staleness": 1}), teacher)
    pairs = list(zip(own_case.rollouts, own_case.scores, strict=True))
    own_case.rollouts = [r for r, _ in pairs if r.origin == "student"]
    own_case.scores = [s for r, s in pairs if r.origin == "student"]
    lines = []
    for case in (mixed_case, own_case):
        totals = UpdateTotals()
        case.updater.gradients(case.rollouts, case.scores.__getitem__, totals, 1, stale=True)
        lines.append(step_metrics(totals, responses_of(case.rollouts)))
    both, own = lines
    answers = [r for r in mixed_case.rollouts if r.origin == "data"]
    same = ("response_length_mean", "truncated_share", "teacher_support_mass", "log_ratio_mean",
            "sampled_in_support", "top1_agreement_on_support", "importance_weight",
            "importance_log_ratio", "importance_truncated")  # fmt: skip
    assert {name: both[name] for name in same} == {
        name: pytest.approx(own[name], rel=1e-5) for name in same
    }
    assert both["data_responses"] == 3
    assert both["data_tokens"] == sum(len(r.token_ids) for r in answers)
    assert both["tokens"] == own["tokens"] + both["data_tokens"]  # type: ignore[operator]
    assert both["data_response_length_mean"] == pytest.approx(np.mean([r.length for r in answers]))
    assert not any(name.startswith("data_importance") for name in both)
    assert not {"data_log_ratio_mean", "data_rollout_log_prob_gap"} & set(both)
    assert not any(name.startswith("data_") for name in own)


# Whole runs.


SECTIONS: dict[str, dict[str, Any]] = {
    "a share": {},
    "cold start, stale": {
        "mixing": {"cold_start_steps": 2, "nll_weight": 0.5},
        "pipeline": {"staleness": 1},
    },
    "two updates, union, in part": {
        "loss": {"kind": "lsm", "support": "union", "top_k": 8, "mean": "sequence"},
        "optimizer": {"updates_per_batch": 2},
        "scoring": {"max_scored_tokens": 6},
        "pipeline": {"staleness": 1},
        "weights": [{"kind": "prefix_ratio"}],
    },
}


@pytest.mark.parametrize("sections", SECTIONS.values(), ids=SECTIONS)
def test_a_mixed_run_resumes_exactly(
    mixed: MakeConfig, run_server: Server, tmp_path: Path, sections: dict[str, Any]
) -> None:
    config = mixed(teacher={"address": run_server.address}, checkpoint={"every": 1}, **sections)
    run = resumed_exactly(config, tmp_path)
    lines = read_metrics(run / "metrics.jsonl")
    cold = config.mixing.cold_start_steps
    plans = [step_plan(config.rollout, config.mixing, step) for step in (1, 2, 3)]
    state = load_state(run / "checkpoints" / "step-000003")
    assert state.position == sum(plan.own_prompts for plan in plans)
    for line in lines:
        if line["step"] <= cold:
            assert line["data_responses"] == 6
            assert line["response_length_mean"] is None
        elif cold:
            assert "data_responses" not in line, "on-policy from here on"
    assert any("data_responses" in line for line in lines)


def test_a_run_that_is_interrupted_in_its_cold_start_goes_on_with_it(
    mixed: MakeConfig, run_server: Server, tmp_path: Path
) -> None:
    config = mixed(
        teacher={"address": run_server.address},
        checkpoint={"every": 1},
        pipeline={"staleness": 1},
        mixing={"cold_start_steps": 2},
    )
    straight = train(in_directory(config, tmp_path / "straight"))
    broken = in_directory(config, tmp_path / "broken")
    interrupted_after(broken, 1)
    train(broken)
    assert losses(tmp_path / "broken") == losses(straight)
    assert artefacts(tmp_path / "broken", 3) == artefacts(straight, 3)


def test_answers_of_several_teachers_rows_are_scored_by_their_own(
    three: MakeConfig, tmp_path: Path
) -> None:
    teachers = ["one", "two", "across"]
    answers = [
        f'{{"prompt": "{text}", "teacher": "{teachers[n % 3]}", "answer": "the day"}}\n'
        for n, text in enumerate(("user asks", "so", "The sun", "it", "we read", "a"))
    ]
    (tmp_path / "named.jsonl").write_text("".join(answers))
    config = three(
        data={"columns": {"teacher": "teacher", "response": "answer"}},
        mixing={"share": 0.67, "nll_weight": 0.5},
        loss={"balance": "teachers"},
    )
    config = TrainConfig.model_validate(
        {**config.model_dump(), "weights": [{"kind": "prefix_importance"}]}
    )
    lines = read_metrics(resumed_exactly(config, tmp_path) / "metrics.jsonl")
    assert [line["data_responses"] for line in lines] == [4, 4, 4]
    for line in lines:
        told = [line.get(f"data_responses/{name}", 0) for name in teachers]
        assert sum(told) == 4
        tokens = [line.get(f"data_tokens/{name}", 0) for name in teachers]
        assert sum(tokens) == line["data_tokens"]
        own = line["tokens"] - line["data_tokens"]
        assert own > 0
        assert line["response_length_mean"] == own / 2


def test_batches_in_flight_of_another_mixture_are_written_anew(mixed: MakeConfig) -> None:
    before = mixed(pipeline={"staleness": 1})
    now = before.model_dump(mode="json")
    digest = "source:rows=1"
    state = TrainState(1, 1, 2, digest, {}, now)
    assert pending_batches_usable(state, now, digest)
    for changed in ({"share": 0.5}, {"cold_start_steps": 1}):
        other = {**now, "mixing": {**now["mixing"], **changed}}
        assert not pending_batches_usable(state, other, digest)
    weights = {**now, "weights": [{"kind": "place"}]}
    assert pending_batches_usable(state, weights, digest), "of what a batch is updated with"


def test_other_answers_are_not_the_same_data(
    mixed: MakeConfig, run_server: Server, tmp_path: Path, rows: Path
) -> None:
    config = mixed(
        teacher={"address": run_server.address}, checkpoint={"every": 1}, run={"steps": 1}
    )
    train(config)
    rows.write_text(rows.read_text().replace("Paris.", "Rome."))
    again = mixed(teacher={"address": run_server.address}, run={"steps": 2})
    with pytest.raises(ConfigurationError, match="the checkpoint's, and their answers are not"):
        train(again)


def test_answers_across_tokenizers_learn_from_no_chunk(
    mixed: MakeConfig, run_server: Server, foreign_student_dir: Path
) -> None:
    config = mixed(
        foreign_student_dir,
        teacher={"address": run_server.address},
        loss={"kind": "lsm", "top_k": 16, "masked_chunks": True},
        mixing={"share": 1.0},
        run={"steps": 1},
    )
    (line,) = read_metrics(train(config) / "metrics.jsonl")
    assert line["chunk_tokens"] == 0
    assert line["data_tokens_used"] > 0
    assert 0 < line["data_realign_masked_share"] < 1
    assert line.get("realign_masked_share") is None


def test_a_student_learns_answers_by_their_likelihood(
    mixed: MakeConfig, run_server: Server
) -> None:
    config = mixed(
        teacher={"address": run_server.address},
        mixing={"cold_start_steps": 100, "nll_weight": 5.0},
        run={"steps": 8},
        optimizer={"lr": 3e-3},
    )
    found = [line["data_nll"] for line in read_metrics(train(config) / "metrics.jsonl")]
    assert found[-1] < 0.7 * found[0]
