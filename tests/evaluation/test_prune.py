"""Pruning by structure, on tiny random networks of several architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from teacher_proto.errors import ConfigurationError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Qwen2Config,
)

from student_trainer.commands.prune import prune
from student_trainer.student.layers import find_layers, layers_to_drop

LAYERS = 6
COMMON = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
KEY_VALUE = {**COMMON, "num_key_value_heads": 2}
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**KEY_VALUE),
    "qwen2": lambda: Qwen2Config(
        **KEY_VALUE, use_sliding_window=True, sliding_window=4, max_window_layers=3
    ),
    "gpt2": lambda: GPT2Config(vocab_size=320, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64),
    "gpt_neox": lambda: GPTNeoXConfig(**COMMON),
    "gemma2": lambda: Gemma2Config(**KEY_VALUE, head_dim=8, sliding_window=4),
}


def save_random(name: str, tiny_model_dir: Path, folder: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]())
    for parameter in model.parameters():
        # Larger than the usual initialisation, so that every layer matters.
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return folder


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_saved_student_skips_exactly_the_dropped_layers(
    name: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    source = save_random(name, tiny_model_dir, tmp_path / "source")
    result = prune(str(source), tmp_path / "student", drop=[4, 1])
    assert (result.layers, result.dropped) == (LAYERS, (1, 4))
    assert result.parameters_after < result.parameters_before

    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    assert student.config.num_hidden_layers == LAYERS - 2
    ids = torch.randint(320, (2, 17), generator=torch.Generator().manual_seed(1))
    # Independent of prune: the full network, its dropped layers made to pass their input on.
    full = AutoModelForCausalLM.from_pretrained(source).eval()
    before = logits(full, ids)
    owner, attribute = find_layers(full, LAYERS)
    for index in (1, 4):
        layer = getattr(owner, attribute)[index]
        tuple_output = name == "gpt2" and isinstance(_output(full, layer, ids), tuple)
        layer.register_forward_hook(
            lambda _m, args, kwargs, out, as_tuple=tuple_output: (
                (_hidden(args, kwargs),) if as_tuple else _hidden(args, kwargs)
            ),
            with_kwargs=True,
        )
    expected = logits(full, ids)
    assert (before - expected).abs().max() > 1e-2
    torch.testing.assert_close(logits(student, ids), expected, rtol=1e-4, atol=1e-4)
    kept = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert kept("hello")["input_ids"] == AutoTokenizer.from_pretrained(source)("hello")["input_ids"]


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _output(model: Any, layer: Any, ids: torch.Tensor) -> Any:
    seen: list[Any] = []
    handle = layer.register_forward_hook(lambda _m, _i, out: seen.append(out))
    logits(model, ids)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_layer_types_follow_their_layers(name: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    source = save_random(name, tiny_model_dir, tmp_path / "source")
    before = AutoModelForCausalLM.from_pretrained(source).config.layer_types
    assert len(set(before)) == 2
    prune(str(source), tmp_path / "student", drop=[0, 3])
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "student").config.layer_types
    assert after == [before[i] for i in (1, 2, 4, 5)]


def test_generation_with_a_cache_equals_without(tiny_model_dir: Path, tmp_path: Path) -> None:
    source = save_random("gemma2", tiny_model_dir, tmp_path / "source")
    prune(str(source), tmp_path / "student", drop=[0, 3])
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    ids = torch.tensor([[5, 9, 70, 200]])
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    cached = student.generate(ids, use_cache=True, **options)
    torch.testing.assert_close(cached, student.generate(ids, use_cache=False, **options))


def test_the_dtype_stays(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "source")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "source")
    prune(str(tmp_path / "source"), tmp_path / "student", drop=[1])
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype="auto")
    assert student.dtype == torch.bfloat16


def test_keep_is_even_and_holds_both_ends() -> None:
    assert layers_to_drop(30, keep=1) == tuple(range(1, 30))
    assert layers_to_drop(6, keep=2) == (1, 2, 3, 4)
    assert layers_to_drop(7, keep=4) == (1, 3, 5)
    for layers in range(2, 40):
        for keep in range(1, layers):
            assert len(layers_to_drop(layers, keep=keep)) == layers - keep


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": [3]}, "no layer 3.*0 to 2"),
        ({"drop": [-1]}, "no layer -1"),
        ({"drop": [0, 1, 2]}, "all 3 layers"),
        ({"drop": [1, 1]}, "layer 1 is given more than once"),
        ({"drop": []}, "no layer is named"),
        ({"keep": 3}, "cannot keep 3 of 3"),
        ({"keep": 0}, "cannot keep 0"),
        ({}, "either"),
        ({"drop": [0], "keep": 1}, "either"),
    ],
)
def test_wrong_layers_are_refused_and_nothing_is_written(
    options: dict[str, Any], message: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        prune(str(tiny_model_dir), tmp_path / "student", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_output_in_use_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep me")
    with pytest.raises(ConfigurationError, match="not an empty folder"):
        prune(str(tiny_model_dir), tmp_path, drop=[1])
    assert (tmp_path / "mine").read_text() == "keep me"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot load it"):
        prune(str(tmp_path), tmp_path / "student", drop=[1])
