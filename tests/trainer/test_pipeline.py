"""What is written, sent and updated on, and in which order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import ContractMismatchError, TeacherUnavailableError
from teacher_proto.types import (
    ContinuationScores,
    Level,
    ScoreReply,
    ScoreRequest,
    ServerInfo,
    TeacherIdentity,
)

from student_trainer.data import load_prompts
from student_trainer.losses.parts.base import Head, LossBatch
from student_trainer.pipeline import Pipeline
from student_trainer.rollout.base import Rollout
from student_trainer.rollout.engine import make_engine
from student_trainer.rollout.generate import generate
from student_trainer.run import pending_batches
from student_trainer.settings.teacher import TeacherSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.start import Start
from student_trainer.startup.teacher import tokenizer
from student_trainer.student.model import Student
from student_trainer.teacher.link import TeacherLink
from student_trainer.teacher.teachers import Teachers
from student_trainer.update.estimator import estimator_notes
from student_trainer.update.importance import log_ratios, truncated_weights
from student_trainer.update.metrics import UpdateTotals
from tests.support.replies import IDENTITY, SERVER, TEACHER, VOCABULARY, make_reply
from tests.support.scripted_teacher import serving_in_thread
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.test_update import Case

MakeConfig = Callable[..., TrainConfig]


class Recorder:
    """Takes the place of the link: keeps what it was sent, answers from a real model."""

    def __init__(self, teacher: LocalTeacher) -> None:
        self.teacher = teacher
        self.info = replace(TEACHER, vocabulary_size=320)
        self.id_limit = 320
        self.realigned = False
        self.sent: list[list[Rollout]] = []

    def submit_rollouts(
        self,
        group: Sequence[Rollout],
        top_k: int,
        temperature: float,
        *,
        log_tail: bool,
        coarse: bool,
    ) -> Future[list[ContinuationScores]]:
        assert (log_tail, coarse) == (False, False), "as with one tokenizer"
        self.sent.append(list(group))
        future: Future[list[ContinuationScores]] = Future()
        future.set_result(self.teacher.score(group, top_k, temperature))
        return future


@pytest.fixture
def make(
    make_config: MakeConfig, student: Student, teacher: LocalTeacher
) -> Callable[..., tuple[Pipeline, Recorder]]:
    def build(
        left_out: frozenset[int] = frozenset(), **sections: dict[str, Any]
    ) -> tuple[Pipeline, Recorder]:
        config = make_config(**sections)
        prompts = load_prompts(config.data, student.tokenizer).train
        recorder: Any = Recorder(teacher)
        teachers = Teachers(config, {"default": recorder})
        return Pipeline(
            config, student, make_engine(student, config.rollout), teachers, prompts, left_out
        ), recorder

    return build


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_which_weights_write_a_batch_depends_on_its_step_alone(make: Any, staleness: int) -> None:
    pipeline, _ = make(pipeline={"staleness": staleness}, run={"steps": 5})
    position, seen = 0, []
    for step in range(1, 6):
        batch = pipeline.fill(step, position, step - 1)
        ahead = [b.step for b in pipeline.batches]
        assert ahead == list(range(step, min(step + staleness, 5) + 1))
        seen.append((batch.step, batch.position, batch.staleness))
        position = batch.position + 3
        pipeline.drop(batch)
    assert seen == [(n, 3 * (n - 1), min(n - 1, staleness)) for n in range(1, 6)]


def test_a_response_is_sent_when_it_ends_and_the_rest_is_still_written(make: Any) -> None:
    pipeline, recorder = make()
    batch = pipeline.fill(1, 0, 0)
    assert sum(len(group) for group in recorder.sent) == len(batch.rollouts) == 6
    lengths = [len(r.token_ids) for group in recorder.sent for r in group if r.prompt.prompt_id
               in {p.prompt_id for p in pipeline.prompts_at(0)[:2]}]  # fmt: skip
    assert lengths == sorted(lengths), "the shorter are sent before the longer end"
    assert len(set(lengths)) > 1
    whole, grouped = make(pipeline={"send": "group"})
    assert [r.token_ids.tolist() for r in whole.fill(1, 0, 0).rollouts] == [
        r.token_ids.tolist() for r in batch.rollouts
    ]
    assert [len(group) for group in grouped.sent] == [2, 2, 2]


def test_scores_belong_to_their_rollouts(make: Any, teacher: LocalTeacher) -> None:
    pipeline, _ = make()
    batch = pipeline.fill(1, 0, 0)
    for place, expected in enumerate(teacher.score(batch.rollouts, 16)):
        future, index = batch.scores[place]
        np.testing.assert_array_equal(
            future.result()[index].rows.support.ids, expected.rows.support.ids
        )


@pytest.mark.parametrize(
    "sections",
    [{}, {"scoring": {"scored_share": 0.4}, "loss": {"kind": "lsm", "support": "student"}}],
    ids=["whole", "in part"],
)
def test_batches_in_flight_are_kept_to_the_byte(make: Any, sections: dict[str, Any]) -> None:
    pipeline, _ = make(pipeline={"staleness": 2}, **sections)
    pipeline.fill(1, 0, 0)
    kept = pending_batches.rollout_tensors(pipeline.batches)
    assert ("1/scored" in kept) == bool(sections)
    other, recorder = make(pipeline={"staleness": 2}, **sections)
    described = pending_batches.describe_batches(pipeline.batches)
    other.restore(pending_batches.restore_batches(described, kept, other))
    assert len(recorder.sent) == 9, "their scores are asked again"
    for a, b in zip(pipeline.batches, other.batches, strict=True):
        bare = {"rollouts": [], "parts": [], "scores": {}}
        assert replace(a, **bare) == replace(b, **bare)
        for x, y in zip([*a.rollouts, *a.parts], [*b.rollouts, *b.parts], strict=True):
            assert x.prompt.prompt_id == y.prompt.prompt_id
            assert (x.index, x.finished, x.written) == (y.index, y.finished, y.written)
            assert x.weights_version == y.weights_version == 0
            assert x.token_ids.tobytes() == y.token_ids.tobytes()
            assert x.log_probs.tobytes() == y.log_probs.tobytes()
            for one, other in ((x.support_ids, y.support_ids), (x.nucleus_mass, y.nucleus_mass)):
                assert (one is None) == (other is None)
                assert one is None or other is None or one.tobytes() == other.tobytes()


def test_batches_in_flight_keep_their_prompts_whatever_else_is_left_out(make: Any) -> None:
    stale = {"pipeline": {"staleness": 1}, "rollout": {"prompts_per_step": 1}}
    pipeline, _ = make(**stale)
    pipeline.fill(1, 0, 0)
    first, second = pipeline.order.take(0, 2)
    kept = pending_batches.rollout_tensors(pipeline.batches)
    described = pending_batches.describe_batches(pipeline.batches)

    def restored(left_out: set[int], entries: Any = described) -> list[tuple[str, bytes]]:
        other, _ = make(frozenset(left_out), **stale)
        found = pending_batches.restore_batches(entries, kept, other)
        return [(r.prompt.prompt_id, r.token_ids.tobytes()) for b in found for r in b.rollouts]

    whole = [(r.prompt.prompt_id, r.token_ids.tobytes())
             for b in pipeline.batches for r in b.rollouts]  # fmt: skip
    assert restored({max({*range(4)} - {first, second})}) == whole
    assert restored({second}) == whole[: len(whole) // 2], "the second is written anew"
    assert restored({first}) == [], "one that follows on a missing one is written anew, too"
    # Left out when they were written, and taken now.
    before, _ = make(frozenset({first}), **stale)
    before.fill(1, 0, 0)
    kept = pending_batches.rollout_tensors(before.batches)
    later = pending_batches.describe_batches(before.batches)
    assert restored(set(), later) == [
        (r.prompt.prompt_id, r.token_ids.tobytes()) for b in before.batches for r in b.rollouts
    ]
    old = [replace(entry, prompt_ids=None) for entry in described]
    assert restored({first}, old) == [], "of before the ids were kept"


def test_batches_of_before_their_weights_were_numbered_say_so(make: Any) -> None:
    pipeline, _ = make(pipeline={"staleness": 1})
    pipeline.fill(1, 0, 7)
    assert {r.weights_version for b in pipeline.batches for r in b.rollouts} == {7}
    kept = pending_batches.rollout_tensors(pipeline.batches)
    described = pending_batches.describe_batches(pipeline.batches)
    old = {name: tensor for name, tensor in kept.items() if "weights_version" not in name}
    for found, version in ((kept, 7), (old, None)):
        batches = pending_batches.restore_batches(described, found, pipeline)
        assert {r.weights_version for b in batches for r in b.rollouts} == {version}


def test_the_engine_has_the_weights_of_now_before_it_writes(make: Any) -> None:
    pipeline, _ = make(pipeline={"staleness": 1}, run={"steps": 3})
    calls: list[Any] = []

    class Engine:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def update_weights(self, version: int) -> None:
            calls.append(version)
            self.inner.update_weights(version)

        def generate(self, *arguments: Any, **named: Any) -> list[Rollout]:
            calls.append(f"writes {named['step']}")
            found: list[Rollout] = self.inner.generate(*arguments, **named)
            return found

    pipeline.engine = Engine(pipeline.engine)
    batch = pipeline.fill(1, 0, 10)
    pipeline.drop(batch)
    pipeline.fill(2, pipeline.after(batch), 12)
    assert calls == [10, "writes 1", 10, "writes 2", 12, "writes 3"]
    assert [{r.weights_version for r in b.rollouts} for b in pipeline.batches] == [{10}, {12}]


def test_importance_weights_are_the_ratio_up_to_the_cap() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 8), torch.randn(20, 8)
    ids = torch.arange(6)
    now = (hidden @ weight.T / 0.7).log_softmax(-1)[torch.arange(6), ids]
    moved = torch.tensor([0.0, 0.5, -0.5, 2.0, -200.0, 0.0])
    old = now - moved
    hidden[5, 0] = torch.nan
    batch = LossBatch(hidden, ids, torch.ones(6), old_log_probs=old)
    ratio = log_ratios(batch, Head(weight), 0.7, chunk_rows=4)
    torch.testing.assert_close(ratio, moved, atol=1e-4, rtol=1e-5)
    weights = truncated_weights(ratio, 2.0)
    expected = torch.tensor([1.0, 1.6487, 0.6065, 2.0, 0.0, 1.0])
    torch.testing.assert_close(weights, expected, atol=1e-3, rtol=1e-3)
    assert (weights > 0).all(), "no row leaves the mean's denominator"


@pytest.mark.parametrize("mean", ["token", "sequence"])
def test_a_stale_update_weighs_its_tokens(
    make_config: MakeConfig, teacher: LocalTeacher, mean: str
) -> None:
    case = Case(make_config(loss={"mean": mean}), teacher)
    plain, gradients = case.gradients()

    def stale() -> tuple[UpdateTotals, dict[str, torch.Tensor]]:
        figures = UpdateTotals()
        case.updater.gradients(case.rollouts, case.scores.__getitem__, figures, 1, stale=True)
        masters = case.updater.optimizer.masters
        return figures, {n: m.grad.clone() for n, m in masters.items() if m.grad is not None}

    figures, same = stale()
    assert figures.means.mean("importance_weight") == pytest.approx(1.0, abs=1e-4)
    for name, value in same.items():
        torch.testing.assert_close(value, gradients[name], rtol=1e-3, atol=1e-6)
    # Had every token been drawn at half its probability, each would weigh 2; the cap is 1.5.
    case.rollouts = [
        replace(r, log_probs=r.log_probs - np.float32(np.log(2))) for r in case.rollouts
    ]
    case.updater.objective.config = case.config.model_copy(
        update={"pipeline": case.config.pipeline.model_copy(update={"importance_cap": 1.5})}
    )
    figures, heavier = stale()
    assert figures.losses[0] == pytest.approx(1.5 * plain.losses[0], rel=1e-4)
    assert figures.means.mean("importance_truncated") == 1.0
    for name, value in heavier.items():
        torch.testing.assert_close(value, 1.5 * gradients[name], rtol=1e-3, atol=1e-6)
    case.updater.objective.config = make_config(
        loss={"mean": mean}, pipeline={"importance_weights": False}
    )
    figures, unweighed = stale()
    assert "importance_weight" not in figures.means.all()
    assert figures.losses == plain.losses
    for name, value in unweighed.items():
        assert torch.equal(value, gradients[name])


def of_scripted_teacher(
    make_config: MakeConfig, student: Student
) -> tuple[list[Rollout], TeacherIdentity, ServerInfo]:
    """Rollouts a scripted teacher can score, two a prompt, and such a teacher's facts."""
    identity = replace(IDENTITY, tokenizer_hash=student.tokenizer_hash)
    info = replace(TEACHER, identity=identity, tokenizers={student.tokenizer_hash: Level.SAME})
    config = make_config()
    prompts = load_prompts(config.data, student.tokenizer).train
    rollouts = [
        replace(r, token_ids=r.token_ids % VOCABULARY)
        for r in generate(student, prompts, config.rollout, seed=0, step=1)
    ]
    return rollouts, identity, replace(SERVER, teachers=(info,))


def test_requests_of_a_group_give_its_scores_in_order_whichever_is_answered_first(
    make_config: MakeConfig, student: Student
) -> None:
    rollouts, identity, server = of_scripted_teacher(make_config, student)
    rollouts = [replace(r, token_ids=r.token_ids[:n]) for n, r in enumerate(rollouts[:2], 3)]
    answered = threading.Event()
    sent: list[ScoreRequest] = []

    async def last_first(request: ScoreRequest, context: Any) -> ScoreReply:
        sent.append(request)
        if len(sent) < len(rollouts):
            assert await asyncio.to_thread(answered.wait, 60)
        answered.set()
        return make_reply(request, identity=identity)

    with serving_in_thread() as (teacher, address):
        limits = replace(server.limits, max_continuations=1)
        teacher.info = replace(server, limits=limits)
        teacher.script = [last_first] * len(rollouts)
        with TeacherLink(TeacherSettings(address=address), student, run="test") as link:
            scores = link.submit_rollouts(rollouts, 4, 1.0).result(60)
    assert [len(found.rows.support.ids) for found in scores] == [len(r.token_ids) for r in rollouts]
    for request, rollout in zip(sent, rollouts, strict=True):
        np.testing.assert_array_equal(request.continuations[0].token_ids, rollout.token_ids)


def test_a_student_with_more_tokens_than_the_teacher_has_rows_is_warned_of(
    make_config: MakeConfig, student: Student
) -> None:
    _, _, server = of_scripted_teacher(make_config, student)
    said = []
    for ids in (VOCABULARY, student.drawn_below):
        teachers = (replace(server.teachers[0], vocabulary_size=ids),)
        with serving_in_thread() as (teacher, address):
            teacher.info = replace(server, teachers=teachers)
            with Start(make_config(teacher={"address": address})) as start:
                start.student = student
                tokenizer(start)
                said.append(start.warnings)
    assert len(said[0]) == 1
    assert f"up to id {student.drawn_below - 1}" in said[0][0]
    assert f"up to {VOCABULARY - 1}" in said[0][0]
    assert said[1] == []


def test_one_request_that_fails_fails_its_group_and_no_other(
    make_config: MakeConfig, student: Student
) -> None:
    rollouts, identity, server = of_scripted_teacher(make_config, student)

    async def other_teacher(request: ScoreRequest, context: Any) -> ScoreReply:
        return make_reply(request, identity=replace(identity, digest="other"))

    async def answer(request: ScoreRequest, context: Any) -> ScoreReply:
        return make_reply(request, identity=identity)

    with serving_in_thread() as (teacher, address):
        limits = replace(server.limits, max_continuations=1)
        teacher.info = replace(server, limits=limits)
        settings = TeacherSettings(address=address, max_in_flight=1)
        with TeacherLink(settings, student, run="test") as link:
            teacher.script = [answer, other_teacher, answer]
            group = link.submit_rollouts(rollouts[:2], 4, 1.0)
            later = link.submit_rollouts(rollouts[2:3], 4, 1.0)
            with pytest.raises(ContractMismatchError, match="identity"):
                group.result(60)
            assert len(later.result(60)) == 1


def test_what_is_over_max_in_flight_waits_in_the_trainer_and_nothing_blocks(
    make_config: MakeConfig, student: Student
) -> None:
    rollouts, identity, server = of_scripted_teacher(make_config, student)
    all_sent, two_at_once, active, peak = threading.Event(), threading.Event(), 0, 0

    async def answer(request: ScoreRequest, context: Any) -> ScoreReply:
        nonlocal active, peak
        active += 1
        peak = max(peak, active)
        if active == 2:
            two_at_once.set()
        for event in (all_sent, two_at_once):
            assert await asyncio.to_thread(event.wait, 60)
        active -= 1
        return make_reply(request, identity=identity)

    with serving_in_thread() as (teacher, address):
        teacher.info = server
        teacher.script = [answer] * len(rollouts)
        settings = TeacherSettings(address=address, max_in_flight=2)
        with TeacherLink(settings, student, run="test") as link:
            futures = [link.submit_rollouts([r], 4, 1.0) for r in rollouts]
            all_sent.set()
            for rollout, future in zip(rollouts, futures, strict=True):
                assert len(future.result(60)[0].rows.support.ids) == len(rollout.token_ids)
            teacher.script = [teacher.never() for _ in rollouts]
            left = [link.submit_rollouts([r], 4, 1.0) for r in rollouts]
        for future in left:
            with pytest.raises(TeacherUnavailableError):
                future.result(60)
    assert peak == 2


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"pipeline": {"staleness": 4}}, True),
        ({"pipeline": {"staleness": 3}}, False),
        ({"pipeline": {"staleness": 4, "importance_weights": False}}, False),
        ({"pipeline": {"staleness": 4}, "loss": {"kind": "sampled_token"}}, False),
    ],
)
def test_what_weights_cost_at_a_high_staleness_is_told(
    make_config: MakeConfig, sections: dict[str, dict[str, object]], told: bool
) -> None:
    sections = {"rollout": {"top_p": 1.0}, **sections}
    notes = estimator_notes(make_config(**sections))
    assert any("pipeline.importance_weights = false" in note for note in notes) == told
