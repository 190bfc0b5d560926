"""The teacher's tokenizer: from text and conversations to ids, and from ids to text.

Encoding never adds special tokens, truncates or pads, whatever tokenizer.json asks for.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from teacher_proto.errors import ConfigurationError, InvalidRequestError, first_line
from teacher_proto.fingerprint.probe import Encode
from teacher_proto.fingerprint.relation import loaded_otherwise
from teacher_proto.models.begin_tokens import begin_ids
from teacher_proto.models.folder import TOKENIZER_FILES, model_folder, read_tokenizer
from teacher_proto.models.special_ids import check_special_ids
from teacher_proto.templates.arguments import no_text, reserved_names
from teacher_proto.templates.tool_calls import render_calls
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import ChatMessage, ChatPrompt, Int32, SpecialRole, TokenText

from teacher_server.failures import is_ending
from teacher_server.teachers.chat import chat_templates, render
from teacher_server.teachers.text_bounds import longest_token
from teacher_server.teachers.turn_ends import (
    load_generation_config,
    template_turn_end,
    with_named_ends,
)

log = logging.getLogger(__name__)

# Of a template's own words, in the refusal of a conversation.
REFUSAL_CHARACTERS = 500


class TextTokenizer:
    """A tokenizer.json; it is never changed, so several threads may use it.

    Attributes:
        size: one above the highest id.
    """

    def __init__(self, file: str | bytes) -> None:
        from tokenizers import Tokenizer

        text = file if isinstance(file, str) else file.decode()
        self._encoder = Tokenizer.from_str(text)
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self.size = max(self._encoder.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str, check: Callable[[int], None] | None = None) -> Int32:
        """int32 [L]; special tokens that the text spells out are recognised, none are added.

        The interpreter's lock is released while the text is tokenized.

        Args:
            check: called with L before the ids are copied; may raise to refuse them.
        """
        (encoding,) = self._encoder.encode_batch_fast([text], add_special_tokens=False)
        if check is not None:
            check(len(encoding))
        return np.asarray(encoding.ids, np.int32)

    def encode_each(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, as ``encode`` has them."""
        found = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def token_text(self, token_id: int) -> str | None:
        """The text of one id; None for an id that no token has."""
        if self._encoder.id_to_token(token_id) is None:
            return None
        text: str = self._encoder.decode([token_id], skip_special_tokens=False)
        return text


class TeacherTokenizer(TextTokenizer):
    """A teacher's tokenizer, loaded by transformers, with its chat template.

    Attributes:
        file: the tokenizer as tokenizer.json.
        hash: fingerprint by ``teacher_proto.tokenizer_hash``.
        turn_ends: ids that end a turn (``turn_ends.turn_ends``).
        named_specials: id -> role of the special tokens whose use the model's files and its
            chat template show. There is one TURN_END at most, that of the template.
        longest_token: the most bytes of text that one token can stand for; None where no
            such bound is known.
        chat: its chat templates.
        begin_ids: ids that the tokenizer puts before a text.
    """

    def __init__(
        self,
        source: Any,
        generation_config: Any | None = None,
        configuration: Mapping[str, Any] | None = None,
    ) -> None:
        """``configuration``: tokenizer_config.json, of which ``begin_ids`` reads."""
        from tokenizers import Tokenizer
        from transformers.utils.chat_template_utils import render_jinja_template

        backend = getattr(source, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ConfigurationError(
                "the model's tokenizer has no tokenizer.json form",
                fix="choose a model whose folder holds tokenizer.json",
            )
        as_json = backend.to_str()
        self.file: str = as_json
        self.hash = tokenizer_hash(as_json)
        self.longest_token = longest_token(json.loads(as_json))
        own_end = template_turn_end(source, generation_config)
        self.turn_ends = with_named_ends(own_end, source, generation_config)
        named = [
            (own_end, SpecialRole.TURN_END),
            *((token, SpecialRole.END_OF_TEXT) for token in self.turn_ends),
            (source.bos_token_id, SpecialRole.BEGIN_OF_TEXT),
            (source.pad_token_id, SpecialRole.PADDING),
        ]
        self.named_specials: dict[int, SpecialRole] = {}
        for token, role in named:
            if token is not None:
                self.named_specials.setdefault(token, role)
        self._source = source
        super().__init__(as_json)
        self.chat = chat_templates(source)
        self.begin_ids = _begin_ids(source, configuration or {})
        self._reserved = reserved_names(source.apply_chat_template, render_jinja_template)

    def token_texts(self, ids: Iterable[int]) -> tuple[TokenText, ...]:
        return tuple(TokenText(one, self.token_text(one) or "") for one in ids)

    def check_special_ids(self, rows: int, where: str) -> int:
        """``special_ids.check_special_ids`` against a model of ``rows`` logits."""
        return check_special_ids(self._source, rows, where)

    def render(self, prompt: ChatPrompt, where: str) -> str:
        """The conversation as text, rendered by the tokenizer's own chat template.

        Raises:
            InvalidRequestError: there is no template, an argument is reserved, or the
                template refuses the conversation.
        """
        if not self.chat.texts:
            raise InvalidRequestError(
                "the teacher's tokenizer has no chat template",
                where=where,
                fix="send the prompt as text or token ids",
            )
        reserved = sorted(self._reserved & set(prompt.template_arguments))
        if reserved:
            raise InvalidRequestError(
                f"{', '.join(reserved)} cannot be set by a request",
                where=f"{where}.template_arguments",
                fix="send only what the template itself reads",
            )
        no_texts = no_text(self._source, prompt.template_arguments)
        if no_texts:
            raise InvalidRequestError(
                f"{', '.join(no_texts)} is the text of a special token, and no text is given",
                where=f"{where}.template_arguments",
                fix="send text, or leave it out for the tokenizer's own",
            )
        rows = [_message(m, f"{where}.messages[{i}]") for i, m in enumerate(prompt.messages)]
        arguments = {
            **prompt.template_arguments,
            "add_generation_prompt": prompt.add_generation_prompt,
        }
        try:
            text, _ = render_calls(
                rows, lambda form: render(self._source, form, prompt.now, arguments)
            )
            return text
        except Exception as error:  # a template is a program and may raise anything
            raise InvalidRequestError(
                f"the chat template refuses the conversation: {_shortened(str(error))}",
                where=f"{where}.messages",
                fix="send the roles and fields that the teacher's template expects",
            ) from error


def _shortened(text: str) -> str:
    """The text of a template's refusal, which may quote a conversation of any length."""
    left_out = len(text) - REFUSAL_CHARACTERS
    if left_out <= 0:
        return text
    return f"{text[:REFUSAL_CHARACTERS]}... ({left_out} more characters)"


def _message(message: ChatMessage, where: str) -> dict[str, Any]:
    twice = {"role", "content"} & set(message.extra)
    if twice:
        raise InvalidRequestError(
            f"{', '.join(sorted(twice))} is given twice",
            where=f"{where}.extra",
            fix="leave it out of extra",
        )
    return message.as_read()


def _begin_ids(source: Any, configuration: Mapping[str, Any]) -> tuple[int, ...]:
    """``begin_ids``; empty for a tokenizer that cannot encode any text."""
    try:
        return begin_ids(source, configuration)
    except BaseException as error:  # a panic of native code is no Exception
        if is_ending(error):
            raise
        log.warning("the tokenizer cannot encode a text: %s", type(error).__name__)
        return ()


def _folder(model: str) -> str:
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    if looks_like_path and not Path(model).expanduser().is_dir():
        raise ConfigurationError(
            "there is no such folder",
            where=model,
            fix="give the folder of a model (config.json, safetensors, tokenizer.json)",
        )
    return str(model_folder(model, TOKENIZER_FILES, where=model))


def _load_source(model: str) -> Any:
    import transformers
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        source = read_tokenizer(transformers, model)
    except Exception as error:  # tokenizers raises plain Exception for what it cannot read
        raise ConfigurationError(
            f"no tokenizer can be loaded: {first_line(error)}",
            where=model,
            fix="give the folder of a model with tokenizer.json, or a hub name that can be reached",
        ) from error
    return source


def load_tokenizer(model: str, base: str | None = None) -> TeacherTokenizer:
    """Loads the tokenizer of a model folder or hub name, as transformers builds it.

    Where that encodes otherwise than the model's tokenizer.json, a warning says so.

    Args:
        base: whose generation config counts, for an adapter's folder, which has none.

    Raises:
        ConfigurationError: there is none, or it cannot be read.
    """
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    model = _folder(model)
    source = _load_source(model)
    generation_config = load_generation_config(model if base is None else _folder(base))
    found = TeacherTokenizer(source, generation_config, get_tokenizer_config(model))
    if source.split_special_tokens:
        log.warning(
            "%s: tokenizer_config.json sets split_special_tokens, by which the special tokens of "
            "a chat template would be spelt out; they are read as tokens",
            model,
        )
    warning = _another_file(model, found)
    if warning:
        log.warning("%s: %s", model, warning)
    return found


def load_backend(model: str) -> str:
    """The tokenizer.json of a model folder or hub name; raises as ``load_tokenizer``."""
    return load_tokenizer(model).file


def _another_file(model: str, loaded: TeacherTokenizer) -> str:
    """What a warning says of a tokenizer.json that encodes otherwise; empty for none."""
    from transformers.utils.hub import cached_file

    file = cached_file(
        model,
        "tokenizer.json",
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    published = b"" if file is None else Path(file).read_bytes()
    if not published or tokenizer_hash(published) == loaded.hash:
        return ""

    def encodings() -> tuple[Encode, Encode]:
        return loaded.encode_each, TextTokenizer(published).encode_each

    return loaded_otherwise(loaded.file, published, encodings)
