"""Fifty conversations and eight published chat templates: the student, gRPC and HTTP render
the same bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.types import ChatPrompt
from transformers import AutoTokenizer

from student_trainer.data import load_prompts
from student_trainer.data.rendering import PromptReader
from student_trainer.settings.data import DataSettings
from tests.realign.real_tokenizers import PLAIN_SHA256, TEMPLATES_SHA256, chat_template
from tests.server.running import LONG, running
from tests.support.models import END_OF_TEXT, make_tiny_model

NOW = "2026-11-29T05:53:12"
DATE = "29 Nov 2026"
TEXTS = (
    "What is the weather in São Paulo? 天気は?",
    'naïve \U0001f324\ufe0f \U0001f469\u200d\U0001f680 — "quoted" <b>&amp;</b>',
    "שלום עולם, مرحبا, e\u0301 \u00e9 \ufb01",
    "line one\n\tline two\r\n   \u00a0\u2028end",
    "{{ not_a_template }} {% if x %} \\n \\u00e9 $5",
    "",
)
NUMBERS = (
    0,
    -1,
    1.0,
    -0.0,
    0.1,
    1e-7,
    1e22,
    5e-324,
    2**53 + 1,
    -(2**63),
    10**30,
    3.141592653589793,
)


def value(draw: random.Random, depth: int) -> Any:
    """A value of JSON, nested at most ``depth`` levels."""
    kind = draw.randrange(7 if depth else 5)
    if kind < 3:
        return draw.choice(NUMBERS)
    if kind == 3:
        return draw.choice(TEXTS)
    if kind == 4:
        return draw.choice([True, False, None])
    if kind == 5:
        return [value(draw, depth - 1) for _ in range(draw.randrange(4))]
    return arguments(draw, depth - 1)


def arguments(draw: random.Random, depth: int) -> dict[str, Any]:
    names = ["zeta", "alpha", "日付", "lon lat", "id", "a.b", "10", "9"]
    return {name: value(draw, depth) for name in draw.sample(names, draw.randrange(1, 5))}


def conversation(number: int, *, calls: bool) -> dict[str, Any]:
    """A row: messages in turn, and the template's arguments.

    Args:
        calls: with calls of tools and their results; else in the place of these texts, for
            templates that have no form for them.
    """
    draw = random.Random(number)
    messages: list[dict[str, Any]] = []
    if draw.random() < 0.5:
        messages.append({"role": "system", "content": draw.choice(TEXTS[:-1])})
    for turn in range(draw.randrange(3)):
        call = {"name": draw.choice(["weather", "时间"]), "arguments": arguments(draw, 3)}
        result = json.dumps(value(draw, 2), ensure_ascii=draw.random() < 0.5)
        one = f"{number:04}call{turn}"
        asked = {"type": "function", "id": one, "function": call}
        said = json.dumps(call, ensure_ascii=False)
        answered = {"role": "tool", "name": call["name"], "tool_call_id": one}
        messages += [
            {"role": "user", "content": draw.choice(TEXTS)},
            {"role": "assistant", "content": "", "tool_calls": [asked]}
            if calls
            else {"role": "assistant", "content": said},
            {**(answered if calls else {"role": "user"}), "content": result},
            {"role": "assistant", "content": draw.choice(TEXTS)},
        ]
    messages.append({"role": "user", "content": draw.choice(TEXTS[:-1])})
    given: dict[str, Any] = {"enable_thinking": False} if draw.random() < 0.3 else {}
    if draw.random() < 0.7:
        given["tools"] = [tool(draw, name) for name in ("weather", "时间")]
    return {"messages": messages, "template_arguments": given}


def tool(draw: random.Random, name: str) -> dict[str, Any]:
    properties = {
        key: {"type": "number", "description": draw.choice(TEXTS), "default": value(draw, 2)}
        for key in draw.sample(["z", "b", "a", "city", "日付"], 3)
    }
    parameters = {"type": "object", "properties": properties, "required": ["z"], "x-min": 1.0}
    function = {"name": name, "description": "It asks.", "parameters": parameters}
    return {"type": "function", "function": function}


def make_teacher(folder: Path, template: str) -> Path:
    make_tiny_model(folder, max_position_embeddings=16384, num_hidden_layers=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = END_OF_TEXT
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


async def test_eight_templates_render_fifty_conversations_to_the_same_bytes_on_every_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(TEMPLATES_SHA256) == 8
    folders = {
        name: make_teacher(tmp_path / name, chat_template(name)) for name in TEMPLATES_SHA256
    }
    different = set()
    async with running(folders, monkeypatch) as teacher:
        for name, folder in folders.items():
            rows = [conversation(n, calls=name not in PLAIN_SHA256) for n in range(50)]
            tokenizer = AutoTokenizer.from_pretrained(folder)
            texts = student_texts(tmp_path / "rows.jsonl", rows, tokenizer)
            over_grpc = await teacher.client.render(
                [source for source, _ in texts], teacher=name, timeout=LONG
            )
            body = {"teacher": name, "prompts": [row | {"now": NOW} for row in rows]}
            answer = await teacher.http.post("/v1/render", json=body)
            over_http = answer.json()["prompts"]
            for row, (_, own), grpc, http in zip(rows, texts, over_grpc, over_http, strict=True):
                assert grpc.text is not None, grpc.refusal
                assert own.encode() == grpc.text.encode() == http["text"].encode()
                if not any("tool_calls" in m for m in row["messages"]):
                    assert own == printed(tokenizer, row)
                different.add(own)
    assert len(different) > 300


def printed(tokenizer: Any, row: dict[str, Any]) -> str:
    """What the template prints, by transformers alone. Calls of tools may take another form."""
    return str(
        tokenizer.apply_chat_template(
            row["messages"],
            add_generation_prompt=True,
            tokenize=False,
            date_string=DATE,
            **row["template_arguments"],
        )
    )


def student_texts(path: Path, rows: list[Any], tokenizer: Any) -> list[tuple[ChatPrompt, str]]:
    """The prompts and what the student's template prints of them, from a file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = DataSettings.model_validate(
        {
            "train": str(path),
            "now": NOW,
            "max_prompt_tokens": 16384,
            "columns": {"template_arguments": "template_arguments"},
        }
    )
    reader = PromptReader(tokenizer, settings, NOW)
    found = []
    for item in load_prompts(settings, tokenizer).train:
        assert isinstance(item.source, ChatPrompt)
        text = reader.render(item.source, item.place)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == item.token_ids.tolist()
        found.append((item.source, text))
    return found
