"""What is said of coarse rows: metrics, held-out measures, the first example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from teacher_proto.errors import LsmError
from teacher_proto.rows import required
from teacher_proto.types import (
    CLASSES_WITH_REASON,
    ContinuationScores,
    PositionClass,
    Status,
)

from student_trainer.diagnostics.responses import responses_of
from student_trainer.evaluation.realigned import realigned_divergence
from student_trainer.evaluation.results import OF_FULL_ROWS
from student_trainer.evaluation.rows import Selection
from student_trainer.evaluation.samples import sample
from student_trainer.first_example import row_reasons, token_table
from student_trainer.rollout.base import Rollout
from student_trainer.teacher.mask_reasons import EXPLAINED, metric_of
from student_trainer.update import realigned
from student_trainer.update.metrics import step_metrics
from tests.trainer.coarse_case import CoarseCase, MakeConfig, row_losses, with_single_ids
from tests.trainer.local_teacher import LocalTeacher


def test_their_figures_are_apart_from_those_of_the_other_rows(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = CoarseCase(make_config(report={"metric_rows": 10_000}), teacher)
    figures, _ = case.gradients()
    line = step_metrics(figures, responses_of(case.rollouts))
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
    of_coarse, full = classes == PositionClass.COARSE, classes == PositionClass.ALIGNED
    assert line["realign_coarse_share"] == pytest.approx(of_coarse.mean())
    assert line["realign_coarse_rest"] == pytest.approx((1 - coverage[of_coarse]).mean(), rel=1e-5)
    assert line["realign_coverage"] == pytest.approx(coverage[full].mean(), rel=1e-5)
    assert line["realign_open_mass"] == pytest.approx(0.01)
    assert line["teacher_support_mass"] == pytest.approx(coverage[full].mean(), rel=1e-5)
    assert 0 < float(str(line["coarse_student_rest"])) < 1
    shares = {name: line[metric_of(name)] for name in EXPLAINED}
    assert shares.pop("DOUBTFUL") == pytest.approx(of_coarse.mean())
    assert shares.pop("LONG_CHUNK") == line["realign_masked_share"]
    assert set(shares.values()) == {0.0}
    # Without coarse rows the same figures of the others.
    for score, here in zip(case.scores, case.of_class(PositionClass.COARSE), strict=True):
        required(score.realignment, "realignment").position_class[here] = PositionClass.MASKED
    without = step_metrics(case.gradients()[0], responses_of(case.rollouts))
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
    line = step_metrics(case.gradients()[0], responses_of(case.rollouts))
    untold = np.isin(
        required(case.scores[1].realignment, "r").position_class, CLASSES_WITH_REASON
    ).sum()
    others = 1 + int(untold) + len(case.rollouts[2].token_ids)
    rows = sum(len(rollout.token_ids) for rollout in case.rollouts)
    assert line[metric_of("OTHER")] == pytest.approx(others / rows)
    shares = [float(str(line[metric_of(name)])) for name in EXPLAINED]
    whole = float(str(line["realign_masked_share"])) + float(str(line["realign_coarse_share"]))
    assert sum(shares) == pytest.approx(whole)
    told_of = realigned.low_coverage({"step": 7, **line})
    assert "masked or coarse: " in told_of
    assert f"LONG_CHUNK {line[metric_of('LONG_CHUNK')]:.3f}" in told_of


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


def test_coarse_rows_alone_can_be_evaluated(make_config: MakeConfig, teacher: LocalTeacher) -> None:
    case = CoarseCase(make_config(), teacher)
    whole = realigned_divergence(case.student, selections(case.rollouts), case.scores, 2)
    for score in case.scores:
        classes = required(score.realignment, "realignment").position_class
        classes[classes == PositionClass.ALIGNED] = PositionClass.MASKED
    found = realigned_divergence(case.student, selections(case.rollouts), case.scores, 2)
    assert (found.rows, found.coarse_rows, found.coarse) == (0, whole.coarse_rows, whole.coarse)
    assert {getattr(found, name) for name in OF_FULL_ROWS} == {None}
    for score in case.scores:
        required(score.realignment, "realignment").position_class[:] = PositionClass.MASKED
    with pytest.raises(LsmError, match=r"none of \d+ positions could be realigned"):
        realigned_divergence(case.student, selections(case.rollouts), case.scores, 2)


def test_a_full_row_of_one_id_is_evaluated_on_the_id_and_the_rest(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = CoarseCase(make_config(), teacher)
    before = realigned_divergence(case.student, selections(case.rollouts), case.scores, 2)
    single = with_single_ids(case)
    found = realigned_divergence(case.student, selections(case.rollouts), case.scores, 2)
    coarse = [c | s for c, s in zip(case.of_class(PositionClass.COARSE), single, strict=True)]
    assert found.coarse_rows == sum(int(rows.sum()) for rows in coarse) > (before.coarse_rows or 0)
    assert found.masked_rows > before.masked_rows, "an id that holds the whole row"
    assert found.coarse is not None
    for name, kind in (("reverse_kl", "lsm"), ("forward_kl", "topk_forward_kl")):
        rows = torch.cat([r.detach() for r in row_losses(case, kind, with_rest=single)])
        mean = float(rows[torch.from_numpy(np.concatenate(coarse))].mean())
        assert getattr(found.coarse, name) == pytest.approx(mean, rel=1e-5)


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
