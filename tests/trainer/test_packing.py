"""Packed micro-batches: the same hidden states, losses and gradients as padded ones."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from teacher_proto.errors import ConfigurationError
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from student_trainer.settings.student import LoraSettings, StudentSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.student.loading import load_network
from student_trainer.student.model import (
    Student,
    lay_out,
    load_student,
    packing_for,
    read_layout,
)
from student_trainer.student.packing import attention
from student_trainer.student.packing.attention import NotPackableError, reading, segmented
from student_trainer.student.packing.layout import Layout, pack, pad
from student_trainer.student.packing.probe import why_not_packable
from student_trainer.update.embedding import adds_in_place
from student_trainer.update.updater import Updater
from tests.support.models import ENGLISH, TEXT_SIZES, save_model, train_tokenizer
from tests.trainer.local_teacher import LocalTeacher
from tests.trainer.test_update import Case

MakeConfig = Callable[..., TrainConfig]

# Prompt and response lengths; equal names are equal prompts.
LENGTHS = (("a", 9, 6), ("b", 5, 11), ("a", 9, 1), ("c", 7, 4), ("b", 5, 3), ("a", 9, 8))


def sequences(ids: int = 320) -> tuple[list[np.ndarray], list[int]]:
    """Sequences over distinct tokens, and the lengths of their prompts."""
    found, prompts = [], []
    for number, (name, prompt, response) in enumerate(LENGTHS):
        start = np.arange(prompt) * 7 + 41 * ord(name)
        own = np.arange(response - 1) * 13 + 97 * number
        found.append((np.concatenate([start, own]) % ids).astype(np.int32))
        prompts.append(prompt)
    return found, prompts


SLIDING = {"sliding_window": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": True, "attention_bias": True},
    "Qwen3": {"head_dim": 16},
    "Mistral": SLIDING,
    "Gemma2": {**SLIDING, "head_dim": 12, "attn_logit_softcapping": 5.0,
               "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "GptOss": {**SLIDING, "num_local_experts": 4, "head_dim": 12, "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4}},
    "GPT2": {},
}  # fmt: skip


def network(name: str, **changes: Any) -> nn.Module:
    """A random model that attends strongly, in float64 where its experts are computed in it."""
    kind = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    config = getattr(transformers, f"{name}Config")(
        **(TEXT_SIZES | {"initializer_range": 0.2} | FAMILIES.get(name, {}) | changes)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model: nn.Module = getattr(transformers, f"{name}{kind}")(config)
    return (model if name == "GptOss" else model.double()).eval()


def read(model: Any, layout: Layout) -> Tensor:
    """[B * L, H] of a model's own decoder."""
    arguments = {"input_ids": torch.from_numpy(layout.ids), "use_cache": False}
    arguments["attention_mask"] = torch.from_numpy(layout.mask)
    decoder = model.base_model
    if not layout.packed:
        return decoder(**arguments).last_hidden_state.flatten(0, 1)  # type: ignore[no-any-return]
    with segmented(decoder), reading(layout.segments):
        arguments["position_ids"] = torch.from_numpy(layout.positions)
        return decoder(**arguments).last_hidden_state.flatten(0, 1)  # type: ignore[no-any-return]


def assert_packs(model: nn.Module) -> None:
    """Hidden states of every token and gradients of every parameter are those of the sequences
    read one by one, to 1e-5 of their norm."""
    texts, prompts = sequences()
    one_by_one = [(pad([text], 0), [prompt]) for text, prompt in zip(texts, prompts, strict=True)]
    found, gradients = [], []
    for layouts in (one_by_one, [(pack(texts, prompts), prompts)]):
        model.zero_grad()
        states = []
        for layout, starts in layouts:
            hidden = read(model, layout)
            states.append(hidden.detach()[np.concatenate(layout.places)])
            # As losses do: the rows of each response, from its prompt's last token on.
            rows = [p[start - 1 :] for p, start in zip(layout.places, starts, strict=True)]
            with segmented(model.base_model):  # type: ignore[arg-type]
                hidden[np.concatenate(rows)].tanh().cumsum(-1).sum().backward()
        found.append(torch.cat(states))
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert_near(found[1], found[0], "hidden states")
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        assert_near(gradients[1][name], expected, name)


def assert_near(found: Tensor, expected: Tensor, what: str) -> None:
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm()), what


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_gradients_are_those_of_sequences_alone(family: str) -> None:
    model = network(family)
    own = model.config._attn_implementation  # type: ignore[union-attr]
    assert_packs(model)
    assert model.config._attn_implementation == own, "nothing stays changed"  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_the_attention_that_a_user_chose_is_the_one_that_is_packed(family: str) -> None:
    eager = network(family, attn_implementation="eager")
    assert_packs(eager)
    texts, prompts = sequences()
    ours = network(family)
    ours.load_state_dict(eager.state_dict())
    with torch.no_grad():
        first, second = (read(one, pack(texts, prompts)) for one in (eager, ours))
    assert_near(first, second, "hidden states")


@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_long_segments_are_read_in_blocks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MASK_CELLS", 40)
    assert_packs(network(family))


def test_no_mask_is_as_large_as_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    real = attention.SegmentMask.added

    def noted(self: Any, segment: Any, block: Any, like: Tensor) -> Tensor:
        found: Tensor = real(self, segment, block, like)
        sizes.append((found.shape[2], found.shape[3]))
        return found

    monkeypatch.setattr(attention.SegmentMask, "added", noted)
    texts, prompts = sequences()
    layout = pack(texts, prompts)
    read(network("Llama"), layout)
    longest = max(map(len, texts))
    assert sizes
    assert max(max(size) for size in sizes) <= longest < layout.ids.size


def test_layers_that_are_computed_again_attend_by_segments() -> None:
    model = network("Mistral")
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    model.train()
    runs: list[int] = []
    model.base_model.layers[1].mlp.register_forward_pre_hook(lambda *_: runs.append(1))  # type: ignore[union-attr,index]
    assert_packs(model)
    assert len(runs) == 2 * (len(LENGTHS) + 1)


def test_flash_attention_gets_all_segments_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    sdpa = AttentionInterface()["sdpa"]

    def flash(
        module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any
    ) -> tuple[Tensor, None]:
        """What flash attention's kernel for sequences of many lengths computes."""
        assert module.config._attn_implementation == "flash_attention_2", "its kernel's name"
        if "cu_seq_lens_q" not in more:
            return sdpa(module, q, k, v, None, scaling=more["scaling"])  # type: ignore[no-any-return]
        calls.append(1)
        ends = [more[name].tolist() for name in ("cu_seq_lens_q", "cu_seq_lens_k")]
        found = []
        for at in range(len(ends[0]) - 1):
            (a, b), (c, d) = ((one[at], one[at + 1]) for one in ends)
            assert b - a <= more["max_length_q"]
            assert d - c <= more["max_length_k"]
            keys = torch.arange(d - c)
            seen = keys <= torch.arange(d - c - (b - a), d - c)[:, None]
            part, _ = sdpa(module, q[:, :, a:b], k[:, :, c:d], v[:, :, c:d], seen[None, None],
                           scaling=more["scaling"])  # fmt: skip
            found.append(part)
        return torch.cat(found, dim=1), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", flash)
    monkeypatch.setattr(attention, "_own", lambda name, _: AttentionInterface()[name])
    model = network("Llama")
    texts, prompts = sequences()
    layout = pack(texts, prompts)
    with torch.no_grad():
        expected = read(model, layout)
        model.config._attn_implementation = "flash_attention_2"  # type: ignore[union-attr]
        found = read(model, layout)
    assert len(calls) == 3, "one a layer"
    assert_near(found, expected, "hidden states")


def load(model: nn.Module, folder: Path) -> Student:
    save_model(model.float(), folder, train_tokenizer(ENGLISH, 320))  # type: ignore[arg-type]
    return load_student(StudentSettings(model=str(folder), device="cpu"))


NOT_PACKED: dict[str, tuple[dict[str, Any], str]] = {
    "Mamba": ({"state_size": 8, "num_hidden_layers": 1}, "not that of transformers' interface"),
    "Bloom": ({}, "does not read them: TypeError"),
    "Lfm2": (
        {"layer_types": ["conv", "full_attention", "conv"]},
        "are not those of padded sequences",
    ),
}


@pytest.mark.parametrize("family", NOT_PACKED)
def test_a_model_that_cannot_be_packed_is_padded_and_said_so(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes, why = NOT_PACKED[family]
    caplog.set_level(logging.INFO, logger="student_trainer")
    student = load(network(family, **changes), tmp_path)
    assert not student.packs
    (said,) = [r.getMessage() for r in caplog.records if "not packed" in r.getMessage()]
    assert why in said
    texts, _ = sequences()
    with packing_for(student):
        assert read_layout(student, pad(texts, student.padding_id)).isfinite().all()


def test_packing_can_be_off(student_model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="student_trainer")
    settings = StudentSettings(model=str(student_model_dir), device="cpu")
    assert load_student(settings).packs
    assert not load_student(settings.model_copy(update={"packing": "off"})).packs
    assert "not packed" not in caplog.text


def test_the_attention_that_is_chosen_is_the_models(student_model_dir: Path) -> None:
    settings = StudentSettings(model=str(student_model_dir), device="cpu")
    plain = load_student(settings)
    eager = load_student(settings.model_copy(update={"attention": "eager"}))
    assert plain.causal_model.config._attn_implementation == "sdpa"
    assert eager.causal_model.config._attn_implementation == "eager"
    assert eager.packs
    texts, prompts = sequences()
    with torch.no_grad():
        layout = lay_out(eager, texts, prompts)
        assert_near(read_layout(eager, layout), read_layout(plain, layout), "hidden states")


def test_flash_attention_without_what_it_needs_is_refused(student_model_dir: Path) -> None:
    values = {"model": str(student_model_dir), "attention": "flash_attention_2"}
    with pytest.raises(ValidationError, match='needs dtype = "bfloat16"'):
        StudentSettings.model_validate(values)
    settings = StudentSettings.model_validate({**values, "dtype": "bfloat16", "device": "cpu"})
    with pytest.raises(ConfigurationError, match="the student is on cpu") as refused:
        load_student(settings)
    assert refused.value.where == "student.attention"


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash_attn is installed")
def test_an_attention_whose_package_is_missing_is_refused(student_model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match="install what it names") as missing:
        load_network(student_model_dir, torch.bfloat16, "it", attention="flash_attention_2")
    assert missing.value.where == "student.attention"


def test_weights_that_are_missing_are_not_blamed_on_the_attention(
    student_model_dir: Path, tmp_path: Path
) -> None:
    shutil.copyfile(student_model_dir / "config.json", tmp_path / "config.json")
    for name in ("auto", "sdpa"):
        with pytest.raises(ConfigurationError, match="cannot load") as missing:
            load_network(tmp_path, torch.float32, "it", attention=name)
        assert missing.value.where == "student.model"


def test_a_model_that_mixes_sequences_is_found_though_it_mixes_little() -> None:
    """As random weights do: their hidden states hardly depend on other tokens."""
    table = torch.randn(320, 8, generator=torch.Generator().manual_seed(0))

    def leaks(layout: Layout, share: float = 2e-5) -> Tensor:
        own = table[torch.from_numpy(layout.ids)]
        return (own + share * own.cumsum(1) * layout.packed).flatten(0, 1)

    assert why_not_packable(lambda layout: leaks(layout, 0.0), 320, 0, 1e-4) is None
    assert "depend on the other" in (why_not_packable(leaks, 320, 0, 1e-4) or "")


def test_unknown_attention_and_masks_are_refused() -> None:
    model = network("Llama")
    model.config._attn_implementation_internal = "somebodys"  # type: ignore[union-attr]
    with pytest.raises(NotPackableError, match="somebodys"), segmented(model.base_model):  # type: ignore[arg-type]
        pass
    model = network("Llama")
    texts, prompts = sequences()
    layout = pack(texts, prompts)
    refused = pytest.raises(NotPackableError, match="transformers")
    with segmented(model.base_model), refused, reading(layout.segments):  # type: ignore[arg-type]
        pass
    with segmented(model.base_model), suppress(NotPackableError), reading(layout.segments):  # type: ignore[arg-type]
        make = AttentionMaskInterface()[model.config._attn_implementation]  # type: ignore[union-attr]
        with pytest.raises(NotPackableError, match="a rule of its own"):
            make(use_vmap=True)
        chunked = type("Config", (), {"attention_chunk_size": 4})
        with pytest.raises(NotPackableError, match="chunks"):
            make(config=chunked, local_size=4)


@pytest.mark.parametrize(
    "settings",
    [{}, {"lora": LoraSettings(rank=4).model_dump()}, {"gradient_checkpointing": True}],
    ids=["weights", "adapters", "checkpointing"],
)
@pytest.mark.parametrize("sampled", [False, True])
def test_an_update_is_that_of_padded_micro_batches(
    make_config: MakeConfig, teacher: LocalTeacher, settings: dict[str, Any], sampled: bool
) -> None:
    loss = {"kind": "sampled_token"} if sampled else {"mean": "sequence"}
    changes = {"loss": loss, "optimizer": {"micro_batch_tokens": 130}}
    case = Case(make_config(student=settings, **changes), teacher)
    assert case.student.packs
    figures, packed = case.gradients()
    case.updater = Updater(replace(case.student, packs=False), case.config)
    expected, padded = case.gradients()
    assert figures.losses == [pytest.approx(expected.losses[0], rel=1e-5, abs=1e-6)]
    assert packed.keys() == padded.keys()
    size = max(float(gradient.norm()) for gradient in padded.values())
    for name, gradient in padded.items():
        assert float((packed[name] - gradient).norm()) <= 1e-5 * size, name


def test_an_embeddings_gradient_is_added_where_it_adds_up() -> None:
    ids = torch.tensor([[3, 1, 3, 2, 0]])
    weights = torch.linspace(0.1, 1, 20).view(1, 5, 4)
    found = []
    for inside in (False, True):
        torch.manual_seed(1)
        embedding = nn.Embedding(6, 4, padding_idx=2)
        embedding.weight.grad = torch.ones(6, 4)
        before = embedding.weight.grad
        if inside:
            with adds_in_place(embedding):
                (embedding(ids).sin() * weights).sum().backward()
            assert embedding.weight.grad is before
            assert "forward" not in vars(embedding)
        else:
            (embedding(ids).sin() * weights).sum().backward()
        found.append(embedding.weight.grad)
    torch.testing.assert_close(found[1], found[0])
    assert found[1][2].tolist() == [1, 1, 1, 1], "the padding's row learns nothing"
    scaled = type("Scaled", (nn.Embedding,), {})(6, 4)
    scaled.weight.grad = torch.zeros(6, 4)
    with adds_in_place(scaled):
        assert "forward" not in vars(scaled), "another class may do more than look up rows"
