"""vLLM's own weight transfer as the trainer drives it: everything but NCCL itself, for which this
needs GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from teacher_proto.errors import ConfigurationError, LsmError

from student_trainer.rollout.vllm.hand_over import FileHandOver, make_hand_over, transfer_of
from student_trainer.settings.rollout_vllm import VllmSettings
from student_trainer.student.model import Student

pytestmark = pytest.mark.vllm


class Calls:
    """A vLLM of three workers that notes what is called."""

    workers = 3

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[Any, ...]]] = []

    def call(self, method: str, *arguments: Any) -> list[Any]:
        self.made.append((method, arguments))
        return [None] * self.workers


class Transfer:
    """In the place of vLLM's trainer side: the same calls, and no NCCL."""

    def __init__(self, init: Any, client: Any, source: Any) -> None:
        self.init, self.client, self.source = init, client, source
        self.sent: dict[str, torch.Tensor] = {}
        self.fails = False
        client.init_weight_transfer_engine({"world_size": init.world_size})

    @classmethod
    def trainer_init(cls, init: Any, *, client: Any, source: Any) -> Transfer:
        return cls(init, client, source)

    def send_weights(self) -> None:
        self.client.start_weight_update()
        names = [entry.name for entry in self.source.metadata()]
        self.client.update_weights({"names": names})
        if self.fails:
            raise RuntimeError("the other side is gone")
        self.sent = dict(self.source)
        self.client.finish_weight_update()


@pytest.fixture
def transfer(monkeypatch: pytest.MonkeyPatch, wide_student: Student) -> tuple[Any, Calls]:
    from student_trainer.rollout.vllm import local

    monkeypatch.setattr(local, "NCCLTrainerWeightTransferEngine", Transfer)
    calls = Calls()
    return local.NcclHandOver(wide_student, "10.0.0.1", calls), calls


def test_what_is_said_of_the_weights_is_what_is_sent(transfer: Any, wide_student_dir: Path) -> None:
    hand_over, _ = transfer
    source = hand_over._trainer.source
    said = [(entry.name, entry.dtype, entry.shape) for entry in source.metadata()]
    assert said == [(name, w.dtype, tuple(w.shape)) for name, w in source]
    files = load_file(wide_student_dir / "model.safetensors")
    assert {name for name, _, _ in said} == files.keys()


def test_the_version_comes_last(transfer: Any) -> None:
    hand_over, calls = transfer
    assert hand_over._trainer.init.world_size == 1 + calls.workers
    hand_over(5)
    assert [method for method, _ in calls.made] == [
        "init_weight_transfer_engine",
        "rollout_begin",
        "start_weight_update",
        "update_weights",
        "finish_weight_update",
        "rollout_commit",
    ]
    assert calls.made[-1] == ("rollout_commit", (5,))


def test_a_transfer_that_breaks_off_has_no_version(transfer: Any) -> None:
    hand_over, calls = transfer
    hand_over._trainer.fails = True
    with pytest.raises(LsmError, match="is gone"):
        hand_over(5)
    assert "rollout_commit" not in [method for method, _ in calls.made]


def test_it_is_for_gpus(wide_student: Student, tmp_path: Path) -> None:
    own = VllmSettings(place="own", devices="1", folder=tmp_path)
    assert transfer_of(own, wide_student) is None, "of a student on a CPU"
    assert isinstance(make_hand_over(wide_student, own, Calls()), FileHandOver)
    with pytest.raises(ConfigurationError, match="is on cpu"):
        make_hand_over(wide_student, own.model_copy(update={"hand_over": "nccl"}), Calls())
    missing = own.model_copy(update={"folder": tmp_path / "nothing"})
    with pytest.raises(ConfigurationError, match="no folder"):
        make_hand_over(wide_student, missing, Calls())
