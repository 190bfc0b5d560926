"""What follows a turn of the student in an episode: the observation and the next generation
prompt, as the student's chat template writes them."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ChatMessage, ChatPrompt, Int32, Prompt, TextPrompt

from student_trainer.data.encoding import Encoder
from student_trainer.data.rendering import PromptReader
from student_trainer.rollout.turns.continuation import Continuation
from student_trainer.tasks.calling.formats import Call, format_of
from student_trainer.tasks.calling.tool import Calculator

Message = Mapping[str, str]
# Stands for what the student wrote while its surroundings are rendered. No template changes it.
WROTE = "7f3a9e"
# The form that Mistral's templates ask for, which others take too.
CALL_ID, OF_A_CALL = "call{number:05d}", re.compile("[A-Za-z0-9]{9}")
CHECKED = "an observation"


class TurnTemplate:
    """Encodes what follows a turn of the student.

    Tokens are carried from turn to turn: what the student wrote stays as it wrote it, and only
    what follows is rendered, in the conversation of the prompt with one turn of the student. So a
    template that writes earlier turns otherwise than the last one (without their thinking, say)
    changes nothing of what the student has read.
    """

    def __init__(self, reader: PromptReader, terminators: Collection[int]) -> None:
        """
        Args:
            reader: of the student's prompts.
            terminators: ids that end a turn.
        """
        self._reader = reader
        self._encoder = Encoder(reader.tokenizer)
        self._continuation = Continuation(reader.tokenizer, self._encoder)
        self._terminators = frozenset(terminators)
        # Prompts that are known to stay as they are, by their identity, which they are kept for.
        self._checked: dict[tuple[int, tuple[str, ...]], ChatPrompt] = {}

    def following(self, source: Prompt, messages: Sequence[Message], *, ended: bool) -> Int32:
        """int32 [m]: the tokens between a turn of the student and its next one.

        After a text that is no conversation the contents follow as they are.

        Args:
            source: the prompt of the episode.
            messages: the observation.
            ended: whether a token has ended the student's turn; otherwise the template's own end
                comes first.

        Raises:
            ConfigurationError: the template does not write such a conversation, or writes the
                prompt otherwise in it; or no tokens add the contents to a text.
        """
        if isinstance(source, TextPrompt):
            said = "".join(message["content"] for message in messages)
            return np.asarray(self._continuation.encoded(said), np.int32)
        assert isinstance(source, ChatPrompt), "prompts of tasks are texts or conversations"
        refused: ConfigurationError | None = None
        for turn, observed in _forms(messages):
            try:
                return self._between(source, turn, observed, ended=ended)
            except ConfigurationError as error:
                refused = refused or error
        assert refused is not None, "there is a form"
        raise refused

    def check(self, source: Prompt, roles: Sequence[str], place: str) -> None:
        """Checks that the template writes observations of these roles after a prompt.

        Raises:
            ConfigurationError: it does not.
        """
        for role in roles:
            try:
                self.following(source, [{"role": role, "content": CHECKED}], ended=True)
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"observations of the role {role} cannot follow the prompt: {error.what}",
                    where=place,
                    fix=error.fix
                    or "take a student whose chat template writes such turns, or set "
                    "student.chat_template",
                ) from error

    def tool_format(self) -> str:
        """Name of the form in which the template writes calls of tools (tasks/calling/formats.py);
        empty where it writes none that is known."""
        if not self._reader.tokenizer.chat_template:
            return ""
        asked = ChatMessage("user", "?")
        arguments = {"tools": [Calculator().schema]}
        call = Call("calculator", {"expression": WROTE})
        for content, as_text in itertools.product(("", None), (False, True)):
            turn = _calling([(CALL_ID.format(number=0), call)], content, as_text=as_text)
            spoken = ChatPrompt(
                (asked, turn), add_generation_prompt=False, template_arguments=arguments
            )
            alone = replace(spoken, messages=(asked,), add_generation_prompt=True)
            try:
                whole = self._reader.render(spoken, "tools")
                before = self._reader.render(alone, "tools")
            except ConfigurationError:
                continue
            found = format_of(_beyond(whole, before), call)
            if found:
                return found
        return ""

    def _between(
        self,
        source: ChatPrompt,
        turn: ChatMessage,
        observed: Sequence[ChatMessage],
        *,
        ended: bool,
    ) -> Int32:
        mark = _unused(WROTE, [source.messages, source.template_arguments, observed])
        turn = _marked(turn, mark)
        whole = replace(
            source, messages=(*source.messages, turn, *observed), add_generation_prompt=True
        )
        where = "the student's chat template"
        text = self._reader.render(whole, where)
        before, found, after = text.partition(mark)
        if not found:
            raise ConfigurationError("it leaves out what the student wrote", where=where)
        self._check_prompt(source, tuple(one.role for one in observed), before, where)
        ids = self._encoded(after)
        ends = np.flatnonzero(np.isin(ids, list(self._terminators)))
        if not len(ends):
            raise ConfigurationError(
                "it ends the student's turn with no token that ends a response",
                where=where,
                fix="name the token in rollout.stop_ids",
            )
        return ids[ends[0] + 1 :] if ended else ids[ends[0] :]

    def _check_prompt(
        self, source: ChatPrompt, roles: tuple[str, ...], before: str, where: str
    ) -> None:
        """Checks once for each prompt that what stands before the student's turn begins with it.

        Raises:
            ConfigurationError: it does not.
        """
        key = id(source), roles
        if key in self._checked:
            return
        # Some templates write a generation prompt that they leave out of earlier turns, and some
        # an end of the conversation where there is no generation prompt.
        asked = (replace(source, add_generation_prompt=more) for more in (False, True))
        if not any(before.startswith(self._reader.render(one, where)) for one in asked):
            raise ConfigurationError(
                "it writes the prompt otherwise once the conversation goes on, so that the tokens "
                "which the student has read are no part of it",
                where=where,
                fix="take a student whose chat template leaves earlier turns as they are, or set "
                "student.chat_template",
            )
        self._checked[key] = source

    def _encoded(self, text: str) -> Int32:
        return np.asarray(self._encoder.encode([text])[0] if text else [], np.int32)


def _forms(
    messages: Sequence[Message],
) -> list[tuple[ChatMessage, tuple[ChatMessage, ...]]]:
    """The student's turn with what answers it, in the ways that templates take them: results of
    tools answer a turn that calls as many, or one, or a turn of text."""
    of_tools = [message for message in messages if message["role"] == "tool"]
    results = len(of_tools)
    plain = tuple(_message(message, {}) for message in messages)
    said = ChatMessage("assistant", WROTE)
    if not results:
        return [(said, plain)]
    forms = []
    for calls in dict.fromkeys((results, 1)):
        ids = [_call_id(message, number) for number, message in enumerate(of_tools[:calls])]
        names = [message.get("name", "tool") for message in of_tools]
        turn = _calling(
            [(one, Call(name, {"given": WROTE})) for one, name in zip(ids, names, strict=False)]
        )
        answers, number = [], 0
        for message in messages:
            of_call = {}
            if message["role"] == "tool":
                of_call = {"tool_call_id": ids[min(number, calls - 1)]}
                number += 1
            answers.append(_message(message, of_call))
        forms.append((turn, tuple(answers)))
    return [*forms, (said, plain)]


def _calling(
    calls: Sequence[tuple[str, Call]], content: str | None = "", *, as_text: bool = False
) -> ChatMessage:
    """A turn that makes these calls, each with its id, and arguments as an object or as JSON."""
    return ChatMessage(
        "assistant",
        content,
        {
            "tool_calls": [
                {
                    "id": one,
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": json.dumps(call.arguments)
                        if as_text
                        else dict(call.arguments),
                    },
                }
                for one, call in calls
            ]
        },
    )


def _call_id(message: Message, number: int) -> str:
    """The id of the call that a message answers, as the student wrote it; one of our own where
    it wrote none that templates take."""
    said = message.get("tool_call_id", "")
    return said if OF_A_CALL.fullmatch(said) else CALL_ID.format(number=number)


def _beyond(whole: str, before: str) -> str:
    """What a text has beyond the beginning that it shares with another."""
    return whole[len(os.path.commonprefix([whole, before])) :]  # noqa: RUF071


def _message(message: Message, more: Mapping[str, Any]) -> ChatMessage:
    name = {"name": message["name"]} if message.get("name") else {}
    return ChatMessage(message["role"], message["content"], {**name, **more})


def _marked(turn: ChatMessage, mark: str) -> ChatMessage:
    """The turn with ``mark`` in the place of ``WROTE``, in the last of its calls."""
    if turn.content == WROTE:
        return replace(turn, content=mark)
    calls = [dict(call) for call in turn.extra["tool_calls"]]
    for number, call in enumerate(calls):
        given = mark if number == len(calls) - 1 else ""
        call["function"] = {**call["function"], "arguments": {"given": given}}
    return replace(turn, extra={**turn.extra, "tool_calls": calls})


def _unused(word: str, among: Any) -> str:
    """The word, or a longer one, that is no part of what is rendered."""
    text = repr(among)
    while word in text:
        word += "x"
    return word
