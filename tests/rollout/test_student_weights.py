"""What vLLM gets: the weights under the names of the checkpoint, adapters merged into copies."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from teacher_proto.errors import ConfigurationError
from transformers import AutoConfig, AutoModelForCausalLM

from student_trainer.rollout.vllm.student_weights import (
    check_can_be_handed_over,
    checkpoint_weights,
)
from student_trainer.settings.student import LoraSettings, StudentSettings
from student_trainer.student.model import Student, load_student
from tests.support.models import make_tiny_model


def adapted(folder: Path, **lora: object) -> Student:
    settings = StudentSettings(
        model=str(folder), device="cpu", lora=LoraSettings.model_validate({"rank": 4, **lora})
    )
    student = load_student(settings)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in student.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return student


def test_names_and_values_are_those_of_the_files(
    wide_student: Student, wide_student_dir: Path
) -> None:
    files = load_file(wide_student_dir / "model.safetensors")
    found = checkpoint_weights(wide_student)
    assert found.keys() == files.keys()
    assert all(torch.equal(found[name], files[name]) for name in files)


def test_a_tied_weight_is_there_once(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    found = checkpoint_weights(load_student(StudentSettings(model=str(folder), device="cpu")))
    assert "model.embed_tokens.weight" in found
    assert "lm_head.weight" not in found


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_adapters_are_merged_and_the_student_stays_as_it_was(
    wide_student_dir: Path, targets: object
) -> None:
    student = adapted(wide_student_dir, target_modules=targets, dropout=0.0)
    before = {n: p.detach().clone() for n, p in student.module.named_parameters()}
    found = checkpoint_weights(student)
    assert all(torch.equal(p, before[n]) for n, p in student.module.named_parameters())
    module = copy.deepcopy(student.module)
    merged = module.merge_and_unload().state_dict()  # type: ignore[operator]
    base = load_file(wide_student_dir / "model.safetensors")
    assert found.keys() == merged.keys() == base.keys()
    changed = {n for n in found if not torch.equal(found[n], base[n])}
    assert any("q_proj" in name for name in changed)
    for name, tensor in merged.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_an_adapter_on_a_tied_head_cannot_be_handed_over(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    lora = {"target_modules": ["lm_head"], "merge_final": False}
    with pytest.raises(ConfigurationError, match="vLLM gets the merged weights"):
        check_can_be_handed_over(adapted(folder, **lora))


def test_a_mixture_that_is_fused_in_memory_has_its_files_names(tmp_path: Path) -> None:
    """transformers keeps the experts of a layer as one tensor; vLLM reads those of the files."""
    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=320, hidden_size=32, intermediate_size=32, moe_intermediate_size=16,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        num_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    donor = make_tiny_model(tmp_path / "donor")
    folder = tmp_path / "mixture"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in donor.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    files = load_file(folder / "model.safetensors")
    found = checkpoint_weights(load_student(StudentSettings(model=str(folder), device="cpu")))
    assert found.keys() == files.keys()
    assert any(".experts.3." in name for name in found)
    assert all(torch.equal(found[name], files[name]) for name in files)
