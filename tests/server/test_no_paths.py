"""No reply and no refusal names a path of the server's machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from teacher_proto.errors import LsmError
from teacher_proto.models.folder import public_name

from tests.server.running import LONG, ids, running

ROUTES = (
    "/livez",
    "/readyz",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/v1/teacher",
    "/v1/teacher?teacher=nobody",
    "/nowhere",
)


async def test_a_caller_sees_no_path_of_the_server(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "registered"
    tokenizers = {"folder": str(folder)}
    models = {"default": tiny_model_dir}
    async with running(models, monkeypatch, tokenizers=tokenizers) as server:
        seen = [(await server.http.get(route)).text for route in ROUTES]
        for body in ("{", '{"model":{}}', (tiny_model_dir / "tokenizer.json").read_text()):
            seen.append((await server.http.post("/v1/tokenizers", content=body)).text)
        for wrong in (
            {"teacher": "nobody"},
            {"tokenizer_hash": "v2-" + "0" * 64},
            {"expected_identity": "another"},
            {"top_k": 10**9},
        ):
            with pytest.raises(LsmError) as refused:
                await server.score(server.request(**wrong))
            seen.append(str(refused.value))
        info = await server.client.get_teacher(timeout=LONG)
        await server.score(server.request(student_vocabulary_size=len(ids(1)) + 8))
        seen.append(repr(info))
        assert info.teacher("default").model == tiny_model_dir.name
    for place in (tiny_model_dir, tmp_path, Path.home() / ".cache", Path(__file__).parents[2]):
        assert not [text for text in seen if f"{place}/" in text or str(place) in text.split('"')]


@pytest.mark.parametrize(
    ("configured", "shown"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("gpt2", "gpt2"),
        ("/srv/models/math-7b", "math-7b"),
        ("/srv/models/math-7b/", "math-7b"),
        ("~/math-7b", "math-7b"),
        ("../private/models/math-7b", "math-7b"),
        ("/cache/hub/models--Qwen--Qwen3-8B/snapshots/0a1b2c", "Qwen/Qwen3-8B"),
        (".", Path.cwd().name),
    ],
)
def test_what_others_may_read_of_a_models_name(configured: str, shown: str) -> None:
    assert public_name(configured) == shown
