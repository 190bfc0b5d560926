"""The student's tokenizer. It is read before the model, because prompts only need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError
from transformers import AutoTokenizer

from student_trainer.settings.student import StudentSettings
from student_trainer.student.loading import cannot_load, student_folder


def load_tokenizer(settings: StudentSettings) -> Any:
    """The transformers tokenizer of ``student.model``, with ``student.chat_template``.

    Raises:
        ConfigurationError: it cannot be loaded, or has no tokenizer.json.
    """
    folder = student_folder(settings.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise cannot_load(settings.model, error) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigurationError(
            "its tokenizer has no tokenizer.json", where="student.model", fix="convert it first"
        )
    if settings.chat_template is not None:
        tokenizer.chat_template = _read_chat_template(settings.chat_template)
    return tokenizer


def _read_chat_template(path: Path) -> str:
    """The text of a template file.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"cannot read {path}: {error}", where="student.chat_template", fix="check the path"
        ) from error
    if not text.strip():
        raise ConfigurationError(f"{path} is empty", where="student.chat_template")
    return text
