"""Prompts from the rows of a dataset, as the student reads them.

A row is ``{"messages": [...]}`` or ``{"prompt": [...]}``, a conversation that ends before
the assistant's turn, or ``{"prompt": "text"}``, which is used as it is: special tokens
that are written out are recognised, and none is added. ``data.columns`` names other
columns; all further columns are ignored.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ChatPrompt, Int32, Prompt, TextPrompt

from student_trainer.data.columns import own_arguments, prompt_column
from student_trainer.data.conversations import chat_messages, check_text, prompt_messages
from student_trainer.data.rendering import render
from student_trainer.data.rows import Source, read_rows
from student_trainer.rollout.base import PromptItem
from student_trainer.rollout.sampling import stream
from student_trainer.settings.data import DataSettings

log = logging.getLogger(__name__)

# Begins a digest, so that one taken by another rule is recognised.
DIGEST_RULE = "as-read:"


@dataclass(frozen=True)
class PromptSets:
    """Prompts to train on and prompts never trained on.

    Attributes:
        dropped: how many prompts were left out because of ``max_prompt_tokens``.
    """

    train: list[PromptItem]
    held_out: list[PromptItem]
    dropped: int = 0

    @property
    def digest(self) -> str:
        """``DIGEST_RULE`` and a hexadecimal sha256 over the train prompts in their order: over
        their tokens, and over the sources that a teacher with another tokenizer reads."""
        digest = hashlib.sha256()
        for prompt in self.train:
            # The order of the keys counts: a template may print it.
            source = json.dumps(asdict(prompt.source), default=str)
            digest.update(f"{len(prompt.token_ids)} {len(source)}\n".encode())
            digest.update(prompt.token_ids.astype("<i4").tobytes())
            digest.update(source.encode())
        return f"{DIGEST_RULE}{digest.hexdigest()}"


def load_prompts(settings: DataSettings, tokenizer: Any, *, seed: int = 0) -> PromptSets:
    """Reads and renders the prompts.

    Args:
        tokenizer: the student's, of transformers.

    Raises:
        ConfigurationError: a dataset is missing, empty or malformed (the line is
            named), a prompt is too long, or a prompt is in both sets.
    """
    hub = (settings.subset, settings.train_split, settings.revision)
    train, dropped = _read(Source(settings.train, "data.train", *hub), settings, tokenizer)
    if settings.held_out is not None:
        hub = (settings.subset, settings.held_out_split, settings.revision)
        source = Source(settings.held_out, "data.held_out", *hub)
        held_out, held_out_dropped = _read(source, settings, tokenizer)
        dropped += held_out_dropped
        shared = {p.prompt_id for p in train} & {p.prompt_id for p in held_out}
        if shared:
            raise ConfigurationError(
                f"{len(shared)} prompts are also in the train file, "
                f"one is {_show(held_out, shared)}",
                where="data.held_out",
                fix="remove them from one of the files",
            )
    else:
        train, held_out = _split(train, settings.held_out_fraction, seed)
    if not train:
        raise ConfigurationError("no prompt is left to train on", where="data.train")
    return PromptSets(train, held_out, dropped)


def _split(
    prompts: Sequence[PromptItem], fraction: float, seed: int
) -> tuple[list[PromptItem], list[PromptItem]]:
    """Holds out a share of the distinct prompts. Equal prompts stay together."""
    unique = sorted({p.prompt_id for p in prompts})
    count = round(fraction * len(unique))
    if fraction > 0 and count == 0:
        raise ConfigurationError(
            f"{fraction} of {len(unique)} prompts is none",
            where="data.held_out_fraction",
            fix="raise it, or give data.held_out",
        )
    if count == len(unique) > 0:
        raise ConfigurationError(
            f"{fraction} of {len(unique)} prompts is all of them, and none is left to train on",
            where="data.held_out_fraction",
            fix="lower it, or give more prompts",
        )
    chosen = set(stream("held out", seed).permutation(unique)[:count].tolist())
    return (
        [p for p in prompts if p.prompt_id not in chosen],
        [p for p in prompts if p.prompt_id in chosen],
    )


def _read(source: Source, settings: DataSettings, tokenizer: Any) -> tuple[list[PromptItem], int]:
    prompts, dropped = [], 0
    for place, row in read_rows(source):
        item = _item(row, place, settings, tokenizer)
        if len(item.token_ids) <= settings.max_prompt_tokens:
            prompts.append(item)
        elif settings.over_long == "drop":
            dropped += 1
        else:
            raise ConfigurationError(
                f"the prompt has {len(item.token_ids)} tokens, more than "
                f"data.max_prompt_tokens ({settings.max_prompt_tokens})",
                where=place,
                fix='raise data.max_prompt_tokens, or set data.over_long = "drop"',
            )
    if not prompts:
        why = f": all {dropped} are longer than data.max_prompt_tokens" if dropped else ""
        raise ConfigurationError(f"{source.name} holds no prompt to use{why}", where=source.key)
    if dropped:
        log.warning(
            "%s: left out %d of %d prompts, longer than data.max_prompt_tokens (%d)",
            source.name, dropped, dropped + len(prompts), settings.max_prompt_tokens,
        )  # fmt: skip
    return prompts, dropped


def _item(row: Mapping[str, Any], place: str, settings: DataSettings, tokenizer: Any) -> PromptItem:
    column = prompt_column(row, settings.columns.prompt, place)
    value = row[column]
    own = own_arguments(row, settings.columns, place)
    if isinstance(value, str) and column != "messages":
        source: Prompt = TextPrompt(value)
        check_text([value, own], column, place)
        ids = tokenizer(value, add_special_tokens=False)["input_ids"]
    else:
        messages = prompt_messages(value, place, settings)
        check_text([messages, own], column, place)
        arguments = {**settings.template_arguments, **own}
        source = ChatPrompt(chat_messages(messages), template_arguments=arguments)
        ids = render(messages, place, arguments, tokenizer)
    if not ids:
        raise ConfigurationError("the prompt is empty", where=place)
    token_ids = np.asarray(ids, np.int32)
    return PromptItem(prompt_identity(token_ids), token_ids, source)


def prompt_identity(token_ids: Int32) -> str:
    """16 hexadecimal digits that depend only on the tokens the student reads, int32 [P].

    Rows that differ in a dropped answer, in their columns or in their file have the same
    identity.
    """
    return hashlib.sha256(token_ids.astype("<i4").tobytes()).hexdigest()[:16]


def _show(prompts: Sequence[PromptItem], shared: set[str]) -> str:
    source = next(p.source for p in prompts if p.prompt_id in shared)
    text = source.text if isinstance(source, TextPrompt) else repr(source)
    return repr(text[:80])
