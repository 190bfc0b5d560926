"""Tools and template arguments arrive as they were sent, or the server says it cannot."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2
from google.protobuf.message import Message
from teacher_proto import codec
from teacher_proto.client import AsyncTeacherClient
from teacher_proto.errors import ContractMismatchError, InvalidRequestError
from teacher_proto.types import ABSENT, ChatMessage, ChatPrompt, SpecialTokens, TextPrompt
from teacher_proto.v1 import array_pb2, score_pb2, teacher_pb2

from tests.support.compare import same
from tests.support.replies import SERVER, make_request
from tests.support.scripted_teacher import ScriptedTeacher, serving

LONG = 60.0
# Values that a Struct changes.
CHANGED = [
    {"b": 1, "a": 2},
    {"x": [{"z": None, "y": None}]},
    {"x": 1.0},
    {"x": -0.0},
    {"x": 1e22},
    {"x": 2**53 + 1},
    {"x": -(10**40)},
]
# Values that come out of a Struct as they are.
KEPT = [
    {"enable_thinking": False},
    {"x": {"y": [1, -(2**53), 0.5, None, "", [], {}]}},
    {},
]

FORM = '{"messages": [%s], "add_generation_prompt": true}'
ARGUMENTS = '{"messages": [], "add_generation_prompt": true, "template_arguments": %s}'
DEEP = '{"x":' * 24 + "[%s]" + "}" * 24


def sent(values: dict[str, Any]) -> score_pb2.ScoreRequest:
    prompt = ChatPrompt((ChatMessage("user", "x", values),), template_arguments=values)
    return codec.encode_request(make_request(prompt=prompt, teacher_prompt=prompt))


@pytest.mark.parametrize("values", [*CHANGED, *KEPT], ids=str)
def test_values_arrive_in_their_order_and_their_types(values: dict[str, Any]) -> None:
    decoded = codec.decode_request(codec.serialize(sent(values)))
    for prompt in (decoded.prompt, decoded.teacher_prompt):
        assert isinstance(prompt, ChatPrompt)
        assert json.dumps(prompt.messages[0].extra) == json.dumps(values)
        assert json.dumps(prompt.template_arguments) == json.dumps(values)


def test_a_struct_of_an_older_client_is_read_in_one_order() -> None:
    message = sent({})
    values = {name: {"b": 1.0, "a": 2**60} for name in "hgfedcba"}
    message.prompt.chat.template_arguments.update(values)
    prompt = codec.decode_request(codec.serialize(message)).prompt
    assert isinstance(prompt, ChatPrompt)
    expected = {name: {"a": float(2**60), "b": 1} for name in "abcdefgh"}
    assert json.dumps(prompt.template_arguments) == json.dumps(expected)


def older_request() -> type[Message]:
    """ScoreRequest by the schema from before ``chat_json``."""
    pool = descriptor_pool.DescriptorPool()
    for module in (struct_pb2, array_pb2, teacher_pb2, score_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)  # type: ignore[attr-defined]
        for message in file.message_type:
            if message.name == "Prompt":
                fields = [field for field in message.field if field.name != "chat_json"]
                assert len(fields) == len(message.field) - 1
                del message.field[:]
                message.field.extend(fields)
        pool.Add(file)  # type: ignore[no-untyped-call]
    name = "teacher_proto.v1.ScoreRequest"
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))  # type: ignore[no-untyped-call]


CONTENTS: list[Any] = [None, ABSENT, [{"type": "text", "text": "a"}], []]


@pytest.mark.parametrize("content", CONTENTS, ids=str)
def test_content_that_is_no_text_arrives_as_it_is(content: Any) -> None:
    prompt = ChatPrompt((ChatMessage("assistant", content, {"tool_calls": []}),))
    message = codec.encode_request(make_request(prompt=prompt))
    assert message.prompt.WhichOneof("source") == "chat_json", "an older server must refuse it"
    assert ("content" in message.prompt.chat_json) is (content is not ABSENT)
    assert codec.decode_request(codec.serialize(message)).prompt == prompt


@pytest.mark.parametrize(
    ("role", "content", "where"),
    [
        ("user", None, ""),
        ("tool", ABSENT, ""),
        ("user", 3, ""),
        ("assistant", [1], ""),
        ("assistant", {"type": "text"}, ""),
        ("user", [{"text": float("nan")}], "[0].text"),
        ("user", [{}, {"text": "\ud800"}], "[1].text"),
    ],
)
def test_content_of_another_kind_is_refused(role: str, content: Any, where: str) -> None:
    prompt = ChatPrompt((ChatMessage(role, content),))
    with pytest.raises(InvalidRequestError) as caught:
        codec.encode_request(make_request(prompt=prompt))
    assert caught.value.where == f"prompt.chat.messages[0].content{where}"


@pytest.mark.parametrize("values", CHANGED, ids=str)
def test_an_older_server_sees_no_prompt_rather_than_another_one(values: dict[str, Any]) -> None:
    message: Any = older_request().FromString(codec.serialize(sent(values)))
    assert message.prompt.WhichOneof("source") is None
    assert message.teacher_prompt.WhichOneof("source") is None


@pytest.mark.parametrize("values", KEPT, ids=str)
def test_an_older_server_reads_what_its_schema_can_carry(values: dict[str, Any]) -> None:
    message: Any = older_request().FromString(codec.serialize(sent(values)))
    assert message.prompt.WhichOneof("source") == "chat"
    read = score_pb2.ScoreRequest.FromString(message.SerializeToString())
    assert same(codec.decode_request(read), codec.decode_request(sent(values)))


def test_an_older_server_refuses_what_it_would_read_otherwise() -> None:
    """A clock and a text's begin travel in forms that it does not see or refuses."""
    kept = ChatPrompt((ChatMessage("user", "x"),))
    for prompt, source in (
        (kept, "chat"),
        (dataclasses.replace(kept, now="2026-11-29T05:53:12"), "chat_json"),
        (TextPrompt("x"), "text"),
        (TextPrompt("x", SpecialTokens.ADD), "text_prompt"),
    ):
        message = codec.encode_request(make_request(prompt=prompt))
        assert message.prompt.WhichOneof("source") == source


def test_a_server_of_before_describes_no_chat() -> None:
    message = codec.encode_server_info(SERVER)
    assert not message.teachers[0].HasField("chat")
    info = codec.decode_server_info(message)
    assert info.teachers[0].chat is None
    assert info.teachers[0].begin_tokens == ()
    assert info.teachers[0].identity.chat_template_digest == ""
    assert info.limits.max_render_prompts is None


async def test_an_older_server_is_not_asked_to_render() -> None:
    teacher = ScriptedTeacher()
    async with serving(teacher) as address, AsyncTeacherClient(address, run="r") as client:
        with pytest.raises(ContractMismatchError, match="older than this client") as caught:
            await client.render([TextPrompt("x")], teacher="default", timeout=LONG)
        assert caught.value.reason == "OLDER_SERVER"
        # One that says it renders, and is replaced by an older one.
        limits = dataclasses.replace(SERVER.limits, max_render_prompts=4)
        teacher.info = dataclasses.replace(SERVER, limits=limits)
        with pytest.raises(ContractMismatchError) as caught:
            await client.render([TextPrompt("x")], teacher="default", timeout=LONG)


async def test_the_client_says_that_the_server_is_older() -> None:
    teacher = ScriptedTeacher()
    refusals = [
        InvalidRequestError("holds no prompt", where="prompt", fix="set token_ids, chat or text"),
        InvalidRequestError("must be a text", where="prompt.chat_json.messages[2].content"),
        InvalidRequestError("has a field 'now'", where="prompt.chat_json"),
        InvalidRequestError("there is no message", where="prompt.chat.messages"),
    ]
    teacher.script = [teacher.fail(error) for error in refusals]
    async with serving(teacher) as address, AsyncTeacherClient(address, run="r") as client:
        with pytest.raises(ContractMismatchError, match="older than this client") as caught:
            await client.score(make_request(), timeout=LONG)
        assert (caught.value.where, caught.value.reason) == ("prompt", "OLDER_SERVER")
        for _ in range(2):
            with pytest.raises(ContractMismatchError, match="older than this client"):
                await client.score(make_request(), timeout=LONG)
        with pytest.raises(InvalidRequestError, match="no message"):
            await client.score(make_request(), timeout=LONG)


@pytest.mark.parametrize(
    ("text", "where", "word"),
    [
        ("", "", "Expecting value"),
        ("{", "", "Expecting"),
        ("[]", "", "no JSON object"),
        ("\ufeff{}", "", "BOM"),
        ('{"messages": []} {}', "", "Extra data"),
        ("[" * 10_000, "", "nested too deeply"),
        ("[" * 20_000, "", "more arrays than 16384"),
        ("[1" + 70_000 * ",1" + "]", "", "more values than 65536"),
        ('{"messages": [], "add_generation_prompt": true, "tools": []}', "", "'tools'"),
        ('{"messages": [], "\\ud800": 1}', "", "surrogate"),
        ('{"messages": []}', ".add_generation_prompt", "true or false"),
        ('{"messages": [], "add_generation_prompt": 1}', ".add_generation_prompt", "true or"),
        ('{"add_generation_prompt": true}', ".messages", "list"),
        ('{"messages": {}, "add_generation_prompt": true}', ".messages", "list"),
        (FORM % "1", ".messages[0]", "object"),
        (FORM % '{"role": "user"}', ".messages[0].content", "text"),
        (FORM % '{"role": null, "content": ""}', ".messages[0].role", "text"),
        (FORM % '{"role": "user", "content": [1]}', ".messages[0].content", "text"),
        (FORM % '{"role": "user", "content": "", "role": "user"}', "", "twice"),
        (ARGUMENTS % "[]", ".template_arguments", "object"),
        (ARGUMENTS % "null", ".template_arguments", "object"),
        (ARGUMENTS % '{"x": NaN}', "", "NaN"),
        (ARGUMENTS % '{"x": -Infinity}', "", "-Infinity"),
        (ARGUMENTS % '{"x": 1e400}', "", "double"),
        (ARGUMENTS % ('{"x": %s}' % ("1" * 5000)), "", "digits"),
        (ARGUMENTS % '{"x": {"y": 1, "y": 1}}', "", "twice"),
        (ARGUMENTS % '{"x": "\\udfff"}', "", "surrogate"),
        (ARGUMENTS % (DEEP % "1"), ".template_arguments" + ".x" * 24 + "[0]", "24 levels"),
    ],
    ids=range(28),
)
def test_conversations_as_json(text: str, where: str, word: str) -> None:
    message = codec.encode_request(make_request())
    message.prompt.chat_json = text
    with pytest.raises(InvalidRequestError, match=word) as caught:
        codec.decode_request(codec.serialize(message))
    assert caught.value.where == f"prompt.chat_json{where}"


def test_json_as_deep_as_allowed_passes() -> None:
    message = codec.encode_request(make_request())
    message.prompt.chat_json = ARGUMENTS % (DEEP % "")
    prompt = codec.decode_request(codec.serialize(message)).prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.template_arguments == json.loads(DEEP % "")


@pytest.mark.parametrize("name", ["role", "content"])
@pytest.mark.parametrize("value", ["x", 1.0])
def test_a_message_s_own_fields_given_twice(name: str, value: Any) -> None:
    prompt = ChatPrompt((ChatMessage("user", "x", {name: value}),))
    with pytest.raises(InvalidRequestError, match="given twice") as caught:
        codec.encode_request(make_request(prompt=prompt))
    assert caught.value.where == f"prompt.chat.messages[0].extra.{name}"
