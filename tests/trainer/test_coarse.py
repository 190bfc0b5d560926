"""Coarse rows in the trainer: the loss of an update with them, by autograd over full logits in
float64, their figures, and what they do to held-out measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import LsmError
from teacher_proto.rows import Rows, Support, Values, required
from teacher_proto.types import (
    Bool,
    ContinuationScores,
    MaskReason,
    PositionClass,
    Realignment,
    Status,
)

from student_trainer.evaluation.realigned import realigned_divergence
from student_trainer.evaluation.rows import Selection
from student_trainer.evaluation.samples import sample
from student_trainer.first_example import row_reasons, token_table
from student_trainer.rollout.base import Rollout
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import load_student
from student_trainer.teacher.mask_reasons import EXPLAINED, metric_of
from student_trainer.update import realigned
from student_trainer.update.metrics import step_metrics
from student_trainer.update.updater import Updater
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.test_update import Case, assert_close

MakeConfig = Callable[..., TrainConfig]
TOP_K = 16
IDS = 4  # of a coarse row, the last of them alone in every other row


def told(teacher: LocalTeacher, rollout: Rollout) -> ContinuationScores:
    """As a teacher with another tokenizer scores it: every fifth row masked, every third of the
    others coarse, with ids that are not the most likely ones."""
    log_q = teacher.log_probs(rollout).double()
    count = len(log_q)
    order = log_q.argsort(-1, descending=True)
    place = np.arange(count)
    masked = place % 5 == 2
    coarse = ~masked & (place % 3 == 1)
    counts = np.where(masked, 0, TOP_K).astype(np.int32)
    counts[coarse] = np.where(place[coarse] % 2 == 0, 1, IDS)
    ids = np.where(coarse[:, None], order[:, 1 : 1 + TOP_K], order[:, :TOP_K])
    valid = np.arange(TOP_K) < counts[:, None]
    at = np.take_along_axis(log_q.numpy(), ids, -1)
    coverage = np.where(valid, np.exp(at), 0).sum(-1)
    sampled = rollout.token_ids.astype(np.int64)
    certified = ~masked & (~coarse | (valid & (ids == sampled[:, None])).any(-1))
    classes = np.full(count, PositionClass.ALIGNED, np.uint8)
    classes[masked], classes[coarse] = PositionClass.MASKED, PositionClass.COARSE
    reasons = np.zeros(count, np.uint8)
    reasons[masked], reasons[coarse] = MaskReason.LONG_CHUNK, MaskReason.DOUBTFUL
    return ContinuationScores(
        rows=Rows(
            support=Support(
                np.where(valid, ids, -1).astype(np.int32),
                np.where(valid, at, 0).astype(np.float32),
                counts,
            ),
            sampled=Values(
                np.where(certified, log_q.numpy()[place, sampled], 0).astype(np.float32), certified
            ),
            log_tail=Values(np.log1p(-coverage).astype(np.float32), np.ones(count, np.bool_)),
        ),
        realignment=Realignment(
            coverage=coverage.astype(np.float32),
            open_mass=np.where(coarse, 0.3, 0.01).astype(np.float32),
            lost_mass=np.zeros(count, np.float32),
            position_class=classes,
            chunk_index=place.astype(np.int32),
            chunk_log_likelihood=np.full(count, -1.0, np.float32),
            mask_reason=reasons,
        ),
    )


class CoarseCase(Case):
    def __init__(self, config: TrainConfig, teacher: LocalTeacher) -> None:
        super().__init__(config, teacher)
        self.updater = Updater(self.student, config, realigned=True)
        self.scores = [told(teacher, rollout) for rollout in self.rollouts]

    def of_class(self, kind: PositionClass) -> list[Bool]:
        blocks = [required(score.realignment, "realignment") for score in self.scores]
        return [block.position_class == kind for block in blocks]

    def count(self, kind: PositionClass) -> int:
        return sum(int(rows.sum()) for rows in self.of_class(kind))


def row_losses(case: CoarseCase, kind: str, sampled: bool = False) -> list[torch.Tensor]:
    """[n] of each response, by the definitions over full float64 logits; 0 for masked rows."""
    found = []
    for rollout, score in zip(case.rollouts, case.scores, strict=True):
        ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
        logits = case.student.causal_model(torch.from_numpy(ids)[None]).logits[0]
        log_pi = logits[len(rollout.prompt.token_ids) - 1 : -1].double().log_softmax(-1)
        support, block = required(score.rows.support, "support"), score.realignment
        own, tail = required(score.rows.sampled, "sampled"), required(score.rows.log_tail, "tail")
        assert block is not None
        rows = []
        for t, count in enumerate(support.counts.tolist()):
            if count == 0:
                rows.append(log_pi.new_zeros(()))
                continue
            at = support.ids[t, :count].astype(np.int64).tolist()
            q = np.exp(support.log_probs[t, :count].astype(np.float64)).tolist()
            rest = float(np.exp(tail.values[t].astype(np.float64)))
            if sampled and own.valid[t] and int(rollout.token_ids[t]) not in at:
                at.append(int(rollout.token_ids[t]))
                q.append(float(np.exp(own.values[t].astype(np.float64))))
                rest -= q[-1]
            p = log_pi[t, at].exp()
            if block.position_class[t] == PositionClass.COARSE:
                outside = [v for v in range(log_pi.shape[1]) if v not in at]
                p, qs = (
                    torch.cat([p, log_pi[t, outside].exp().sum()[None]]),
                    torch.tensor([*q, rest]),
                )
            else:
                p, qs = p / p.sum(), torch.tensor(q) / sum(q)
            qs = qs.double()
            m = 0.5 * (p + qs)
            rows.append(
                {
                    "lsm": (p * (p / qs).log()).sum(),
                    "topk_forward_kl": (qs * (qs / p).log()).sum(),
                    "topk_jsd": 0.5 * (qs * (qs / m).log() + p * (p / m).log()).sum(),
                }[kind]
            )
        found.append(torch.stack(rows))
    return found


@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "lsm"},
        {"kind": "lsm", "mean": "sequence"},
        {"kind": "lsm", "support": "teacher+sampled"},
        {"kind": "topk_forward_kl"},
        {"kind": "topk_jsd"},
    ],
    ids=str,
)
def test_the_loss_of_an_update_is_by_the_definition(
    make_config: MakeConfig, teacher: LocalTeacher, loss: dict[str, Any]
) -> None:
    case = CoarseCase(make_config(loss=loss), teacher)
    figures, gradients = case.gradients()
    assert figures.coarse == case.count(PositionClass.COARSE) > 5
    assert figures.used == figures.rows - case.count(PositionClass.MASKED)
    assert figures.dropped_small_support == figures.dropped_non_finite == 0
    case.student = load_student(case.config.student)
    rows = row_losses(case, loss["kind"], sampled=loss.get("support") == "teacher+sampled")
    kept = [torch.from_numpy(~masked) for masked in case.of_class(PositionClass.MASKED)]
    used = [one[here] for one, here in zip(rows, kept, strict=True)]
    by_response = loss.get("mean") == "sequence"
    expected = (
        torch.stack([one.mean() for one in used]).mean() if by_response else torch.cat(used).mean()
    )
    assert figures.losses == [pytest.approx(float(expected.detach()), rel=1e-5)]
    expected.backward()
    named = dict(case.student.module.named_parameters())
    assert_close(gradients, {n: named[n].grad for n in gradients})  # type: ignore[misc]


@pytest.mark.parametrize("mean", ["token", "sequence"])
def test_the_cut_into_micro_batches_does_not_matter(
    make_config: MakeConfig, teacher: LocalTeacher, mean: str
) -> None:
    found = []
    for budget in (84, 4000):
        config = make_config(loss={"mean": mean}, optimizer={"micro_batch_tokens": budget})
        case = CoarseCase(config, teacher)
        figures, gradients = case.gradients()
        found.append((step_metrics(figures, case.rollouts), gradients))
    (cut, ours), (whole, theirs) = found
    assert_close(ours, theirs)
    assert cut == {
        k: v if v is None else pytest.approx(v, rel=1e-5, abs=1e-6) for k, v in whole.items()
    }


def test_their_figures_are_apart_from_those_of_the_other_rows(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = CoarseCase(make_config(report={"metric_rows": 10_000}), teacher)
    figures, _ = case.gradients()
    line = step_metrics(figures, case.rollouts)
    rows = [one.detach() for one in row_losses(case, "lsm")]
    coarse = torch.cat(
        [
            r[torch.from_numpy(c)]
            for r, c in zip(rows, case.of_class(PositionClass.COARSE), strict=True)
        ]
    )
    assert line["coarse_tokens"] == len(coarse)
    assert line["coarse_loss"] == pytest.approx(float(coarse.mean()), rel=1e-5)
    blocks = [required(score.realignment, "realignment") for score in case.scores]
    coverage = np.concatenate([b.coverage for b in blocks])
    classes = np.concatenate([b.position_class for b in blocks])
    rough, complete = classes == PositionClass.COARSE, classes == PositionClass.ALIGNED
    assert line["realign_coarse_share"] == pytest.approx(rough.mean())
    assert line["realign_coarse_rest"] == pytest.approx((1 - coverage[rough]).mean(), rel=1e-5)
    assert line["realign_coverage"] == pytest.approx(coverage[complete].mean(), rel=1e-5)
    assert line["realign_open_mass"] == pytest.approx(0.01)
    assert line["teacher_support_mass"] == pytest.approx(coverage[complete].mean(), rel=1e-5)
    assert 0 < float(str(line["coarse_student_rest"])) < 1
    shares = {name: line[metric_of(name)] for name in EXPLAINED}
    assert shares.pop("DOUBTFUL") == pytest.approx(rough.mean())
    assert shares.pop("LONG_CHUNK") == line["realign_masked_share"]
    assert set(shares.values()) == {0.0}
    # Without coarse rows the same figures of the others.
    for score, here in zip(case.scores, case.of_class(PositionClass.COARSE), strict=True):
        required(score.realignment, "realignment").position_class[here] = PositionClass.MASKED
    without = step_metrics(case.gradients()[0], case.rollouts)
    of_others = ("teacher_support_mass", "student_support_mass", "support_overlap")
    for name in (*of_others, "top1_agreement_on_support", "sampled_in_support", "realign_coverage"):
        assert line[name] == pytest.approx(without[name]), name
    assert without["coarse_tokens"] == 0
    assert without["realign_coarse_rest"] is None
    assert "coarse_loss" not in without


def test_reasons_that_are_not_told_are_counted_as_others(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = CoarseCase(make_config(), teacher)
    block = required(case.scores[0].realignment, "realignment")
    assert block.mask_reason is not None
    newer = int(np.flatnonzero(block.mask_reason)[0])
    block.mask_reason[newer] = 99
    case.scores[1] = replace(
        case.scores[1],
        realignment=replace(required(case.scores[1].realignment, "realignment"), mask_reason=None),
    )
    case.scores[2] = ContinuationScores(status=Status.NOT_REALIGNED, detail="no tokens for these")
    line = step_metrics(case.gradients()[0], case.rollouts)
    poor = [PositionClass.MASKED, PositionClass.COARSE]
    untold = np.isin(required(case.scores[1].realignment, "r").position_class, poor).sum()
    others = 1 + int(untold) + len(case.rollouts[2].token_ids)
    rows = sum(len(rollout.token_ids) for rollout in case.rollouts)
    assert line[metric_of("OTHER")] == pytest.approx(others / rows)
    shares = [float(str(line[metric_of(name)])) for name in EXPLAINED]
    whole = float(str(line["realign_masked_share"])) + float(str(line["realign_coarse_share"]))
    assert sum(shares) == pytest.approx(whole)
    told_of = realigned.low_coverage({"step": 7, **line})
    assert "masked or coarse: " in told_of
    assert f"LONG_CHUNK {line[metric_of('LONG_CHUNK')]:.3f}" in told_of


def test_a_coarse_row_is_not_given_to_its_chunk(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = CoarseCase(make_config(loss={"masked_chunks": True}), teacher)
    figures, _ = case.gradients()
    ended = sum(not r.ended_by_token(case.student.terminators) for r in case.rollouts)
    masked = case.of_class(PositionClass.MASKED)
    special = sorted(case.student.tokenizer.added_tokens_decoder)
    known = sum(
        int((rows & ~np.isin(r.token_ids, special)).sum())
        for rows, r in zip(masked, case.rollouts, strict=True)
    )
    assert known - ended <= figures.rows_by_chunk <= known
    assert figures.coarse == case.count(PositionClass.COARSE)
    assert figures.used == figures.rows - case.count(PositionClass.MASKED) + figures.rows_by_chunk


def test_what_a_loss_asks_of_the_teacher(make_config: MakeConfig) -> None:
    def asked(loss: dict[str, Any], realigned: bool = True) -> tuple[object, ...]:
        return tuple(asdict(make_config(loss=loss).loss.asks(realigned=realigned)).values())

    assert asked({}) == (16, True, True)
    assert asked({}, realigned=False) == (16, False, False)
    assert asked({"coarse": "mask"}) == (16, False, False)
    # The rest is outside the teacher's own ids, whichever ids the support has.
    assert asked({"support": "student"}) == (16, True, True)
    assert asked({"support": "student"}, realigned=False) == (0, False, False)
    assert asked({"tail": "bucket"}, realigned=False) == (16, True, False)
    assert asked({"kind": "sampled_token"}) == (16, False, False)
    assert asked({"kind": "unnormalised_reverse_kl", "study": True}) == (16, False, False)


@pytest.mark.parametrize("kind", ["sampled_token", "unnormalised_reverse_kl"])
def test_losses_without_an_outcome_for_the_rest_refuse_the_setting(
    make_config: MakeConfig, kind: str
) -> None:
    for value in ("bucket", "mask"):
        with pytest.raises(ValueError, match=f"{kind} has no such outcome.*Remove loss.coarse"):
            make_config(loss={"kind": kind, "coarse": value})
    with pytest.raises(ValueError, match="'bucket' or 'mask'"):
        make_config(loss={"coarse": "cells"})


def selections(rollouts: Sequence[Rollout]) -> list[Selection]:
    return [
        Selection(r.prompt, r.token_ids, np.arange(len(r.token_ids), dtype=np.int32))
        for r in rollouts
    ]


def test_held_out_measures_are_those_of_the_other_rows(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = CoarseCase(make_config(), teacher)
    every = selections(case.rollouts)
    found = realigned_divergence(case.student, every, case.scores, 2)
    assert found.coarse_rows == case.count(PositionClass.COARSE)
    assert found.masked_rows == case.count(PositionClass.MASKED)
    assert found.coarse is not None
    rows = {
        k: torch.cat([r.detach() for r in row_losses(case, k)]) for k in ("lsm", "topk_forward_kl")
    }
    coarse, masked = (
        torch.from_numpy(np.concatenate(case.of_class(kind)))
        for kind in (PositionClass.COARSE, PositionClass.MASKED)
    )
    for name, kind in (("reverse_kl", "lsm"), ("forward_kl", "topk_forward_kl")):
        of_others = float(rows[kind][~coarse & ~masked].mean())
        assert getattr(found, name) == pytest.approx(of_others, rel=1e-5)
        of_coarse = float(rows[kind][coarse].mean())
        assert getattr(found.coarse, name) == pytest.approx(of_coarse, rel=1e-5)
    rests = np.concatenate([np.exp(s.rows.log_tail.values) for s in case.scores])  # type: ignore[union-attr]
    assert found.coarse.teacher_rest == pytest.approx(rests[coarse.numpy()].mean(), rel=1e-5)
    assert 0 < found.coarse.student_rest < 1
    # A run of before, whose coarse rows are masked, has the same means.
    for score, here in zip(case.scores, case.of_class(PositionClass.COARSE), strict=True):
        required(score.realignment, "realignment").position_class[here] = PositionClass.MASKED
    before = realigned_divergence(case.student, every, case.scores, 2)
    for name in ("rows", "reverse_kl", "forward_kl", "agreement", "student_mass", "coverage"):
        assert getattr(before, name) == pytest.approx(getattr(found, name))
    assert (before.coarse_rows, before.coarse) == (0, None)
    assert before.masked_rows == found.masked_rows + found.coarse_rows


def test_an_evaluation_of_coarse_rows_alone_says_so(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = CoarseCase(make_config(), teacher)
    for score in case.scores:
        classes = required(score.realignment, "realignment").position_class
        classes[classes == PositionClass.ALIGNED] = PositionClass.MASKED
    with pytest.raises(LsmError, match=r"could be realigned whole; \d+ are coarse"):
        realigned_divergence(case.student, selections(case.rollouts), case.scores, 2)


def test_the_first_example_and_the_samples_say_why(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = CoarseCase(make_config(), teacher)
    rollout, score = case.rollouts[0], case.scores[0]
    usable = realigned.usable_rows(score, len(rollout.token_ids), sampled=False).tolist()
    reasons = row_reasons(score, usable)
    assert reasons[:5] == ["", "DOUBTFUL", "LONG_CHUNK", "", "DOUBTFUL"]
    kinds = ["loss" if not why else "coarse" if ok else "unknown"
             for why, ok in zip(reasons, usable, strict=True)]  # fmt: skip
    text = token_table(case.student, rollout, kinds, known="level CROSS", reasons=reasons)
    lines = text.splitlines()
    first = next(line for line in lines if line.split()[:1] == ["1"])
    assert first.split()[2:4] == ["coarse", "DOUBTFUL"]
    assert "unknown LONG_CHUNK" in text
    assert (
        f"{kinds.count('coarse')} coarse, {kinds.count('unknown')} unknown to the teacher" in text
    )
    assert lines[-1].strip().partition(" ")[2].startswith(("coarse, DOUBTFUL: ", "unknown, LONG"))
    assert EXPLAINED["LONG_CHUNK"] in text
    without = row_reasons(ContinuationScores(status=Status.NOT_REALIGNED), [False, False])
    assert without == ["OTHER", "OTHER"]
    shown = sample(case.student, rollout, score)
    assert len(shown.positions) == len(rollout.token_ids)
    assert [(p.kind, p.reason) for p in shown.positions[:3]] == [
        ("ALIGNED", ""), ("COARSE", "DOUBTFUL"), ("MASKED", "LONG_CHUNK"),
    ]  # fmt: skip
    assert sample(case.student, rollout, None).positions == ()
