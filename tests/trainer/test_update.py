"""The update's arithmetic on a real tiny model against a plain autograd reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import LsmError
from teacher_proto.types import ContinuationScores, Status

from student_trainer.data import load_prompts
from student_trainer.diagnostics.responses import responses_of
from student_trainer.rollout.base import Rollout
from student_trainer.rollout.generate import generate
from student_trainer.settings.student import StudentSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student, load_student
from student_trainer.teacher.own_rows import whole_rows
from student_trainer.update import batching
from student_trainer.update.metrics import UpdateTotals, step_metrics
from student_trainer.update.updater import Updater, split
from tests.support.near import near
from tests.support.replies import with_arrays
from tests.trainer.local_teacher import LocalTeacher

MakeConfig = Callable[..., TrainConfig]


class Case:
    """A student, its rollouts and the teacher's scores of them."""

    def __init__(self, config: TrainConfig, teacher: LocalTeacher, step: int = 1) -> None:
        torch.manual_seed(0)
        self.config = config
        self.student = load_student(config.student)
        self.updater = Updater(self.student, config)
        prompts = load_prompts(config.data, self.student.tokenizer).train
        self.rollouts = generate(self.student, prompts, config.rollout, seed=0, step=step)
        self.scores = teacher.score(self.rollouts, config.loss.top_k)

    def gradients(self) -> tuple[UpdateTotals, dict[str, torch.Tensor]]:
        figures = UpdateTotals()
        self.updater.gradients(self.rollouts, self.scores.__getitem__, figures, 1)
        masters = self.updater.optimizer.masters
        return figures, {n: m.grad.clone() for n, m in masters.items() if m.grad is not None}

    def update(self) -> UpdateTotals:
        figures = UpdateTotals()
        self.updater.update(self.rollouts, self.scores.__getitem__, figures, 1)
        return figures


def reference(
    student: Student, rollouts: Sequence[Rollout], scores: Sequence[ContinuationScores], mean: str
) -> tuple[float, dict[str, torch.Tensor]]:
    """LSM by its definition over full logits, one response at a time."""
    student.module.zero_grad()
    losses = reference_rows(student, rollouts, scores)
    if mean == "token":
        loss = torch.cat(losses).mean()
    else:
        loss = torch.stack([rows.mean() for rows in losses]).mean()
    loss.backward()
    grads = {n: p.grad.clone() for n, p in student.module.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads


def reference_rows(
    student: Student, rollouts: Sequence[Rollout], scores: Sequence[ContinuationScores]
) -> list[torch.Tensor]:
    """[n] for each response, with gradient: LSM of every row."""
    losses = []
    for rollout, score in zip(rollouts, scores, strict=True):
        ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
        logits = student.causal_model(torch.from_numpy(ids)[None]).logits[0]
        rows = logits[len(rollout.prompt.token_ids) - 1 : -1]
        assert score.rows.support is not None
        chosen = rows.gather(-1, torch.from_numpy(score.rows.support.ids.astype(np.int64)))
        p = chosen.log_softmax(-1)
        q = torch.from_numpy(score.rows.support.log_probs).log_softmax(-1)
        losses.append((p.exp() * (p - q)).sum(-1))
    return losses


def assert_close(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-6
) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=tolerance, msg=name)


@pytest.mark.parametrize("mean", ["token", "sequence"])
def test_equals_the_definition_over_full_logits(
    make_config: MakeConfig, teacher: LocalTeacher, mean: str
) -> None:
    case = Case(make_config(loss={"mean": mean}), teacher)
    assert len({len(r.token_ids) for r in case.rollouts}) > 1, "the means must differ"
    figures, gradients = case.gradients()
    loss, expected = reference(load_student(case.config.student), case.rollouts, case.scores, mean)
    assert figures.losses == [pytest.approx(loss, abs=1e-6)]
    assert_close(gradients, expected)
    other, _ = reference(case.student, case.rollouts, case.scores, "token")
    assert mean == "token" or abs(other - loss) > 1e-4


@pytest.mark.parametrize(
    "loss",
    [{"mean": "token"}, {"mean": "sequence"}, {"kind": "sampled_token"}],
    ids=["token", "sequence", "sampled_token"],
)
def test_the_cut_into_micro_batches_does_not_matter(
    make_config: MakeConfig, teacher: LocalTeacher, loss: dict[str, Any]
) -> None:
    results = []
    for budget in (84, 160, 4000):
        config = make_config(loss=loss, optimizer={"micro_batch_tokens": budget})
        case = Case(config, teacher)
        cuts = len(batching.micro_batches(case.rollouts, budget, packs=case.student.packs))
        figures, gradients = case.gradients()
        results.append((cuts, step_metrics(figures, responses_of(case.rollouts)), gradients))
    assert [cuts for cuts, *_ in results] == sorted({cuts for cuts, *_ in results}, reverse=True)
    _, whole, expected = results[-1]
    for _, line, gradients in results[:-1]:
        assert_close(gradients, expected)
        assert line == {k: near(v, rel=1e-5, abs=1e-6) for k, v in whole.items()}


def test_a_student_equal_to_its_teacher_has_no_loss(
    make_config: MakeConfig, teacher: LocalTeacher, tiny_model_dir: Path
) -> None:
    case = Case(make_config(tiny_model_dir), teacher)
    figures, gradients = case.gradients()
    assert abs(figures.losses[0]) < 1e-6
    assert max(float(g.abs().max()) for g in gradients.values()) < 1e-6


def test_a_gather_shifted_by_one_is_noticed(
    make_config: MakeConfig,
    teacher: LocalTeacher,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gather = batching.micro_batch

    def shifted(*arguments: Any) -> batching.MicroBatch:
        batch = gather(*arguments)
        return replace(batch, rows=batch.rows - 1)

    monkeypatch.setattr("student_trainer.update.updater.micro_batch", shifted)
    figures, _ = Case(make_config(tiny_model_dir), teacher).gradients()
    assert figures.losses[0] > 0.1


def test_masked_tokens_leave_numerator_and_denominator(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    plain = Case(make_config(), teacher)
    counts = np.bincount(np.concatenate([r.token_ids for r in plain.rollouts]), minlength=320)
    token = int(counts.argmax())
    config = make_config(loss={"mask": {"token_ids": [token]}})
    figures, _ = Case(config, teacher).gradients()
    assert (figures.rows, figures.masked) == (int(counts.sum()), int(counts[token]))
    assert figures.used == figures.rows - figures.masked
    pairs = zip(plain.rollouts, plain.scores, strict=True)
    rows = np.concatenate([row_losses(plain.student, r, s) for r, s in pairs])
    keep = np.concatenate([r.token_ids != token for r in plain.rollouts])
    assert figures.losses == [pytest.approx(rows[keep].mean(), abs=1e-6)]
    assert abs(rows[keep].mean() - rows.mean()) > 1e-4
    everything = make_config(loss={"mask": {"token_ids": list(range(320))}})
    with pytest.raises(LsmError, match="every token of the update is masked"):
        Case(everything, teacher).gradients()


@pytest.mark.parametrize("mean", ["token", "sequence"])
def test_only_the_students_own_tokens_of_an_episode_are_learnt_from(
    make_config: MakeConfig, teacher: LocalTeacher, mean: str
) -> None:
    case = Case(make_config(loss={"mean": mean}), teacher)
    draw = np.random.default_rng(0)
    owns = [draw.random(len(rollout.token_ids)) < 0.6 for rollout in case.rollouts]
    for own in owns:
        own[0] = True
    student = load_student(case.config.student)
    _, expected = reference(student, case.rollouts, case.scores, mean)
    student.module.zero_grad()
    losses = [
        rows[torch.from_numpy(own)]
        for rows, own in zip(reference_rows(student, case.rollouts, case.scores), owns, strict=True)
    ]
    if mean == "token":
        loss = torch.cat(losses).mean()
    else:
        loss = torch.stack([rows.mean() for rows in losses]).mean()
    loss.backward()
    own_grads = {n: p.grad for n, p in student.module.named_parameters() if p.grad is not None}
    case.scores = [
        whole_rows(replace(score, rows=score.rows.at(own)), own)
        for score, own in zip(case.scores, owns, strict=True)
    ]
    case.rollouts = [
        replace(
            rollout, own=own, log_probs=np.where(own, rollout.log_probs, np.nan).astype(np.float32)
        )
        for rollout, own in zip(case.rollouts, owns, strict=True)
    ]
    figures, gradients = case.gradients()
    count = sum(int(own.sum()) for own in owns)
    assert (figures.rows, figures.used, figures.masked) == (count, count, 0)
    assert figures.losses == [pytest.approx(float(loss.detach()), abs=1e-6)]
    assert_close(gradients, own_grads)
    apart = max(float((gradients[n] - expected[n]).abs().max()) for n in expected)
    assert apart > 1e-4, "the other rows would have changed it"


@torch.no_grad()
def row_losses(student: Student, rollout: Rollout, score: ContinuationScores) -> np.ndarray:
    """float [n]: LSM of every row by its definition."""
    ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
    rows = student.causal_model(torch.from_numpy(ids)[None]).logits[0]
    rows = rows[len(rollout.prompt.token_ids) - 1 : -1]
    assert score.rows.support is not None
    p = rows.gather(-1, torch.from_numpy(score.rows.support.ids.astype(np.int64))).log_softmax(-1)
    q = torch.from_numpy(score.rows.support.log_probs).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).numpy()


def test_gradient_checkpointing_gives_equal_gradients(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    _, plain = Case(make_config(), teacher).gradients()
    case = Case(make_config(student={"gradient_checkpointing": True}), teacher)
    calls = []
    layer = case.student.causal_model.model.layers[1].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    _, checkpointed = case.gradients()
    assert case.student.packs
    batches = len(batching.micro_batches(case.rollouts, 160, packs=True))
    assert len(calls) == 2 * batches, "the layer runs again in the backward"
    assert_close(checkpointed, plain)


def test_updates_improve_the_student(make_config: MakeConfig, teacher: LocalTeacher) -> None:
    case = Case(make_config(), teacher)
    losses = [case.update().losses[0] for _ in range(12)]
    assert losses[-1] < losses[0] / 2


def test_sampled_token_moves_the_sampled_tokens(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = Case(make_config(loss={"kind": "sampled_token"}), teacher)

    def gain() -> float:
        """Mean of advantage times the log-probability of the sampled token."""
        total = []
        with torch.no_grad():
            for rollout, score in zip(case.rollouts, case.scores, strict=True):
                ids = torch.from_numpy(batching.student_input(rollout).astype(np.int64))[None]
                logits = case.student.causal_model(ids).logits[0]
                rows = logits[len(rollout.prompt.token_ids) - 1 :].log_softmax(-1)
                now = rows.gather(-1, torch.from_numpy(rollout.token_ids.astype(np.int64))[:, None])
                assert score.rows.sampled is not None
                total.append((score.rows.sampled.values - rollout.log_probs) * now[:, 0].numpy())
        return float(np.concatenate(total).mean())

    before = gain()
    figures = case.update()
    assert gain() > before
    line = step_metrics(figures, responses_of(case.rollouts))
    assert line["ratio"] == pytest.approx(1.0, abs=1e-4)
    assert line["teacher_support_mass"] is not None
    assert line["rollout_log_prob_gap"] == pytest.approx(0.0, abs=1e-4)


def test_only_adapters_are_trained(
    make_config: MakeConfig, teacher: LocalTeacher, student_model_dir: Path
) -> None:
    case = Case(make_config(student={"lora": {"rank": 4}}, optimizer={"lr": 1e-2}), teacher)
    assert all("lora_" in name for name in case.updater.optimizer.parameters)
    losses = [case.update().losses[0] for _ in range(8)]
    assert losses[-1] < losses[0] * 0.8
    untouched = load_student(StudentSettings(model=str(student_model_dir), device="cpu"))
    assert torch.equal(case.student.head.weight, untouched.head.weight)


def test_bfloat16_trains(make_config: MakeConfig, teacher: LocalTeacher) -> None:
    case = Case(make_config(student={"dtype": "bfloat16"}), teacher)
    losses = [case.update().losses[0] for _ in range(8)]
    assert losses[-1] < losses[0] * 0.8


def test_rows_that_are_not_finite(make_config: MakeConfig, teacher: LocalTeacher) -> None:
    config = make_config(loss={"max_non_finite_share": 0.5})
    case = Case(config, teacher)
    whole = case.gradients()[0]
    case.scores[2] = ContinuationScores(status=Status.NON_FINITE, detail="overflow")
    figures, gradients = case.gradients()
    lost = len(case.rollouts[2].token_ids)
    assert (figures.dropped_non_finite, figures.used) == (lost, whole.used - lost)
    rest = [r for i, r in enumerate(case.rollouts) if i != 2]
    scores = [s for i, s in enumerate(case.scores) if i != 2]
    loss, expected = reference(load_student(config.student), rest, scores, "token")
    assert figures.losses == [pytest.approx(loss, abs=1e-6)]
    assert_close(gradients, expected)


@pytest.mark.parametrize("spoil", ["teacher", "student"])
def test_a_step_with_too_many_is_refused_and_changes_nothing(
    make_config: MakeConfig, teacher: LocalTeacher, spoil: str
) -> None:
    case = Case(make_config(), teacher)
    if spoil == "teacher":
        case.scores[0] = ContinuationScores(status=Status.NON_FINITE)
    else:
        with torch.no_grad():
            case.student.causal_model.model.norm.weight[3] = torch.inf
    before = {n: p.clone() for n, p in case.updater.optimizer.parameters.items()}
    with pytest.raises(LsmError, match="not finite") as caught:
        case.update()
    assert caught.value.reason == "NON_FINITE"
    for name, parameter in case.updater.optimizer.parameters.items():
        assert torch.equal(parameter, before[name])
    assert case.updater.updates == 0
    assert all(not m.grad.any() for m in case.updater.optimizer.masters.values())


def test_a_sequence_mean_counts_only_used_rows(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = Case(make_config(loss={"mean": "sequence", "max_non_finite_share": 1.0}), teacher)
    score = case.scores[1]
    assert score.rows.support is not None
    spoiled = score.rows.support.log_probs.copy()
    spoiled[0] = np.nan
    case.scores[1] = with_arrays(score, top_log_probs=spoiled)
    figures, _ = case.gradients()
    assert figures.dropped_non_finite == 1
    pairs = zip(case.rollouts, case.scores, strict=True)
    rows = [row_losses(case.student, rollout, scored) for rollout, scored in pairs]
    means = [np.mean(r[1:] if place == 1 else r) for place, r in enumerate(rows)]
    assert figures.losses == [pytest.approx(float(np.mean(means)), abs=1e-6)]


def test_gradients_take_no_memory_between_updates(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = Case(make_config(), teacher)
    masters = case.updater.optimizer.masters.values()
    case.update()
    assert all(master.grad is None for master in masters)
    before = [master.detach().clone() for master in masters]
    case.update()
    assert all(master.grad is None for master in masters)
    for old, new in zip(before, masters, strict=True):
        assert not torch.equal(old, new)


def test_tied_embeddings(make_config: MakeConfig, teacher: LocalTeacher, tmp_path: Path) -> None:
    from tests.support.models import make_tiny_model

    model = make_tiny_model(tmp_path / "tied", seed=7, tie_word_embeddings=True)
    case = Case(make_config(model), teacher)
    assert case.student.head.weight is case.student.causal_model.model.embed_tokens.weight
    _, gradients = case.gradients()
    _, expected = reference(load_student(case.config.student), case.rollouts, case.scores, "token")
    assert_close(gradients, expected)


def test_split() -> None:
    assert split(6, 3) == [slice(0, 2), slice(2, 4), slice(4, 6)]
