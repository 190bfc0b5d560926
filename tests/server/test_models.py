"""Which models a server takes: tokens beyond the logits, and which of several cannot be loaded."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto.errors import ConfigurationError, InvalidRequestError
from teacher_proto.models.weights import weight_files, weights_digest
from teacher_proto.types import Continuation, Segment, Status, TextPrompt, TokenPrompt
from transformers import AutoTokenizer

from teacher_server.engines.adapter import BASE_FILE
from teacher_server.settings.limits import LimitSettings
from teacher_server.settings.teachers import EngineSettings, TeacherSettings
from teacher_server.teachers.load import load_teachers
from tests.server.crossed import request, upload
from tests.server.running import LONG, continuation, running
from tests.support.adapters import make_adapter
from tests.support.models import ENGLISH, train_tokenizer

CPU = EngineSettings(device="cpu")


async def load(**models: Path) -> None:
    configured = {name: TeacherSettings(model=str(path)) for name, path in models.items()}
    teachers = await load_teachers(configured, CPU, LimitSettings())
    for teacher in teachers:
        await teacher.engine.close()


async def test_an_added_token_beyond_the_logits_is_no_reason_to_refuse_a_model(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Gemma 3 1B: a token for images, for which the model has no row."""
    model = with_new_token(tiny_model_dir, tmp_path / "m")
    async with running({"default": model}, monkeypatch) as server:
        assert server.info.teachers[0].vocabulary_size == 320
        scores = await server.score(server.request(prompt=TextPrompt("The capital"), top_k=320))
        rows = scores.results[0].rows
        assert rows is not None
        assert rows.support is not None
        assert rows.support.ids.max() == 319
        beyond = np.array([3, 320], np.int32)
        for prompt in (TextPrompt("Look: <|new|>"), TokenPrompt(beyond)):
            with pytest.raises(InvalidRequestError, match="id 320 at index"):
                await server.score(server.request(prompt=prompt))
        held = Continuation((Segment(beyond, scored=True),))
        with pytest.raises(InvalidRequestError, match="id 320 at index"):
            await server.score(server.request(continuations=(held,)))


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "pad": ({"pad_token": "<|new|>"}, "its pad_token '<|new|>' is id 320"),
    "eos": ({"eos_token": "<|new|>"}, "its eos_token '<|new|>' is id 320"),
    "bos": ({"bos_token": "<|new|>"}, "its bos_token '<|new|>' is id 320"),
    "template": (
        {"chat_template": "{% for m in messages %}<|new|>{{ m['content'] }}{% endfor %}"},
        "its chat template writes '<|new|>' is id 320",
    ),
}


def with_new_token(model: Path, directory: Path, *, token: str = "<|new|>", **changes: Any) -> Path:
    """The model with a tokenizer that has one token more than the model has rows."""
    shutil.copytree(model, directory)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("case", CASES)
async def test_a_token_that_text_needs_has_a_row(
    case: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    changes, says = CASES[case]
    with pytest.raises(ConfigurationError) as refused:
        await load(default=with_new_token(tiny_model_dir, tmp_path / "m", **changes))
    assert says.replace(" is id 320", "") in refused.value.what
    assert "id 320" in refused.value.what
    assert "teachers.default" in refused.value.where
    assert "resize" in refused.value.fix


async def test_a_token_that_nothing_writes_needs_none(tiny_model_dir: Path, tmp_path: Path) -> None:
    await load(default=with_new_token(tiny_model_dir, tmp_path / "m"))


async def test_a_tokenizer_of_another_model_is_refused(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "m")
    train_tokenizer(ENGLISH, 330).save_pretrained(tmp_path / "m")
    with pytest.raises(ConfigurationError, match="belong together"):
        await load(default=tmp_path / "m")


async def test_which_of_several_teachers_cannot_be_loaded(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "bad")
    (tmp_path / "bad" / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="no safetensors") as refused:
        await load(good=tiny_model_dir, bad=tmp_path / "bad")
    assert refused.value.where.startswith("teachers.bad (")
    (tmp_path / "bad" / "tokenizer.json").unlink()
    with pytest.raises(ConfigurationError) as refused:
        await load(good=tiny_model_dir, bad=tmp_path / "bad")
    assert refused.value.where.startswith("teachers.bad (")


async def test_across_tokenizers_a_token_beyond_the_logits_cannot_be_read(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student has the token too, and may write it."""
    model = with_new_token(tiny_model_dir, tmp_path / "m", token="<think>")
    foreign = train_tokenizer(ENGLISH, 290)
    foreign.add_special_tokens({"additional_special_tokens": ["<think>"]})
    file = foreign.backend_tokenizer.to_str().encode()
    tokens = foreign("The teacher reads", add_special_tokens=False)["input_ids"]
    async with running({"default": model}, monkeypatch) as server:
        await server.client.register_tokenizer(upload(file), timeout=LONG)
        held = continuation(*tokens, 290, *tokens)
        asked = request(server, file, tokens, continuations=(continuation(*tokens), held))
        fine, beyond = (await server.score(asked)).results
        assert fine.status is Status.OK
        assert beyond.status is Status.NOT_REALIGNED
        assert "no embedding for its token 320" in beyond.detail


async def test_an_adapter_on_another_base_than_it_was_trained_on_is_told(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = make_adapter(tmp_path / "adapter", tiny_model_dir)
    caplog.set_level(logging.WARNING, logger="teacher_server")
    own = weights_digest(weight_files(tiny_model_dir))
    for digest, told in ((own, False), ("of another", True)):
        (adapter / BASE_FILE).write_text(json.dumps({"model": "m", "weights_digest": digest}))
        await load(base=tiny_model_dir, adapted=adapter)
        assert ("teacher adapted: its adapter was trained on other" in caplog.text) == told
