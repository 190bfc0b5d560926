"""Render: how a teacher reads prompts, over both wires, bounded, one refusal a row."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from teacher_proto import AsyncTeacherClient, TeacherClient, codec
from teacher_proto.errors import InvalidRequestError, UnknownTeacherError
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    Prompt,
    RenderedPrompt,
    RenderRequest,
    SpecialTokens,
    TextPrompt,
    TokenPrompt,
)
from teacher_proto.v1 import render_pb2, score_pb2
from tokenizers import processors
from transformers import AutoTokenizer

from teacher_server.grpc.form import MAX_MESSAGES
from teacher_server.lanes import LIGHT_BYTES, Lanes
from teacher_server.queue.budget import Owner
from teacher_server.scoring.render import RawPrompt, ReceivedRender, Renderer, slices
from teacher_server.teachers.tokenizer import TeacherTokenizer, load_tokenizer
from tests.server.running import LONG, SCORE, Running, eventually, running
from tests.server.test_scoring import http_body
from tests.support.models import END_OF_TEXT, IM_END, make_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

RENDER = SCORE.removesuffix("Score") + "Render"
NOW = "2026-11-29T05:53:12"
MAX_LENGTH = 512
# Prints its arguments and the date, and refuses what many published templates refuse.
TEMPLATE = (
    "{% if strftime_now is defined %}[{{ strftime_now('%d %b %Y %H:%M:%S') }}]{% endif %}"
    "{% if not mood is defined %}{% set mood = 'calm' %}{% endif %}<{{ mood }}>"
    "{% for m in messages %}{% if m['role'] not in ['user', 'assistant', 'tool'] %}"
    "{{ raise_exception('only user and assistant') }}{% endif %}"
    "{{ m | tojson }}{{ eos_token }}{% endfor %}"
    "{{ tools | tojson }}{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_model(folder: Path, template: Any, single: str = "", **tokens: str) -> Path:
    """A tiny model whose tokenizer has a post-processor."""
    make_tiny_model(folder, num_hidden_layers=1, max_position_embeddings=MAX_LENGTH)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    for name, text in tokens.items():
        setattr(tokenizer, name, text)
    if single:
        specials = [(t, tokenizer.convert_tokens_to_ids(t)) for t in (END_OF_TEXT, IM_END)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} $B:1", special_tokens=specials
        )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "printing"
    return make_model(folder, TEMPLATE, f"{END_OF_TEXT} $A {IM_END}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def teacher(model: Path) -> AsyncIterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        async with running({"default": model}, patch) as found:
            yield found


def chat(content: str, role: str = "user", **fields: Any) -> ChatPrompt:
    return ChatPrompt((ChatMessage(role, content),), **fields)


def as_json(prompt: Prompt) -> dict[str, Any]:
    """The prompt as HTTP has it."""
    match prompt:
        case TextPrompt(text, special_tokens):
            return {"text": text, "special_tokens": special_tokens.name.lower()}
        case ChatPrompt(messages, add_generation_prompt, template_arguments, now):
            rest = {"now": now} if now else {}
            return rest | {
                "messages": [m.as_read() for m in messages],
                "add_generation_prompt": add_generation_prompt,
                "template_arguments": dict(template_arguments),
            }
        case _:
            return {"token_ids": prompt.token_ids.tolist()}


async def over_http(teacher: Running, prompts: list[Any], **body: Any) -> list[dict[str, Any]]:
    answer = await teacher.http.post("/v1/render", json={"prompts": prompts} | body)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["prompts"]
    return found


PROMPTS: list[Prompt] = [
    TextPrompt("Once upon a time"),
    TextPrompt("Once upon a time", SpecialTokens.ADD),
    TextPrompt(f"{END_OF_TEXT}Once", SpecialTokens.ADD),
    chat("Zürich, 東京 \U0001f324", now=NOW),
    chat("hi", add_generation_prompt=False, now=NOW),
    chat("x", template_arguments={"mood": "b\na", "tools": [{"z": 1.0, "a": 2**70}]}, now=NOW),
    ChatPrompt(
        (
            ChatMessage("user", "?"),
            ChatMessage("assistant", "", {"tool_calls": [{"b": 1, "a": [None, True, 1e-7]}]}),
            ChatMessage("tool", "{}", {"name": "weather"}),
        ),
        now=NOW,
    ),
]


async def test_what_is_rendered_is_what_is_scored(teacher: Running, model: Path) -> None:
    local = AutoTokenizer.from_pretrained(model)
    found = await teacher.client.render(PROMPTS, teacher="default", timeout=LONG)
    answers = await over_http(teacher, [as_json(prompt) for prompt in PROMPTS])
    jobs = teacher.engines["default"].jobs
    for number, (prompt, one, answer) in enumerate(zip(PROMPTS, found, answers, strict=True)):
        assert one.refusal is None
        assert one.token_ids is not None
        assert answer == {
            "token_count": one.token_count,
            "text": one.text,
            "token_ids": one.token_ids.tolist(),
        }
        jobs.clear()
        await teacher.score(teacher.request(request_id=f"same-{number}", prompt=prompt))
        body = http_body(prompt=as_json(prompt))
        assert (await teacher.http.post("/v1/score", json=body)).status_code == 200
        assert len(jobs) == 2
        for job in jobs:
            assert np.array_equal(job.prompt_ids, one.token_ids)
        if isinstance(prompt, ChatPrompt):
            assert one.text is not None
            assert one.text.startswith("[29 Nov 2026 05:53:12]")
            assert local.decode(one.token_ids) == one.text


async def test_what_is_not_asked_for_is_left_out(teacher: Running) -> None:
    for text, token_ids in ((True, False), (False, True), (False, False)):
        (one,) = await teacher.client.render(
            PROMPTS[:1], teacher="default", timeout=LONG, text=text, token_ids=token_ids
        )
        (answer,) = await over_http(teacher, [as_json(PROMPTS[0])], text=text, token_ids=token_ids)
        assert one.token_count == answer["token_count"] > 0
        assert (one.text is not None, one.token_ids is not None) == (text, token_ids)
        assert ("text" in answer, "token_ids" in answer) == (text, token_ids)


async def test_the_blocking_client_renders(teacher: Running) -> None:
    def ask() -> tuple[RenderedPrompt, ...]:
        with TeacherClient(teacher.server.grpc_address, run="run") as client:
            return client.render(PROMPTS, teacher="default", timeout=LONG)

    found = await asyncio.to_thread(ask)
    assert [one.text for one in found] == [
        one.text for one in await teacher.client.render(PROMPTS, teacher="default", timeout=LONG)
    ]


LONG_TEXT = "The teacher reads what the student wrote. " * 200
BAD: dict[str, tuple[Prompt, str, str]] = {
    "refused by the template": (chat("x", "system"), "INVALID_REQUEST", "prompt.chat.messages"),
    "empty": (TextPrompt(""), "INVALID_REQUEST", "prompt.text"),
    "no message": (ChatPrompt(()), "INVALID_REQUEST", "prompt.chat.messages"),
    "token ids": (
        TokenPrompt(np.array([1], np.int32)),
        "INVALID_REQUEST",
        "prompt.token_ids",
    ),
    "reserved": (
        chat("x", template_arguments={"tokenize": True}),
        "INVALID_REQUEST",
        "prompt.chat.template_arguments",
    ),
    **{
        f"reserved, {name}": (
            chat("x", template_arguments={name: value}),
            "INVALID_REQUEST",
            "prompt.chat.template_arguments",
        )
        for name, value in {
            **{key: [] for key in ("messages", "conversations")},
            **dict.fromkeys(("strftime_now", "raise_exception", "self"), "x"),
            "bos_token": ["x"],
        }.items()
    },
    "no date": (chat("x", now="yesterday"), "INVALID_REQUEST", "prompt.chat.now"),
    "no JSON": (
        chat("x", template_arguments={"x": float("nan")}),
        "INVALID_REQUEST",
        "prompt.chat.template_arguments.x",
    ),
    "no text": (TextPrompt("\ud800"), "INVALID_REQUEST", "prompt.text"),
    "too long": (TextPrompt(LONG_TEXT), "PROMPT_TOO_LONG", "prompt.text"),
    "too long by its bytes": (TextPrompt("a" * 2**20), "PROMPT_TOO_LONG", "prompt.text"),
    "too much text": (TextPrompt("a" * 2**23), "LIMIT_EXCEEDED", "prompt.text"),
    "too large for a request": (TextPrompt("a" * 2**24), "MESSAGE_TOO_LARGE", "prompt"),
}


async def test_a_prompt_that_cannot_be_read_is_one_refusal(teacher: Running) -> None:
    """Between two good ones each, of which none is lost."""
    prompts: list[Prompt] = [TextPrompt("first")]
    for number, (prompt, _, _) in enumerate(BAD.values()):
        prompts += [prompt, TextPrompt(f"good {number}")]
    found = await teacher.client.render(prompts, teacher="default", timeout=LONG)
    assert [one.text for one in found[::2]] == [p.text for p in prompts[::2]]  # type: ignore[union-attr]
    for (name, (prompt, reason, where)), one in zip(BAD.items(), found[1::2], strict=True):
        assert one.refusal is not None, name
        assert (one.text, one.token_ids) == (None, None)
        # The client says what it does not send in its own words for the same field.
        assert (one.refusal.reason, one.refusal.where) == (reason, where), name
        assert one.refusal.what, name
        assert one.too_long == name.startswith("too long"), name
        if name != "token ids":
            with pytest.raises(InvalidRequestError) as raised:
                await teacher.score(teacher.request(request_id=name, prompt=prompt))
            if reason not in ("PROMPT_TOO_LONG", "MESSAGE_TOO_LARGE"):
                assert raised.value.what == one.refusal.what, name


async def test_a_refusal_quotes_a_bounded_part_of_a_conversation(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "{{ raise_exception(messages[0]['content']) }}")
    asked = ChatPrompt((ChatMessage("user", "b" + "a" * 100_000),))
    with pytest.raises(InvalidRequestError, match="refuses the conversation: baaa") as found:
        load_tokenizer(str(model)).render(asked, "prompt.chat")
    assert len(found.value.what) < 1000
    assert "(99501 more characters)" in found.value.what


async def test_a_prompt_that_is_too_long_says_how_long_and_the_limit(teacher: Running) -> None:
    long_text = LONG_TEXT * 20
    prompts = [TextPrompt(long_text), TextPrompt(LONG_TEXT[: MAX_LENGTH // 2])]
    long, fits = await teacher.client.render(prompts, teacher="default", timeout=LONG)
    tokens = teacher.server.service.teachers.get("default").tokenizer.encode(long_text)
    assert long.token_count == len(tokens) > MAX_LENGTH
    assert long.too_long
    assert long.refusal is not None
    assert f"the text is {len(tokens)} tokens; the limit is {MAX_LENGTH}" in long.refusal.what
    assert not fits.too_long
    assert fits.token_count is not None
    assert fits.token_count <= MAX_LENGTH
    answers = await over_http(teacher, [as_json(prompt) for prompt in prompts])
    assert [one["token_count"] for one in answers] == [long.token_count, fits.token_count]
    assert answers[0]["refusal"] == vars(long.refusal)


async def test_over_http_whatever_is_no_prompt_is_one_refusal(teacher: Running) -> None:
    wrong: list[tuple[Any, str]] = [
        (None, "prompt"),
        ("hello", "prompt"),
        ({}, "prompt"),
        ({"text": 1}, "prompt.text"),
        ({"text": "x", "now": NOW}, "prompt.now"),
        ({"text": "x", "unknown": 1}, "prompt.unknown"),
        ({"text": "x", "special_tokens": "all"}, "prompt.special_tokens"),
        (
            {"messages": [{"role": "user", "content": "x"}], "special_tokens": "add"},
            "prompt.special_tokens",
        ),
        ({"messages": [{"content": "x"}]}, "prompt.messages[0].role"),
        ({"messages": [{"role": "user", "content": "x"}], "now": ""}, "prompt.now"),
    ]
    good = {"text": "good"}
    prompts = [good, *(prompt for prompt, _ in wrong), good]
    answers = await over_http(teacher, prompts)
    assert [answer.get("text") for answer in (answers[0], answers[-1])] == ["good", "good"]
    for (prompt, where), answer in zip(wrong, answers[1:-1], strict=True):
        assert answer["refusal"]["where"] == where, prompt
        assert set(answer) == {"token_count", "refusal"}


async def test_a_failure_of_the_server_is_the_refusal_of_its_prompt(
    teacher: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = TeacherTokenizer.encode

    class Panic(BaseException):
        """As native code panics."""

    def failing(self: TeacherTokenizer, text: str, check: Any = None) -> Any:
        if text == "bad":
            raise Panic("its text may quote a prompt")
        return encode(self, text, check)

    monkeypatch.setattr(TeacherTokenizer, "encode", failing)
    prompts = [TextPrompt("good"), TextPrompt("bad"), TextPrompt("fine")]
    found = await teacher.client.render(prompts, teacher="default", timeout=LONG)
    assert [one.text for one in found] == ["good", None, "fine"]
    assert found[1].refusal is not None
    assert found[1].refusal.reason == "INTERNAL"
    assert "quote" not in found[1].refusal.what


async def test_a_request_to_render_is_bounded(teacher: Running) -> None:
    most = teacher.info.limits.max_render_prompts
    assert most is not None
    one = codec.encode_render_prompt(TextPrompt("x"))
    request = RenderRequest("run", "default")
    plain = score_pb2.Prompt()
    for _ in range(MAX_MESSAGES // 2 + 1):
        plain.chat.messages.add(role="user", content="x")
    cases = (
        (most + 1, one, "LIMIT_EXCEEDED", "prompts"),
        (0, one, "INVALID_REQUEST", "prompts"),
        (2, plain, "LIMIT_EXCEEDED", "prompt"),
    )
    async with grpc.aio.insecure_channel(teacher.server.grpc_address) as channel:
        method: Any = channel.unary_unary(RENDER)
        for count, prompt, reason, where in cases:
            body = codec.serialize(codec.encode_render(request, [prompt] * count))
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await method(body, timeout=LONG)
            assert reason in str(raised.value.trailing_metadata()), count
            assert where in str(raised.value.trailing_metadata())
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await method(b"\xff\xff", timeout=LONG)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    answer = await teacher.http.post("/v1/render", json={"prompts": [{"text": "x"}] * (most + 1)})
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"]) == (400, "LIMIT_EXCEEDED")
    assert "limits.max_render_prompts" in error["what"]
    for body in ({"prompts": []}, {}, {"prompts": 1}, {"prompts": [], "x": 1}, []):
        answer = await teacher.http.post("/v1/render", json=body)
        assert answer.status_code == 400
    with pytest.raises(UnknownTeacherError):
        await teacher.client.render([TextPrompt("x")], teacher="nobody", timeout=LONG)


async def test_many_prompts_are_sent_in_few_requests_and_come_back_in_order(
    teacher: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    unary = AsyncTeacherClient._unary

    async def counting(self: Any, name: str, body: bytes, *rest: Any, **named: Any) -> bytes:
        if name == "Render":
            sent.append(len(render_pb2.RenderRequest.FromString(body).prompts))
        return await unary(self, name, body, *rest, **named)

    monkeypatch.setattr(AsyncTeacherClient, "_unary", counting)
    prompts = [chat(f"question {number}") for number in range(3000)]
    async with AsyncTeacherClient(teacher.server.grpc_address, run="run") as client:
        found = await client.render(
            prompts, teacher="default", timeout=LONG, text=True, token_ids=False
        )
        assert await client.render([], teacher="default", timeout=LONG) == ()
    assert len(found) == len(prompts)
    for number, one in enumerate(found):
        assert one.text is not None
        assert f'"question {number}"' in one.text
    assert sum(sent) == len(prompts)
    assert len(sent) == -(-len(prompts) // 1024)


async def test_no_prompt_is_rendered_twice_where_a_reply_holds_a_few(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[str] = []
    render = TeacherTokenizer.render

    def counting(self: TeacherTokenizer, prompt: ChatPrompt, where: str) -> str:
        rendered.append(str(prompt.messages[0].content))
        return render(self, prompt, where)

    monkeypatch.setattr(TeacherTokenizer, "render", counting)
    prompts = [chat(f"{number} " + "x" * number) for number in range(60)]
    limits = {"max_reply_bytes": 3_000, "max_text_bytes": 4_000}
    async with running({"default": model}, monkeypatch, limits=limits) as server:
        found = await server.client.render(prompts, teacher="default", timeout=LONG)
        large = TextPrompt(LONG_TEXT[:1150])
        refused, small = await server.client.render(
            [large, TextPrompt("small")], teacher="default", timeout=LONG
        )
        (bare,) = await server.client.render(
            [large], teacher="default", timeout=LONG, text=False, token_ids=False
        )
    assert all(one.refusal is None for one in found)
    assert rendered == [str(prompt.messages[0].content) for prompt in prompts]
    assert refused.refusal is not None
    assert "limits.max_reply_bytes" in refused.refusal.what
    assert (refused.token_count, small.text) == (bare.token_count, "small")


async def test_others_get_their_turn_between_the_slices_of_a_large_request(
    teacher: Running,
) -> None:
    loop = asyncio.get_running_loop()
    lanes = Lanes()
    order: list[str] = []
    waiting: list[asyncio.Future[None]] = []

    def other() -> None:
        order.append("other")

    def ask() -> None:
        waiting.append(asyncio.ensure_future(lanes.run(other, size=LIGHT_BYTES + 1, owner="run")))
        asked.set()

    asked = asyncio.Event()

    def encode(prompt: RenderedPrompt) -> bytes:
        if not order:
            asyncio.run_coroutine_threadsafe(_call(ask), loop).result(LONG)
        order.append("slice")
        return b"x"

    size = LIGHT_BYTES // 2 + 1  # two of them are two slices
    raw = [RawPrompt(size, lambda: TextPrompt("x")) for _ in range(5)]
    assert [len(some) for some in slices(raw)] == [1] * 5
    found = teacher.server.service.teachers.get("default")
    renderer = Renderer(RenderRequest("run", "default"), found, teacher.info.limits, encode)
    received = ReceivedRender(RenderRequest("run", "default"), raw, LONG, 5 * size)
    await renderer.run(received, lanes, lambda size: True)
    await asyncio.gather(*waiting)
    assert order == ["slice", "other", "slice", "slice", "slice", "slice"]


async def _call(work: Any) -> None:
    work()


async def test_slices_hold_every_prompt_once() -> None:
    sizes = [1, LIGHT_BYTES, 1, LIGHT_BYTES * 3, 5, LIGHT_BYTES - 5, 1]
    raw = [RawPrompt(size, lambda: TextPrompt("x")) for size in sizes]
    found = list(slices(raw))
    assert [one for some in found for one in some] == raw
    assert [[one.size for one in some] for some in found] == [
        [1],
        [LIGHT_BYTES],
        [1],
        [LIGHT_BYTES * 3],
        [5, LIGHT_BYTES - 5],
        [1],
    ]


async def test_without_a_clock_the_server_s_own_is_printed(teacher: Running) -> None:
    before = datetime.now().replace(microsecond=0)
    (one,) = await teacher.client.render([chat("x")], teacher="default", timeout=LONG)
    assert one.text is not None
    printed = datetime.strptime(one.text[1:21], "%d %b %Y %H:%M:%S")
    assert before <= printed <= datetime.now()


async def test_each_conversation_is_rendered_at_its_own_clock(teacher: Running) -> None:
    """Also those that are rendered at the same time, and after one another in a thread."""
    clocks = [f"20{year:02d}-0{month}-11T0{month}:00:59" for year in range(40) for month in (1, 7)]
    prompts = [chat("x", now=now) for now in clocks]
    halves = await asyncio.gather(
        *(
            teacher.client.render(some, teacher="default", timeout=LONG)
            for some in (prompts[::2], prompts[1::2])
        )
    )
    for found, some in zip(halves, (clocks[::2], clocks[1::2]), strict=True):
        for one, now in zip(found, some, strict=True):
            assert one.text is not None
            printed = datetime.strptime(one.text[1:21], "%d %b %Y %H:%M:%S")
            assert printed == datetime.fromisoformat(now)


@pytest.mark.parametrize(
    "now",
    [
        "2026-11-29",
        "2026-11-29T05:53",
        "2026-11-29 05:53:12",
        "2026-11-29T05:53:12Z",
        "2026-11-29T05:53:12+01:00",
        "2026-11-29T05:53:12.5",
        "2026-02-30T05:53:12",
        "2026-11-29T25:00:00",
        "20261129T055312",
        "2026-11-29T05:53:12\n",
        "٢٠٢٦-11-29T05:53:12",
        12,
        None,
        {},
    ],
)
async def test_a_clock_is_a_date_and_a_time_or_refused(teacher: Running, now: Any) -> None:
    document = {
        "messages": [{"role": "user", "content": "x"}],
        "add_generation_prompt": True,
        "now": now,
    }
    message = score_pb2.Prompt(chat_json=json.dumps(document))
    with pytest.raises(InvalidRequestError) as raised:
        codec.request.decode_prompt(message, "prompt")
    assert raised.value.where == "prompt.chat_json.now"
    if isinstance(now, str):
        with pytest.raises(InvalidRequestError) as raised:
            codec.encode_request(teacher.request(prompt=chat("x", now=now)))
        assert raised.value.where == "prompt.chat.now"
        plain = score_pb2.Prompt(chat=score_pb2.ChatPrompt(now=now))
        with pytest.raises(InvalidRequestError) as raised:
            codec.request.decode_prompt(plain, "prompt")
        assert raised.value.where == "prompt.chat.now"
    if now is not None:
        (answer,) = await over_http(teacher, [document])
        assert answer["refusal"]["where"] == "prompt.now"


async def test_the_message_form_carries_a_clock_too(teacher: Running) -> None:
    message = codec.encode_request(teacher.request(prompt=chat("x"), request_id="clock"))
    message.prompt.chat.now = NOW
    teacher.engines["default"].jobs.clear()
    await teacher.raw_score(codec.serialize(message))
    (one,) = await teacher.client.render([chat("x", now=NOW)], teacher="default", timeout=LONG)
    (job,) = teacher.engines["default"].jobs
    assert np.array_equal(job.prompt_ids, one.token_ids)


async def test_rendering_leaves_the_queue_and_the_quota_alone(teacher: Running) -> None:
    jobs = teacher.engines["default"].jobs
    jobs.clear()
    await teacher.client.render([TextPrompt("x")] * 100, teacher="default", timeout=LONG)
    assert jobs == []


@pytest.mark.parametrize("wire", ["grpc", "http"])
async def test_nothing_is_rendered_before_there_is_room_for_the_reply(
    teacher: Running, monkeypatch: pytest.MonkeyPatch, wire: str
) -> None:
    budget = teacher.server.service.budget
    encoded: list[str] = []
    encode = TeacherTokenizer.encode

    def watched(self: TeacherTokenizer, text: str, check: Any = None) -> Any:
        encoded.append(text)
        return encode(self, text, check)

    monkeypatch.setattr(TeacherTokenizer, "encode", watched)
    prompt = TextPrompt("the cat sat")
    async with budget.hold(Owner("another"), 1) as hold:
        hold.settle(512 << 20)  # all there is; a small body finds room beside it
        if wire == "grpc":
            asked: Any = teacher.client.render([prompt], teacher="default", timeout=LONG)
        else:
            asked = over_http(teacher, [as_json(prompt)])
        asking = asyncio.create_task(asked)
        await eventually(lambda: any(claim.entered for claim in budget._waiting))
        assert encoded == []
    assert len(await asking) == 1
    assert encoded == ["the cat sat"]


@pytest.mark.parametrize("wire", ["grpc", "http"])
async def test_what_is_rendered_is_charged_however_much_a_template_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wire: str
) -> None:
    folder = make_tiny_model(tmp_path, num_hidden_layers=1, max_position_embeddings=8192)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ 'the cat ' * 256 }}"
    tokenizer.save_pretrained(folder)
    uncharged: list[int] = []
    add = Renderer._add
    prompts = [chat("", template_arguments={"a": "b" * 150})] * 1000
    async with running({"default": folder}, monkeypatch) as server:
        queue = server.server.service.budget.queue

        def watched(self: Renderer, some: Any) -> bool:
            uncharged.append(sum(map(len, self.parts)) - queue.held)
            return add(self, some)

        monkeypatch.setattr(Renderer, "_add", watched)
        if wire == "grpc":
            found: Any = await server.client.render(
                prompts, teacher="default", timeout=LONG, token_ids=False
            )
        else:
            body = [as_json(one) for one in prompts]
            found = await over_http(server, body, token_ids=False)
        assert len(found) == 1000
        assert queue.held == 0
    assert len(uncharged) > 3
    assert max(uncharged) < 0


async def test_without_room_for_more_a_reply_ends_early(teacher: Running) -> None:
    raw = [RawPrompt(LIGHT_BYTES, lambda: TextPrompt("x")) for _ in range(5)]
    found = teacher.server.service.teachers.get("default")
    request = RenderRequest("run", "default")
    renderer = Renderer(request, found, teacher.info.limits, lambda prompt: bytes(2048))
    asked: list[int] = []

    def grow(size: int) -> bool:
        asked.append(size)
        return len(asked) < 3

    await renderer.run(ReceivedRender(request, raw, LONG, 5), Lanes(), grow)
    assert asked == [2 * 2048, 3 * 2048, 4 * 2048]
    assert len(renderer.parts) == 3
