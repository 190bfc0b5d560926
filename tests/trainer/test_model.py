"""Loading a student: the head check, terminators, adapters."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import ConfigurationError
from teacher_proto.tokenizer_hash import tokenizer_hash
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from student_trainer.losses.parts.base import Head
from student_trainer.settings.student import LoraSettings, StudentSettings
from student_trainer.student import model as model_module
from student_trainer.student.head import head_logits
from student_trainer.student.model import Student, hidden_states, load_student, save_weights


def test_hidden_states_do_not_depend_on_padding(student: Student) -> None:
    sequences = [np.arange(3, 3 + n, dtype=np.int32) for n in (4, 9, 1)]
    with torch.no_grad():
        together = hidden_states(student, sequences)
        assert together.shape == (3, 9, 64)
        for row, sequence in enumerate(sequences):
            alone = hidden_states(student, [sequence])[0]
            torch.testing.assert_close(together[row, : len(sequence)], alone, atol=2e-5, rtol=1e-4)
            own = student.causal_model(torch.from_numpy(sequence.astype(np.int64))[None]).logits[0]
            torch.testing.assert_close(head_logits(student.head, alone), own, atol=1e-4, rtol=1e-4)


def test_a_scaled_and_capped_head(student_model_dir: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(student_model_dir)
    config = Gemma2Config(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, final_logit_softcapping=3.0,
        max_position_embeddings=64, eos_token_id=2, pad_token_id=0, bos_token_id=None,
        initializer_range=0.5,
    )  # fmt: skip
    gemma = Gemma2ForCausalLM(config)
    gemma.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    student = load_student(StudentSettings(model=str(tmp_path), device="cpu"))
    assert student.head.softcap == 3.0
    with torch.no_grad():
        hidden = hidden_states(student, [np.arange(9, dtype=np.int32)])[0]
        logits = head_logits(student.head, hidden)
    assert 2.0 < float(logits.abs().max()) < 3.0


def test_a_head_that_is_not_the_models_own_is_refused(
    student_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = model_module.read_head

    def wrong(model: Any) -> Head:
        head = own(model)
        return Head(weight=head.weight, bias=head.bias, scale=1.01)

    monkeypatch.setattr(model_module, "read_head", wrong)
    with pytest.raises(ConfigurationError, match="not the head applied"):
        load_student(StudentSettings(model=str(student_model_dir), device="cpu"))


def test_an_adapter_on_the_head_is_part_of_it(student_model_dir: Path) -> None:
    lora = LoraSettings(rank=4, target_modules=("q_proj", "lm_head"))
    student = load_student(StudentSettings(model=str(student_model_dir), device="cpu", lora=lora))
    assert student.head.lora is not None
    assert student.head.lora.up.requires_grad
    assert not student.head.weight.requires_grad
    ids = np.arange(3, 12, dtype=np.int32)
    with torch.no_grad():
        student.head.lora.up.normal_(0, 0.3)
        hidden = hidden_states(student, [ids])[0]
        own = student.module(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
        torch.testing.assert_close(head_logits(student.head, hidden), own, atol=1e-4, rtol=1e-4)
        without = head_logits(replace(student.head, lora=None), hidden)
    assert float((own - without).abs().max()) > 0.1


def test_adapters_that_cannot_be_are_refused(student_model_dir: Path, tmp_path: Path) -> None:
    def load(model: Path, **values: Any) -> None:
        lora = LoraSettings(**values)
        load_student(StudentSettings(model=str(model), device="cpu", lora=lora))

    with pytest.raises(ConfigurationError, match="absent"):
        load(student_model_dir, target_modules=("absent",))
    with pytest.raises(ConfigurationError, match="no dropout"):
        load(student_model_dir, target_modules=("lm_head",), dropout=0.1)
    tied = AutoModelForCausalLM.from_pretrained(student_model_dir)
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(student_model_dir).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="shares its weight"):
        load(tmp_path, target_modules=("lm_head",))
    load(tmp_path, target_modules=("lm_head",), merge_final=False)


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot load"):
        load_student(StudentSettings(model=str(tmp_path / "absent")))
    with pytest.raises(ConfigurationError, match="device 'tpu9'"):
        load_student(StudentSettings(model=str(tmp_path), device="tpu9"))


def test_what_a_student_tells_about_itself(student: Student, student_model_dir: Path) -> None:
    file = (student_model_dir / "tokenizer.json").read_text()
    assert student.tokenizer_hash == tokenizer_hash(file)
    assert (student.vocabulary_size, student.terminators, student.padding_id) == (320, (2,), 0)
    assert student.max_length == 512
    assert not student.module.training
    assert not student.has_adapters


def test_terminators_come_from_both_places(student_model_dir: Path, tmp_path: Path) -> None:
    import json
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(student_model_dir, copy)
    file = copy / "generation_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"eos_token_id": [5, 1]}))
    student = load_student(StudentSettings(model=str(copy), device="cpu"))
    assert student.terminators == (1, 2, 5)


@pytest.mark.parametrize("changed", [False, True])
def test_generation_settings_that_contradict_themselves_are_saved_as_they_are(
    student_model_dir: Path, tmp_path: Path, changed: bool
) -> None:
    """transformers refuses to save some that it loads, and others once they were changed."""
    folder = Path(shutil.copytree(student_model_dir, tmp_path / "model"))
    file = folder / "generation_config.json"
    published = json.loads(file.read_text()) | {"temperature": 0.6, "top_p": 0.9}
    file.write_text(json.dumps(published))
    student = load_student(StudentSettings(model=str(folder), device="cpu"))
    if changed:
        student.causal_model.generation_config.update(top_p=0.8)
        published["top_p"] = 0.8
    (tmp_path / "saved").mkdir()
    save_weights(student, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / file.name).read_text())
    assert {k: v for k, v in published.items() if k != "transformers_version"}.items() <= (
        saved.items()
    )
    again = load_student(StudentSettings(model=str(tmp_path / "saved"), device="cpu"))
    assert again.terminators == student.terminators


def test_generation_settings_are_saved_as_transformers_saves_them(
    student: Student, tmp_path: Path
) -> None:
    student.causal_model.save_pretrained(tmp_path / "plain")
    save_weights(student, tmp_path / "saved")
    for file in sorted((tmp_path / "plain").iterdir()):
        assert (tmp_path / "saved" / file.name).read_bytes() == file.read_bytes(), file.name
