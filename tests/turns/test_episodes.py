"""Episodes of a real tiny student in real environments: tokens, masks, limits, streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto.rows import Rows, Support, Values
from teacher_proto.types import ContinuationScores, TextPrompt

from student_trainer.data.rendering import PromptReader
from student_trainer.diagnostics.responses import responses_of
from student_trainer.environments.environments import Environments
from student_trainer.evaluation.frozen import spread_own, spread_rows
from student_trainer.evaluation.samples import sample
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.episode import episodes_as_bytes, episodes_of_bytes
from student_trainer.rollout.generate import generate
from student_trainer.rollout.turns.acting import Acting
from student_trainer.rollout.turns.engine import respond
from student_trainer.rollout.turns.template import TurnTemplate
from student_trainer.rollout.vllm.gap import own_log_probs
from student_trainer.run.pending_batches import _arrays, _of_arrays
from student_trainer.settings.data import DataSettings
from student_trainer.settings.dotted import importable_from, load_dotted
from student_trainer.settings.evaluation import VerificationSettings
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.student.model import Student, load_student
from student_trainer.tasks.environment import ActingTask
from student_trainer.teacher.own_rows import continuation_of, whole_rows
from student_trainer.watch.kept import record

ROLLOUT = RolloutSettings(group_size=2, max_new_tokens=150, batch_size=4)
LIMITED = {"turn_tokens": 12, "at_turn_limit": "act", "turn_seconds": 60.0}
Play = Callable[..., list[Rollout]]


@pytest.fixture(scope="module")
def student(student_model_dir: Path) -> Student:
    return load_student(StudentSettings(model=str(student_model_dir), device="cpu"))


@pytest.fixture
def play(rooms: Path, student: Student) -> Iterator[Play]:
    made: list[Environments] = []

    def play(
        rows: list[dict[str, Any]],
        settings: RolloutSettings = ROLLOUT,
        by: Student = student,
        **task: Any,
    ) -> list[Rollout]:
        with importable_from([rooms]):
            kind = load_dotted("rooms_task:Rooms", ActingTask, "tasks.rooms.kind")
        chosen = kind.model_validate({**LIMITED, **task})
        found = Environments({"rooms": chosen}, VerificationSettings())
        made.append(found)
        reader = PromptReader(by.tokenizer, DataSettings(train="x"), "2026-11-30T00:00:00")
        acting = Acting(by, found, TurnTemplate(reader, by.terminators))
        return respond(by, [prompt(by, row) for row in rows], settings, acting, seed=3, step=1)

    yield play
    for found in made:
        found.close()


def prompt(student: Student, row: dict[str, Any]) -> PromptItem:
    """A prompt that is a text; ``task`` of the row is ``rooms`` where it has none."""
    text = row.get("text", f"You are in room {row}.")
    ids = np.array(student.tokenizer(text)["input_ids"], np.int32)
    task = row.get("task", "rooms")
    return PromptItem(text[:40], ids, TextPrompt(text), task=task, row=row)


ROWS = [{"turns": n, "text": f"You are in room {n}."} for n in (1, 2, 4)]


def test_tokens_masks_and_log_probs_are_those_of_the_student(play: Play, student: Student) -> None:
    for rollout, turns in zip(play(ROWS), (1, 1, 2, 2, 4, 4), strict=True):
        own, ids, episode = rollout.own_rows, rollout.token_ids, rollout.episode
        assert episode is not None
        assert (episode.turns, episode.ended) == (turns, "done")
        assert episode.judgement.score == turns % 2
        assert own[0]
        assert own[-1]
        assert len(own) == len(ids) <= 150
        edges = np.flatnonzero(np.diff(own, prepend=False, append=False))
        assert len(edges) == 2 * turns
        heard = [
            student.tokenizer.decode(ids[a:b])
            for a, b in zip(edges[1:-1:2], edges[2::2], strict=True)
        ]
        assert [one.split(",")[0] for one in heard] == [f"turn {n}" for n in range(1, turns)]
        read = own_log_probs(student, rollout, ROLLOUT.temperature)
        np.testing.assert_allclose(rollout.log_probs[own], read[own], atol=1e-5)
        assert np.isnan(rollout.log_probs[~own]).all()
        assert rollout.nucleus_mass is not None
        assert (rollout.nucleus_mass[own] > 0).all()
        assert np.isnan(rollout.nucleus_mass[~own]).all()
        last = rollout.first(len(ids) - 1)
        assert (last.own_length, last.length) == (rollout.own_length - 1, rollout.length)


def test_an_episode_depends_neither_on_the_others_nor_on_the_batch(
    play: Play, student: Student
) -> None:
    together = play(ROWS)
    alone = [
        one for row in ROWS for one in play([row], ROLLOUT.model_copy(update={"batch_size": 1}))
    ]
    assert [r.token_ids.tolist() for r in together] == [r.token_ids.tolist() for r in alone]
    assert [r.episode for r in together] == [r.episode for r in alone]
    first, second = together[4].token_ids.tolist(), together[5].token_ids.tolist()
    assert first != second
    short = ROLLOUT.model_copy(update={"max_new_tokens": 12})
    plain = generate(student, [prompt(student, ROWS[2])], short, seed=3, step=1)
    for one, of_episode in zip(plain, together[4:], strict=True):
        assert of_episode.token_ids[: len(one.token_ids)].tolist() == one.token_ids.tolist()


def test_padded_batches_write_the_same_episodes(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = play(ROWS)
    monkeypatch.setattr("student_trainer.rollout.generate.why_padded", lambda student: "so")
    padded = play(ROWS)
    assert [r.token_ids.tolist() for r in padded] == [r.token_ids.tolist() for r in together]
    assert [r.episode for r in padded] == [r.episode for r in together]


def test_another_rank_gets_an_episode_whole(play: Play) -> None:
    (one,) = play([ROWS[1]], ROLLOUT.model_copy(update={"group_size": 1}))
    part = one.first(len(one.token_ids) - 1)
    told, of_part = _of_arrays(_arrays(one, part, 0), [one.prompt])
    assert (told.episode, of_part.episode) == (one.episode, one.episode)
    for found, expected in ((told, one), (of_part, part)):
        assert found.own is not None
        assert found.own.tolist() == expected.own_rows.tolist()
        assert found.token_ids.tolist() == expected.token_ids.tolist()
        np.testing.assert_array_equal(found.log_probs, expected.log_probs)
        np.testing.assert_array_equal(found.nucleus_mass, expected.nucleus_mass)


def test_responses_of_other_tasks_are_written_beside_episodes(play: Play, student: Student) -> None:
    other = {"task": "plain", "text": "The teacher reads"}
    mixed = play([other, ROWS[2], other])
    assert [r.episode is None for r in mixed] == [True, True, False, False, True, True]
    assert [r.index for r in mixed] == [0, 1, 0, 1, 2, 3]
    assert mixed[2].token_ids.tolist() == play(ROWS)[4].token_ids.tolist()
    expected = generate(
        student, [prompt(student, other), prompt(student, other)], ROLLOUT, seed=3, step=1
    )
    found = [mixed[place].token_ids.tolist() for place in (0, 1, 4, 5)]
    assert found == [one.token_ids.tolist() for one in expected]


def test_each_limit_ends_an_episode_as_it_says(play: Play) -> None:
    row = {"turns": 50, "text": "You are in room 4."}

    def ended(**changes: Any) -> list[Any]:
        total = ROLLOUT.model_copy(update={"max_new_tokens": changes.pop("total", 150)})
        found = play([row], total, **changes)
        assert all(r.episode is not None and r.own_rows[-1] for r in found)
        assert all(len(r.token_ids) <= total.max_new_tokens for r in found)
        return [(r.episode.ended, r.episode.turns, r.finished) for r in found if r.episode]

    assert {end for end, _, _ in ended(turns=3)} == {"turns"}
    assert {turns for _, turns, _ in ended(turns=3)} == {3}
    assert {(end, done) for end, _, done in ended(total=60)} == {("total_tokens", False)}
    assert {(end, done) for end, _, done in ended(turn_tokens=1, at_turn_limit="end")} == {
        ("turn_tokens", False)
    }


def test_a_failed_environment_ends_its_episode_and_no_other(play: Play) -> None:
    rows = [ROWS[2], {**ROWS[1], "does": {"1": "raise"}}, {**ROWS[0], "does": {"1": "huge"}}]
    rows[2]["turns"] = 2
    fine, failed, cut = play(rows, observation_characters=30)[::2]
    assert fine.token_ids.tolist() == play(ROWS)[4].token_ids.tolist()
    assert fine.episode is not None
    assert failed.episode is not None
    assert cut.episode is not None
    assert (failed.episode.ended, failed.episode.turns) == ("failed", 1)
    assert failed.episode.judgement.failure == "raised"
    assert not failed.episode.judgement.right
    told = failed.episode.told.values
    assert (told["episode_ended_failed"], told["episode_ended_done"]) == (1, 0)
    assert cut.episode.cut == 1
    episodes = [fine.episode, None, failed.episode]
    assert episodes_of_bytes(episodes_as_bytes(episodes)) == episodes


def test_empty_turns_reach_the_environment(play: Play, student: Student) -> None:
    """Of a student of which every id ends a turn."""
    silent = replace(student, terminators=tuple(range(student.vocabulary_size)))
    for rollout in play([{"turns": 3, "text": "?"}], by=silent):
        assert rollout.episode is not None
        assert (rollout.episode.turns, rollout.own_length, rollout.finished) == (3, 3, True)
        assert rollout.episode.judgement.values["words"] == 0


def test_loops_and_lengths_are_of_the_students_own_tokens(play: Play, student: Student) -> None:
    (one,) = play([ROWS[2]], ROLLOUT.model_copy(update={"group_size": 1}))
    repeated = np.where(one.own_rows, one.token_ids, 7).astype(np.int32)
    (told,) = responses_of([Rollout(
        one.prompt, 0, repeated, one.log_probs, True, own=one.own, episode=one.episode
    )])  # fmt: skip
    (as_before,) = responses_of([one])
    assert (told.loop_tokens, told.longest_loop) == (as_before.loop_tokens, as_before.longest_loop)
    assert told.tokens == one.own_length < len(one.token_ids)
    assert sample(student, one, None).tokens == one.own_length


def test_only_own_rows_are_asked_for_and_put_in_their_places(play: Play, student: Student) -> None:
    (one,) = play([ROWS[1]], ROLLOUT.model_copy(update={"group_size": 1}))
    own, count = one.own_rows, one.own_length
    asked = continuation_of(one, whole=False)
    assert asked.selected_positions.tolist() == np.flatnonzero(own).tolist()
    assert continuation_of(one, whole=True).row_count == len(own)
    draw = np.random.default_rng(0)
    support = Support(
        draw.integers(0, 9, (count, 2)).astype(np.int32),
        draw.random((count, 2)).astype(np.float32),
        np.full(count, 2, np.int32),
    )
    sampled = Values(draw.random(count).astype(np.float32), np.ones(count, np.bool_))
    rows = Rows(support=support, sampled=sampled)
    whole = whole_rows(ContinuationScores(rows=rows), one.own).rows
    assert whole.support is not None
    assert whole.sampled is not None
    assert (whole.support.ids[own] == support.ids).all()
    assert (whole.support.ids[~own] == -1).all()
    assert not whole.support.valid[~own].any()
    assert whole.sampled.valid.tolist() == own.tolist()
    assert (whole.sampled.values[own] == sampled.values).all()
    kept = record(student, one, ContinuationScores(rows=whole), np.full(len(own), np.nan))
    mass = np.exp(support.log_probs.astype(np.float64)).sum(-1)
    assert [value is not None for value in kept["support_mass"]] == own.tolist()
    np.testing.assert_allclose([v for v in kept["support_mass"] if v is not None], mass, atol=1e-5)


def test_frozen_positions_are_spread_over_the_students_own_tokens() -> None:
    """Of 3, 0 and 6 own tokens, as if these were whole responses."""
    item = PromptItem("p", np.array([1], np.int32), TextPrompt("a"))
    masks = [[0, 1, 0, 1, 1], [0, 0], [1, 1, 0, 0, 1, 1, 1, 1]]
    rollouts = [
        Rollout(item, 0, np.ones(len(own), np.int32), np.zeros(len(own), np.float32), True,
                own=np.array(own, np.bool_))
        for own in masks
    ]  # fmt: skip
    assert [found.tolist() for found in spread_own(rollouts, 9)] == [
        [1, 3, 4], [], [0, 1, 4, 5, 6, 7],
    ]  # fmt: skip
    for count in range(9):
        expected = [
            [places[nth] for nth in chosen.tolist()]
            for places, chosen in zip(
                ([1, 3, 4], [], [0, 1, 4, 5, 6, 7]), spread_rows([3, 0, 6], count), strict=True
            )
        ]
        assert [found.tolist() for found in spread_own(rollouts, count)] == expected
