"""Rows with calls of tools, as people have them: the student and the teacher read the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from student_trainer.data import load_prompts
from student_trainer.settings.data import DataSettings
from tests.realign.real_tokenizers import chat_template
from tests.server.running import LONG, running
from tests.support.models import make_tiny_model

USER = {"role": "user", "content": "What is the weather in Zürich?"}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "asks", "parameters": {"type": "object"}},
}
ARGUMENTS = {"city": "Zürich", "at": {"lon": 8, "lat": 47.0}}


def turn(arguments: Any, **content: Any) -> dict[str, Any]:
    call = {"name": "weather", "arguments": arguments}
    calls = [{"type": "function", "id": "abcdefghi", "function": call}]
    return {"role": "assistant", **content, "tool_calls": calls}


TURNS = [
    turn(arguments, **content)
    for arguments in (ARGUMENTS, json.dumps(ARGUMENTS, ensure_ascii=False), "{}", {})
    for content in ({}, {"content": None}, {"content": ""})
]
RESULT = {"role": "tool", "content": '{"rain": true}', "tool_call_id": "abcdefghi"}
ROWS = [
    {"messages": [USER, one, RESULT], "tools": tools}
    for one in TURNS
    for tools in (None, json.dumps([TOOL]))
]
# Templates that read calls in different forms, and one that tells null from absent.
TEMPLATES = ("deepseek_v3", "qwen2_5", "llama3_2", "prints")
PRINTS = "{% for m in messages %}{{ m | tojson }}{% endfor %}{{ tools | tojson }}"


def template_of(name: str) -> str:
    return PRINTS if name == "prints" else chat_template(name)


async def test_both_sides_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {}
    for name in TEMPLATES:
        make_tiny_model(tmp_path / name, num_hidden_layers=1, max_position_embeddings=4096)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        tokenizer.chat_template = template_of(name)
        tokenizer.save_pretrained(tmp_path / name)
        models[name] = tmp_path / name
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    settings = DataSettings.model_validate(
        {"train": path, "columns": {"tools": "tools"}, "max_prompt_tokens": 4096}
    )
    async with running(models, monkeypatch) as server:
        for name, model in models.items():
            tokenizer = AutoTokenizer.from_pretrained(model)
            items = load_prompts(settings, tokenizer).train
            sources = [item.source for item in items]
            grpc = await server.client.render(sources, teacher=name, timeout=LONG)
            raw = [
                {
                    "messages": row["messages"],
                    "template_arguments": (
                        {} if row["tools"] is None else {"tools": json.loads(row["tools"])}
                    ),
                }
                for row in ROWS
            ]
            body = {"teacher": name, "prompts": raw}
            answer = await server.http.post("/v1/render", json=body)
            assert answer.status_code == 200, answer.text
            for item, one, other in zip(items, grpc, answer.json()["prompts"], strict=True):
                assert one.refusal is None, (name, item.source)
                assert np.array_equal(one.token_ids, item.token_ids), (name, item.source)
                if name != "llama3_2":  # it prints the date
                    assert other["token_ids"] == item.token_ids.tolist(), (name, item.source)
            if name != "prints":
                read = [tokenizer.decode(item.token_ids) for item in items]
                assert all("Zürich" in text and "weather" in text for text in read)
                assert json.dumps(ARGUMENTS, ensure_ascii=False) in read[0]
                assert len({read[n] for n in range(0, 12, 2)}) == 1, "one call, whatever its form"
