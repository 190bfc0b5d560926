"""The signal of an update's sampled tokens: of which rows it is told, row by row in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto.rows import required
from teacher_proto.types import ContinuationScores, PositionClass, Status

from student_trainer.diagnostics.responses import responses_of
from student_trainer.ranks.step import _added, _plain
from student_trainer.settings.train import TrainConfig
from student_trainer.update.metrics import UpdateTotals, step_metrics
from tests.support.near import near
from tests.trainer.coarse_case import CoarseCase
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.test_mixing import MixedCase, mixed, rows
from tests.trainer.test_realigned import CrossCase
from tests.trainer.test_teachers import KA, TWO, A, B, Mixed, several
from tests.trainer.test_update import Case

MakeConfig = Callable[..., TrainConfig]
__all__ = ["mixed", "rows", "several"]


def ratios(
    case: Any, left_out: list[np.ndarray] | None = None, teacher: str = ""
) -> list[np.ndarray]:
    """float64 [n] of each response of the student: log q - log pi_old; NaN where it is left out."""
    found = []
    for place, (rollout, score) in enumerate(zip(case.rollouts, case.scores, strict=True)):
        if rollout.origin == "data" or (teacher and rollout.prompt.teacher != teacher):
            continue
        if score.status is not Status.OK:
            found.append(np.full(len(rollout.token_ids), np.nan))
            continue
        sampled = required(score.rows.sampled, "sampled")
        ratio = sampled.values.astype(np.float64) - rollout.log_probs.astype(np.float64)
        ratio[~sampled.valid] = np.nan
        if left_out is not None:
            ratio[left_out[place]] = np.nan
        found.append(ratio)
    return found


def assert_told(line: dict[str, object], rows: list[np.ndarray], end: str = "") -> None:
    """Checks what a line says of these rows."""
    known = np.concatenate(rows)
    known = known[np.isfinite(known)]
    assert line[f"signal_tokens{end}"] == len(known) > 0
    assert line[f"log_ratio_mean{end}"] == pytest.approx(known.mean(), abs=1e-6)
    assert line[f"positive_share{end}"] == (known > 0).mean()
    above = known[known > 0].sum() / np.abs(known).sum()
    assert line[f"positive_signal_share{end}"] == pytest.approx(above, rel=1e-6)
    firsts = [row[0] for row in rows if np.isfinite(row[0])]
    seconds_to_third = [a for row in rows for a in row[2:4] if np.isfinite(a)]
    by_position: Any = line[f"log_ratio_by_position{end}"]
    assert by_position[0] == pytest.approx(np.mean(firsts), abs=1e-6)
    assert by_position[2] == pytest.approx(np.mean(seconds_to_third), abs=1e-6)
    assert np.sum(line[f"tokens_by_probabilities{end}"]) == len(known)


def totals_of(case: Any, part: slice) -> UpdateTotals:
    """What an update of some of the case's responses counts."""
    totals = UpdateTotals.of_teachers(case.config.named_teachers)
    scores = case.scores[part]
    case.updater.gradients(case.rollouts[part], scores.__getitem__, totals, 1)
    return totals


def told(case: Any) -> dict[str, object]:
    return step_metrics(case.gradients()[0], responses_of(case.rollouts))


@pytest.mark.parametrize("kind", ["lsm", "sampled_token"])
def test_every_row_of_a_teacher_with_the_same_tokenizer(
    make_config: MakeConfig, teacher: LocalTeacher, kind: str
) -> None:
    case = Case(make_config(loss={"kind": kind}), teacher)
    line = told(case)
    assert_told(line, ratios(case))
    assert line["signal_tokens"] == line["tokens_used"]
    assert line["signal_unknown_tokens"] == 0


def test_masked_tokens_and_lost_rows_are_left_out(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    plain = Case(make_config(), teacher)
    token = int(np.bincount(np.concatenate([r.token_ids for r in plain.rollouts])).argmax())
    config = make_config(loss={"mask": {"token_ids": [token]}, "max_non_finite_share": 0.5})
    case = Case(config, teacher)
    case.scores[2] = ContinuationScores(status=Status.NON_FINITE, detail="overflow")
    required(case.scores[1].rows.sampled, "sampled").values[3] = -np.inf
    line = told(case)
    rows = ratios(case, [rollout.token_ids == token for rollout in case.rollouts])
    assert_told(line, rows)
    assert line["signal_unknown_tokens"] == int(case.rollouts[1].token_ids[3] != token)


def test_rows_of_another_tokenizer(make_config: MakeConfig, teacher: LocalTeacher) -> None:
    case = CrossCase(make_config(loss={"masked_chunks": True}), teacher)
    line = told(case)
    assert_told(line, ratios(case, case.masked))
    assert line["signal_unknown_tokens"] == line["chunk_tokens"] != 0
    coarse = CoarseCase(make_config(), teacher)
    line = told(coarse)
    assert_told(line, ratios(coarse, coarse.of_class(PositionClass.COARSE)))
    assert line["signal_unknown_tokens"] == line["coarse_tokens"] != 0


def test_answers_of_the_data_have_none(mixed: MakeConfig, teacher: LocalTeacher) -> None:
    case = MixedCase(mixed(), teacher)
    line = told(case)
    assert_told(line, ratios(case))
    assert line["tokens_used"] == line["signal_tokens"] + line["data_tokens_used"]  # type: ignore


def test_several_teachers_and_ranks_add_up(
    several: MakeConfig, teacher: LocalTeacher, student_model_dir: Path
) -> None:
    config = several({A: {**TWO[A], "top_k": KA}, B: {**TWO[B], "top_k": KA}})
    case = Mixed(config, teacher, LocalTeacher(student_model_dir))
    totals = case.gradients()[0]
    line = step_metrics(totals, responses_of(case.rollouts))
    assert_told(line, ratios(case))
    for name in (A, B):
        assert_told(line, ratios(case, teacher=name), f"/{name}")
    # As two ranks, of which one has a quarter of the responses.
    cut = len(case.rollouts) // 4
    ranks = [_plain(totals_of(case, part)) for part in (slice(0, cut), slice(cut, None))]
    assert ranks[0]["by_teacher"] != ranks[1]["by_teacher"]
    added = step_metrics(_added(totals, ranks), responses_of(case.rollouts))
    assert_told(added, ratios(case))
    for name in (A, B):
        assert_told(added, ratios(case, teacher=name), f"/{name}")
    for key, value in line.items():
        if key.startswith(("signal", "positive", "negative", "tokens_by")):
            assert added[key] == near(value, rel=1e-9, abs=1e-12), key


def test_updates_that_are_clipped_are_counted(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    totals = UpdateTotals()
    norms = []
    for bound in (None, 1e-6, 1e-6):
        case = Case(make_config(optimizer={"clip_norm": bound}), teacher)
        case.updater.update(case.rollouts, case.scores.__getitem__, totals, 1)
        norms.append(totals.grad_norms[-1])
    assert totals.clipped == 2
    line = step_metrics(totals, responses_of(case.rollouts))
    assert line["clipped"] is True
    assert line["clipped_share"] == pytest.approx(2 / 3)
    assert line["grad_norm"] == pytest.approx(norms[0]), "before it is clipped"
    assert step_metrics(UpdateTotals(), [])["clipped_share"] is None
