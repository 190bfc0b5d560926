"""Coarse rows in an update: its loss and gradients, by autograd over full logits in float64."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.rows import required
from teacher_proto.types import (
    PositionClass,
)

from student_trainer.diagnostics.responses import responses_of
from student_trainer.student.model import load_student
from student_trainer.update.metrics import step_metrics
from tests.support.near import near
from tests.trainer.coarse_case import CoarseCase, MakeConfig, row_losses, with_single_ids
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.test_update import assert_close


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
        found.append((step_metrics(figures, responses_of(case.rollouts)), gradients))
    (cut, ours), (whole, theirs) = found
    assert_close(ours, theirs)
    assert cut == {k: near(v, rel=1e-5, abs=1e-6) for k, v in whole.items()}


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
def test_losses_that_do_not_compare_a_rest_refuse_the_setting(
    make_config: MakeConfig, kind: str
) -> None:
    for value in ("bucket", "mask"):
        with pytest.raises(ValueError, match=f"{kind} does not compare a rest.*Remove loss.coarse"):
            make_config(loss={"kind": kind, "coarse": value})
    with pytest.raises(ValueError, match="'bucket' or 'mask'"):
        make_config(loss={"coarse": "cells"})


@pytest.mark.parametrize("kind", ["lsm", "topk_forward_kl", "topk_jsd"])
def test_a_full_row_of_one_id_is_compared_on_the_id_and_the_rest(
    make_config: MakeConfig, teacher: LocalTeacher, kind: str
) -> None:
    case = CoarseCase(make_config(loss={"kind": kind}), teacher)
    single = with_single_ids(case)
    every = [required(s.rows.support, "support").counts == 1 for s in case.scores]
    coarse = case.of_class(PositionClass.COARSE)
    without = sum(
        int((one & ~c & ~s).sum()) for one, c, s in zip(every, coarse, single, strict=True)
    )
    figures, gradients = case.gradients()
    assert figures.coarse == sum(int((c | s).sum()) for c, s in zip(coarse, single, strict=True))
    assert figures.dropped_small_support == without > 0, "an id that holds the whole row"
    assert figures.dropped_non_finite == 0
    case.student = load_student(case.config.student)
    rows = row_losses(case, kind, with_rest=single)
    kept = [
        torch.from_numpy(~masked & ~(one & ~c & ~s))
        for masked, one, c, s in zip(
            case.of_class(PositionClass.MASKED), every, coarse, single, strict=True
        )
    ]
    used = torch.cat([one[here] for one, here in zip(rows, kept, strict=True)])
    assert figures.losses == [pytest.approx(float(used.mean().detach()), rel=1e-5)]
    used.mean().backward()
    named = dict(case.student.module.named_parameters())
    assert_close(gradients, {n: named[n].grad for n in gradients})  # type: ignore[misc]


def test_a_full_row_of_one_id_is_left_out_where_coarse_rows_are(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = CoarseCase(make_config(loss={"coarse": "mask"}), teacher)
    for i, score in enumerate(case.scores):
        block = required(score.realignment, "realignment")
        block.position_class[block.position_class == PositionClass.COARSE] = PositionClass.MASKED
        case.scores[i] = score
    single = with_single_ids(case)
    for i, score in enumerate(case.scores):
        case.scores[i] = replace(score, rows=replace(score.rows, log_tail=None))
    figures, _ = case.gradients()
    assert figures.coarse == figures.dropped_non_finite == 0
    assert figures.dropped_small_support > sum(int(rows.sum()) for rows in single)
