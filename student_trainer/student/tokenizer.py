"""The student's tokenizer. It is read before the model, because prompts only need it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from teacher_proto.errors import ConfigurationError
from teacher_proto.fingerprint.probe import Encode
from teacher_proto.fingerprint.relation import loaded_otherwise
from teacher_proto.models.folder import read_tokenizer
from teacher_proto.tokenizer_hash import tokenizer_hash

from student_trainer.settings.student import StudentSettings
from student_trainer.student.loading import cannot_load, student_folder

log = logging.getLogger(__name__)

FILE = "tokenizer.json"

# Models whose tokenizer.json was compared with what was loaded, by that.
_compared: set[tuple[str, bytes]] = set()


def load_tokenizer(settings: StudentSettings) -> Any:
    """The transformers tokenizer of ``student.model``, with ``student.chat_template``.

    It is used as transformers builds it, everywhere. Where that encodes otherwise than the
    model's tokenizer.json, a warning says so.

    Raises:
        ConfigurationError: it cannot be loaded, or has no tokenizer.json.
    """
    folder = student_folder(settings.model)
    try:
        tokenizer = read_tokenizer(transformers, folder)
    except Exception as error:  # tokenizers raises plain Exception for what it cannot read
        raise cannot_load(settings.model, error) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigurationError(
            "its tokenizer has no tokenizer.json", where="student.model", fix="convert it first"
        )
    if tokenizer.split_special_tokens:
        log.warning(
            "%s: tokenizer_config.json sets split_special_tokens, by which the special tokens of "
            "a chat template would be spelt out; they are read as tokens",
            settings.model,
        )
        tokenizer.split_special_tokens = False
    _warn_of_another_file(folder / FILE, settings.model, tokenizer.backend_tokenizer.to_str())
    if settings.chat_template is not None:
        tokenizer.chat_template = _read_chat_template(settings.chat_template)
    return tokenizer


def _warn_of_another_file(file: Path, model: str, loaded: str) -> None:
    """Once a model, since a run loads its tokenizer more than once."""
    key = model, hashlib.sha256(loaded.encode()).digest()
    if key in _compared or not file.is_file():
        return
    _compared.add(key)
    published = file.read_bytes()
    if tokenizer_hash(published) == tokenizer_hash(loaded):
        return
    files = loaded, published.decode()
    warning = loaded_otherwise(loaded, published, lambda: (_encoder(files[0]), _encoder(files[1])))
    if warning:
        log.warning("%s: %s", model, warning)


def _encoder(tokenizer_json: str) -> Encode:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(texts: Sequence[str]) -> list[list[int]]:
        found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    return encode


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
