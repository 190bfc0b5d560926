"""What the doctor estimates of memory and time, against what is measured in full."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from student_trainer.commands import estimate
from student_trainer.commands.estimate import Measured, activation_bytes, cache_bytes, continued
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.start import Start
from student_trainer.student.model import Student, load_student
from student_trainer.update.updater import Updater

MakeConfig = Callable[..., TrainConfig]


def test_what_is_continued_from_short_sequences_holds_for_long_ones(student: Student) -> None:
    for measure in (activation_bytes, cache_bytes):
        assert continued(student, measure, 256) == pytest.approx(measure(student, 256), rel=0.02)


def test_the_cache_is_that_of_the_model(student: Student) -> None:
    config = student.causal_model.config
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    expected = 2 * config.num_hidden_layers * heads * width * 48 * 4
    assert cache_bytes(student, 48) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_weights_and_optimizer_are_what_is_allocated(
    make_config: MakeConfig, dtype: str, lora: dict[str, int] | None
) -> None:
    config = make_config(student={"dtype": dtype, "lora": lora})
    student = load_student(config.student)
    found = estimate.estimated_memory(config, student)
    updater = Updater(student, config)
    masters = list(updater.optimizer.masters.values())
    for master in masters:
        assert master.grad is not None
        master.grad.add_(1.0)
    updater.optimizer.step(1e-3)
    state = [v for kept in updater.optimizer.adamw.state.values() for v in kept.values()]
    own = {p.data_ptr() for p in student.module.parameters()}
    held = [t for t in (*masters, *(m.grad for m in masters), *state) if t is not None and t.ndim]
    allocated = sum(t.numel() * t.element_size() for t in held if t.data_ptr() not in own)
    assert found.optimizer == pytest.approx(allocated, rel=0.01)
    parameters = [*student.module.parameters(), *student.module.buffers()]
    assert found.weights == sum(t.numel() * t.element_size() for t in parameters)


def test_checkpointed_activations_are_fewer(make_config: MakeConfig) -> None:
    plain = load_student(make_config().student)
    saving = load_student(make_config(student={"gradient_checkpointing": True}).student)
    assert activation_bytes(saving, 64) < activation_bytes(plain, 64) / 2
    assert not saving.module.training


def test_too_little_memory_is_a_warning(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Start(make_config())
    start.student = load_student(start.config.student)
    told = estimate.memory(start)
    assert start.take_warnings() == []
    assert "MiB of cpu" in told
    monkeypatch.setattr(estimate, "available_bytes", lambda student, weights: 1)
    estimate.memory(start)
    assert "optimizer.micro_batch_tokens" in start.take_warnings()[0]


def test_a_step_is_estimated_in_proportion(make_config: MakeConfig) -> None:
    rollout = {"prompts_per_step": 5, "group_size": 4, "batch_size": 8, "max_new_tokens": 100}
    config = make_config(rollout=rollout, optimizer={"micro_batch_tokens": 400})
    # Two responses of 10 tokens after a prompt of 20.
    found = Measured(responses=2, steps=10, read=60, rollout=1.0, teacher=3.0, update=6.0)
    writing, scoring, updating = estimate.longest_step(config, found)
    assert writing == pytest.approx(3 * 100 / 10)  # 20 responses in 3 batches
    assert scoring == pytest.approx(20 * 120 * 3 / 60)
    assert updating == pytest.approx(20 * 120 * 6 / 60)
    part = make_config(
        rollout=rollout, optimizer={"micro_batch_tokens": 400}, scoring={"scored_share": 0.4}
    )
    assert estimate.longest_step(part, found) == (
        pytest.approx(writing),
        pytest.approx(20 * 60 * 3 / 60),
        pytest.approx(20 * 60 * 6 / 60),
    )
