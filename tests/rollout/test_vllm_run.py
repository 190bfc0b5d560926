"""Whole runs whose responses vLLM writes: learning, an engine that dies, and resuming."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import LsmError

from student_trainer import Trainer
from student_trainer.events import Event, RolloutsWritten, ScoresArrived
from student_trainer.rollout.base import Rollout
from student_trainer.rollout.vllm.core import DIED, Request, Response
from student_trainer.run.directory import read_metrics
from student_trainer.settings.train import TrainConfig
from tests.rollout.test_vllm_engine import OPTIONS
from tests.rollout.vllm_processes import processes
from tests.trainer.processes import Server

pytestmark = pytest.mark.vllm

VLLM = {"engine": "vllm", "vllm": {"options": OPTIONS}}
MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def config(make_config: MakeConfig, run_server: Server, wide_student_dir: Path) -> MakeConfig:
    def make(**sections: dict[str, Any]) -> TrainConfig:
        teacher = {"address": run_server.address}
        return make_config(wide_student_dir, teacher=teacher, **sections)

    return make


def lines(config: TrainConfig) -> list[dict[str, Any]]:
    return read_metrics(Path(config.run.output_dir) / "metrics.jsonl")


def test_an_engine_that_dies_loses_nothing(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed while it writes the batch of the last step; the run resumes with the batch
    that was whole, and learns what a run with transformers learns."""
    from student_trainer.rollout.vllm.local import LocalCore

    run = config(rollout=VLLM, pipeline={"staleness": 1}, checkpoint={"every": 1})
    written: dict[int, Sequence[Rollout]] = {}
    updated: dict[int, Sequence[Rollout]] = {}

    def note(event: Event) -> None:
        if isinstance(event, RolloutsWritten):
            written[event.step] = event.rollouts
        if isinstance(event, ScoresArrived):
            updated[event.step] = event.rollouts

    write = LocalCore.write

    def dies(self: LocalCore, requests: Sequence[Request]) -> Iterator[Response]:
        for response in write(self, requests):
            yield response
            if 2 in written:
                for process in processes("EngineCore"):
                    process.kill()

    monkeypatch.setattr(LocalCore, "write", dies)
    with pytest.raises(LsmError) as died:
        Trainer(run, [note], quiet=True).train()
    assert died.value.reason == DIED
    assert not processes("VLLM")
    monkeypatch.setattr(LocalCore, "write", write)
    assert written.keys() == {1, 2}
    of_step_2 = [rollout.token_ids.tolist() for rollout in written[2]]
    Trainer(run, [note], quiet=True).train()
    assert updated.keys() == {1, 2, 3}
    assert [rollout.token_ids.tolist() for rollout in updated[2]] == of_step_2
    versions = [{r.weights_version for r in updated[step]} for step in (1, 2, 3)]
    assert versions == [{0}, {0}, {1}]
    assert not processes("VLLM")

    plain = config(run={"output_dir": f"{run.run.output_dir}-plain"}, pipeline={"staleness": 1})
    Trainer(plain, quiet=True).train()
    found, expected = lines(run), lines(plain)
    assert [line["step"] for line in found] == [1, 2, 3]
    assert found[0]["rollout_log_prob_gap"] < 1e-4
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-3)
