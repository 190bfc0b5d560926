"""A checkpoint that several ranks write: whole on all of them, or on none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from teacher_proto.errors import ConfigurationError, LsmError

from student_trainer.distributed.world import World, agreed
from student_trainer.ranks import optimizer_files
from student_trainer.run import checkpoint
from student_trainer.run.retention import listing, step_of
from student_trainer.run.signals import Stopped
from tests.distributed.threads import on_ranks
from tests.trainer.test_checkpoint import save_model, state

FULL = {f"exp_avg/{name}": torch.full((8,), float(place)) for place, name in enumerate("abcd")}
SHARDS = [optimizer_files.file_of(rank, 2) for rank in range(2)]


def save(directory: Path, step: int, world: World, **changes: Any) -> Path:
    what: dict[str, Any] = {
        "save_model": lambda folder: save_model(folder) if world.writes else None,
        "optimizer": FULL,
        "rng": {"torch": torch.zeros(2)},
        "rollouts": {},
        "keep": 2,
        **changes,
    }
    return checkpoint.save(directory, state(step), world=world, **what)


def failing(rank: int, error: BaseException) -> Callable[[World], Callable[[Path], None]]:
    def of(world: World) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            if world.rank == rank:
                raise error
            if world.writes:
                save_model(folder)

        return write

    return of


ERRORS = [
    OSError(28, "No space left on device"),
    RuntimeError("the tensors share memory"),
    MemoryError("out of memory"),
    LsmError("the tokenizer is gone", where="student"),
]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_one_rank_cannot_write_none_has_written(
    tmp_path: Path, error: Exception, rank: int
) -> None:
    assert on_ranks(lambda world: save(tmp_path, 1, world)) == [tmp_path / "step-000001"] * 2
    writes = failing(rank, error)
    for found in on_ranks(lambda world: save(tmp_path, 2, world, save_model=writes(world))):
        assert isinstance(found, LsmError)
        assert found.reason == checkpoint.NOT_WRITTEN
        assert agreed(found)
        assert "checkpoint of step 2" in str(found)
        assert str(error.args[-1] if error.args else error) in str(found)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_signals_and_lost_ranks_are_no_errors_of_writing(tmp_path: Path) -> None:
    writes = failing(1, Stopped(15))
    for found in on_ranks(lambda world: save(tmp_path, 1, world, save_model=writes(world))):
        assert isinstance(found, SystemExit)
        assert found.code == 143

    def lose(world: World) -> Path:
        return save(tmp_path, 1, world, optimizer={"exp_avg/a": None} if world.rank else FULL)

    assert [type(found) for found in on_ranks(lose)] == [RuntimeError, AttributeError]


def test_every_file_of_a_rank_is_in_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where rank 0's listing of the folder does not show it yet."""
    seen = Path.rglob
    monkeypatch.setattr(
        Path, "rglob", lambda self, what: [p for p in seen(self, what) if p.name != SHARDS[1]]
    )
    path, _ = on_ranks(lambda world: save(tmp_path, 1, world))
    files = json.loads((path / checkpoint.MANIFEST).read_text())["files"]
    assert {*SHARDS, "state.json", "rng.safetensors", "model/model.safetensors"} == files.keys()
    assert checkpoint.damage(path) is None


@pytest.mark.parametrize("how", ["absent", "short"])
def test_a_file_that_rank_0_does_not_see_is_an_error_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    entry = checkpoint._entry

    def elsewhere(path: Path) -> dict[str, Any]:
        """The entry of a file that rank 0 has otherwise."""
        found = entry(path)
        if path.name == SHARDS[1]:
            path.unlink() if how == "absent" else save_file({}, path)
        return found

    monkeypatch.setattr(checkpoint, "_entry", elsewhere)
    for found in on_ranks(lambda world: save(tmp_path, 1, world)):
        assert isinstance(found, LsmError)
        assert found.reason == checkpoint.NOT_WRITTEN
        assert f"rank 0 does not see {SHARDS[1]}" in str(found)
        assert "folder that every machine shares" in str(found)
    assert list(tmp_path.iterdir()) == []


def test_all_files_of_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    def several(world: World) -> None:
        for step, score in enumerate((0.9, 0.2, 0.5, 0.6), 1):
            now = replace(state(step), score=score)
            checkpoint.save(
                tmp_path,
                now,
                save_model=failing(-1, OSError())(world),
                optimizer=FULL,
                rng={},
                rollouts={},
                keep=1,
                world=world,
            )

    assert on_ranks(several) == [None, None]
    assert [step_of(path) for path in listing(tmp_path)] == [4, 2]
    for path in listing(tmp_path):
        assert checkpoint.damage(path) is None
        assert checkpoint.load_tensors(path, {}).optimizer.keys() == FULL.keys()


@pytest.mark.parametrize("name", SHARDS)
def test_a_file_of_a_rank_that_is_missing_is_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    good, _ = on_ranks(lambda world: save(tmp_path, 1, world))
    bad, _ = on_ranks(lambda world: save(tmp_path, 2, world))
    (bad / name).unlink()
    assert checkpoint.newest_good(tmp_path) == good
    assert f"{bad}: {name}: No such file" in caplog.text
    manifest = json.loads((bad / checkpoint.MANIFEST).read_text())
    del manifest["files"][name]
    (bad / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    assert checkpoint.damage(bad) == f"{checkpoint.MANIFEST} does not list ['{name}']"


@pytest.mark.parametrize("name", [*SHARDS, "rng.safetensors", "rollouts.safetensors"])
def test_a_rank_that_does_not_see_a_file_does_not_go_on_without_it(
    tmp_path: Path, name: str
) -> None:
    rollouts = {"2/tokens": torch.arange(3)}
    path, _ = on_ranks(lambda world: save(tmp_path, 1, world, rollouts=rollouts))
    assert checkpoint.load_tensors(path, {}).rollouts.keys() == rollouts.keys()
    (path / name).unlink()
    with pytest.raises(ConfigurationError, match=f"cannot be read here: .*{name}"):
        checkpoint.load_tensors(path, {})
