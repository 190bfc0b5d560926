"""Checkpoints on disk: whole, checked, and refused when they are another run's."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from teacher_proto.errors import ConfigurationError, ContractMismatchError, LsmError
from teacher_proto.types import TeacherIdentity

from student_trainer.data.digest import RULE
from student_trainer.run import checkpoint
from student_trainer.run.best import RecentMetric
from student_trainer.run.checkpoint import TrainState, damage, newest_good
from student_trainer.run.directory import (
    RunDirectory,
    append_metrics,
    find_checkpoint,
    prepare,
)
from student_trainer.run.pending_batches import PendingBatch
from student_trainer.run.resume import check_resumable, check_teachers, pending_batches_usable
from student_trainer.run.retention import Goal, listing, step_of
from student_trainer.run.rng import capture_rng, restore_rng
from student_trainer.settings.run import CheckpointSettings

IDENTITY = TeacherIdentity("d", "w", "float32", "", "", "t")
CONFIG: dict[str, Any] = {
    "run": {"name": "a", "steps": 5, "seed": 0},
    "teacher": {"address": "x:1", "name": "default"},
    "rollout": {"top_p": 0.9, "group_size": 8},
    "optimizer": {"schedule": "constant", "lr": 1e-3},
    "loss": {"mask": {"strings": ["<think>"]}},
}


def state(step: int) -> TrainState:
    waits = PendingBatch(step + 1, 3 * step, step, ("a", "b"))
    return TrainState(step, step, 3 * step, "data", {"default": IDENTITY}, CONFIG, (waits,))


def save_model(directory: Path) -> None:
    directory.mkdir()
    save_file({"weight": torch.arange(64.0)}, directory / "model.safetensors")


def save(
    directory: Path, step: int, keep: int = 3, score: float | None = None, goal: Goal = "min"
) -> Path:
    return checkpoint.save(
        directory,
        replace(state(step), score=score),
        save_model=save_model,
        optimizer={"exp_avg/weight": torch.full((64,), float(step))},
        rng=capture_rng(),
        rollouts={},
        keep=keep,
        goal=goal,
    )


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(4)
    path = save(tmp_path, 7)
    drawn = torch.rand(3)
    assert path.name == "step-000007"
    assert damage(path) is None
    assert checkpoint.load_state(path) == state(7)
    saved = checkpoint.load_tensors(path, {})
    assert saved.optimizer["exp_avg/weight"].tolist() == [7.0] * 64
    restore_rng(saved.rng)
    assert torch.equal(torch.rand(3), drawn)
    assert not list(tmp_path.glob(".tmp-*"))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step-000001-99").mkdir()
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert [p.name for p in listing(tmp_path)] == ["step-000004", "step-000003"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000003", "step-000004"]
    save(tmp_path, 4, keep=2)
    assert damage(tmp_path / "step-000004") is None


@pytest.mark.parametrize(("goal", "kept"), [("min", 2), ("max", 1)])
def test_the_best_is_kept_too(tmp_path: Path, goal: Goal, kept: int) -> None:
    for step, score in enumerate((0.9, 0.2, 0.2, None, 0.5), 1):
        save(tmp_path, step, keep=1, score=score, goal=goal)
    assert [step_of(p) for p in listing(tmp_path)] == [5, kept]


def test_checkpoints_the_run_went_back_before_do_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, *later = [save(tmp_path, step) for step in (1, 5, 6)]
    for path in later:
        (path / "state.json").write_text("{")
    assert newest_good(tmp_path) == good
    save(tmp_path, 2, keep=2)
    assert [step_of(p) for p in listing(tmp_path)] == [2, 1], "the damaged ones had crowded it out"
    assert "the run went back before it" in caplog.text


def test_the_metric_of_the_best_is_the_mean_since_the_last_checkpoint(tmp_path: Path) -> None:
    recent = RecentMetric(CheckpointSettings(best="loss", every=2))
    assert recent.mean() is None
    for step, loss in enumerate((9.0, 1.0, None, 4.0), 1):
        recent.add({"step": step, "loss": loss})
        append_metrics(tmp_path / "metrics.jsonl", {"step": step, "loss": loss})
    assert recent.mean() == 4.0
    again = RecentMetric(CheckpointSettings(best="loss", every=2))
    again.restore(tmp_path / "metrics.jsonl", 2)
    assert again.mean() == 5.0
    of_teacher = RecentMetric(CheckpointSettings(best="truncated_share/math", every=2))
    of_teacher.add({"step": 1, "tokens/math": 0})
    assert of_teacher.mean() is None, "the step has no prompt of this teacher"
    of_teacher.add({"step": 2, "tokens/math": 4, "truncated_share/math": 0.5})
    assert of_teacher.mean() == 0.5
    with pytest.raises(ConfigurationError, match=r"no metric 'truncated_share/math'"):
        of_teacher.add({"step": 3, "tokens/math": 4})
    wrong = RecentMetric(CheckpointSettings(best="lost"))
    with pytest.raises(ConfigurationError, match="name one of loss, step"):
        wrong.add({"loss": 1.0, "step": 1, "clipped": True})


FILES = (
    "manifest.json",
    "state.json",
    "optimizer.safetensors",
    "rng.safetensors",
    "model/model.safetensors",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["truncated", "flipped", "removed"])
def test_a_damaged_one_is_named_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    data = (bad / name).read_bytes()
    if how == "truncated":
        (bad / name).write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        # In the manifest: a digit of a checksum, which is still JSON.
        place = data.index(b'"sha256": "') + 11 if name == "manifest.json" else len(data) // 2
        flipped = bytes([data[place] ^ 1])
        (bad / name).write_bytes(data[:place] + flipped + data[place + 1 :])
    else:
        (bad / name).unlink()
    with caplog.at_level(logging.WARNING):
        assert newest_good(tmp_path) == good
    assert "step-000002" in caplog.text
    assert name in caplog.text or name == "manifest.json"
    with pytest.raises(ConfigurationError, match="not a good checkpoint"):
        find_checkpoint(RunDirectory(tmp_path), str(bad))


def test_no_good_one_is_an_error_and_none_at_all_is_a_start(tmp_path: Path) -> None:
    assert newest_good(tmp_path / "absent") is None
    (save(tmp_path, 1) / "state.json").unlink()
    with pytest.raises(ConfigurationError, match="none of its 1 checkpoints"):
        newest_good(tmp_path)


def test_a_failed_write_leaves_the_earlier_ones(tmp_path: Path) -> None:
    good = save(tmp_path, 1)

    def full_disk(directory: Path) -> None:
        directory.mkdir()
        (directory / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(LsmError, match="No space left") as caught:
        checkpoint.save(
            tmp_path, state(2), save_model=full_disk, optimizer={}, rng={}, rollouts={}, keep=1
        )
    assert caught.value.reason == "CHECKPOINT_NOT_WRITTEN"
    assert newest_good(tmp_path) == good
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    return {name: {**values, **sections.get(name, {})} for name, values in CONFIG.items()}


def test_settings_that_change_the_numbers_are_refused_by_name() -> None:
    check_resumable(state(1), CONFIG, "data", {"default": IDENTITY})
    free = changed(run={"name": "b", "steps": 9}, teacher={"address": "y:2"})
    check_resumable(state(1), free, "data", {"default": IDENTITY})
    other = changed(rollout={"top_p": 0.8}, loss={"mask": {"strings": []}})
    with pytest.raises(ConfigurationError) as caught:
        check_resumable(state(1), other, "data", {"default": IDENTITY})
    assert "rollout.top_p (0.9 to 0.8)" in str(caught.value)
    assert "loss.mask.strings (['<think>'] to [])" in str(caught.value)
    assert "group_size" not in str(caught.value)
    check_resumable(state(1), other, "data", {"default": IDENTITY}, ["rollout.top_p", "loss.mask"])


def test_batches_in_flight_are_used_only_where_a_run_would_write_them_again() -> None:
    assert pending_batches_usable(state(1), CONFIG, "data")
    assert pending_batches_usable(state(1), changed(optimizer={"lr": 1.0}), "data")
    assert not pending_batches_usable(state(1), changed(rollout={"top_p": 0.8}), "data")
    assert not pending_batches_usable(state(1), CONFIG, "other")
    with pytest.raises(ConfigurationError, match=r"pipeline\.staleness \(None to 1\)"):
        check_resumable(
            state(1), {**CONFIG, "pipeline": {"staleness": 1}}, "data", {"default": IDENTITY}
        )


def test_the_length_of_a_falling_schedule_may_not_change() -> None:
    before = replace(state(1), config=changed(optimizer={"schedule": "cosine"}))
    longer = changed(optimizer={"schedule": "cosine"}, run={"steps": 9})
    with pytest.raises(ConfigurationError, match=r"run\.steps \(5 to 9\)"):
        check_resumable(before, longer, "data", {"default": IDENTITY})


def test_other_prompts_and_another_teacher_are_refused() -> None:
    told = replace(state(1), data_digest=f"{RULE}data")
    with pytest.raises(ConfigurationError, match="train prompts differ"):
        check_resumable(told, CONFIG, f"{RULE}other", {"default": IDENTITY})
    with pytest.raises(ConfigurationError, match="by an earlier rule"):
        check_resumable(state(1), CONFIG, f"{RULE}data", {"default": IDENTITY})
    check_resumable(state(1), CONFIG, "other", {"default": IDENTITY}, ["data.train"])
    with pytest.raises(ContractMismatchError, match="identity"):
        check_resumable(state(1), CONFIG, "data", {"default": replace(IDENTITY, digest="e")})


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("weights_digest", "another weights"),
        ("dtype", "another data type"),
        ("tokenizer_hash", "another tokenizer"),
        ("chat_template_digest", "another chat template"),
    ],
)
def test_what_differs_of_a_teacher_is_named(part: str, named: str) -> None:
    now = replace(IDENTITY, digest="e", **{part: "other"})
    with pytest.raises(ContractMismatchError, match=named):
        check_teachers(replace(state(1), now="2026-11-29T05:53:12"), {"default": now})


def test_what_an_earlier_version_did_not_say_of_a_teacher_cannot_be_compared() -> None:
    first = replace(IDENTITY, tokenizer_hash="0" * 64)
    now = replace(first, digest="e", tokenizer_hash=f"v2-{'0' * 64}", chat_template_digest="c")
    kept = replace(state(1), teachers={"default": first})
    assert (
        "its tokenizer and chat template are the same could not be compared"
        in check_teachers(kept, {"default": now})[0]
    )
    with pytest.raises(ContractMismatchError, match="so far: another weights"):
        check_teachers(kept, {"default": replace(now, weights_digest="other")})
    assert check_teachers(kept, {"default": first}) == []


def test_never_does_not_overwrite_a_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert find_checkpoint(run, "never") is None
    run.metrics.write_text("{}\n")
    with pytest.raises(ConfigurationError, match="already holds a run"):
        find_checkpoint(run, "never")


def test_metrics_go_back_to_the_checkpoint(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)]
    run.metrics.write_text("\n".join(lines) + '\n{"step": 4, "lo')
    prepare(run, 2)
    assert run.metrics.read_text() == "\n".join(lines[:2]) + "\n"
    run.evaluation.mkdir()
    prepare(run, 0)
    assert not run.metrics.exists()
    assert not run.evaluation.exists()


class Gpus:
    """As many GPUs as torch sees, of which only the generators matter."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states = [torch.full((16,), 10 + number, dtype=torch.uint8) for number in range(count)]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: self.states[device.index])
        monkeypatch.setattr(torch.cuda, "set_rng_state", self.set)
        everything = lambda: [state.clone() for state in self.states]  # noqa: E731
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", everything)

    def set(self, state: torch.Tensor, device: torch.device) -> None:
        self.states[device.index or 0] = state


GPU = torch.device("cuda:0")


@pytest.mark.parametrize("count", [1, 3])
def test_a_run_goes_on_where_there_are_more_or_fewer_gpus(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generators of the GPUs are fakes here; the rule is which of them is set to what."""
    with monkeypatch.context() as patch:
        two = Gpus(2, patch)
        saved = capture_rng(torch.device("cuda:1"))
        assert torch.equal(saved["cuda"], two.states[1])
    now = Gpus(count, monkeypatch)
    restore_rng(saved, GPU)
    assert now.states[0].tolist() == [11] * 16
    assert [s[0].item() for s in now.states[1:]] == list(range(11, 10 + count))


def test_a_checkpoint_of_every_gpus_generator_gives_the_students_device_its_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = {"torch": torch.get_rng_state()}
    earlier |= {f"cuda{n}": torch.full((16,), 40 + n, dtype=torch.uint8) for n in range(2)}
    one = Gpus(1, monkeypatch)
    restore_rng(earlier, GPU)
    assert one.states[0].tolist() == [40] * 16
    assert caplog.text == ""
    restore_rng(earlier, torch.device("cpu"))
    other = Gpus(4, monkeypatch)
    restore_rng(earlier, torch.device("cuda:3"))
    assert [s[0].item() for s in other.states] == [10, 11, 12, 13]
    assert "no state of the generator of cuda:3 (it has cuda0, cuda1)" in caplog.text
    restore_rng({"torch": torch.get_rng_state()}, GPU)
    assert "it has none of a GPU" in caplog.text
