"""What ``doctor --ranks`` estimates, against the arithmetic of docs/distributed.md by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError

from student_trainer import cli
from student_trainer.commands.estimate_ranks import RankMemory, rank_memory
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import load_student

MakeConfig = Callable[..., TrainConfig]
# Of the tiny Llama: 320 ids, width 64, 3 layers of 4 heads and 2 of keys, 128 wide inside.
LAYER = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64
OUTSIDE = 2 * 320 * 64 + 64
PARAMETERS = 3 * LAYER + OUTSIDE


def found(make_config: MakeConfig, ranks: int, **sections: dict[str, Any]) -> RankMemory:
    config = make_config(rollout={"prompts_per_step": 8}, **sections)
    return rank_memory(config, load_student(config.student), ranks)


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_a_rank_holds_its_part_of_all(
    make_config: MakeConfig, ranks: int, dtype: str, size: int
) -> None:
    memory = found(make_config, ranks, student={"dtype": dtype})
    assert memory.held == pytest.approx(16 * PARAMETERS / ranks, abs=4096)
    assert memory.gathered == memory.updating == size * PARAMETERS
    assert memory.summed == 4 * PARAMETERS
    assert memory.peak >= memory.held + memory.summed + memory.updating


def test_freeing_after_each_pass_leaves_two_layers(make_config: MakeConfig) -> None:
    memory = found(make_config, 2, distributed={"reshard": "after_pass"})
    assert memory.updating == 4 * (OUTSIDE + 2 * LAYER)
    assert memory.gathered == 4 * PARAMETERS


def test_adapters_alone_have_gradients(make_config: MakeConfig) -> None:
    memory = found(make_config, 2, student={"lora": {"rank": 2}})
    adapters = memory.summed // 4
    assert 0 < adapters < PARAMETERS / 10
    assert memory.held == pytest.approx((4 * PARAMETERS + 16 * adapters) / 2, abs=4096)


def test_ranks_that_cannot_share_a_step_are_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigurationError, match="3 ranks cannot share the 8 prompts"):
        found(make_config, 3)


def test_doctor_says_it_of_so_many_ranks(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from teacher_proto.program.settings_show import to_toml

    teacher = {"address": "127.0.0.1:1", "connect_timeout_seconds": 1.0}
    config = make_config(rollout={"prompts_per_step": 4}, teacher=teacher)
    file = tmp_path / "run.toml"
    file.write_text(to_toml(config))
    cli.main(["doctor", str(file), "--json", "--ranks", "4"])
    findings = json.loads(capsys.readouterr().out)["checks"]
    (memory,) = [one for one in findings if one["check"] == "memory of a rank"]
    assert "on each of 4 devices" in memory["detail"]
    with pytest.raises(SystemExit):
        cli.main(["doctor", str(file), "--ranks", "0"])
