"""Students whose head is wider than their tokenizer, the ids beyond it most likely."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import ConfigurationError
from transformers import AutoModelForCausalLM, AutoTokenizer, PhiConfig, PhiForCausalLM

from student_trainer.data import load_prompts
from student_trainer.evaluation import load_evaluation
from student_trainer.prompt_needs import check_ids
from student_trainer.rollout import sampling
from student_trainer.rollout.generate import generate
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.startup import inputs
from student_trainer.startup.start import Start
from student_trainer.student.model import load_student
from student_trainer.train import train
from tests.trainer.conftest import write_prompts
from tests.trainer.processes import Server, serve
from tests.trainer.test_run import (
    losses,
    resumed_exactly,
)

MakeConfig = Callable[..., TrainConfig]
TOKENS, WIDTH = 320, 352


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The tokenizer of ``tiny_model_dir`` under a head of 352 with a bias, which makes the
    last 32 ids by far the most likely."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    values = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = PhiConfig(
        vocab_size=WIDTH, num_attention_heads=2, max_position_embeddings=512,
        bos_token_id=None, initializer_range=0.15, **values, **ends,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = PhiForCausalLM(config)
    with torch.no_grad():
        model.lm_head.bias[TOKENS:] += 30
        model.lm_head.bias[tokenizer.eos_token_id] += 2
    directory = tmp_path_factory.mktemp("models") / "wide"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, wide_dir: Path
) -> Iterator[Server]:
    """A teacher of 320 ids and one of 352."""
    folder = tmp_path_factory.mktemp("server")
    with serve(folder, default=tiny_model_dir, wide=wide_dir) as running:
        yield running


@pytest.fixture
def config(make_config: MakeConfig, server: Server, wide_dir: Path) -> MakeConfig:
    def make(model: Path = wide_dir, **sections: dict[str, Any]) -> TrainConfig:
        teacher = {"address": server.address, **sections.pop("teacher", {})}
        return make_config(model, teacher=teacher, checkpoint={"every": 1}, **sections)

    return make


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_an_id_without_a_token_is_never_drawn(
    make_config: MakeConfig, wide_dir: Path, top_p: float
) -> None:
    student = load_student(StudentSettings(model=str(wide_dir), device="cpu"))
    assert student.undrawn is not None
    assert student.undrawn.tolist() == list(range(TOKENS, WIDTH))
    prompts = load_prompts(make_config(wide_dir).data, student.tokenizer).train
    settings = RolloutSettings(
        group_size=3, max_new_tokens=24, batch_size=4, temperature=0.8, top_p=top_p
    )
    rollouts = generate(student, prompts, settings, seed=0, step=1)
    model = AutoModelForCausalLM.from_pretrained(wide_dir)
    for rollout in rollouts:
        assert rollout.token_ids.max() < TOKENS
        whole = np.concatenate([rollout.prompt.token_ids, rollout.token_ids]).astype(np.int64)
        with torch.no_grad():
            logits = model(torch.from_numpy(whole)[None]).logits[0]
        rows = logits[len(rollout.prompt.token_ids) - 1 : -1, :TOKENS] / 0.8
        drawn = torch.from_numpy(rollout.token_ids.astype(np.int64))[:, None]
        expected = rows.log_softmax(-1).gather(-1, drawn)[:, 0]
        np.testing.assert_allclose(rollout.log_probs, expected, atol=2e-5)


def test_rounding_draws_nothing_without_probability() -> None:
    log_probs = torch.tensor([[0.5, 0.0, 0.5, 0.0, 0.0]]).log()
    last = torch.tensor([1 - 2**-53], dtype=torch.float64)
    for top_p in (1.0, 1 - 1e-9):
        assert sampling.sample(log_probs, last, top_p)[0].tolist() == [2]
    assert sampling.sample(log_probs.flip(-1), torch.zeros(1).double(), 1.0)[0].tolist() == [2]


KINDS: dict[str, dict[str, Any]] = {
    "lsm": {},
    "union, stale": {
        "loss": {"support": "union", "tail": "bucket", "top_k": 24},
        "pipeline": {"staleness": 1},
    },
    "sampled_token": {"loss": {"kind": "sampled_token"}, "rollout": {"top_p": 1.0}},
    "student": {"loss": {"support": "student+sampled"}, "teacher": {"name": "wide"}},
    "lora": {"student": {"lora": {"rank": 2, "merge_final": False}}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_meets_no_id_that_its_teacher_refuses_and_resumes_exactly(
    config: MakeConfig, tmp_path: Path, kind: str
) -> None:
    settings = config(**KINDS[kind])
    straight = resumed_exactly(settings, tmp_path)
    lines = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    if kind == "sampled_token":
        assert lines[0]["ratio"] == pytest.approx(1, abs=1e-4), "one distribution draws and learns"
    if kind == "union, stale":
        assert lines[0]["student_support_mass"] > 0.2, "of what can be drawn"


def test_evaluation_compares_ids_that_have_a_token(config: MakeConfig, tmp_path: Path) -> None:
    held_out = write_prompts(tmp_path / "held_out.jsonl", [f"What is {n}?" for n in range(4)])
    settings = config(
        run={"steps": 1},
        teacher={"name": "wide"},
        data={"held_out": str(held_out)},
        evaluation={"prompts": 4, "frozen_rows": 256, "max_new_tokens": 40},
    )
    before = load_evaluation(train(settings) / "evaluation" / "before.json")
    assert before.frozen is not None
    assert before.frozen.ids == TOKENS
    assert before.frozen.reverse_kl == pytest.approx(0, abs=1e-4), "the student is the teacher"


def test_a_special_token_that_the_teacher_lacks_ends_no_run(
    config: MakeConfig, wide_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = tmp_path / "own"
    shutil.copytree(wide_dir, own)
    tokenizer = AutoTokenizer.from_pretrained(wide_dir)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|tool_call|>"]})
    assert tokenizer.convert_tokens_to_ids("<|tool_call|>") == TOKENS
    tokenizer.save_pretrained(own)
    model = AutoModelForCausalLM.from_pretrained(own)
    with torch.no_grad():
        model.lm_head.bias[TOKENS] -= 25  # a third of the draws or so
    model.save_pretrained(own)
    with caplog.at_level(logging.INFO, logger="student_trainer"):
        run = train(config(own))
    assert "level REMAP" in caplog.text
    assert "352 ids, 31 of them without a token and never drawn" in caplog.text
    assert [step for step, _ in losses(run)] == [1, 2, 3]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["realign_masked_share"] > 0 for line in lines), "it was drawn"
    assert all(line["realign_failed_share"] == 0 for line in lines)


def test_the_doctor_tells_of_them(make_config: MakeConfig, wide_dir: Path) -> None:
    told = inputs.student(Start(make_config(wide_dir)))
    assert told.endswith("352 ids, 32 of them without a token and never drawn")


def copied(model: Path, folder: Path, file: str, **values: Any) -> StudentSettings:
    shutil.copytree(model, folder)
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return StudentSettings(model=str(folder), device="cpu")


def test_ids_that_the_student_cannot_write_end_no_response(wide_dir: Path, tmp_path: Path) -> None:
    config = "generation_config.json"
    with pytest.raises(ConfigurationError, match=r"id 352 is to end a response.*head has 352 ids"):
        load_student(copied(wide_dir, tmp_path / "a", config, eos_token_id=[2, 352]))
    with pytest.raises(ConfigurationError, match=r"id 330 is to end a response.*no token has"):
        load_student(copied(wide_dir, tmp_path / "b", config, eos_token_id=[2, 330]))


def test_a_tokenizer_beyond_the_head_is_refused_where_it_is_used(
    make_config: MakeConfig, student_model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "narrow"
    shutil.copytree(student_model_dir, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|new|>"]})
    tokenizer.save_pretrained(folder)
    student = load_student(StudentSettings(model=str(folder), device="cpu"))
    write_prompts(tmp_path / "prompts.jsonl", ["fine", "not <|new|>"])
    prompts = load_prompts(make_config(folder).data, student.tokenizer)
    with pytest.raises(ConfigurationError, match="has token 320, and the student's head has 320"):
        check_ids(prompts, student)
    tokenizer.pad_token = "<|new|>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigurationError, match="pads with id 320, and the model has 320 ids"):
        load_student(StudentSettings(model=str(folder), device="cpu"))
