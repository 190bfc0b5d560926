"""One conversation is one prompt: by the template itself, in the trainer, over both wires."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from teacher_proto import AsyncTeacherClient, codec
from teacher_proto.codec.structs import DEEPEST
from teacher_proto.types import ChatMessage, ChatPrompt, ScoreRequest
from teacher_proto.v1 import score_pb2
from transformers import AutoTokenizer

from student_trainer.data import load_prompts
from student_trainer.settings.data import DataSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.student.model import load_student
from tests.realign.real_tokenizers import CONFIG_SHA256, chat_template
from tests.server.conversations import ARGUMENTS, ROWS, TOOLS, USER, called
from tests.server.processes import serving
from tests.server.running import LONG, SCORE, Running, continuation, running
from tests.server.test_scoring import http_body
from tests.support.models import make_tiny_model

# Prints whatever it is given.
PRINTING = (
    "{% for m in messages %}{{ m | tojson }}{% for k in m %}<{{ k }}={{ m[k] }}>{% endfor %}"
    "{% endfor %}{% for value in [tools, zone, budget, enable_thinking] %}"
    "{{ value | default(none) | tojson(indent=1) }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_model(folder: Path, template: str) -> Path:
    make_tiny_model(folder, max_position_embeddings=16384, num_hidden_layers=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["printing", *CONFIG_SHA256])
async def test_every_way_to_the_template_gives_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = PRINTING if name == "printing" else chat_template(name)
    model = make_model(tmp_path / "model", template)
    async with running({"default": model}, monkeypatch) as teacher:
        await compare(teacher, model, tmp_path)


async def compare(teacher: Running, model: Path, tmp_path: Path) -> None:
    assert len(ROWS) == 50
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    student = load_student(StudentSettings(model=str(model), device="cpu"))
    settings = DataSettings.model_validate(
        {
            "train": path,
            "max_prompt_tokens": 16384,
            "columns": {"template_arguments": "template_arguments"},
        }
    )
    items = load_prompts(settings, student.tokenizer).train
    engine = teacher.engines["default"]
    for number, (row, item) in enumerate(zip(ROWS, items, strict=True)):
        text = student.tokenizer.apply_chat_template(
            row["messages"], add_generation_prompt=True, tokenize=False, **row["template_arguments"]
        )
        engine.jobs.clear()
        await teacher.score(teacher.request(request_id=str(number), prompt=item.source))
        answer = await teacher.http.post("/v1/score", json=http_body(prompt=row))
        assert answer.status_code == 200, answer.text
        grpc, http = (job.prompt_ids for job in engine.jobs)
        for ids in (item.token_ids, grpc, http):
            assert student.tokenizer.decode(ids).encode() == text.encode(), number
        assert np.array_equal(grpc, http)
        assert np.array_equal(grpc, item.token_ids)


async def test_processes_agree_on_what_older_and_new_clients_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model", PRINTING)
    messages = [
        ChatMessage(m["role"], m["content"], {k: m[k] for k in m if k not in ("role", "content")})
        for m in called(ARGUMENTS[0])
    ]
    prompt = ChatPrompt(tuple(messages), template_arguments={"tools": TOOLS[2]})
    rows: dict[str, list[Any]] = {"new": [], "older": []}
    for seed in ("1", "2", "3"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        folder = tmp_path / seed
        folder.mkdir()
        plain = ("--model", str(model), "--dtype", "float32", "--device", "cpu")
        with serving(folder, *plain, "--deterministic") as program:
            address = program.facts["grpc_address"]
            async with AsyncTeacherClient(address, run="run") as client:
                info = (await client.get_teacher(timeout=LONG)).teacher("default")
            request = ScoreRequest(
                request_id="one",
                run="run",
                teacher="default",
                tokenizer_hash=info.identity.tokenizer_hash,
                prompt=prompt,
                continuations=(continuation(4, 5, 6),),
                top_k=4,
                temperature=1.0,
            )
            message = codec.encode_request(request)
            async with grpc.aio.insecure_channel(address) as channel:
                score: Any = channel.unary_unary(SCORE)
                for name, one in (("new", message), ("older", in_structs(message, prompt))):
                    reply = codec.decode_reply(await score(codec.serialize(one), timeout=LONG))
                    rows[name].append(reply.results[0].rows.support.log_probs)
    for name, found in rows.items():
        assert all(np.array_equal(found[0], other) for other in found), name
    assert not np.array_equal(rows["new"][0], rows["older"][0])


def in_structs(message: Any, prompt: ChatPrompt) -> Any:
    """The request as a client from before ``chat_json`` sends it."""
    chat = score_pb2.ChatPrompt(add_generation_prompt=prompt.add_generation_prompt)
    chat.template_arguments.update(prompt.template_arguments)
    for turn in prompt.messages:
        chat.messages.add(role=turn.role, content=turn.content).extra.update(turn.extra)
    older = score_pb2.ScoreRequest()
    older.CopyFrom(message)
    older.prompt.chat.CopyFrom(chat)
    return older


async def test_http_refuses_what_is_nested_deeper_than_grpc_takes(server: Running) -> None:
    deep: Any = 1
    for _ in range(DEEPEST):
        deep = [deep]
    for prompt, where in (
        ({"messages": [USER | {"x": deep}]}, "prompt.messages[0].x"),
        ({"messages": [USER], "template_arguments": {"x": deep}}, "prompt.template_arguments.x"),
    ):
        answer = await server.http.post("/v1/score", json=http_body(prompt=prompt))
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert error["what"] == f"is nested deeper than {DEEPEST} levels"
        assert error["where"] == where + "[0]" * DEEPEST
