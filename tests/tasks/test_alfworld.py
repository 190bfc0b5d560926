"""ALFWorld's games: a small one in its own files, where the package is installed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError

from student_trainer.environments.environments import Environments
from student_trainer.environments.process import Observed
from student_trainer.settings.evaluation import VerificationSettings
from student_trainer.tasks import alfworld as alfworld_module
from student_trainer.tasks.alfworld import AlfWorldTask
from student_trainer.tasks.environment import Turn
from tests.tasks.tools import of_task

PROBLEM = """
(define (problem small)
  (:domain alfred)
  (:objects
    agent1 - agent
    loc_bar_0 loc_bar_1 loc_bar_2 - location
    Apple_bar_1 Mug_bar_2 - object
    DiningTable_bar_1 Fridge_bar_2 - receptacle
    DiningTableType FridgeType - rtype
    AppleType MugType - otype)
  (:init
    (= (total-cost) 0)
    (atLocation agent1 loc_bar_0)
    (receptacleAtLocation DiningTable_bar_1 loc_bar_1)
    (receptacleAtLocation Fridge_bar_2 loc_bar_2)
    (receptacleType DiningTable_bar_1 DiningTableType)
    (receptacleType Fridge_bar_2 FridgeType)
    (objectType Apple_bar_1 AppleType)
    (objectType Mug_bar_2 MugType)
    (canContain DiningTableType AppleType)
    (canContain FridgeType AppleType)
    (canContain DiningTableType MugType)
    (openable Fridge_bar_2)
    (pickupable Apple_bar_1)
    (pickupable Mug_bar_2)
    (inReceptacle Apple_bar_1 DiningTable_bar_1)
    (inReceptacle Mug_bar_2 DiningTable_bar_1)
    (objectAtLocation Apple_bar_1 loc_bar_1)
    (objectAtLocation Mug_bar_2 loc_bar_1))
  (:goal (exists (?o - object)
    (and (objectType ?o AppleType) (inReceptacle ?o Fridge_bar_2)))))
"""
WAY = ("go to diningtable 1", "take apple 1 from diningtable 1", "go to fridge 1",
       "open fridge 1", "move apple 1 to fridge 1")  # fmt: skip
COUNTS = {"train": 3, "valid_seen": 1, "valid_unseen": 2}


def rows(of: AlfWorldTask, split: Any = "train") -> list[Any]:
    def read(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("games read no dataset")

    return [row for _, row in of.prompts(split, read)]


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alfworld_module._package.cache_clear()
    monkeypatch.setitem(sys.modules, "student_trainer.tasks.games.alfworld_game", None)
    monkeypatch.delattr("student_trainer.tasks.games.alfworld_game", raising=False)
    with pytest.raises(ConfigurationError) as refused:
        AlfWorldTask().prepare()
    assert "need the package alfworld" in refused.value.what
    assert "[alfworld]" in refused.value.fix
    assert "alfworld-download" in refused.value.fix


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``alfworld-download`` fills it, with a small game a few times."""
    info = pytest.importorskip("alfworld.info", reason="alfworld is not installed")
    folder = tmp_path_factory.mktemp("alfworld")
    domain = Path(info.ALFRED_PDDL_PATH).read_text()
    grammar = Path(info.ALFRED_TWL2_PATH).read_text()
    for split, count in COUNTS.items():
        for number in range(count):
            game = folder / "json_2.1.1" / split / f"game-{number}" / "trial"
            game.mkdir(parents=True)
            (game / "traj_data.json").write_text('{"task_type": "pick_and_place_simple"}')
            told = grammar.replace("UNKNOWN GOAL", f"put some apple in fridge, {split} {number}")
            written = {"pddl_domain": domain, "grammar": told, "pddl_problem": PROBLEM}
            (game / "game.tw-pddl").write_text(json.dumps({**written, "solvable": True}))
    return folder


def test_its_own_loader_finds_the_games_of_each_split(data: Path) -> None:
    of = AlfWorldTask(data=data)
    told = [row["messages"][0]["content"] for row in rows(of)]
    assert len(told) == 3
    for number in range(3):
        (text,) = [one for one in told if f"put some apple in fridge, train {number}." in one]
        assert "you see a diningtable 1, and a fridge 1." in text
        assert text.endswith("Commands: go to diningtable 1, go to fridge 1, inventory, look.")
    assert len(rows(of, "held_out")) == 2
    seen = AlfWorldTask(data=data, held_out="eval_in_distribution")
    assert len(rows(seen, "held_out")) == 1
    assert len(rows(AlfWorldTask(data=data, games_to_train=2))) == 2
    assert rows(AlfWorldTask(data=data, games_to_train=2)) == rows(of)[:2]


def test_a_game_is_played_in_the_process_of_environments(data: Path) -> None:
    of = AlfWorldTask(data=data, turn_seconds=60)
    played = Environments({"home": of}, VerificationSettings(memory_bytes=1 << 30))
    try:
        every = [played.begin(of_task("home", row)) for row in rows(of)]
        for place, command in enumerate(("dance", *WAY)):
            for episode in every:
                answer = played.act(episode, Turn(command)).result()
                assert isinstance(answer, Observed), answer
                assert answer.observation.done == (place == len(WAY))
                if place == 0:
                    assert answer.observation.messages[0]["content"].startswith("Nothing happens.")
        judged = [played.judge(episode).result() for episode in every]
        assert [one.right for one in judged] == [True] * 3
        again = played.begin(of_task("home", rows(of)[0]))
        answer = played.act(again, Turn(WAY[1])).result()
        assert isinstance(answer, Observed), answer
        assert answer.observation.messages[0]["content"].startswith("Nothing happens.")
        assert judged[0].values == {"refused": 1 / 6, "lost": 0.0}
    finally:
        played.close()


def test_rows_are_the_same_wherever_the_data_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data, tmp_path / "elsewhere")
    here, there = (AlfWorldTask(data=one) for one in (data, tmp_path / "elsewhere"))
    assert rows(here) == rows(there)
    assert {Path(row["game"]).parts[:2] for row in rows(here)} == {("json_2.1.1", "train")}
    monkeypatch.setattr("student_trainer.tasks.games.alfworld_game.ALFWORLD_DATA", str(data))
    assert AlfWorldTask().for_a_process().data == data


def test_data_that_is_not_there_is_an_error_that_says_how_to_get_it(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        rows(AlfWorldTask(data=tmp_path))
    assert str(tmp_path / "json_2.1.1" / "train") in refused.value.what
    assert f"alfworld-download --data-dir {tmp_path}" in refused.value.fix
    with pytest.raises(ConfigurationError, match="no game of the task types 4, 5"):
        rows(AlfWorldTask(data=data, task_types=(4, 5)))


def test_a_damaged_game_is_an_error_that_names_it(data: Path, tmp_path: Path) -> None:
    game = tmp_path / "json_2.1.1" / "train" / "game" / "trial"
    game.mkdir(parents=True)
    (game / "traj_data.json").write_text('{"task_type": "pick_and_place_simple"}')
    (game / "game.tw-pddl").write_text(json.dumps({"solvable": True}))
    with pytest.raises(ConfigurationError, match="cannot open the game") as refused:
        rows(AlfWorldTask(data=tmp_path))
    assert refused.value.where == str(game / "game.tw-pddl")
