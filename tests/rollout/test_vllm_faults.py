"""A vLLM that cannot start, cannot take weights over, or dies: one clear error, and no hang."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError, LsmError

from student_trainer.rollout.vllm import hand_over
from student_trainer.rollout.vllm.core import DIED
from student_trainer.rollout.vllm.engine import VllmEngine
from student_trainer.rollout.vllm.weights import FAILED
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.student.model import Student, load_student
from tests.rollout.test_vllm_engine import LONGEST, OPTIONS, SETTINGS, prompts
from tests.rollout.vllm_processes import processes

pytestmark = pytest.mark.vllm


@contextmanager
def started(student: Student, longest: int = LONGEST, **vllm: Any) -> Iterator[VllmEngine]:
    values = {**SETTINGS, "max_new_tokens": 60, "vllm": {"options": {**OPTIONS, **vllm}}}
    engine = VllmEngine(student, RolloutSettings.model_validate(values), longest)
    try:
        yield engine
    finally:
        engine.close()
        assert not processes("VLLM"), "nothing is left of it"


@pytest.mark.parametrize("title", ["EngineCore", "VLLM::Worker"])
def test_an_engine_that_is_killed_while_it_writes_is_an_error(
    wide_student: Student, title: str
) -> None:
    with started(wide_student) as engine:
        engine.update_weights(1)

        def kill(rollouts: Any) -> None:
            for process in processes(title):
                process.kill()

        with pytest.raises(LsmError, match="vLLM") as died:
            engine.generate(prompts(), seed=1, step=1, ended=kill)
        assert died.value.reason == DIED
        with pytest.raises(LsmError) as again:
            engine.generate(prompts(), seed=1, step=1)
        assert again.value.reason == DIED
        with pytest.raises(LsmError) as handed:
            engine.update_weights(2)
        assert handed.value.reason in (DIED, FAILED)


def test_weights_that_do_not_fit_write_nothing_any_more(
    wide_student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM keeps what it got of a layer: a later hand-over would be mixed with it."""
    whole = hand_over.checkpoint_weights
    changes = {
        "missing": lambda w: {n: t for n, t in w.items() if "layers.1.mlp.up" not in n},
        "whole": lambda w: w,
    }
    with started(wide_student) as engine:
        engine.update_weights(1)
        for kind, says in (("missing", "not whole"), ("whole", "in the middle")):
            monkeypatch.setattr(
                hand_over, "checkpoint_weights", lambda s, k=kind: changes[k](whole(s))
            )
            with pytest.raises(LsmError, match=says) as refused:
                engine.update_weights(2)
            assert refused.value.reason == FAILED
            with pytest.raises(LsmError, match="none were handed over"):
                engine.generate(prompts(), seed=1, step=1)


@pytest.mark.parametrize("title", ["EngineCore", "VLLM::Worker"])
def test_processes_that_are_killed_while_they_start_are_one_clear_error(
    wide_student: Student, title: str
) -> None:
    """As the kernel does where memory runs out."""
    over, killed = threading.Event(), threading.Event()

    def kill() -> None:
        while not over.wait(0.05):
            for process in processes(title):
                process.kill()
                killed.set()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(ConfigurationError) as refused, started(wide_student):
            pass
    finally:
        over.set()
        killer.join()
    assert killed.is_set()
    assert refused.value.where == "rollout.vllm"
    assert "memory may have run out" in str(refused.value)
    assert not processes("VLLM")


@pytest.mark.parametrize(
    ("longest", "options", "says"),
    [
        (LONGEST, {"kv_cache_memory_bytes": 4096}, "cache blocks"),
        (LONGEST, {"tensor_parallel_sise": 2}, "tensor_parallel_size"),
        (LONGEST, {"tensor_parallel_size": 3}, "heads"),
        (LONGEST, {"kv_cache_memory_bytes": 2**50}, "do not fit into"),
    ],
)
def test_what_cannot_be_started_is_one_clear_error(
    wide_student: Student, longest: int, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError) as refused, started(wide_student, longest, **options):
        pass
    assert says in str(refused.value)
    assert not processes("VLLM")


def test_a_student_that_vllm_does_not_know_is_one_clear_error(
    wide_student_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(wide_student_dir, tmp_path / "unknown"))
    student = load_student(StudentSettings(model=str(folder), device="cpu"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": ["NoSuchForCausalLM"]})
    )
    with pytest.raises(ConfigurationError, match="NoSuchForCausalLM"), started(student):
        pass
