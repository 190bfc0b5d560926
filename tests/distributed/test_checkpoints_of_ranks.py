"""What checkpoints hold of several ranks, and what one process or other ranks make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from teacher_proto.errors import ConfigurationError

from student_trainer.distributed.world import ALONE, World, agreed, on_every_rank
from student_trainer.ranks import optimizer_files
from student_trainer.run.rng import capture_rng, rng_of_rank, rng_of_world, seeded_rng
from student_trainer.run.signals import Stopped
from student_trainer.startup import ranks
from student_trainer.startup.steps import OF_RANKS, STEPS, steps_of

SECOND = World(1, 2, 1)


def kept() -> dict[str, torch.Tensor]:
    """The generators of two ranks."""
    first, second = seeded_rng(1, 0, 0), seeded_rng(1, 0, 1)
    return {**first, **{f"rank-1/{name}": state for name, state in second.items()}}


def test_as_many_ranks_go_on_with_their_own_generators() -> None:
    for world in (World(0, 2, 0), SECOND):
        found = rng_of_rank(kept(), world, seed=1, step=4)
        assert found.keys() == {"torch"}
        assert torch.equal(found["torch"], seeded_rng(1, 0, world.rank)["torch"])


@pytest.mark.parametrize("world", [ALONE, World(0, 3, 0), World(2, 3, 2)])
def test_another_number_of_ranks_begins_anew(world: World) -> None:
    found = rng_of_rank(kept(), world, seed=1, step=4)
    assert torch.equal(found["torch"], seeded_rng(1, 4, world.rank)["torch"])
    assert all(not torch.equal(found["torch"], state) for state in kept().values())


def test_one_process_goes_on_with_its_generators_as_they_were() -> None:
    states = capture_rng()
    assert rng_of_world(states, ALONE) == states
    found = rng_of_rank(states, ALONE, seed=1, step=4)
    assert torch.equal(found["torch"], states["torch"])


def test_seeded_generators_leave_those_in_use_as_they_are() -> None:
    before = capture_rng()
    seeded_rng(1, 0, 1)
    assert torch.equal(capture_rng()["torch"], before["torch"])


def test_one_process_reads_the_files_of_two_ranks(tmp_path: Path) -> None:
    tensors = {"exp_avg/a": torch.arange(6.0).view(3, 2), "step/a": torch.tensor(2.0)}
    names = [optimizer_files.file_of(rank, 2) for rank in range(2)]
    for file, (name, tensor) in zip(names, tensors.items(), strict=True):
        save_file({name: tensor}, tmp_path / file)
    found = optimizer_files.read(tmp_path, names, {"a": torch.zeros(3, 2)})
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_one_file_of_a_rank_names_those_of_all() -> None:
    two = [optimizer_files.file_of(rank, 2) for rank in range(2)]
    for names in (two, two[:1], ["state.json", *two[1:]]):
        assert optimizer_files.files_among(names) == two
    for names in (["state.json"], [optimizer_files.ONE]):
        assert optimizer_files.files_among(names) == [optimizer_files.ONE]


def test_one_process_makes_no_step_of_several_ranks() -> None:
    assert steps_of(ALONE) == STEPS
    several = steps_of(SECOND)
    assert [step for step in several if not step.meets] == list(STEPS)
    assert {step.name for step in several if step.meets} == {s.name for s in OF_RANKS.values()}


def test_one_process_fails_by_what_it_does_for_all() -> None:
    def fail() -> None:
        raise Stopped(15)

    for act in (ALONE.each, ALONE.on_first):
        with pytest.raises(Stopped) as caught:
            act(fail)
        assert agreed(caught.value)
    assert ALONE.each(lambda: 3) == ALONE.on_first(lambda: 3) == 3
    assert not agreed(RuntimeError("of torch"))


def test_the_kind_of_an_error_does_not_tell_that_all_ranks_have_it() -> None:
    for error in (ConfigurationError("only here", where="", fix=""), Stopped(15)):
        assert not agreed(error), "it was raised without the others"
        assert agreed(on_every_rank(error))


def test_ranks_cannot_all_have_the_same_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks.check_device("cpu", SECOND)
    with pytest.raises(ConfigurationError, match=r"student\.device: 2 ranks cannot all use cuda:0"):
        ranks.check_device("cuda:0", SECOND)
    monkeypatch.setattr(ranks, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ranks.check_device("auto", SECOND)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigurationError, match="1 GPUs"):
        ranks.check_device("auto", SECOND)
