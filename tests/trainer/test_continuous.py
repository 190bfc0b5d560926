"""Responses of continuous batching are those of padded batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.types import TextPrompt

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.continuous import write_continuously
from student_trainer.rollout.drawing import Drawing
from student_trainer.rollout.engine import response_keys
from student_trainer.rollout.generate import generate
from student_trainer.rollout.padded import write_padded
from student_trainer.rollout.slots import supported
from student_trainer.rollout.slots.layers import FullLayer, SlidingLayer
from student_trainer.rollout.slots.slots import Slots
from student_trainer.rollout.slots.supported import why_padded
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import LoraSettings
from student_trainer.student.model import Student
from tests.trainer.test_student_families import build, load

ROLLOUT = RolloutSettings(group_size=5, max_new_tokens=24, batch_size=7)
ENDS = tuple(range(7, 13))
LENGTHS = (5, 17, 3, 30, 9, 12)
# Windows are shorter than prompts and responses, so that columns leave them.
SUPPORTED: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen3": {},
    "Mistral": {"sliding_window": 6},
    "Gemma2": {"sliding_window": 8},
    "Qwen3Next": {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "Lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "GPT2": {"kind": "LMHeadModel"},
}


def prompts() -> list[PromptItem]:
    draw = np.random.default_rng(0)
    return [
        PromptItem(f"p{n}", draw.integers(13, 300, size=count).astype(np.int32), TextPrompt(""))
        for n, count in enumerate(LENGTHS)
    ]


def written(
    write: Any, student: Student, settings: RolloutSettings = ROLLOUT
) -> tuple[list[Rollout], list[list[int]]]:
    """The rollouts, and which places were given out together."""
    keys = response_keys(prompts(), settings.group_size)
    drawing = Drawing(student, settings, 0, 1, settings.batch_size, 3)
    found: dict[int, Rollout] = {}
    together: list[list[int]] = []

    def take(some: list[tuple[int, Rollout]]) -> None:
        found.update(some)
        together.append([place for place, _ in some])

    write(student, keys, drawing, take)
    return [found[place] for place in range(len(keys))], together


def ids(rollouts: Sequence[Rollout]) -> list[list[int]]:
    return [rollout.token_ids.tolist() for rollout in rollouts]


def same_but_for_ties(
    own: Sequence[Rollout], padded: Sequence[Rollout]
) -> list[tuple[Rollout, Rollout]]:
    """The pairs with equal ids, which are nearly all. Where two differ, the first token that does
    is one that rounding decides: both tokens are about as likely."""
    equal = []
    for one, other in zip(own, padded, strict=True):
        if one.token_ids.tolist() == other.token_ids.tolist():
            equal.append((one, other))
            continue
        pairs = zip(one.token_ids, other.token_ids, strict=False)
        at = next(place for place, (a, b) in enumerate(pairs) if a != b)
        assert abs(one.log_probs[at] - other.log_probs[at]) < 0.05, "no tie"
    assert len(equal) >= len(own) - 2
    return equal


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Student:
    folder = build("Llama", tmp_path_factory.mktemp("llama") / "model")
    return replace(load(folder), terminators=ENDS)


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_family_writes_the_same(family: str, tmp_path: Path) -> None:
    student = replace(load(build(family, tmp_path / "m", **SUPPORTED[family])), terminators=ENDS)
    assert why_padded(student) == ""
    (own, together), (padded, _) = (
        written(write, student) for write in (write_continuously, write_padded)
    )
    assert {r.finished for r in own} == {True, False}, "the case needs both"
    for one, other in same_but_for_ties(own, padded):
        assert one.prompt.prompt_id == other.prompt.prompt_id
        assert (one.index, one.finished) == (other.index, other.finished)
        assert one.weights_version == 3
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)
        np.testing.assert_allclose(one.nucleus_mass, other.nucleus_mass, atol=1e-4)
    assert all(places == sorted(places) for places in together)


def test_on_recorded_logits_every_byte_is_the_same(llama: Student) -> None:
    recorded = torch.randn(300, llama.vocabulary_size, generator=torch.Generator().manual_seed(1))

    def replay(module: Any, inputs: Any, named: Any, output: Any) -> None:
        output.logits[:, -1] = recorded[named["input_ids"][:, -1] % 300] * 3

    text = llama.tokenizer.decode([40, 41])
    assert text, "the case needs a text that may end a response"
    cases = ({}, {"stop_strings": (text[0],), "top_p": 1.0}, {"batch_size": 20})
    for more in cases:
        settings = ROLLOUT.model_copy(update=more)
        hook = llama.causal_model.register_forward_hook(replay, with_kwargs=True)
        try:
            own, padded = (
                written(w, llama, settings)[0] for w in (write_continuously, write_padded)
            )
        finally:
            hook.remove()
        for one, other in zip(own, padded, strict=True):
            assert one.finished == other.finished
            for name in ("token_ids", "log_probs", "nucleus_mass"):
                assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_and_dtypes_write_the_same(dtype: str, tmp_path: Path) -> None:
    folder = build("Llama", tmp_path / "model")
    student = load(folder, lora=LoraSettings(rank=4, dropout=0.5), dtype=dtype)
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in student.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=chance)
    assert why_padded(student) == ""
    own, padded = (written(write, student)[0] for write in (write_continuously, write_padded))
    if dtype == "float32":
        same_but_for_ties(own, padded)
    first = [(one.log_probs[0], other.log_probs[0]) for one, other in zip(own, padded, strict=True)]
    np.testing.assert_allclose(*np.array(first).T, atol=1e-4 if dtype == "float32" else 0.1)


def test_the_same_bytes_again_in_the_same_order(llama: Student) -> None:
    (first, order), (again, same) = (written(write_continuously, llama) for _ in range(2))
    assert order == same
    assert [r.log_probs.tobytes() for r in first] == [r.log_probs.tobytes() for r in again]


def test_slots_are_free_when_a_response_ends_and_a_group_is_read_once(
    llama: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, read = [], []
    step, read_prompts = Slots.step, Slots.read

    def stepping(self: Slots, tokens: Any) -> Any:
        taken.append(self.taken)
        return step(self, tokens)

    def reading(self: Slots, some: Any) -> Any:
        read.extend(len(one) for one in some)
        return read_prompts(self, some)

    monkeypatch.setattr(Slots, "step", stepping)
    monkeypatch.setattr(Slots, "read", reading)
    rollouts, _ = written(write_continuously, llama)
    assert read == list(LENGTHS)
    assert max(taken) == ROLLOUT.batch_size
    tokens = sum(len(r.token_ids) - 1 for r in rollouts)
    assert sum(taken) == tokens, "none that has ended is read any further"
    waiting = taken[: -ROLLOUT.max_new_tokens]
    assert min(waiting) == ROLLOUT.batch_size, "while prompts wait every slot is taken"


def test_a_student_without_continuous_batching_is_padded_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="student_trainer")
    student = load(build("FalconH1", tmp_path / "model"))
    settings = RolloutSettings(group_size=1, max_new_tokens=2)
    for _ in range(2):
        generate(student, prompts()[:1], settings, seed=0, step=1)
    (said,) = [r.getMessage() for r in caplog.records if "padded batches" in r.getMessage()]
    assert "keeps its past in a LinearAttentionAndFullAttentionLayer" in said


def test_chunks_of_attention_begin_at_fixed_positions(tmp_path: Path) -> None:
    student = load(build("Llama", tmp_path / "model"))
    student.causal_model.config.attention_chunk_size = 8
    assert "in chunks" in why_padded(student)


def test_a_model_whose_code_fails_is_padded(
    llama: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Slots, tokens: Any) -> Any:
        raise ValueError("no such cache")

    monkeypatch.setattr(Slots, "step", refuse)
    assert "(ValueError: no such cache)" in supported._tried(llama)


def test_a_model_that_reads_sequences_otherwise_is_found_out(
    llama: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Slots._forward

    def shifted(self: Slots, ids: Any, before: Any, positions: Any, cache: Any) -> Any:
        later = positions + (before[:, None] > 0)
        return forward(self, ids, before - (before > 0).long(), later, cache)

    monkeypatch.setattr(Slots, "_forward", shifted)
    assert "logits change" in supported._tried(llama)


@pytest.mark.parametrize("window", [None, 2, 5])
def test_a_layer_keeps_the_columns_of_its_sequences(window: int | None) -> None:
    """Against lists, while sequences of random lengths enter and leave."""
    draw = np.random.default_rng(window or 0)
    layer: Any = FullLayer() if window is None else SlidingLayer(window)
    kept: list[list[float]] = []
    begun = False
    for _ in range(300):
        if len(kept) < 6 and (not kept or draw.random() < 0.3):
            count, length = int(draw.integers(1, 7 - len(kept))), int(draw.integers(1, 30))
            row = draw.random(length).tolist()
            seen = row if window is None else row[-max(window - 1, 1) :]
            keys = torch.tensor([[0.0] * len(seen), seen])[:, None, :, None]
            read = SimpleNamespace(keys=keys, values=-keys)
            if not begun:
                layer.begin(read, 6)
                begun = True
            layer.fit(max([length, *map(len, kept)]), 6)
            layer.enter(read, 1, count, length)
            kept += [list(row) for _ in range(count)]
        elif len(kept) > 1 and draw.random() < 0.2:
            gone = int(draw.integers(len(kept)))
            last = len(kept) - 1
            layer.leave([] if gone == last else [(last, gone)], last)
            kept[gone] = kept[last]
            kept.pop()
            layer.fit(max(map(len, kept)), 6)
        else:
            width = max(map(len, kept))
            new = draw.random(len(kept)).tolist()
            length, offset = layer.get_mask_sizes(1)
            states = torch.tensor(new)[:, None, None, None]
            keys, values = layer.update(states, -states)
            for row, value in zip(kept, new, strict=True):
                row.append(value)
            assert (length, offset + length) == (keys.shape[-2], width + 1)
            assert torch.equal(values, -keys)
            for row, columns in zip(kept, keys[:, 0, :, 0], strict=True):
                shown = row if window is None else row[-window:]
                assert columns[-len(shown) :].tolist() == torch.tensor(shown).tolist()
