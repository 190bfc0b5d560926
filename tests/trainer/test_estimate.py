"""What the doctor estimates of memory and time, against what is measured in full."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.types import TokenPrompt
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from student_trainer.commands import estimate
from student_trainer.commands.estimate import (
    activation_bytes,
    activations,
    cache_bytes,
    keys_and_values,
)
from student_trainer.commands.estimate_time import Measured, longest_step
from student_trainer.commands.largest_update import Sequences, largest_update
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.start import Start
from student_trainer.student.model import (
    Student,
    load_student,
    packing_for,
    read_layout,
    set_training,
)
from student_trainer.update.batching import layout_of, micro_batches
from student_trainer.update.updater import Updater

MakeConfig = Callable[..., TrainConfig]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize(("prompt", "response"), [(128, 128), (200, 30), (7, 150)])
def test_what_is_continued_from_short_sequences_holds_for_long_ones(
    student: Student, prompt: int, response: int, packed: bool
) -> None:
    read = Sequences(prompt, response, 4 if packed else 1, packed)
    measured = activation_bytes(student, read.layout(student))
    assert activations(student, read) == pytest.approx(measured, rel=0.03)
    longest = prompt + response
    assert keys_and_values(student, longest) == pytest.approx(
        cache_bytes(student, longest), rel=0.02
    )


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
    layout = Sequences(32, 32, 2, packed=True).layout(plain)
    assert activation_bytes(saving, layout) < activation_bytes(plain, layout) / 2
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


def test_a_step_is_estimated_in_proportion(make_config: MakeConfig, student: Student) -> None:
    rollout = {"prompts_per_step": 5, "group_size": 4, "batch_size": 8, "max_new_tokens": 100}
    whole = make_config(rollout=rollout, optimizer={"micro_batch_tokens": 420})
    part = make_config(
        rollout=rollout, optimizer={"micro_batch_tokens": 420}, scoring={"scored_share": 0.4}
    )
    # Two responses of 10 tokens after a prompt of 20, read once.
    found = Measured(
        prompt=20, responses=2, steps=10, read=60, computed=40, rollout=1.0, teacher=3.0, update=6.0
    )
    for config, scored, packs, computed in (
        (whole, 100, True, 5 * (20 + 4 * 100)),
        (whole, 100, False, 20 * (20 + 100)),
        (part, 40, True, 5 * (20 + 4 * 40)),
        (part, 40, False, 20 * (20 + 40)),
    ):
        largest = largest_update(config, replace(student, packs=packs), found.prompt)
        writing, scoring, updating = longest_step(config, found, largest)
        assert writing == pytest.approx(3 * 100 / 10)  # 20 responses in 3 batches
        assert scoring == pytest.approx(20 * (20 + scored) * 3 / 60)
        assert updating == pytest.approx(computed * 6 / 40)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize(
    ("budget", "group", "updates"),
    [(160, 2, 1), (84, 2, 1), (1000, 6, 1), (1000, 6, 4), (130, 6, 2)],
)
def test_the_largest_update_is_cut_as_the_updates_are(
    make_config: MakeConfig, student: Student, packs: bool, budget: int, group: int, updates: int
) -> None:
    """Against the micro-batches of an update whose prompts and responses have those lengths."""
    config = make_config(
        rollout={"prompts_per_step": 4, "group_size": group},
        optimizer={"micro_batch_tokens": budget, "updates_per_batch": updates},
    )
    student = replace(student, packs=packs)
    found = largest_update(config, student)
    prompt, response = config.data.max_prompt_tokens, config.rollout.max_new_tokens
    rollouts = [
        Rollout(
            PromptItem(f"p{nth}", ids := np.full(prompt, nth, np.int32), TokenPrompt(ids)),
            index,
            np.arange(response + 1, dtype=np.int32),  # the last one is not read
            np.zeros(response + 1, np.float32),
            True,
        )
        for nth in range(4)
        for index in range(group)
    ]
    per_update = len(rollouts) // updates
    computed, largest = 0, 0
    for first in range(0, len(rollouts), per_update):
        own = rollouts[first : first + per_update]
        for members in micro_batches(own, budget, packs=packs):
            size = layout_of(student, members, own).ids.size
            computed, largest = computed + size, max(largest, size)
    assert found.tokens == computed
    assert found.in_micro_batch * found.sequences.tokens >= largest
    assert found.in_micro_batch * found.sequences.tokens <= budget
    assert ("without padding" in str(found)) == packs


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_activations_are_what_a_pass_keeps_in_memory(student: Student, packed: bool) -> None:
    """Against all bytes that are alive after a forward pass and were not before it."""
    read = Sequences(96, 32, 4 if packed else 1, packed)
    set_training(student)
    with LiveBytes(student.module.parameters()) as live:
        states = read_layout(student, read.layout(student))
        kept = live.now()
    assert states.requires_grad
    assert activations(student, read) == pytest.approx(kept, rel=0.05)


def test_activations_that_are_computed_again_are_those_of_one_layer(
    make_config: MakeConfig,
) -> None:
    """Against the most bytes that are alive at once in a backward pass, which the gradients on
    the way add to."""
    student = load_student(make_config(student={"gradient_checkpointing": True}).student)
    read = Sequences(96, 32, 4, packed=True)
    parameters = list(student.module.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    there = [*parameters, *(p.grad for p in parameters if p.grad is not None)]
    set_training(student)
    with packing_for(student), LiveBytes(there) as live:
        states = read_layout(student, read.layout(student))
        kept = live.now()
        states.sum().backward()
    assert kept < activations(student, read)
    assert activations(student, read) == pytest.approx(live.most, rel=0.15)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations have made since it began and that are
    still there. Those of ``before`` were there. ``most`` is how many there were at once."""

    def __init__(self, before: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._before = {tensor.untyped_storage()._cdata for tensor in before}
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata in self._before:
                    continue
                self._alive[storage._cdata] = (weakref.ref(storage), storage.nbytes())
        self.most = max(self.most, self.now())
        return found

    def now(self) -> int:
        return sum(size for storage, size in self._alive.values() if storage() is not None)
