"""What several ranks publish of a student with adapters."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from student_trainer.ranks.trained import _fold
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import load_student, save_final, save_weights
from tests.trainer.conftest import settings, student_model_dir

__all__ = ["student_model_dir"]


def test_adapters_are_folded_in_whatever_the_gpus_of_the_run_need(
    student_model_dir: Path, tmp_path: Path
) -> None:
    trained = {"lora": {"rank": 2}, "dtype": "bfloat16"}
    on_gpus = {"device": "cuda", "attention": "flash_attention_2", **trained}
    config = TrainConfig.model_validate(settings(student_model_dir, tmp_path, student=on_gpus))
    here = TrainConfig.model_validate(settings(student_model_dir, tmp_path, student=trained))
    student = load_student(here.student)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in student.module.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)
    work = tmp_path / "model"
    save_weights(student, work / "adapters")
    _fold(work / "adapters", config, work)
    assert not (work / "adapters").exists()
    assert not (work / "adapter_config.json").exists()

    save_final(student, tmp_path / "alone", merge=True)
    found, expected = (
        load_file(folder / "model.safetensors") for folder in (work, tmp_path / "alone")
    )
    base = load_file(student_model_dir / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert any(not torch.equal(tensor.float(), base[name]) for name, tensor in found.items())
