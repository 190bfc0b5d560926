"""Rollouts by a real vLLM: the draws of the transformers engine, streamed, with the weights that
were handed over last. One engine for the module."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import LsmError
from teacher_proto.types import TokenPrompt

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.generate import generate
from student_trainer.rollout.vllm import hand_over
from student_trainer.rollout.vllm.engine import VllmEngine
from student_trainer.rollout.vllm.gap import own_log_probs
from student_trainer.rollout.vllm.weights import FAILED
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.student.model import Student, load_student

pytestmark = pytest.mark.vllm

OPTIONS = {"enforce_eager": True, "kv_cache_memory_bytes": 64 * 2**20}
SETTINGS: dict[str, Any] = {
    "engine": "vllm",
    "group_size": 4,
    "batch_size": 6,
    "max_new_tokens": 24,
    "temperature": 1.3,
    "top_p": 0.85,
    "vllm": {"options": OPTIONS},
}
LONGEST = 96


@pytest.fixture(scope="module", params=["own head", "tied head"])
def student(
    request: pytest.FixtureRequest, wide_student_dir: Path, tied_student_dir: Path
) -> Student:
    folder = wide_student_dir if request.param == "own head" else tied_student_dir
    return load_student(StudentSettings(model=str(folder), device="cpu"))


@pytest.fixture(scope="module")
def started(student: Student) -> Iterator[VllmEngine]:
    engine = VllmEngine(student, RolloutSettings.model_validate(SETTINGS), LONGEST)
    yield engine
    engine.close()


@pytest.fixture
def engine(started: VllmEngine, student: Student) -> Iterator[VllmEngine]:
    """The module's engine, with the weights of the student, which are put back after the test."""
    weights = copy.deepcopy(student.module.state_dict())
    yield started
    student.module.load_state_dict(weights)
    # Whatever version a test has handed over: the next has to hand over its own.
    started._version = None


def with_settings(engine: VllmEngine, **changes: Any) -> VllmEngine:
    """The same vLLM under other settings."""
    other = copy.copy(engine)
    other._settings = RolloutSettings.model_validate({**SETTINGS, **changes})
    return other


def prompts(count: int = 3, length: int = 20) -> list[PromptItem]:
    ids = np.random.default_rng(5).integers(3, 250, (count, length), np.int32)
    rows = [row[: length - nth] for nth, row in enumerate(ids)]
    return [PromptItem(f"prompt {n}", row, TokenPrompt(row)) for n, row in enumerate(rows)]


def change(student: Student, seed: int) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in student.module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)


def assert_the_same(found: list[Rollout], expected: list[Rollout]) -> None:
    """Equal but for ties of rounding: of the responses that have the same ids, all is the same,
    and few have others."""
    same = [
        (a, b)
        for a, b in zip(found, expected, strict=True)
        if a.token_ids.tolist() == b.token_ids.tolist()
    ]
    assert len(same) >= 0.9 * len(expected)
    for a, b in same:
        assert a.prompt.prompt_id == b.prompt.prompt_id
        assert (a.index, a.finished) == (b.index, b.finished)
        np.testing.assert_allclose(a.log_probs, b.log_probs, rtol=0, atol=1e-4)
        np.testing.assert_allclose(a.nucleus_mass, b.nucleus_mass, rtol=0, atol=1e-4)


def test_it_draws_what_transformers_draws(engine: VllmEngine, student: Student) -> None:
    engine.update_weights(7)
    for temperature, top_p in ((1.3, 0.85), (0.7, 1.0), (1.0, 0.2)):
        own = with_settings(engine, temperature=temperature, top_p=top_p)
        found = own.generate(prompts(), seed=1, step=2)
        assert_the_same(found, generate(student, prompts(), own._settings, seed=1, step=2))
        assert {rollout.weights_version for rollout in found} == {7}
    assert any(rollout.finished for rollout in found), "some end by a terminator"
    assert any(not rollout.finished for rollout in found), "and some at the limit"


def test_ids_without_a_token_are_never_drawn(engine: VllmEngine, student: Student) -> None:
    """They have the weights of the likely ones."""
    assert student.undrawn is not None
    assert student.undrawn.tolist() == [320, 321, 322]
    engine.update_weights(7)
    hot = with_settings(engine, temperature=3.0, top_p=1.0, group_size=40)
    drawn = np.concatenate([r.token_ids for r in hot.generate(prompts(), seed=1, step=1)])
    assert len(drawn) > 1000
    assert drawn.max() < 320


def test_both_draw_from_one_distribution(engine: VllmEngine, student: Student) -> None:
    """First and second tokens of many responses, from streams that neither shares with the other,
    against the nuclei that the trainer computes itself."""
    engine.update_weights(7)
    many = with_settings(engine, group_size=3000, max_new_tokens=2, top_p=0.6)
    (prompt,) = prompts(1)
    settings, ids = many._settings, prompt.token_ids
    with torch.no_grad():
        logits = student.module(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, -1]
        logits[student.undrawn] = -torch.inf
        probabilities = (logits.double() / settings.temperature).softmax(-1)
    order = probabilities.argsort(descending=True)
    size = int((probabilities[order].cumsum(-1) < settings.top_p).sum()) + 1
    nucleus = order[:size]
    expected = (probabilities[nucleus] / probabilities[nucleus].sum()).numpy()
    by_vllm = many.generate([prompt], seed=11, step=1)
    others = generate(student, [prompt], settings, seed=12, step=1)
    first = {name: np.array([r.token_ids[0] for r in rs]) for name, rs in
             (("vllm", by_vllm), ("transformers", others))}  # fmt: skip
    for drawn in first.values():
        counts = np.array([(drawn == token).sum() for token in nucleus.tolist()])
        assert counts.sum() == len(drawn), "only the nucleus is drawn from"
        error = np.sqrt(len(drawn) * expected * (1 - expected))
        assert (np.abs(counts - len(drawn) * expected) < 5 * error + 1).all()
    pairs = [
        {tuple(r.token_ids[:2].tolist()) for r in rs if len(r.token_ids) > 1}
        for rs in (by_vllm, others)
    ]
    frequent = pairs[0] & pairs[1]
    counted = [
        np.array([sum(tuple(r.token_ids[:2].tolist()) == pair for r in rs) for pair in frequent])
        for rs in (by_vllm, others)
    ]
    spread = np.sqrt(counted[0] + counted[1])
    assert (np.abs(counted[0] - counted[1]) < 5 * spread).all()


def test_a_text_ends_a_response_as_it_does_in_transformers(
    engine: VllmEngine, student: Student
) -> None:
    engine.update_weights(7)
    plain = with_settings(engine, top_p=1.0, group_size=12)
    texts = [
        student.tokenizer.decode(r.token_ids) for r in plain.generate(prompts(), seed=1, step=1)
    ]
    strings = sorted({text[6:8] for text in texts if text[6:8].isascii() and len(text) > 8})[:4]
    assert strings
    stopped = with_settings(engine, top_p=1.0, group_size=12, stop_strings=strings)
    found = stopped.generate(prompts(), seed=1, step=1)
    expected = generate(student, prompts(), stopped._settings, seed=1, step=1)
    assert_the_same(found, expected)
    assert sum(len(r.token_ids) for r in found) < sum(len(text) for text in texts)
    # What was given up is not written on beside the next batch.
    assert_the_same(plain.generate(prompts(), seed=1, step=1),
                    generate(student, prompts(), plain._settings, seed=1, step=1))  # fmt: skip


def test_responses_come_as_they_end_and_one_at_a_time(engine: VllmEngine) -> None:
    engine.update_weights(7)
    several = with_settings(engine, group_size=12, temperature=0.9)
    calls: list[list[tuple[int, Rollout]]] = []
    found = several.generate(prompts(), seed=1, step=1, ended=calls.append)
    assert all(len(call) == 1 for call in calls)
    places = [place for call in calls for place, _ in call]
    assert sorted(places) == list(range(36))
    assert all(found[place] is rollout for call in calls for place, rollout in call)
    ends = [rollout.length for call in calls for _, rollout in call]
    assert places != sorted(places), "an early one does not wait for those before it"
    assert min(ends) < max(ends)


def test_an_interrupted_batch_is_given_up(engine: VllmEngine, student: Student) -> None:
    engine.update_weights(7)

    def stop(rollouts: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts(), seed=1, step=1, ended=stop)
    found = engine.generate(prompts(), seed=1, step=3)
    assert_the_same(found, generate(student, prompts(), engine._settings, seed=1, step=3))


def test_new_weights_are_those_that_write(engine: VllmEngine, student: Student) -> None:
    """Nothing of the old ones is left, neither in packed copies nor in the prefix cache."""
    engine.update_weights(7)
    before = engine.generate(prompts(), seed=1, step=1)
    change(student, 1)
    engine.update_weights(8)
    found = engine.generate(prompts(), seed=1, step=1)
    assert_the_same(found, generate(student, prompts(), engine._settings, seed=1, step=1))
    assert {rollout.weights_version for rollout in found} == {8}
    assert any(a.token_ids.tolist() != b.token_ids.tolist()
               for a, b in zip(before, found, strict=True))  # fmt: skip


def test_a_version_that_it_has_is_not_handed_over_again(
    engine: VllmEngine, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.update_weights(7)
    monkeypatch.setattr(hand_over, "write_weights", lambda *arguments: pytest.fail("again"))
    engine.update_weights(7)
    assert engine.generate(prompts(), seed=1, step=1)[0].weights_version == 7


def test_a_hand_over_that_was_cut_writes_nothing(
    engine: VllmEngine, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.update_weights(7)
    whole = hand_over.write_weights

    def cut(path: Path, version: int, tensors: Any) -> None:
        whole(path, version, tensors)
        os.truncate(path, path.stat().st_size // 2)

    monkeypatch.setattr(hand_over, "write_weights", cut)
    change(student, 2)
    with pytest.raises(LsmError, match="bytes of") as refused:
        engine.update_weights(8)
    assert refused.value.reason == FAILED
    with pytest.raises(LsmError, match="none were handed over"):
        engine.generate(prompts(), seed=1, step=1)
    monkeypatch.setattr(hand_over, "write_weights", whole)
    engine.update_weights(8)
    found = engine.generate(prompts(), seed=1, step=1)
    assert_the_same(found, generate(student, prompts(), engine._settings, seed=1, step=1))
    assert not list(engine._settings.vllm.folder.glob(f"lsm-weights-{os.getpid()}-*"))


def test_a_worker_of_another_version_is_not_asked_to_write(engine: VllmEngine) -> None:
    engine.update_weights(7)
    engine._core.call("rollout_commit", 6)
    with pytest.raises(LsmError, match="worker 0 has version 6, not 7"):
        engine.generate(prompts(), seed=1, step=1)


def test_log_probabilities_of_other_weights_refuse_the_step(
    engine: VllmEngine, student: Student
) -> None:
    engine.update_weights(7)
    change(student, 3)
    with pytest.raises(LsmError, match="the step is refused") as refused:
        engine.generate(prompts(), seed=1, step=1)
    assert refused.value.reason == "ROLLOUT_LOG_PROB_GAP"


def test_they_are_the_trainers_own_but_for_rounding(engine: VllmEngine, student: Student) -> None:
    engine.update_weights(7)
    rollouts = engine.generate(prompts(), seed=1, step=1)
    for rollout in rollouts:
        own = own_log_probs(student, rollout, engine._settings.temperature)
        np.testing.assert_allclose(rollout.log_probs, own, rtol=0, atol=2e-5)
