"""Environments in their processes: those that hang, die and print cost their own episode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError
from teacher_proto.processes.confinement import MAX_DESCRIPTORS

from student_trainer.environments.environments import Environments
from student_trainer.environments.process import Observed, Playing
from student_trainer.rollout.episode import TOLD, Episode
from student_trainer.settings.dotted import importable_from, load_dotted
from student_trainer.settings.evaluation import VerificationSettings
from student_trainer.tasks import Verdict
from student_trainer.tasks.base import MAX_VALUES
from student_trainer.tasks.environment import ActingTask, Turn
from student_trainer.tasks.judgement import Judgement
from tests.tasks.tools import of_task


def environments(folder: Path, seconds: float, **values: Any) -> Environments:
    with importable_from([folder]):
        kind = load_dotted("rooms_task:Rooms", ActingTask, "tasks.rooms.kind")
    task = kind.model_validate({"turn_seconds": seconds, "observation_characters": 1000, **values})
    return Environments({"rooms": task}, VerificationSettings(memory_bytes=256 << 20))


@pytest.fixture
def played(rooms: Path) -> Iterator[Environments]:
    found = environments(rooms, 60.0)
    yield found
    found.close()


def begin(found: Environments, row: dict[str, Any]) -> Playing:
    return found.begin(of_task("rooms", row))


def said(found: Environments, episode: Playing, text: str = "go") -> str:
    answer = found.act(episode, Turn(text)).result()
    assert isinstance(answer, Observed), answer
    return answer.observation.messages[0]["content"]


FAILING = {"raise": "raised", "exit": "ended", "print": "output", "memory": "memory",
           "map": "memory", "library": "memory", "nothing": "raised"}  # fmt: skip


def test_a_failing_environment_costs_its_own_episode(played: Environments) -> None:
    neighbour = begin(played, {"turns": 9})
    for turns, (does, kind) in enumerate(FAILING.items(), 1):
        assert said(played, neighbour) == f"turn {turns}, heard {2 * turns}"
        failing = begin(played, {"turns": 9, "does": {"2": does}})
        assert said(played, failing) == "turn 1, heard 2"
        answer = played.act(failing, Turn("go")).result()
        assert isinstance(answer, Judgement)
        assert (answer.failure, answer.right, bool(answer.reason)) == (kind, False, True)
        played.forget(failing)
    judged = played.judge(neighbour).result()
    assert (judged.score, judged.values) == (1.0, {"words": 7.0})


def test_an_environment_that_hangs_is_ended_and_its_neighbour_rebuilt(rooms: Path) -> None:
    found = environments(rooms, 0.5)
    try:
        neighbour = begin(found, {"turns": 4})
        first = said(found, neighbour, "one")
        hanging = begin(found, {"does": {"1": "hang"}})
        answer = found.act(hanging, Turn("go")).result()
        assert isinstance(answer, Judgement)
        assert (answer.failure, "0.5 s" in answer.reason) == ("time", True)
        assert (first, said(found, neighbour, "two")) == ("turn 1, heard 3", "turn 2, heard 6")
    finally:
        found.close()


def test_an_environment_that_answers_otherwise_when_it_is_rebuilt_is_told(
    played: Environments,
) -> None:
    other = begin(played, {"turns": 9, "does": {"1": "number"}})
    assert said(played, other).startswith("process ")
    dying = begin(played, {"does": {"1": "exit"}})
    played.act(dying, Turn("go")).result()
    answer = played.act(other, Turn("go")).result()
    assert isinstance(answer, Judgement)
    assert answer.failure == "replay"


def test_many_episodes_of_a_process_have_their_files_open(played: Environments) -> None:
    """More than a verifier may open."""
    every = [begin(played, {"turns": 9, "does": {"1": "open"}}) for _ in range(MAX_DESCRIPTORS + 6)]
    answers = [played.act(one, Turn("go")) for one in every]
    assert [type(one.result()) for one in answers] == [Observed] * len(every)
    judged = [played.judge(one) for one in every]
    assert {one.result().score for one in judged} == {1.0}


def test_episodes_that_are_too_large_together_go_on_alone(played: Environments) -> None:
    """Each keeps 100 MiB, and the process has 256."""
    every = [begin(played, {"turns": 9, "does": {"1": "keep"}}) for _ in range(3)]
    for turn in (1, 2):
        for episode in every:
            assert said(played, episode) == f"turn {turn}, heard {2 * turn}"
    assert [played.judge(one).result().score for one in every] == [0.0] * 3
    huge = begin(played, {"does": {"1": "memory"}})
    answer = played.act(huge, Turn("go")).result()
    assert isinstance(answer, Judgement)
    assert (answer.failure, answer.reason.endswith("alone in its process")) == ("memory", True)


def test_a_start_that_fails_once_costs_no_episode(
    rooms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("student_trainer.verification.child.PAUSE_SECONDS", 0.01)
    broken = rooms / "broken"
    found = environments(rooms, 60.0, broken=str(broken))
    try:
        for once in (True, False):
            neighbour = begin(found, {"turns": 9})
            assert said(found, neighbour) == "turn 1, heard 2"
            dying = begin(found, {"does": {"1": "exit"}})
            found.act(dying, Turn("go")).result()
            broken.write_text("once" if once else "always")
            if once:
                assert said(found, neighbour) == "turn 2, heard 4"
            else:
                with pytest.raises(ConfigurationError, match="no door today"):
                    found.act(neighbour, Turn("go")).result()
    finally:
        found.close()


def test_names_of_values_leave_room_for_those_of_every_episode(played: Environments) -> None:
    with pytest.raises(ValueError, match="tell how episodes went"):
        Verdict(1.0, values={"episode_turns": 1.0})
    for count, kind in ((MAX_VALUES - len(TOLD), ""), (MAX_VALUES - len(TOLD) + 1, "raised")):
        judged = played.judge(begin(played, {"values": count})).result()
        assert judged.failure == kind
        episode = Episode(1, "done", 0, judged)
        assert len(episode.told.values) == (MAX_VALUES if not kind else len(TOLD))
    assert set(TOLD) <= set(episode.told.values)


def test_observations_are_cut_and_every_text_is_one_that_tokenizers_take(
    played: Environments,
) -> None:
    episode = begin(played, {"turns": 9, "does": {"1": "huge", "2": "surrogate"}})
    answer = played.act(episode, Turn("go")).result()
    assert isinstance(answer, Observed)
    assert answer.cut == 1
    content = answer.observation.messages[0]["content"]
    assert content == "y" * 1000 + "\n... (cut after 1000 characters)"
    assert said(played, episode) == "half \ufffd of a pair \x00 end"


@pytest.mark.parametrize("text", ["", "\x00", "\U0001f600" * 3, "x" * (1 << 20), "</s>\r\n\u2028"])
def test_any_turn_reaches_the_environment(played: Environments, text: str) -> None:
    assert said(played, begin(played, {}), text) == f"turn 1, heard {len(text)}"


def test_what_the_verdict_raises_is_counted(played: Environments) -> None:
    episode = begin(played, {"does": {"verdict": "raise"}})
    judged = played.judge(episode).result()
    assert (judged.failure, judged.reason) == ("raised", "RuntimeError: who knows")


def test_closed_environments_answer_with_a_failure(rooms: Path) -> None:
    found = environments(rooms, 60.0)
    assert found.start() in ("of its own", "refused")
    os.mkfifo(rooms / "begun")
    episode = begin(found, {"does": {"1": "hang"}, "begun": str(rooms / "begun")})
    hanging = found.act(episode, Turn("go"))
    waiting = found.act(begin(found, {}), Turn("go"))
    assert (rooms / "begun").read_text() == "", "opened once the environment has the turn"
    found.close()
    answer = hanging.result()
    assert isinstance(answer, Judgement)
    assert (answer.failure in ("ended", "start"), answer.right) == (True, False)
    assert waiting.cancelled()
