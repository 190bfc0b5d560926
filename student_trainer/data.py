"""Prompts: read, rendered as the student reads them, split, ordered.

A row of a JSONL file is ``{"messages": [...]}``, ``{"prompt": [...]}`` (both a
conversation that ends before the assistant's turn) or ``{"prompt": "text"}``
(taken as it stands; special tokens written out are recognised, none is added).
Other columns are left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ChatMessage, ChatPrompt, Prompt, TextPrompt

from student_trainer.config import DataSettings
from student_trainer.model import Student
from student_trainer.rollout.base import PromptItem
from student_trainer.rollout.sampling import stream


@dataclass(frozen=True)
class PromptSets:
    """Prompts to train on and prompts never trained on.

    Attributes:
        dropped: prompts left out as longer than ``max_prompt_tokens``.
    """

    train: list[PromptItem]
    held_out: list[PromptItem]
    dropped: int = 0

    @property
    def digest(self) -> str:
        """sha256 over the train prompts in their order, hexadecimal."""
        return hashlib.sha256("\n".join(p.prompt_id for p in self.train).encode()).hexdigest()


@dataclass(frozen=True)
class PromptOrder:
    """The order of training: a shuffle of its own for every epoch.

    Position p is prompt ``p mod count`` of epoch ``p div count``.
    """

    seed: int
    count: int

    def take(self, position: int, count: int) -> list[int]:
        """Indices of the ``count`` prompts from ``position`` on."""
        permutations: dict[int, Any] = {}
        indices = []
        for place in range(position, position + count):
            epoch, offset = divmod(place, self.count)
            if epoch not in permutations:
                permutations[epoch] = stream("order", self.seed, epoch).permutation(self.count)
            indices.append(int(permutations[epoch][offset]))
        return indices


def load_prompts(settings: DataSettings, student: Student, *, seed: int = 0) -> PromptSets:
    """Reads and renders the prompts.

    Raises:
        ConfigurationError: a file is missing, empty or malformed (with the
            line), a prompt is too long, or a prompt is in both sets.
    """
    train, dropped = _read(settings.train, "data.train", settings, student)
    if settings.held_out is not None:
        held_out, held_out_dropped = _read(settings.held_out, "data.held_out", settings, student)
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
    """Holds out a share of the different prompts; equal prompts stay together."""
    unique = sorted({p.prompt_id for p in prompts})
    count = round(fraction * len(unique))
    if fraction > 0 and count == 0:
        raise ConfigurationError(
            f"{fraction} of {len(unique)} prompts is none",
            where="data.held_out_fraction",
            fix="raise it, or give data.held_out",
        )
    chosen = set(stream("held out", seed).permutation(unique)[:count].tolist())
    return (
        [p for p in prompts if p.prompt_id not in chosen],
        [p for p in prompts if p.prompt_id in chosen],
    )


def _read(
    path: Path, key: str, settings: DataSettings, student: Student
) -> tuple[list[PromptItem], int]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}", where=key) from error
    prompts, dropped = [], 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        item = _item(_row(line, place), place, settings, student)
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
        raise ConfigurationError(f"{path} holds no prompt to use", where=key)
    return prompts, dropped


def _row(line: str, place: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"not JSON: {error}", where=place) from error
    if not isinstance(row, dict) or ("messages" in row) == ("prompt" in row):
        raise ConfigurationError(
            'a row needs either "messages" or "prompt"',
            where=place,
            fix='write {"messages": [{"role": "user", "content": "..."}]} or {"prompt": "..."}',
        )
    return row


def _item(
    row: Mapping[str, Any], place: str, settings: DataSettings, student: Student
) -> PromptItem:
    value = row["messages"] if "messages" in row else row["prompt"]
    if isinstance(value, str) and "prompt" in row:
        source: Prompt = TextPrompt(value)
        ids = student.tokenizer(value, add_special_tokens=False)["input_ids"]
    else:
        messages = _messages(value, place)
        source = ChatPrompt(
            tuple(
                ChatMessage(
                    m["role"], m["content"], {k: v for k, v in m.items() if k not in _PLAIN}
                )
                for m in messages
            ),
            template_arguments=settings.template_arguments,
        )
        ids = _render(messages, place, settings, student)
    if not ids:
        raise ConfigurationError("the prompt is empty", where=place)
    content = json.dumps(value, sort_keys=True, ensure_ascii=False)
    prompt_id = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return PromptItem(prompt_id, np.asarray(ids, np.int32), source)


_PLAIN = ("role", "content")


def _messages(value: Any, place: str) -> list[Mapping[str, Any]]:
    good = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in value
    )
    if not good or not value:
        raise ConfigurationError(
            "a conversation is a list of objects with the texts role and content", where=place
        )
    if value[-1]["role"] == "assistant":
        raise ConfigurationError(
            "the conversation ends with the assistant's turn, which is the student's to write",
            where=place,
            fix="end it with the user's turn",
        )
    return list(value)


def _render(
    messages: list[Mapping[str, Any]], place: str, settings: DataSettings, student: Student
) -> list[int]:
    if not student.tokenizer.chat_template:
        raise ConfigurationError(
            "the student's tokenizer has no chat template",
            where=place,
            fix='give prompts as {"prompt": "text"}',
        )
    try:
        rendered = student.tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **settings.template_arguments,
        )
    except Exception as error:  # a template is a program: it raises what it likes
        raise ConfigurationError(f"the chat template failed: {error}", where=place) from error
    return list(rendered["input_ids"])


def _show(prompts: Sequence[PromptItem], shared: set[str]) -> str:
    source = next(p.source for p in prompts if p.prompt_id in shared)
    text = source.text if isinstance(source, TextPrompt) else repr(source)
    return repr(text[:80])
