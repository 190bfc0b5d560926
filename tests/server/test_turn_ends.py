"""Which ids end a teacher's turn: of its template, generation config and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from teacher_server.teachers.turn_ends import load_generation_config, turn_ends
from tests.support.models import END_OF_TEXT, ENGLISH, IM_END, IM_START, train_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    return train_tokenizer(ENGLISH, 280)


def test_turn_ends_are_those_of_template_generation_config_and_tokenizer(tokenizer: Any) -> None:
    text, start, end = tokenizer.convert_tokens_to_ids([END_OF_TEXT, IM_START, IM_END])
    tokenizer.eos_token = END_OF_TEXT
    assert turn_ends(tokenizer, None) == (end, text)
    assert turn_ends(tokenizer, GenerationConfig(eos_token_id=[start, text])) == (end, text, start)
    assert turn_ends(tokenizer, GenerationConfig(eos_token_id=start)) == (end, text, start)
    tokenizer.chat_template = None
    assert turn_ends(tokenizer, GenerationConfig(eos_token_id=[start, text])) == (text, start)
    tokenizer.eos_token = None
    assert turn_ends(tokenizer, None) == ()


def test_a_folder_s_generation_config(tiny_model_dir: Path, tmp_path: Path) -> None:
    own = load_generation_config(str(tiny_model_dir))
    assert own is not None
    assert own.eos_token_id == 2
    # A folder without generation_config.json has what its config.json says.
    (tmp_path / "config.json").write_text((tiny_model_dir / "config.json").read_text())
    of_config = load_generation_config(str(tmp_path))
    assert of_config is not None
    assert of_config.eos_token_id == 2
    (tmp_path / "config.json").unlink()
    assert load_generation_config(str(tmp_path)) is None
