"""Rows without a verdict: they give no loss, are counted, and may learn from their chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import LsmError, PoisonedReplyError
from teacher_proto.rows import Rows, Support, Values
from teacher_proto.types import (
    Bool,
    ContinuationScores,
    PositionClass,
    Realignment,
    Status,
    TextPrompt,
)

from student_trainer.diagnostics.responses import responses_of
from student_trainer.evaluation.realigned import chunk_likelihood
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.settings.train import TrainConfig
from student_trainer.student.masking import token_bytes
from student_trainer.student.model import load_student
from student_trainer.update import realigned
from student_trainer.update.metrics import step_metrics
from student_trainer.update.updater import Updater
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.test_update import Case, assert_close, row_losses

MakeConfig = Callable[..., TrainConfig]
CHUNK = 3  # tokens a chunk of ``carried`` has, the last one may have fewer


def carried(scores: ContinuationScores, rollout: Rollout, masked: Bool) -> ContinuationScores:
    """The scores as a teacher with another tokenizer gives them: ``masked`` rows hold
    nothing, and every chunk is 0.3 nats a token more likely than the student found it."""
    assert scores.rows.support is not None
    assert scores.rows.sampled is not None
    count, width = scores.rows.support.ids.shape
    chunk = np.arange(count, dtype=np.int32) // CHUNK
    own = np.bincount(chunk, rollout.log_probs.astype(np.float64))
    classes = np.full(count, PositionClass.ALIGNED, np.uint8)
    classes[masked] = PositionClass.MASKED
    known = ~masked
    return replace(
        scores,
        rows=Rows(
            support=Support(
                np.where(known[:, None], scores.rows.support.ids, -1),
                np.where(known[:, None], scores.rows.support.log_probs, 0).astype(np.float32),
                np.where(known, width, 0).astype(np.int32),
            ),
            sampled=Values(
                np.where(known, scores.rows.sampled.values, 0).astype(np.float32), known
            ),
            log_tail=Values(np.where(known, -3, 0).astype(np.float32), known),
        ),
        realignment=Realignment(
            coverage=np.where(known, 0.9, 0).astype(np.float32),
            open_mass=np.full(count, 0.08, np.float32),
            lost_mass=np.full(count, 0.02, np.float32),
            position_class=classes,
            chunk_index=chunk,
            chunk_log_likelihood=(own + 0.3 * np.bincount(chunk)).astype(np.float32),
        ),
    )


class CrossCase(Case):
    """A case whose scores are carried over, every fourth row masked."""

    def __init__(self, config: TrainConfig, teacher: LocalTeacher) -> None:
        super().__init__(config, teacher)
        self.updater = Updater(self.student, config, realigned={"default"})
        self.masked = [np.arange(len(r.token_ids)) % 4 == 1 for r in self.rollouts]
        triples = zip(self.scores, self.rollouts, self.masked, strict=True)
        self.scores = [carried(*triple) for triple in triples]


@pytest.mark.parametrize(
    "loss",
    [
        {"kind": "lsm"},
        {"kind": "lsm", "support": "teacher+sampled"},
        {"kind": "lsm", "support_mass": 0.7},
        {"kind": "lsm", "mean": "sequence"},
        {"kind": "topk_jsd"},
        {"kind": "sampled_token", "gamma": 0.5},
    ],
    ids=str,
)
def test_masked_rows_give_nothing_and_are_counted(
    make_config: MakeConfig, teacher: LocalTeacher, loss: dict[str, Any]
) -> None:
    case = CrossCase(make_config(loss=loss), teacher)
    figures, gradients = case.gradients()
    masked = sum(int(rows.sum()) for rows in case.masked)
    assert figures.unusable == masked > 0
    assert figures.used == figures.rows - masked
    assert figures.dropped_non_finite == figures.dropped_small_support == 0
    # Whatever the masked rows of the reply hold changes nothing.
    for score, rows in zip(case.scores, case.masked, strict=True):
        assert score.rows.support is not None
        score.rows.support.ids[rows], score.rows.support.log_probs[rows] = 7, -1e3
        assert score.rows.sampled is not None
        score.rows.sampled.values[rows] = -1e3
    again, same = case.gradients()
    assert again.losses == figures.losses
    assert_close(same, gradients, 0)


def test_the_loss_is_that_of_the_other_rows(make_config: MakeConfig, teacher: LocalTeacher) -> None:
    case = CrossCase(make_config(), teacher)
    figures, _ = case.gradients()
    whole = teacher.score(case.rollouts, case.config.loss.top_k)
    rows = [row_losses(case.student, r, s) for r, s in zip(case.rollouts, whole, strict=True)]
    kept = np.concatenate([x[~m] for x, m in zip(rows, case.masked, strict=True)])
    assert figures.losses == [pytest.approx(float(kept.mean()), abs=1e-6)]


def test_a_sampled_token_without_a_verdict_is_no_broken_row(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = CrossCase(make_config(loss={"kind": "sampled_token"}), teacher)
    score = case.scores[0]
    assert score.rows.sampled is not None
    uncertified = int(np.flatnonzero(score.rows.sampled.valid)[0])
    score.rows.sampled.valid[uncertified] = False
    figures, _ = case.gradients()
    assert figures.dropped_non_finite == 0
    assert figures.unusable == 1 + sum(int(rows.sum()) for rows in case.masked)


def test_a_response_that_could_not_be_realigned_is_left_out(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    case = CrossCase(make_config(), teacher)
    whole = case.gradients()[0]
    lost = int((~case.masked[2]).sum())
    case.scores[2] = ContinuationScores(status=Status.NOT_REALIGNED, detail="no tokens for these")
    figures, _ = case.gradients()
    assert figures.used == whole.used - lost
    assert figures.dropped_non_finite == 0
    line = step_metrics(figures, responses_of(case.rollouts))
    assert line["realign_failed_share"] == pytest.approx(1 / len(case.rollouts))
    same = Case(make_config(), teacher)
    same.scores[2] = case.scores[2]
    with pytest.raises(PoisonedReplyError, match="shares the tokenizer"):
        same.gradients()


def test_nothing_but_masked_rows_is_refused(make_config: MakeConfig, teacher: LocalTeacher) -> None:
    case = CrossCase(make_config(), teacher)
    case.scores = [ContinuationScores(status=Status.NOT_REALIGNED, detail="x")] * len(case.rollouts)
    with pytest.raises(LsmError, match="can be used"):
        case.gradients()


def test_the_figures_of_a_step(make_config: MakeConfig, teacher: LocalTeacher) -> None:
    case = CrossCase(make_config(), teacher)
    figures, _ = case.gradients()
    line = step_metrics(figures, responses_of(case.rollouts))
    masked = sum(int(rows.sum()) for rows in case.masked) / figures.rows
    assert line["realign_masked_share"] == pytest.approx(masked)
    assert line["realign_aligned_share"] == pytest.approx(1 - masked)
    assert line["realign_mid_share"] == 0
    assert line["realign_coverage"] == pytest.approx(0.9)
    assert line["realign_open_mass"] == pytest.approx(0.08)
    assert line["realign_lost_mass"] == pytest.approx(0.02)
    assert line["unusable_tokens"] == figures.unusable


@pytest.mark.parametrize(
    ("coverage", "masked", "low"),
    [(0.8, 0.1, False), (0.79, 0.0, True), (0.95, 0.11, True), (None, 1.0, True)],
)
def test_low_coverage_is_said_with_figures(
    coverage: float | None, masked: float, low: bool
) -> None:
    line = {"step": 3, "realign_coverage": coverage, "realign_masked_share": masked}
    text = realigned.low_coverage(line)
    assert bool(text) is low
    assert not low or f"masked_share {masked:.3f}" in text
    assert realigned.low_coverage({"step": 1, "loss": 0.5}) == ""


def chunk_rows(case: CrossCase, extra: Sequence[int] = ()) -> list[Bool]:
    """Masked rows whose chunk counts: not cut at the end, without masked special tokens."""
    special = set(case.student.tokenizer.added_tokens_decoder)
    found = []
    for rollout, masked in zip(case.rollouts, case.masked, strict=True):
        chunk = np.arange(len(masked)) // CHUNK
        bad = {
            chunk[t]
            for t, (m, token) in enumerate(zip(masked, rollout.token_ids.tolist(), strict=True))
            if m and token in special
        }
        if not rollout.finished:
            bad.add(chunk[-1])
        found.append(masked & ~np.isin(chunk, list(bad)))
    return found


def chunk_weights(rollout: Rollout) -> np.ndarray:
    """What a row counts: the probability of all nuclei that its chunk was drawn from."""
    assert rollout.nucleus_mass is not None
    masses = rollout.nucleus_mass.astype(np.float64).tolist()
    products = [np.prod(masses[i : i + CHUNK]) for i in range(0, len(masses), CHUNK)]
    return np.array([products[t // CHUNK] for t in range(len(masses))])


@pytest.mark.parametrize("finished", [True, False])
def test_chunks_whose_likelihood_both_sides_know(finished: bool) -> None:
    """Five chunks of one token, one of two; two tokens are special, one of them masked."""
    classes = np.full(7, PositionClass.ALIGNED, np.uint8)
    classes[[1, 4]] = PositionClass.MASKED
    nothing = np.zeros(7, np.float32)
    block = Realignment(
        coverage=nothing,
        open_mass=nothing,
        lost_mass=nothing,
        position_class=classes,
        chunk_index=np.array([0, 1, 2, 3, 4, 5, 5], np.int32),
        chunk_log_likelihood=np.zeros(6, np.float32),
    )
    special = np.isin(np.arange(7), [2, 4])
    ends = [] if finished else [6]
    known = realigned.chunks_known(block, special, ends)
    np.testing.assert_array_equal(known, [True, True, True, True, False, finished])
    own = np.arange(7) != 6
    own[0] = False
    known = realigned.chunks_known(block, special, ends, own)
    np.testing.assert_array_equal(known, [False, True, True, True, False, False])


def test_a_turn_that_no_token_ended_has_no_last_chunk() -> None:
    """An episode of three turns: a cut one, one that ends with a terminator, and one that does;
    observations between them. Every chunk is one token, but for one that reaches across."""
    end, nothing = 9, np.zeros(10, np.float32)
    ids = np.array([1, 2, 3, 4, 5, end, 6, 7, 8, end], np.int32)
    own = np.array([1, 1, 0, 0, 1, 1, 0, 1, 1, 1], np.bool_)
    block = Realignment(
        coverage=nothing,
        open_mass=nothing,
        lost_mass=nothing,
        position_class=np.full(10, PositionClass.ALIGNED, np.uint8),
        chunk_index=np.array([0, 1, 2, 3, 4, 5, 6, 6, 7, 8], np.int32),
        chunk_log_likelihood=np.arange(9, dtype=np.float32),
    )
    item = PromptItem("p", np.array([1], np.int32), TextPrompt("a"))
    rollout = Rollout(item, 0, ids, nothing, True, own=own)
    scores = ContinuationScores(rows=Rows(), realignment=block)
    none = np.zeros(10, np.bool_)
    values, known = realigned.chunk_advantages(scores, rollout, none, (end,))
    assert np.flatnonzero(known).tolist() == [0, 4, 5, 8, 9], "1 is cut, 7 has an observation"
    assert values[known].tolist() == [0, 4, 5, 7, 8]
    cut = replace(rollout, finished=False)
    assert np.flatnonzero(realigned.chunk_advantages(scores, cut, none, (end,))[1]).tolist() == [
        0,
        4,
        5,
        8,
    ], "a limit ended the last turn"
    part = rollout.first(7)
    assert part.open_ends((end,)).tolist() == [1]
    assert rollout.first(9).open_ends((end,)).tolist() == [1, 8]


def test_the_last_chunk_of_a_response_that_a_stop_string_ended_is_not_known(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    """As in one that the limit cut, its text would have continued; a token ends both sides."""
    case = CrossCase(make_config(), teacher)
    terminators = case.student.terminators
    plain = next(n for n in range(320) if n not in terminators)
    for last, finished, known in (
        (terminators[0], True, True), (plain, True, False), (plain, False, False),
    ):  # fmt: skip
        ids = case.rollouts[0].token_ids.copy()
        ids[-1] = last
        rollout = replace(case.rollouts[0], token_ids=ids, finished=finished)
        none = np.zeros(len(ids), np.bool_)
        found = realigned.chunk_advantages(case.scores[0], rollout, none, terminators)[1]
        assert (bool(found[-1]), bool(found[0])) == (known, True)
    ended = [replace(r, token_ids=np.append(r.token_ids[:-1], plain).astype(np.int32),
                     finished=True) for r in case.rollouts]  # fmt: skip
    cut = [replace(r, finished=False) for r in ended]
    by_string, by_limit = (
        chunk_likelihood(case.student, some, case.scores, batch_size=2) for some in (ended, cut)
    )
    assert by_string == by_limit is not None


def test_bits_per_byte_of_an_answer(make_config: MakeConfig, teacher: LocalTeacher) -> None:
    case = CrossCase(make_config(), teacher)
    found = chunk_likelihood(case.student, case.rollouts, case.scores, batch_size=2)
    assert found is not None
    pieces = token_bytes(case.student.tokenizer)
    special = set(case.student.tokenizer.added_tokens_decoder)
    own = theirs = 0.0
    read = chunks = 0
    for rollout, scores in zip(case.rollouts, case.scores, strict=True):
        block = scores.realignment
        assert block is not None
        count = len(rollout.token_ids)
        bad = np.isin(rollout.token_ids, list(special))
        known = realigned.chunks_known(block, bad, [] if rollout.finished else [count - 1])
        ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
        with torch.no_grad():
            logits = case.student.causal_model(torch.from_numpy(ids)[None]).logits[0].double()
        log_pi = logits[-count - 1 : -1].log_softmax(-1)
        for place, token in enumerate(rollout.token_ids.tolist()):
            if known[place // CHUNK]:
                own += float(log_pi[place, token])
                read += 0 if token in special else len(pieces[token])
        theirs += float(block.chunk_log_likelihood[known].sum(dtype=np.float64))
        chunks += int(known.sum())
    assert (found.chunks, found.bytes) == (chunks, read)
    assert found.student_bits_per_byte == pytest.approx(-own / np.log(2) / read, rel=1e-4)
    assert found.teacher_bits_per_byte == pytest.approx(-theirs / np.log(2) / read, rel=1e-6)


@pytest.mark.parametrize("kind", ["lsm", "sampled_token"])
def test_masked_rows_learn_from_their_chunk(
    make_config: MakeConfig, teacher: LocalTeacher, kind: str
) -> None:
    off = CrossCase(make_config(loss={"kind": kind}), teacher)
    plain, without = off.gradients()
    case = CrossCase(make_config(loss={"kind": kind, "masked_chunks": True}), teacher)
    figures, gradients = case.gradients()
    rows = chunk_rows(case)
    count = sum(int(r.sum()) for r in rows)
    assert figures.rows_by_chunk == count > 0
    assert figures.used == plain.used + count
    line = step_metrics(figures, responses_of(case.rollouts))
    assert 0.3 < float(str(line["chunk_advantage"])) <= 0.3 * CHUNK + 1e-4
    # What the chunks add, by plain autograd over full logits.
    student = load_student(case.config.student)
    total: Any = 0.0
    for rollout, chosen in zip(case.rollouts, rows, strict=True):
        ids = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
        logits = student.causal_model(torch.from_numpy(ids)[None]).logits[0]
        log_pi = logits[len(rollout.prompt.token_ids) - 1 : -1].log_softmax(-1)
        sampled = torch.from_numpy(rollout.token_ids.astype(np.int64))[:, None]
        chunk = np.arange(len(chosen)) // CHUNK
        of_chunk = 0.3 * np.bincount(chunk)[chunk] * chunk_weights(rollout)
        advantage = torch.from_numpy(of_chunk)
        total = (
            total - (advantage * log_pi.gather(1, sampled)[:, 0])[torch.from_numpy(chosen)].sum()
        )
    total.backward()
    parameters = dict(student.module.named_parameters())
    expected = {
        name: (value * plain.used + parameters[name].grad) / figures.used  # type: ignore[operator]
        for name, value in without.items()
    }
    assert_close(gradients, expected, 1e-5)


def test_chunk_rows_weigh_as_rows_of_their_response(
    make_config: MakeConfig, teacher: LocalTeacher
) -> None:
    losses = []
    for budget in (84, 4000):
        config = make_config(
            loss={"masked_chunks": True, "mean": "sequence", "chunk_clamp": 0.5},
            optimizer={"micro_batch_tokens": budget},
        )
        case = CrossCase(config, teacher)
        losses.append(case.gradients()[0].losses[0])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    rows, means = chunk_rows(case), []
    whole = teacher.score(case.rollouts, case.config.loss.top_k)
    for place, rollout in enumerate(case.rollouts):
        of_rows = row_losses(case.student, rollout, whole[place])[~case.masked[place]]
        chunk = np.arange(len(rollout.token_ids)) // CHUNK
        advantage = np.minimum(0.3 * np.bincount(chunk)[chunk], 0.5)
        gained = (advantage * chunk_weights(rollout))[rows[place]]
        means.append(np.concatenate([of_rows, -gained]).mean())
    assert losses[0] == pytest.approx(float(np.mean(means)), abs=1e-5)
