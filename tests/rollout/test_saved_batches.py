"""A batch of an engine that would write another one the second time is kept until its update."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError

from student_trainer import Trainer
from student_trainer.events import CallbackError, Event, RolloutsWritten, ScoresArrived
from student_trainer.rollout import engine
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.engines.transformers import TransformersEngine
from student_trainer.run.checkpoint import TrainState
from student_trainer.run.resume import check_settings, pending_batches_usable
from student_trainer.settings.train import TrainConfig
from tests.trainer.processes import Server

COUNTER = itertools.count(1000)


class Another(TransformersEngine):
    """Writes other responses every time, as an engine that rounds by what is beside them may."""

    replays = False

    def generate(
        self, prompts: Sequence[PromptItem], *, seed: int, step: int, ended: Any = None
    ) -> list[Rollout]:
        return super().generate(prompts, seed=seed + next(COUNTER), step=step, ended=ended)


class StopError(Exception):
    """What a callback raises."""


def ids(rollouts: Sequence[Rollout]) -> list[list[int]]:
    return [rollout.token_ids.tolist() for rollout in rollouts]


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize(("every", "replays"), [(1, False), (5, False), (1, True)])
def test_a_batch_that_waits_for_its_update_survives_the_end_of_the_process(
    make_config: Callable[..., TrainConfig],
    run_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    staleness: int,
    every: int,
    replays: bool,
) -> None:
    monkeypatch.setattr(Another, "replays", replays)
    monkeypatch.setattr(engine, "ENGINES", {"transformers": f"{__name__}:Another"})
    config = make_config(
        teacher={"address": run_server.address},
        run={"steps": 3},
        pipeline={"staleness": staleness},
        checkpoint={"every": every},
    )
    written: dict[int, list[Sequence[Rollout]]] = {}
    updated: dict[int, Sequence[Rollout]] = {}

    def note(event: Event) -> None:
        if isinstance(event, RolloutsWritten):
            written.setdefault(event.step, []).append(event.rollouts)
        if isinstance(event, ScoresArrived):
            updated[event.step] = event.rollouts

    def stop(event: Event) -> None:
        note(event)
        if isinstance(event, RolloutsWritten) and event.step == 2 + staleness:
            raise StopError

    with pytest.raises(CallbackError):
        Trainer(config, [stop], quiet=True).train()
    Trainer(config, [note], quiet=True).train()
    assert updated.keys() == {1, 2, 3}
    for step, rollouts in updated.items():
        assert ids(rollouts) == ids(written[step][-1]), "what was told is what was learnt from"
        versions = {rollout.weights_version for rollout in rollouts}
        assert versions == {max(step - 1 - staleness, 0)}
    anew = {step for step, batches in written.items() if len(batches) > 1}
    assert anew == ({2 + staleness} if replays else set())


def test_where_vllm_runs_may_change_and_what_it_has_written_stays(
    make_config: Callable[..., TrainConfig],
) -> None:
    def state(**vllm: Any) -> dict[str, Any]:
        config = make_config(rollout={"engine": "vllm", "vllm": vllm})
        return config.model_dump(mode="json")

    before, now = state(), state(place="server", address="http://127.0.0.1:1")
    saved = TrainState(1, 1, 3, "", {}, before)
    check_settings(saved, now)
    assert pending_batches_usable(saved, now, "")
    other = make_config().model_dump(mode="json")
    assert not pending_batches_usable(saved, other, "")
    with pytest.raises(ConfigurationError, match=r"rollout\.engine"):
        check_settings(saved, other)
