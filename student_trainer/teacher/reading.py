"""Which side's rendering a teacher reads, and what it leaves out of what it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from teacher_proto.client import TeacherClient
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import (
    ChatPrompt,
    Prompt,
    RenderedPrompt,
    SpecialTokens,
    TeacherInfo,
    TextPrompt,
    TokenPrompt,
)

from student_trainer.rollout.base import PromptItem
from student_trainer.settings.teacher import TeacherSettings
from student_trainer.student.model import Student
from student_trainer.teacher.prompts import AtTeacher, PromptsAtTeacher, own_source
from student_trainer.teacher.renderings import Renderings, spread

SHOWN = 60
OLDER = "the teacher's service is of an earlier version"


class TeacherReading:
    """What a teacher reads of prompts.

    Attributes:
        renders: whether it renders conversations itself. An older service and a teacher
            without a template do so only where they have to: with another tokenizer.
    """

    def __init__(
        self,
        client: TeacherClient,
        info: TeacherInfo,
        settings: TeacherSettings,
        student: Student,
        *,
        realigned: bool,
        key: str = "teacher",
    ) -> None:
        """
        Args:
            realigned: whether the teacher has another tokenizer.
            key: of the section of its settings, for errors and notes.

        Raises:
            ConfigurationError: a teacher with another tokenizer is to read the student's
                tokens.
        """
        if realigned and settings.prompt == "student":
            raise ConfigurationError(
                "the teacher has another tokenizer than the student, and cannot read its tokens",
                where=f"{key}.prompt",
                fix='set it to "own", or use a teacher with the tokenizer of the student',
            )
        self.renders = realigned or (settings.prompt == "own" and _has_template(info))
        self._client = client
        self._info = info
        self._settings = settings
        self._tokenizer = student.tokenizer
        self._terminators = student.terminators
        self._realigned = realigned
        # What the teacher's tokenizer itself puts before a text.
        self._begin = "".join(token.text for token in info.begin_tokens)

    def wire_prompt(self, prompt: PromptItem) -> Prompt:
        """What the teacher reads of a prompt, as a request has it: for a teacher that renders it
        what it was found to read, or else the prompt's source; for others the student's tokens.
        Where something is for the teacher alone, that is what it reads."""
        prompt = prompt.read_by_teacher
        if self.renders and prompt.at_teacher is not None:
            return prompt.at_teacher
        if self._realigned:
            # An older service reads no texts that say which special tokens they have.
            return prompt.source if self._info.chat is None else own_source(prompt)
        if self.renders and isinstance(prompt.source, ChatPrompt):
            return prompt.source
        return TokenPrompt(prompt.token_ids)

    def read(self, prompts: Sequence[PromptItem]) -> Iterator[AtTeacher]:
        """How the teacher reads prompts by its own chat template, one for each in order.

        Raises:
            LsmError: as ``TeacherClient.render``.
        """
        begin = self._begin if self._realigned else None
        return PromptsAtTeacher(self._render, self._encode, begin).read(prompts)

    def ending(self, prompt: PromptItem) -> str:
        """The last ``SHOWN`` characters of what the teacher reads of a prompt; empty where that
        is the student's tokens, or where its service cannot be asked.

        Raises:
            LsmError: as ``TeacherClient.render``.
        """
        sent = self.wire_prompt(prompt)
        if isinstance(sent, TokenPrompt):
            if np.array_equal(sent.token_ids, prompt.token_ids):
                return ""
            return str(self._tokenizer.decode(sent.token_ids.tolist()))[-SHOWN:]
        if self._info.chat is None:
            return ""
        (rendered,) = self._render([sent])
        return (rendered.text or "")[-SHOWN:]

    def renderings(self) -> Renderings:
        """An empty count of how the teacher reads prompts."""
        return Renderings(self._tokenizer.decode, self._begin)

    def notes(self, prompts: Sequence[PromptItem], arguments: Sequence[str]) -> list[str]:
        """What the teacher leaves out of what it is given, one sentence each.

        Where it reads the student's tokens, its own renderings of some of the conversations
        are compared with them.

        Args:
            arguments: names of the template arguments that any of the prompts has.

        Raises:
            LsmError: as ``TeacherClient.render``.
        """
        conversations = any(isinstance(item.source, ChatPrompt) for item in prompts)
        notes = self._notes_on_conversations(arguments) if conversations else []
        if self._realigned:
            notes += self._notes_on_texts(prompts)
        if conversations and not self.renders and _has_template(self._info):
            compared = self.renderings()
            for found in self.read(spread(prompts)):
                compared.add(found)
            notes += compared.notes(own=False)
        return notes

    def _notes_on_conversations(self, arguments: Sequence[str]) -> list[str]:
        chat = self._info.chat
        if chat is None and self._realigned:
            return [
                f"{OLDER}: dates that its chat template prints are of its own clock, and thinking "
                "that its generation prompt opens is not compared with the student's"
            ]
        if self._settings.prompt == "student":
            return []
        if chat is None:
            return [
                f'{OLDER}: the teacher reads the student\'s tokens (teacher.prompt = "student")'
            ]
        if not chat.has_template:
            tokens = "it can read none" if self._realigned else "it reads the student's tokens"
            return [f"the teacher has no chat template for the conversations: {tokens}"]
        notes = []
        unread = sorted(set(arguments) - set(chat.arguments))
        if unread:
            notes.append(
                f"the teacher's chat template does not read {', '.join(unread)}: no prompt changes "
                "by it (data.template_arguments, data.columns)"
            )
        ends = {token.token_id: token.text for token in chat.turn_ends}
        if ends and not self._realigned and ends.keys().isdisjoint(self._terminators):
            own = [self._tokenizer.decode([token]) for token in self._terminators]
            notes.append(
                f"the teacher ends its turns with {' or '.join(map(repr, ends.values()))} and the "
                f"student with {' or '.join(map(repr, own))}: after its own prompts the teacher "
                "hardly expects the student to end"
            )
        return notes

    def _notes_on_texts(self, prompts: Sequence[PromptItem]) -> list[str]:
        texts = [(p, p.source.text) for p in prompts if isinstance(p.source, TextPrompt)]
        if self._info.chat is None:
            return [f"{OLDER}: it puts no token that begins a text before texts"] if texts else []
        begin = self._begin
        bare = [
            prompt
            for prompt, text in texts
            if prompt.special_tokens is SpecialTokens.AS_WRITTEN and not text.startswith(begin)
        ]
        if not (begin and bare):
            return []
        return [
            f"the teacher reads {len(bare)} texts without {begin!r}, which its tokenizer itself "
            'puts before a text (data.add_bos = "never")'
        ]

    def _render(self, prompts: Sequence[Prompt]) -> tuple[RenderedPrompt, ...]:
        return self._client.render(
            prompts,
            teacher=self._info.name,
            timeout=self._settings.timeout_seconds,
            text=True,
            token_ids=False,
        )

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _has_template(info: TeacherInfo) -> bool:
    return info.chat is not None and info.chat.has_template
