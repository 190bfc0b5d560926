"""A checkpoint of an earlier version is resumed, or refused by the name of what changed."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file
from teacher_proto.errors import ConfigurationError, ContractMismatchError
from transformers import GPT2Config, GPT2LMHeadModel

from student_trainer.run.checkpoint import load_state
from student_trainer.settings.student import StudentSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.startup import inputs
from student_trainer.startup.start import Start
from student_trainer.student.model import load_student
from student_trainer.train import train
from tests.support.models import ENGLISH, make_tiny_model, save_model, train_tokenizer
from tests.support.old_tree import Tree
from tests.trainer.conftest import settings, write_prompts
from tests.trainer.processes import Server

Values = dict[str, Any]


def chats(path: Path) -> Path:
    texts = ("the sun", "a day was", "The capital", "user asks", "in the morning", "so warm")
    rows = [[{"role": "user", "content": text}] for text in texts]
    return write_prompts(path, rows)


@pytest.fixture(scope="module")
def old_run(
    old_tree: Tree,
    tiny_model_dir: Path,
    student_model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Values]:
    """The directory of a run that the old programs made, of three steps with a checkpoint
    each, and its settings."""
    folder = tmp_path_factory.mktemp("old-run")
    chats(folder / "prompts.jsonl")
    values = settings(student_model_dir, folder, checkpoint={"every": 1, "keep": 3})
    values["pipeline"] = {"staleness": 1}
    with old_tree.serve(folder / "server", default=tiny_model_dir) as server:
        values["teacher"] = {"address": server["grpc_address"]}
        file = folder / "run.toml"
        file.write_text(tomli_w.dumps(values))
        ended = old_tree.train(file)
    assert ended.returncode == 0, ended.stderr
    return folder / "run", values


@pytest.fixture
def address(run_server: Server) -> str:
    """Of this tree's service, with the same teacher, and with another of its shape."""
    return run_server.address


def resumed(
    old_run: tuple[Path, Values], tmp_path: Path, address: str, step: int = 2, **sections: Values
) -> TrainConfig:
    """Settings that go on from a copy of the old run as it was after ``step``."""
    run, values = old_run
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    for later in (copy / "checkpoints").glob("step-*"):
        if int(later.name.removeprefix("step-")) > step:
            shutil.rmtree(later)
    shutil.rmtree(copy / "model")
    changed = {**values, "teacher": {"address": address}}
    changed["run"] = {**values["run"], "output_dir": str(copy)}
    changed["student"] = {**values["student"], "packing": "off"}  # as that trainer did
    for name, section in sections.items():
        changed[name] = {**changed.get(name, {}), **section}
    return TrainConfig.model_validate(changed)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_an_old_checkpoint_is_resumed_as_the_old_trainer_would_have_gone_on(
    old_run: tuple[Path, Values], address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a batch in flight, too."""
    config = resumed(old_run, tmp_path, address)
    with caplog.at_level(logging.INFO):
        run = train(config)
    assert "resuming after step 2" in caplog.text
    assert "could not be compared" in caplog.text
    assert losses(run) == pytest.approx(losses(old_run[0]), rel=1e-6)
    before, after = (
        load_file(folder / "model" / "model.safetensors") for folder in (old_run[0], run)
    )
    for name, weight in before.items():
        # The update adds gradients up in another order.
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-5, msg=name)
    state = load_state(run / "checkpoints" / "step-000003")
    assert state.now, "from here on the run has a clock"
    caplog.clear()
    more = config.model_copy(update={"run": config.run.model_copy(update={"steps": 4})})
    assert len(losses(train(more))) == 4
    assert load_state(run / "checkpoints" / "step-000004").now == state.now


@pytest.mark.parametrize(
    ("sections", "error", "named"),
    [
        ({"teacher": {"name": "twin"}}, ContractMismatchError, "another weights"),
        ({"loss": {"top_k": 8}}, ConfigurationError, r"loss\.top_k \(16 to 8\)"),
        ({"student": {"dropout": True}}, ConfigurationError, r"student\.dropout"),
        ({"student": {"packing": "auto"}}, ConfigurationError, r"packing \('off' to 'auto'\)"),
    ],
)
def test_an_old_checkpoint_is_refused_by_the_name_of_what_changed(
    old_run: tuple[Path, Values],
    address: str,
    tmp_path: Path,
    sections: dict[str, Values],
    error: type[Exception],
    named: str,
) -> None:
    settings = resumed(old_run, tmp_path, address, **sections)
    if sections == {"teacher": {"name": "twin"}}:
        allowed = settings.checkpoint.model_copy(update={"allow_changed": ("teacher.name",)})
        settings = settings.model_copy(update={"checkpoint": allowed})
    with pytest.raises(error, match=named):
        train(settings)


def test_an_old_checkpoint_with_other_prompts_is_refused(
    old_run: tuple[Path, Values], address: str, tmp_path: Path
) -> None:
    other = write_prompts(tmp_path / "prompts.jsonl")
    with pytest.raises(ConfigurationError, match="train prompts"):
        train(resumed(old_run, tmp_path, address, data={"train": str(other)}))


def test_a_checkpoint_of_a_later_version_is_refused_by_its_fields(
    old_run: tuple[Path, Values], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(old_run[0] / "checkpoints" / "step-000003", tmp_path / "later"))
    values = json.loads((copy / "state.json").read_text())
    (copy / "state.json").write_text(json.dumps(values | {"phase_of_the_moon": 1}))
    with pytest.raises(ConfigurationError, match="phase_of_the_moon"):
        load_state(copy)


def test_a_run_that_had_the_models_own_dropout_does_not_lose_it_unsaid(
    old_run: tuple[Path, Values], address: str, tmp_path: Path
) -> None:
    student = make_tiny_model(tmp_path / "drops", seed=7, attention_dropout=0.1)
    config = resumed(old_run, tmp_path, address, student={"model": str(student)})
    start = Start(config, checkpoint=tmp_path / "run" / "checkpoints" / "step-000002")
    assert start.checkpoint is not None
    start.resumed = load_state(start.checkpoint)
    shutil.copy(student / "config.json", start.checkpoint / "model" / "config.json")
    with pytest.raises(ConfigurationError, match="the model's own dropout on"):
        inputs.student(start)


@pytest.mark.parametrize("place", [None, "resid_pdrop", "attn_pdrop"])
def test_only_dropout_of_a_layer_that_is_there_counts(tmp_path: Path, place: str | None) -> None:
    """GPT-2's configuration names, with 0.1, the dropout of a head that a student has not."""
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"vocab_size": 320, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    changed = drops if place is None else drops | {place: 0.1}
    config = GPT2Config(**sizes, **changed, bos_token_id=0, eos_token_id=1)
    assert config.summary_first_dropout == 0.1
    save_model(GPT2LMHeadModel(config), tmp_path, train_tokenizer(ENGLISH, 320))
    student = load_student(StudentSettings(model=str(tmp_path), device="cpu"))
    assert inputs.has_own_dropout(student) == (place is not None)
