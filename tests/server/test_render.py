"""Render: how a teacher reads prompts, over both wires, bounded and one refusal a row."""

from __future__ import annotations

from teacher_proto.types import ChatMessage, ChatPrompt, TextPrompt

from tests.server.running import LONG, Running


def chat(content: str) -> ChatPrompt:
    return ChatPrompt((ChatMessage("user", content),))


async def test_a_prompt_that_cannot_be_read_is_one_refusal(server: Running) -> None:
    found = await server.client.render(
        [TextPrompt("hello"), TextPrompt(""), chat("hi")], teacher="default", timeout=LONG
    )
    assert [one.refusal is None for one in found] == [True, False, True]
    assert found[0].text == "hello"
