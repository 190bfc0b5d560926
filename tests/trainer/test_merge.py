"""Merged adapters give what the adapted model gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from safetensors.torch import load_file, save_file
from teacher_proto.errors import ConfigurationError, LsmError
from teacher_proto.program.entrypoint import run_program
from transformers import AutoModelForCausalLM, AutoTokenizer

from student_trainer.cli import run as run_cli
from student_trainer.commands.merge import find_adapter, merge


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_adapter(base: Path, folder: Path, dtype: str = "float32") -> tuple[Path, Path]:
    """A base in this dtype and adapters far from nothing."""
    own = folder / "base"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    model.save_pretrained(own)
    AutoTokenizer.from_pretrained(base).save_pretrained(own)
    model = AutoModelForCausalLM.from_pretrained(own, dtype="auto")
    network = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, target_modules="all-linear"))
    torch.manual_seed(3)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapter = folder / "run" / "model"
    network.save_pretrained(adapter)
    AutoTokenizer.from_pretrained(base).save_pretrained(adapter)
    return own, adapter


def test_the_result_equals_the_adapters_forward(
    student_model_dir: Path, tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = make_adapter(student_model_dir, tmp_path, dtype)
    output = tmp_path / "merged"
    arguments = ["merge", str(tmp_path / "run"), "--output", str(output)]
    assert run_program(run_cli, arguments) == 0
    assert f"merged {adapter} into {output}" in capsys.readouterr().out
    ids = AutoTokenizer.from_pretrained(output)("The teacher reads", return_tensors="pt").input_ids
    merged = AutoModelForCausalLM.from_pretrained(output, dtype="auto")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype="auto"), str(adapter)
    )
    assert str(merged.dtype) == f"torch.{dtype}"
    with torch.no_grad():
        new, old, wanted = (m.eval()(ids).logits.float() for m in (merged, plain, adapted))
    bound = 1e-4 if dtype == "float32" else 5e-2
    assert float((new - wanted).abs().max()) <= bound * float(wanted.abs().max())
    assert float((old - wanted).abs().max()) > 0.1 * float(wanted.abs().max())


def test_what_is_saved_is_checked(
    student_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(student_model_dir, tmp_path)
    # Merging forgets the adapters; the forward with them does not.
    own = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: own(self, name) * 0)
    with pytest.raises(LsmError, match="logits differ"):
        merge(tmp_path / "run", tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "run"], "nothing is left behind"


def test_where_the_adapter_is_found(student_model_dir: Path, tmp_path: Path) -> None:
    _, adapter = make_adapter(student_model_dir, tmp_path)
    assert find_adapter(adapter) == adapter
    assert find_adapter(tmp_path / "run") == adapter
    with pytest.raises(ConfigurationError, match=r"no adapter_config\.json in it"):
        find_adapter(student_model_dir)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ConfigurationError, match="not an empty folder"):
        merge(adapter, tmp_path / "taken")


def test_a_base_that_moved_or_is_another(student_model_dir: Path, tmp_path: Path) -> None:
    base, adapter = make_adapter(student_model_dir, tmp_path)
    moved = tmp_path / "moved"
    shutil.move(base, moved)
    with pytest.raises(ConfigurationError, match="with --base"):
        merge(adapter, tmp_path / "merged")
    merge(adapter, tmp_path / "merged", base=str(moved))
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {k: v[..., :-1].contiguous() for k, v in weights.items()},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(ConfigurationError, match="cannot load the base model"):
        merge(adapter, tmp_path / "other", base=str(moved))
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="does not name the base model"):
        merge(adapter, tmp_path / "other")
