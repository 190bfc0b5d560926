"""What the student reads of a prompt: its tokenizer's chat template, rendered at the run's
clock, or a text with the tokens that begin a text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
from teacher_proto.errors import ConfigurationError
from teacher_proto.models.begin_tokens import begin_ids, begin_text, missing_begin
from teacher_proto.templates.arguments import no_text, reserved_names
from teacher_proto.templates.clock import CLOCK_NAME, clock
from teacher_proto.templates.tool_calls import may_vary, render_calls
from teacher_proto.types import ABSENT, ChatMessage, ChatPrompt, Int32, Prompt, TextPrompt

from student_trainer.data.encoding import Encoder
from student_trainer.data.templates import compiled, marks_end, opened_thinking, template_names
from student_trainer.settings.data import DataSettings

MEND = 'mend the row, or set data.refused = "drop"'


class RowRefusedError(ConfigurationError):
    """A row cannot be read, and others can: ``data.refused`` says what happens to it."""


class TemplateRefusedError(RowRefusedError):
    """A chat template raised an error for one conversation."""


# The date at which prompts are told apart, so that their identity is the same on every day.
REFERENCE = "2000-01-01T00:00:00"


def run_clock(settings: DataSettings, kept: str = "") -> str:
    """The one moment at which every prompt of a run is rendered, naive ISO 8601 to the second:
    ``data.now``, else the one that the run was started with, else this one.

    Args:
        kept: of the checkpoint that the run resumes from; empty without one.
    """
    if settings.now is not None:
        return settings.now
    return kept or datetime.now().isoformat(timespec="seconds")


@dataclass(frozen=True)
class Reading:
    """A prompt as the student reads it.

    Attributes:
        source: the prompt, at the run's clock.
        token_ids: int32 [P].
        reference_ids: int32 [P], the same at ``REFERENCE``: what tells prompts apart.
        begun: whether tokens that begin a text were put before it.
        thinking: what its generation prompt opens, or opens and closes, of thinking.
    """

    source: TextPrompt | ChatPrompt
    token_ids: Int32
    reference_ids: Int32
    begun: bool = False
    thinking: str = ""


@dataclass(frozen=True)
class Draft:
    """A prompt as text, before it is encoded.

    Attributes:
        source: the prompt, at the run's clock.
        place: of its row, for errors.
        same_day: the text at ``REFERENCE``.
        thinking: as of ``Reading``.
    """

    source: TextPrompt | ChatPrompt
    place: str
    text: str
    same_day: str
    thinking: str = ""


class PromptReader:
    """Reads prompts as the student does.

    Attributes:
        now: the run's clock (``run_clock``).
        names: what the chat templates read.
        reads_clock: whether one of them prints the date.
        begin_ids: ids that belong before a text of this tokenizer.
    """

    def __init__(self, tokenizer: Any, settings: DataSettings, now: str) -> None:
        """
        Args:
            tokenizer: the student's, of transformers.

        Raises:
            ConfigurationError: a token is to begin every prompt, and the tokenizer has none.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        self.now = now
        self.names = template_names(tokenizer)
        self.begin_ids = begin_ids(tokenizer, tokenizer_configuration(tokenizer))
        self.tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self._add_bos = settings.add_bos
        self.reads_clock = CLOCK_NAME in self.names
        self._reserved = reserved_names(tokenizer.apply_chat_template, render_jinja_template)
        if settings.add_bos == "always" and not self.begin_ids:
            if tokenizer.bos_token_id is None:
                raise ConfigurationError(
                    "the student's tokenizer has no token that begins a text",
                    where="data.add_bos",
                    fix='set it to "auto" or "never"',
                )
            self.begin_ids = (tokenizer.bos_token_id,)

    def draft(self, source: TextPrompt | ChatPrompt, place: str) -> Draft:
        """The prompt as text.

        Raises:
            ConfigurationError: as ``render``.
            TemplateRefusedError: the template failed.
        """
        if isinstance(source, TextPrompt):
            return Draft(source, place, source.text, source.text)
        source = self._in_form(replace(source, now=self.now))
        text = same_day = self.render(source, place)
        if self.reads_clock:
            same_day = self.render(replace(source, now=REFERENCE), place)
        return Draft(source, place, text, same_day, self._thinking(source, text, place))

    def read(self, drafts: Sequence[Draft]) -> Iterator[Reading | RowRefusedError]:
        """Each prompt as token ids, in order; for one that is empty what is wrong with it."""
        texts = list(dict.fromkeys(t for draft in drafts for t in (draft.text, draft.same_day)))
        ids = dict(zip(texts, self._encoder.encode(texts), strict=True))
        for draft in drafts:
            if not ids[draft.text] or not ids[draft.same_day]:
                yield RowRefusedError("the prompt is empty", where=draft.place, fix=MEND)
                continue
            plain = np.asarray(ids[draft.text], np.int32)
            always = self._add_bos == "always" or (
                isinstance(draft.source, TextPrompt) and self._add_bos != "never"
            )
            begun = self._begun(plain, always)
            reference = begun
            if draft.same_day != draft.text:
                reference = self._begun(np.asarray(ids[draft.same_day], np.int32), always)
            yield Reading(draft.source, begun, reference, len(begun) > len(plain), draft.thinking)

    def render(self, source: ChatPrompt, place: str) -> str:
        """The conversation as text, with the generation prompt where the prompt asks for it.

        Raises:
            ConfigurationError: there is no template, or an argument is not one that reaches
                the template.
            TemplateRefusedError: the template failed.
        """
        if not self.tokenizer.chat_template:
            raise ConfigurationError(
                "the student's tokenizer has no chat template",
                where=place,
                fix='give one in student.chat_template, or prompts as {"prompt": "text"}',
            )
        reserved = sorted(self._reserved & set(source.template_arguments))
        if reserved:
            raise ConfigurationError(
                f"{', '.join(reserved)} is no argument of a chat template",
                where=place,
                fix="give only what the template itself reads (data.template_arguments, "
                "data.columns.template_arguments)",
            )
        no_texts = no_text(self.tokenizer, source.template_arguments)
        if no_texts:
            raise ConfigurationError(
                f"{', '.join(no_texts)} is the text of a special token, and no text is given",
                where=place,
                fix="give text, or leave it out for the tokenizer's own",
            )
        try:
            return self._rendered(source, [m.as_read() for m in source.messages])
        except Exception as error:  # a template is a program: it raises what it likes
            raise TemplateRefusedError(
                f"the chat template failed: {error}",
                where=place,
                fix=MEND,
            ) from error

    def _rendered(self, source: ChatPrompt, messages: list[dict[str, Any]]) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        chosen = self.tokenizer.get_chat_template(tools=source.template_arguments.get("tools"))
        compiled(chosen)
        # Not apply_chat_template: in some versions it leaves out fields that are null.
        given = {
            **self.tokenizer.special_tokens_map,
            **source.template_arguments,
            "add_generation_prompt": source.add_generation_prompt,
        }
        with clock(source.now):
            (text,), _ = render_jinja_template([messages], chat_template=chosen, **given)
        return str(text)

    def _in_form(self, source: ChatPrompt) -> ChatPrompt:
        """The conversation with its calls of tools in the form that the template reads."""
        messages = [m.as_read() for m in source.messages]
        if not may_vary(messages) or not self.tokenizer.chat_template:
            return source
        try:
            _, form = render_calls(messages, partial(self._rendered, source))
        except Exception:  # ``render`` says it, with its place
            return source
        return replace(source, messages=tuple(map(_as_message, form)))

    def notes(self, prompts: Sequence[tuple[Prompt, Int32]], arguments: Sequence[str]) -> list[str]:
        """What the student's templates and tokenizer leave out of what they are given, one
        sentence each.

        Args:
            prompts: with int32 [P], how they are read.
            arguments: names of the template arguments that any of them has.
        """
        notes = []
        unread = sorted(set(arguments) - self.names)
        if unread:
            notes.append(
                f"the student's chat template does not read {', '.join(unread)}: no prompt "
                "changes by it (data.template_arguments, data.columns)"
            )
        bare = [type(source) for source, ids in prompts if self.lacks_begin(ids)]
        begin = repr(self.tokenizer.decode(list(self.begin_ids)))
        if TextPrompt in bare:
            notes.append(
                f"{bare.count(TextPrompt)} text prompts are read without {begin}, which the "
                "student's tokenizer itself puts before a text (data.add_bos = "
                f'"{self._add_bos}")'
            )
        if ChatPrompt in bare:
            notes.append(
                f"the student's chat template writes no {begin}, which its tokenizer itself puts "
                f"before a text, for {bare.count(ChatPrompt)} conversations; data.add_bos = "
                '"always" adds it'
            )
        return notes

    def lacks_begin(self, ids: Int32) -> bool:
        """Whether a prompt does not begin as the tokenizer itself begins a text."""
        return len(missing_begin(self.begin_ids, ids[: len(self.begin_ids)].tolist())) > 0

    def _begun(self, ids: Int32, always: bool) -> Int32:
        return begin_text(self.begin_ids, ids) if always else ids

    def _thinking(self, source: ChatPrompt, text: str, place: str) -> str:
        """The thinking of the generation prompt: of what ``text`` has more than the same
        conversation without one."""
        if not (source.add_generation_prompt and marks_end(text)):
            return ""
        without = None
        with contextlib.suppress(TemplateRefusedError):
            without = self.render(replace(source, add_generation_prompt=False), place)
        return opened_thinking(text, without, source.messages[-1].content)


def tokenizer_configuration(tokenizer: Any) -> Mapping[str, Any]:
    """tokenizer_config.json of the folder or hub name that a tokenizer was loaded from; empty
    for one that was made here."""
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    source = tokenizer.name_or_path
    return dict(get_tokenizer_config(source)) if source else {}


def _as_message(read: dict[str, Any]) -> ChatMessage:
    extra = {name: value for name, value in read.items() if name not in ("role", "content")}
    return ChatMessage(read["role"], read.get("content", ABSENT), extra)
