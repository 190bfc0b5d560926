"""Ids of a tokenizer that the model cannot read: those beyond its embedding.

Some models have added tokens that only their parts for images stand for (Gemma 3 1B). Such
an id is never in a support, and a request that holds it is refused. A token that text
itself needs has to have a row of the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teacher_proto.errors import ConfigurationError

NAMED = ("bos_token", "eos_token", "pad_token")
# Conversations that show what a chat template writes around messages.
CONVERSATIONS: tuple[tuple[Mapping[str, str], ...], ...] = (
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Hello"},
    ),
    ({"role": "user", "content": "Hello"},),
)


def check_special_ids(tokenizer: Any, rows: int, where: str) -> int:
    """Refuses a model that has no embedding for a token that its tokenizer writes.

    Args:
        tokenizer: of transformers.
        rows: of the embedding.
        where: names the model's setting in errors.

    Returns:
        How many added tokens have no row, and are never written.

    Raises:
        ConfigurationError: a token of the vocabulary itself, a named special token or one
            that the chat template writes has no row.
    """
    backend = tokenizer.backend_tokenizer
    highest = max(backend.get_vocab(with_added_tokens=False).values(), default=-1)
    if highest >= rows:
        raise ConfigurationError(
            f"the tokenizer has ids up to {highest} and the model only {rows} rows of its "
            "embedding and logits",
            where=where,
            fix="give a model and a tokenizer that belong together",
        )
    vocabulary = backend.get_vocab(with_added_tokens=True)
    beyond = {token: text for text, token in vocabulary.items() if token >= rows}
    if not beyond:
        return 0
    for name in NAMED:
        token = getattr(tokenizer, f"{name}_id", None)
        if token is not None and token >= rows:
            raise _no_row(
                f"its {name} {beyond.get(token, '')!r}",
                token,
                rows,
                where,
                f"set {name} in tokenizer_config.json to a token of this model, or resize its "
                "embedding (resize_token_embeddings) and save it",
            )
    written = _written(tokenizer)
    for token in sorted(beyond.keys() & written):
        raise _no_row(
            f"its chat template writes {beyond[token]!r}",
            token,
            rows,
            where,
            "give the chat template of this model, or resize its embedding "
            "(resize_token_embeddings) and save it",
        )
    return len(beyond)


def _no_row(what: str, token: int, rows: int, where: str, fix: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} is id {token}, and the model has only {rows} rows of its embedding and logits",
        where=where,
        fix=fix,
    )


def _written(tokenizer: Any) -> set[int]:
    """Ids that the chat template writes; none where there is no template."""
    found: set[int] = set()
    if not getattr(tokenizer, "chat_template", None):
        return found
    for messages in CONVERSATIONS:
        try:
            text = tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception:
            continue
        encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        found |= set(encoding.ids)
    return found
