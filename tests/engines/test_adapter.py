"""What a folder of PEFT may hold, and which base it belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from teacher_proto.errors import ConfigurationError
from teacher_proto.models.weights import weight_files

from teacher_server.engines.adapter import check_base, is_adapter, names_model, read_adapter
from tests.support.adapters import make_adapter
from tests.support.models import make_tiny_model


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "plain", tiny_model_dir)


@pytest.fixture
def edit(adapter: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy with changes to its configuration and, by name, its tensors; None drops one."""

    def make(tensors: dict[str, torch.Tensor | None] | None = None, **config: Any) -> Path:
        target = tmp_path / "edited"
        target.mkdir()
        found = json.loads((adapter / "adapter_config.json").read_text())
        (target / "adapter_config.json").write_text(json.dumps(found | config))
        changed = load_file(adapter / "adapter_model.safetensors") | (tensors or {})
        kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
        save_file(kept, target / "adapter_model.safetensors")
        return target

    return make


def test_a_folder_tells_what_it_changes(adapter: Path, tiny_model_dir: Path) -> None:
    assert is_adapter(str(adapter))
    assert not is_adapter(str(tiny_model_dir))
    found = read_adapter(adapter)
    assert found.rank == 4
    assert len(found.modules) == 3 * 7
    assert found.modules["model.layers.0.mlp.down_proj"] == (128, 64)
    assert names_model(found.base, str(tiny_model_dir))
    assert names_model(found.base, f"{tiny_model_dir}/../{tiny_model_dir.name}")
    assert not names_model(found.base, str(adapter))
    assert not names_model("", str(tiny_model_dir))
    check_base(found, weight_files(tiny_model_dir))


def test_the_digest_covers_weights_and_scale(adapter: Path, edit: Callable[..., Path]) -> None:
    assert read_adapter(edit(lora_dropout=0.5)).digest == read_adapter(adapter).digest


@pytest.mark.parametrize("change", [{"lora_alpha": 1}, {"use_rslora": True}])
def test_the_scale_changes_the_digest(
    adapter: Path, edit: Callable[..., Path], change: dict[str, Any]
) -> None:
    assert read_adapter(edit(**change)).digest != read_adapter(adapter).digest


Q = "base_model.model.model.layers.0.self_attn.q_proj."
HEAD = "base_model.model.lm_head."
EMBEDDING = "base_model.model.model.embed_tokens."


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        ({}, {"use_dora": True}, "use_dora"),
        ({}, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({}, {"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({}, {"bias": "all"}, "bias"),
        ({}, {"init_lora_weights": "pissa"}, "pissa"),
        ({}, {"peft_type": "IA3"}, "IA3"),
        ({}, {"r": "many"}, "adapter_config.json"),
        ({}, {"r": 8}, "rank 8"),
        ({Q + "lora_B.weight": None}, {}, "half of a LoRA pair"),
        ({Q + "lora_magnitude_vector": torch.ones(3)}, {}, "half of a LoRA pair"),
        (
            {HEAD + "lora_A.weight": torch.ones(4, 64), HEAD + "lora_B.weight": torch.ones(320, 4)},
            {},
            "lm_head",
        ),
        ({EMBEDDING + "lora_embedding_A": torch.ones(4, 320)}, {}, "embed_tokens"),
    ],
)
def test_what_would_not_be_applied_whole_is_refused(
    edit: Callable[..., Path],
    tensors: dict[str, torch.Tensor | None],
    config: dict[str, Any],
    says: str,
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read_adapter(edit(tensors, **config))
    assert says in str(refused.value)
    assert refused.value.fix


def test_weights_that_are_not_safetensors_are_refused(edit: Callable[..., Path]) -> None:
    folder = edit()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ConfigurationError, match="safe_serialization"):
        read_adapter(folder)


def test_an_adapter_of_other_weights_is_refused(adapter: Path, tmp_path: Path) -> None:
    """A wider base, and one with fewer layers: neither can be what it was trained on."""
    found = read_adapter(adapter)
    wide = make_tiny_model(tmp_path / "wide", hidden_size=96)
    with pytest.raises(ConfigurationError, match=r"as \[64, 128\], which .* is \[96, 128\]"):
        check_base(found, weight_files(wide))
    short = make_tiny_model(tmp_path / "short", num_hidden_layers=2)
    with pytest.raises(ConfigurationError, match=r"layers\.2\..*does not exist"):
        check_base(found, weight_files(short))
