"""Checkpoints cut short and a disk that is full: the run goes back to the last good one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from teacher_proto.errors import LsmError

from student_trainer.run import checkpoint
from student_trainer.run.retention import listing
from tests.proofs.runs import Room, assert_equal, errors, newest, truncate
from tests.support.faults import files_of_at_most, killed
from tests.trainer.test_checkpoint import save, state


def falls_back(room: Room, damaged: Path, share: float, name: str) -> tuple[Path, str]:
    """A run whose newest checkpoint was cut at a share of its bytes, ended; and its log."""
    config = room.config(name, 5, checkpoint={"every": 1})
    shutil.copytree(damaged, config.run.output_dir)
    last = newest(config)
    cut = truncate(last, share)
    assert cut
    run = room.finish(config)
    log = errors(config)
    assert f"skipping damaged checkpoint {last}" in log
    good = last.with_name(f"step-{int(last.name[5:]) - 1:06d}")
    assert f"from {good}" in log
    return run, cut


def interrupted(room: Room) -> Path:
    """A run killed after three of five steps, with two checkpoints."""
    config = room.config("interrupted", 5, checkpoint={"every": 1})
    assert room.run(config, killed("student_trainer.pipeline:Pipeline.drop", 4)) < 0
    assert len(listing(config.run.output_dir / "checkpoints")) == 2
    return config.run.output_dir


def test_a_checkpoint_cut_short_is_passed_over_and_named(served: Room) -> None:
    damaged = interrupted(served)
    straight = served.finish(served.config("straight", 5, checkpoint={"every": 1}))
    cuts = set()
    for index, share in enumerate((0.02, 0.97)):
        run, cut = falls_back(served, damaged, share, f"cut-{index}")
        assert_equal(run, straight, 5)
        cuts.add(cut)
    assert len(cuts) == 2, "the cuts fall into different files"


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_write_the_system_refuses_leaves_the_earlier_ones(tmp_path: Path, part: str) -> None:
    good = save(tmp_path, 1)
    large = torch.zeros(1 << 16)

    def save_model(directory: Path) -> None:
        directory.mkdir()
        save_file({"weight": large if part == "model" else large[:8]}, directory / "m.safetensors")

    optimizer = {"exp_avg/weight": large if part == "optimizer" else large[:8]}
    with files_of_at_most(1 << 16), pytest.raises(LsmError) as caught:
        checkpoint.save(
            tmp_path, state(2), save_model=save_model, optimizer=optimizer, rng={}, rollouts={},
            keep=1,
        )  # fmt: skip
    assert caught.value.reason == checkpoint.NOT_WRITTEN
    assert checkpoint.newest_good(tmp_path) == good
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
