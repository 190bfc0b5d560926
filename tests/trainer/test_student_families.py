"""Students of other families: for text and images, of experts, with dropout, of any length."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import TextPrompt

from student_trainer.rollout.base import PromptItem
from student_trainer.rollout.generate import generate
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import LoraSettings, StudentSettings
from student_trainer.student.head import head_logits
from student_trainer.student.model import (
    Student,
    hidden_states,
    load_student,
    save_final,
    save_weights,
    set_training,
)
from tests.support.models import (
    ENGLISH,
    TEXT_SIZES,
    WITH_IMAGES,
    make_model_with_images,
    save_model,
    train_tokenizer,
)

PROCESSORS = {
    "preprocessor_config.json": '{"image_processor_type": "SiglipImageProcessor"}',
    "processor_config.json": '{"processor_class": "Gemma3Processor"}',
    "chat_template.json": '{"chat_template": "an old one"}',
}
IDS = np.arange(3, 40, dtype=np.int32)


def load(folder: Path, **settings: Any) -> Student:
    return load_student(StudentSettings(model=str(folder), device="cpu", **settings))


def build(name: str, folder: Path, kind: str = "ForCausalLM", **changes: Any) -> Path:
    """A random model of transformers with the English tokenizer."""
    config = getattr(transformers, f"{name}Config")(**(TEXT_SIZES | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = getattr(transformers, f"{name}{kind}")(config)
    return save_model(model, folder, train_tokenizer(ENGLISH, 320))


@pytest.fixture(scope="module")
def with_images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tokenizer = train_tokenizer(ENGLISH, 320)
    folder = tmp_path_factory.mktemp("with-images")
    made = {n: make_model_with_images(n, folder / n, tokenizer=tokenizer) for n in WITH_IMAGES}
    for name, text in PROCESSORS.items():
        (made["Gemma3"] / name).write_text(text)
    return made


def assert_update_reads_what_a_rollout_wrote(student: Student) -> None:
    """The logits of an update give the log-probabilities that a rollout noted."""
    prompt = PromptItem("p", IDS[:12], TextPrompt("unused"))
    settings = RolloutSettings(group_size=2, max_new_tokens=8)
    set_training(student)
    for rollout in generate(student, [prompt], settings, seed=1, step=1):
        set_training(student)
        hidden = hidden_states(student, [np.concatenate([prompt.token_ids, rollout.token_ids])])
        logits = head_logits(student.head, hidden[0, len(prompt.token_ids) - 1 : -1])
        log_probs = logits.log_softmax(-1).detach()
        read = log_probs[torch.arange(len(log_probs)), torch.from_numpy(rollout.token_ids).long()]
        np.testing.assert_allclose(read.numpy(), rollout.log_probs, atol=2e-4)
    student.module.eval()


@pytest.mark.parametrize("family", WITH_IMAGES)
def test_a_student_for_text_and_images_trains_its_language_model(
    family: str, with_images: dict[str, Path], tmp_path: Path
) -> None:
    student = load(with_images[family])
    assert student.max_length == 256
    assert type(student.module).__name__ == f"{family}ForConditionalGeneration"
    trained = {name for name, p in student.module.named_parameters() if p.requires_grad}
    assert trained
    assert not [name for name in trained if "vis" in name or "multi_modal" in name]
    assert_update_reads_what_a_rollout_wrote(student)
    set_training(student)
    hidden_states(student, [IDS]).square().sum().backward()
    with torch.no_grad():
        for parameter in student.module.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    save_final(student, tmp_path, merge=False)
    before = load_file(with_images[family] / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert changed
    assert not [name for name in changed if "vis" in name or "multi_modal" in name]
    assert load(tmp_path).max_length == 256


def test_processor_files_are_saved_with_it(with_images: dict[str, Path], tmp_path: Path) -> None:
    student = load(with_images["Gemma3"])
    for save in (save_weights, lambda s, d: save_final(s, d, merge=False)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        save(student, folder)
        for name in ("preprocessor_config.json", "processor_config.json"):
            assert (folder / name).read_text() == PROCESSORS[name]
        assert (folder / "chat_template.jinja").is_file()
        assert not (folder / "chat_template.json").exists(), "a processor refuses two templates"


def test_adapters_of_it_are_in_its_language_model(
    with_images: dict[str, Path], tmp_path: Path
) -> None:
    for targets in ("all-linear", ("q_proj", "fc1")):
        lora = LoraSettings(rank=2, target_modules=targets)
        student = load(with_images["Gemma3"], lora=lora)
        save_weights(student, tmp_path)
        names = list(load_file(tmp_path / "adapter_model.safetensors"))
        assert names
        assert not [name for name in names if "vision" in name or "multi_modal" in name]
        again = load_student(
            StudentSettings(model=str(with_images["Gemma3"]), device="cpu", lora=lora), tmp_path
        )
        assert_update_reads_what_a_rollout_wrote(again)


def test_a_stretched_length_is_the_students(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    folder = build("Llama", tmp_path, rope_parameters=yarn)
    assert load(folder).max_length == 1024
    assert load(folder, max_length=300).max_length == 300
    with pytest.raises(ConfigurationError, match="1025 is not a length"):
        load(folder, max_length=1025)


def test_a_student_that_states_no_length_needs_the_setting(tmp_path: Path) -> None:
    changes = {"state_size": 8, "num_hidden_layers": 1}
    folder = build("Mamba", tmp_path, max_position_embeddings=None, **changes)
    with pytest.raises(ConfigurationError, match="does not state") as refused:
        load(folder)
    assert "student.max_length" in refused.value.fix
    assert load(folder, max_length=900).max_length == 900


DROPOUT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2", "LMHeadModel", {"embd_pdrop": 0.3, "attn_pdrop": 0.3, "resid_pdrop": 0.3}),
    "opt": ("OPT", "ForCausalLM", {
        "dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.5, "ffn_dim": 96,
        "word_embed_proj_dim": 48}),
    "attention dropout": ("Llama", "ForCausalLM", {"attention_dropout": 0.4}),
    "gpt-neox": ("GPTNeoX", "ForCausalLM", {"hidden_dropout": 0.3, "attention_dropout": 0.3}),
    "router jitter": ("Mixtral", "ForCausalLM", {"router_jitter_noise": 0.3}),
}  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", DROPOUT)
def test_an_update_reads_without_the_models_own_dropout(
    case: str, checkpointing: bool, tmp_path: Path
) -> None:
    name, kind, changes = DROPOUT[case]
    folder = build(name, tmp_path, kind, **changes)
    student = load(folder, gradient_checkpointing=checkpointing)
    assert_update_reads_what_a_rollout_wrote(student)
    set_training(student)
    hidden_states(student, [IDS]).sum().backward()
    student.module.eval()
    saved = type(student.module.config).from_pretrained(folder)
    for key, value in changes.items():
        assert getattr(student.module.config, key) == value == getattr(saved, key)


@pytest.mark.parametrize("case", ["gpt2", "opt"])
def test_dropout_is_kept_where_it_is_asked_for(case: str, tmp_path: Path) -> None:
    name, kind, changes = DROPOUT[case]
    student = load(build(name, tmp_path, kind, **changes), dropout=True)
    with torch.no_grad():
        rollout = hidden_states(student, [IDS])
        set_training(student)
        update = hidden_states(student, [IDS])
    assert float((update - rollout).norm()) > 0.01 * float(rollout.norm())


def test_dropout_of_adapters_is_a_setting_of_its_own(student_model_dir: Path) -> None:
    student = load(student_model_dir, lora=LoraSettings(rank=4, dropout=0.5))
    with torch.no_grad():
        for name, parameter in student.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
        rollout = hidden_states(student, [IDS])
        set_training(student)
        update = hidden_states(student, [IDS])
        student.module.eval()
        assert torch.equal(hidden_states(student, [IDS]), rollout)
    assert float((update - rollout).norm()) > 0.01 * float(rollout.norm())


EXPERTS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "Mixtral": ({"num_local_experts": 4}, ["3 gate"], ["LoRA adapts", "3 gate_up_proj"]),
    "Qwen2Moe": (
        {
            "num_experts": 4,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "num_experts_per_tok": 2,
        },
        ["3 gate", "3 shared_expert_gate"],
        ["3 gate_up_proj", "3 down_proj"],
    ),
    "GraniteMoe": (
        {"num_local_experts": 4},
        ["3 router"],
        ["experts that are no linear layers get none"],
    ),
    "Phimoe": (
        {"num_local_experts": 4},
        ["3 router"],
        ["experts that are no linear layers get none"],
    ),
}


@pytest.mark.parametrize("family", EXPERTS)
def test_adapters_of_a_mixture_leave_its_router_out_and_say_so(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes, routers, experts = EXPERTS[family]
    folder = build(family, tmp_path / "model", **changes)
    caplog.set_level(logging.INFO, logger="student_trainer")
    student = load(folder, lora=LoraSettings(rank=2))
    save_weights(student, tmp_path / "adapter")
    (said,) = [r.getMessage() for r in caplog.records if "LoRA adapts" in r.getMessage()]
    names = list(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert "3 q_proj" in said
    for name in (*routers, *experts):
        assert name in said
    assert not [name for name in names if ".gate." in name or "router" in name or "_gate." in name]


def test_a_gate_that_is_named_is_adapted(tmp_path: Path) -> None:
    folder = build("Qwen2Moe", tmp_path / "model", **EXPERTS["Qwen2Moe"][0])
    lora = LoraSettings(rank=2, target_modules=("q_proj", "shared_expert_gate"))
    save_weights(load(folder, lora=lora), tmp_path / "adapter")
    names = list(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert [name for name in names if "shared_expert_gate" in name]
