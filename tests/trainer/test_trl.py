"""Our losses inside TRL's own trainer: real steps on tiny models against a real service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from teacher_proto.errors import ConfigurationError
from teacher_proto.rows import required
from teacher_proto.types import TextPrompt
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import student_trainer.trl
from student_trainer.losses.parts.normaliser import token_log_probs
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.settings.student import StudentSettings
from student_trainer.settings.teacher import TeacherSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import hidden_states, load_student
from student_trainer.teacher.link import TeacherLink
from student_trainer.update.metrics import UpdateTotals
from student_trainer.update.student_support import with_student_support
from student_trainer.update.updater import Updater
from tests.support.models import save_model
from tests.trainer.processes import ENVIRONMENT, Server

pytest.importorskip("trl", reason="trl is a development extra")
from datasets import Dataset

from student_trainer.trl import LsmDistillationTrainer, hidden
from student_trainer.trl.links import named_settings
from tests.trainer.trl_process import PROMPTS, Seen, make

MakeConfig = Callable[..., TrainConfig]


def rollouts_of(inputs: Mapping[str, Any], student: Any) -> list[Rollout]:
    """The responses that TRL wrote, as our own loop has them."""
    found = []
    for row in range(len(inputs["prompt_ids"])):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].numpy()
        response = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()].numpy()
        text = student.tokenizer.decode(prompt.tolist())
        item = PromptItem(f"p{row}", prompt.astype(np.int32), TextPrompt(text))
        with torch.no_grad():
            ids = np.concatenate([prompt, response[:-1]]).astype(np.int32)
            states = hidden_states(student, [ids])[0, len(prompt) - 1 :]
            drawn = torch.from_numpy(response.astype(np.int64))
            old = token_log_probs(states, student.head, drawn, 1.0, 64).float().numpy()
        found.append(
            Rollout(item, 0, response.astype(np.int32), old, True, nucleus_mass=old * 0 + 1)
        )
    return found


LOSSES: list[dict[str, Any]] = [
    {"kind": "lsm", "top_k": 16},
    {"kind": "lsm", "top_k": 8, "support": "union", "tail": "bucket"},
    {"kind": "topk_forward_kl", "top_k": 8, "support": "teacher+sampled"},
    {"kind": "topk_jsd", "top_k": 8, "support": "student", "mean": "sequence"},
    {"kind": "sampled_token", "top_k": 4},
    {"kind": "generalised_reverse_kl", "top_k": 8},
    {"kind": "entropy_switch", "top_k": 8, "support": "union"},
    {"kind": "fixed_advantage", "study": True},
    {"kind": "lsm", "top_k": 16, "mask": {"token_ids": list(range(100, 200))}},
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss['kind']}-{len(loss)}")
def test_the_loss_is_that_of_our_own_loop_on_the_same_batch(
    run_server: Server,
    student_model_dir: Path,
    make_config: MakeConfig,
    tmp_path: Path,
    loss: dict[str, Any],
) -> None:
    seen = Seen([], [], {})
    trainer = make(run_server.address, student_model_dir, tmp_path / "out", seen, loss=loss)
    trainer.train()
    trainer.close()
    (inputs,), (found,) = seen.inputs, seen.losses
    config = make_config(
        teacher={"address": run_server.address},
        loss=loss,
        rollout={"top_p": 1.0},
        optimizer={"clip_norm": None},
    )
    own, gradients = own_loop(config, student_model_dir, [inputs])
    assert found == pytest.approx(own, rel=1e-5, abs=1e-5)
    assert gradients.keys() == seen.gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(seen.gradients[name], gradient, atol=1e-5), name


def test_in_half_precision_only_the_hidden_states_are_rounded(
    run_server: Server, student_model_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    """TRL's default: bfloat16 by autocast, activations computed again in the backward pass."""
    seen = Seen([], [], {})
    loss = {"kind": "lsm", "top_k": 16, "support": "union"}
    half = {"bf16": True, "gradient_checkpointing": True}
    trainer = make(
        run_server.address, student_model_dir, tmp_path / "out", seen, loss=loss, args=half
    )
    trainer.train()
    trainer.close()
    config = make_config(teacher={"address": run_server.address}, loss=loss)
    own, gradients = own_loop(config, student_model_dir, seen.inputs)
    assert seen.losses[0] == pytest.approx(own, rel=0.02)
    assert seen.losses[0] != pytest.approx(own, rel=1e-6)
    for name, gradient in gradients.items():
        found = seen.gradients[name]
        assert found.dtype == torch.float32
        assert (found - gradient).norm() < 0.1 * gradient.norm(), name


def test_micro_batches_of_a_step_add_up_to_its_loss(
    run_server: Server, student_model_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    seen = Seen([], [], {})
    two = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = make(run_server.address, student_model_dir, tmp_path / "out", seen, args=two)
    trainer.train()
    trainer.close()
    assert len(seen.inputs) == 2
    config = make_config(teacher={"address": run_server.address}, loss={"top_k": 128})
    own, gradients = own_loop(config, student_model_dir, seen.inputs)
    assert sum(seen.losses) == pytest.approx(own, abs=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(seen.gradients[name], gradient, atol=1e-5), name


def test_learnt_positions_are_counted_from_the_first_token_of_a_prompt(
    run_server: Server, student_model_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    """TRL pads prompts on their left; a student with learnt positions sees none of it."""
    tokenizer = AutoTokenizer.from_pretrained(student_model_dir)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    drops = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
    torch.manual_seed(0)
    student = GPT2LMHeadModel(
        GPT2Config(vocab_size=320, bos_token_id=None, initializer_range=0.3,
                   tie_word_embeddings=False, **sizes, **ends, **drops)
    )  # fmt: skip
    folder = save_model(student, tmp_path / "gpt2", tokenizer)
    seen = Seen([], [], {})
    trainer = make(run_server.address, folder, tmp_path / "out", seen)
    trainer.train()
    trainer.close()
    assert not seen.inputs[0]["prompt_mask"].all()
    config = make_config(folder, teacher={"address": run_server.address}, loss={"top_k": 128})
    own, _ = own_loop(config, folder, seen.inputs)
    assert seen.losses[0] == pytest.approx(own, abs=1e-5)


def test_a_state_that_is_not_finite_takes_its_row_alone(
    run_server: Server,
    student_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = hidden.last_hidden_states

    def spoilt(*arguments: Any, **named: Any) -> torch.Tensor:
        states = real(*arguments, **named)
        lost = torch.zeros_like(states, dtype=torch.bool)
        lost[:, named["input_ids"].shape[1] - 13] = True  # the state of the first tokens
        return states.masked_fill(lost, torch.nan)

    monkeypatch.setattr("student_trainer.trl.trainer.last_hidden_states", spoilt)
    seen = Seen([], [], {})
    loss = {"kind": "lsm", "max_non_finite_share": 1.0}
    trainer = make(run_server.address, student_model_dir, tmp_path / "out", seen, loss=loss)
    trainer.train()
    trainer.close()
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    assert 0 < line["used_share"] < 1
    assert 0 < seen.losses[0] < 50
    assert all(bool(gradient.isfinite().all()) for gradient in seen.gradients.values())


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("h:1", "h:1"),
        ({"address": "h:1", "name": "twin"}, "h:1"),
        ({"name": "twin", "timeout_seconds": 5}, "127.0.0.1:50051"),
    ],
)
def test_the_settings_of_one_teacher_are_no_names_of_several(given: Any, address: str) -> None:
    (one,) = named_settings(given).values()
    assert (one.address, one.name) == (address, "default" if given == "h:1" else "twin")


def own_loop(
    config: TrainConfig, model: Path, batches: list[Mapping[str, Any]]
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the gradients of our own loop on the responses that TRL wrote."""
    student = load_student(StudentSettings(model=str(model), device="cpu"))
    rollouts = [rollout for inputs in batches for rollout in rollouts_of(inputs, student)]
    with TeacherLink(config.teacher, student, run="own loop") as link:
        asked = config.loss.asks(realigned=False)
        rollouts = with_student_support(
            student,
            rollouts,
            config.loss.student_top_k,
            limit=link.id_limit,
            micro_batch_tokens=400,
            chunk_rows=64,
        )
        scores = [
            link.submit_rollouts([r], asked.top_k, 1.0, log_tail=asked.log_tail).result()[0]
            for r in rollouts
        ]
        updater, totals = Updater(student, config), UpdateTotals()
        updater.gradients(rollouts, scores.__getitem__, totals, 1)
    (loss,) = totals.losses
    masters = updater.optimizer.masters
    return loss, {name: required(master.grad, name) for name, master in masters.items()}


def test_two_processes_make_the_step_of_one(
    run_server: Server, student_model_dir: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    """``accelerate launch``: the averaged gradients are those of all responses together, also
    where the processes use unequal shares of their rows."""
    mask = {"token_ids": list(range(100, 200))}
    losses = [{"kind": "lsm", "top_k": 16, "mean": m, "mask": mask} for m in ("token", "sequence")]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0", "-m", "tests.trainer.trl_process"]
    launch += [run_server.address, str(student_model_dir), str(tmp_path), *map(json.dumps, losses)]
    done = subprocess.run(
        [sys.executable, *launch],
        env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for number, loss in enumerate(losses):
        ranks = [load_file(tmp_path / f"{number}-{rank}.safetensors") for rank in range(2)]
        batches = [{k[3:]: v for k, v in rank.items() if k[:3] == "in."} for rank in ranks]
        config = make_config(
            teacher={"address": run_server.address}, loss=loss, optimizer={"clip_norm": None}
        )
        own, gradients = own_loop(config, student_model_dir, batches)
        assert float(ranks[0]["loss"] + ranks[1]["loss"]) / 2 == pytest.approx(own, abs=1e-5)
        for name, gradient in gradients.items():
            for rank in ranks:
                assert torch.allclose(rank[f"gradient.{name}"], gradient, atol=1e-5), name


def test_several_teachers_train_by_their_rows(
    run_server: Server, student_model_dir: Path, tmp_path: Path
) -> None:
    """Three teachers, one of which has another tokenizer; two micro-batches to a step."""
    names = ["same", "twin", "other", None]
    rows = {"prompt": PROMPTS, "teacher": names}
    at = {"address": run_server.address}
    trainer = make(
        run_server.address,
        student_model_dir,
        tmp_path / "out",
        teachers={
            "same": run_server.address,
            "twin": at | {"name": "twin", "top_k": 8},
            "other": TeacherSettings(**at, name="other"),
        },
        default_teacher="same",
        rows=rows,
        loss={"kind": "lsm", "top_k": 16},
        args={
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
        },
    )
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    trainer.close()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 2
    for line in lines:
        assert 0 < line["loss"] < 50
        assert abs(line["lsm_loss/twin"]) < 50
        assert line["used_share/same"] == line["used_share/twin"] == 1
        assert 0 < line["used_share/other"] <= 1
        assert line["refused_share/other"] == 0
        assert 0 < line["teacher_support_mass/same"] < 1
        assert line["teacher_wait_seconds"] > 0
    # The twin has the student's own weights: it agrees with it before the first update.
    assert lines[0]["lsm_loss/twin"] < 1e-4 < lines[0]["lsm_loss/same"]
    assert any(not torch.equal(before[n], p) for n, p in trainer.model.named_parameters())


def test_a_teachers_weight_multiplies_its_loss(
    run_server: Server, student_model_dir: Path, tmp_path: Path
) -> None:
    at = {"address": run_server.address}
    weighted = {"same": at | {"weight": 3.0}, "twin": at | {"name": "twin"}}
    seen = Seen([], [], {})
    trainer = make(
        run_server.address,
        student_model_dir,
        tmp_path / "out",
        seen,
        teachers=weighted,
        rows={"prompt": PROMPTS, "teacher": ["same", "twin"] * 2},
    )
    trainer.train()
    trainer.close()
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    (inputs,) = seen.inputs
    lengths = inputs["completion_mask"].sum(1)
    prompts = [trainer.processing_class(text)["input_ids"] for text in PROMPTS]
    of_same = sum(
        int(length)
        for ids, mask, length in zip(
            inputs["prompt_ids"], inputs["prompt_mask"], lengths, strict=True
        )
        if ids[mask.bool()].tolist() in prompts[::2]
    )
    expected = 3 * line["lsm_loss/same"] * of_same / int(lengths.sum())
    assert seen.losses[0] == pytest.approx(expected, rel=1e-3)  # the twin agrees with the student


def test_conversations_evaluation_and_adapters(
    run_server: Server, student_model_dir: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig

    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    trainer = make(
        run_server.address,
        student_model_dir,
        tmp_path / "out",
        rows={"prompt": chats, "note": list("abcd")},
        eval_dataset=Dataset.from_dict({"prompt": chats[:2]}),
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
        args={"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2},
    )
    trainer.train()
    trainer.close()
    (line,) = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert 0 < line["eval_loss"] < 50
    assert line["eval_used_share"] == 1
    assert line["eval_lsm_loss"] == pytest.approx(line["eval_loss"], rel=1e-4)
    moved = [n for n, p in trainer.model.named_parameters() if "lora_B" in n and p.abs().sum() > 0]
    assert moved


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        ({"teachers": {}}, "teachers", "no teacher"),
        ({"teachers": 5}, "teachers", "a int is no teacher"),
        ({"teachers": {"address": "x", "nmae": "y"}}, "teachers['default']", "nmae"),
        ({"loss": None}, "loss", "a NoneType is no loss"),
        ({"loss": {"kind": "nope:Nope"}}, "loss.kind", "there is no module nope installed"),
        (
            {"loss": "sampled_token", "args": {"repetition_penalty": 1.5}},
            "repetition_penalty",
            "1.5",
        ),
        (
            {"loss": "sampled_token", "args": {"generation_kwargs": {"top_p": 0.5}}},
            "generation_kwargs",
            "another distribution",
        ),
        ({"args": {"max_completion_length": None}}, "max_completion_length", "is not set"),
        ({"teachers": {"a": {"adress": "x"}}}, "teachers['a']", "adress"),
        ({"loss": {"kind": "lsm", "top_k": 1}}, "loss.top_k", "at least 2"),
        ({"loss": "lsn"}, "loss.kind", "lsn"),
        ({"teachers": {"a": {"address": "x", "top_k": 1}}}, "teachers['a'].top_k", "at least 2"),
        ({"teachers": {"a": "x", "b": "x"}}, "teachers", "one teacher"),
        ({"loss": {"kind": "lsm", "balance": "teachers"}}, "loss.balance", "divides"),
        ({"loss": {"kind": "lsm", "masked_chunks": True}}, "loss.masked_chunks", "chunk"),
        ({"loss": "sampled_token", "args": {"top_p": 0.9}}, "loss.nucleus_weights", "top_p 0.9"),
        (
            {"loss": {"kind": "sampled_token", "temperature": 2.0}},
            "loss.temperature",
            "must equal args.temperature",
        ),
        ({"loss": {"kind": "lsm", "top_k": 4000}}, "loss.top_k", "4000 is more than"),
        ({"default_teacher": "c"}, "default_teacher", "no teacher 'c'"),
        (
            {"rows": {"prompt": PROMPTS, "teacher": ["a", "b", "c", "a"]}},
            "train_dataset[2]",
            "'c', and there is no such teacher",
        ),
        (
            {"rows": {"prompt": PROMPTS, "teacher": ["a", None, "a", "a"]}},
            "train_dataset[1]",
            "names no teacher",
        ),
        (
            {"rows": {"prompt": ["x", "y", "x"], "teacher": ["a", "a", "b"]}},
            "train_dataset",
            "rows 0 and 2 have one prompt and two teachers, a and b",
        ),
    ],
)
def test_what_cannot_train_is_refused_before_the_first_step(
    run_server: Server,
    student_model_dir: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    where: str,
    what: str,
) -> None:
    two = {
        name: {"address": run_server.address, "name": n}
        for name, n in (("a", "default"), ("b", "twin"))
    }
    given = {"teachers": two} | changes
    if "rows" not in changes:
        given["rows"] = {"prompt": PROMPTS, "teacher": list("abab")}
    with pytest.raises(ConfigurationError) as caught:
        make(run_server.address, student_model_dir, tmp_path / "out", **given)
    assert caught.value.where == where
    assert what in caught.value.what


def test_a_row_without_a_prompt_says_which_columns_it_has(
    run_server: Server, student_model_dir: Path, tmp_path: Path
) -> None:
    trainer = make(run_server.address, student_model_dir, tmp_path / "out", rows={"text": PROMPTS})
    with pytest.raises(ConfigurationError, match="no prompt: it has the columns text"):
        trainer.train()
    trainer.close()


def test_a_prompt_that_trl_reads_otherwise_is_no_other_rows_prompt(
    run_server: Server, student_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(run_server.address, student_model_dir, tmp_path / "out")
    monkeypatch.setattr(trainer._prompts, "_tokenize", lambda prompts: [[1, 2]] * len(prompts))
    with pytest.raises(ConfigurationError, match="that no row of the step has"):
        trainer.train()
    trainer.close()


def test_without_trl_the_import_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("trl", "trl.data_utils"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "student_trainer.trl.trainer")
    with pytest.raises(ImportError) as caught:
        student_trainer.trl.__getattr__("LsmDistillationTrainer")
    told = str(caught.value)
    assert told.startswith("LsmDistillationTrainer needs trl, which is not installed")
    assert "pip install '.[trl]'" in told


def test_only_public_methods_of_trl_are_overridden() -> None:
    base = {name for kind in LsmDistillationTrainer.__mro__[1:] for name in vars(kind)}
    own = {name for name in vars(LsmDistillationTrainer) if name in base}
    assert {name for name in own if name.startswith("_") and not name.endswith("__")} == set()
