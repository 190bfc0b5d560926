"""What a student's folder may hold: tokens without a row, adapters, other weights of a base."""

from __future__ import annotations

import logging
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from teacher_proto.errors import ConfigurationError
from transformers import AutoTokenizer

from student_trainer.commands.merge import merge
from student_trainer.settings.student import LoraSettings, StudentSettings
from student_trainer.student.lora import BASE_FILE
from student_trainer.student.model import Student, load_student, save_weights
from student_trainer.student.tokenizer import load_tokenizer

LORA = LoraSettings(rank=2, merge_final=False)
WEIGHTS = "model.safetensors"


def load(folder: Path | str, **settings: Any) -> Student:
    return load_student(StudentSettings(model=str(folder), device="cpu", **settings))


@pytest.fixture
def base(student_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(student_model_dir, tmp_path / "base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    save_weights(load(base, lora=LORA), tmp_path / "adapter")
    return tmp_path / "adapter"


def replace_one_weight(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if "down_proj" in name)
    tensors[name][0, 0] += 1e-3
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


TOKENS: dict[str, tuple[dict[str, Any], str]] = {
    "pad": ({"pad_token": "<|new|>"}, "pads with id 320"),
    "bos": ({"bos_token": "<|new|>"}, "its bos_token '<|new|>' is id 320"),
    "eos": ({"eos_token": "<|new|>"}, "id 320 is to end a response"),
    "template": (
        {"chat_template": "{% for m in messages %}<|new|>{{ m['content'] }}{% endfor %}"},
        "its chat template writes '<|new|>' is id 320",
    ),
}


@pytest.mark.parametrize("case", TOKENS)
def test_a_token_that_a_student_writes_has_a_row_of_its_embedding(case: str, base: Path) -> None:
    changes, says = TOKENS[case]
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    tokenizer.save_pretrained(base)
    load(base)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(base)
    with pytest.raises(ConfigurationError) as refused:
        load(base)
    assert says in refused.value.what
    assert refused.value.fix


def test_an_adapter_is_not_a_student(adapter: Path, base: Path) -> None:
    for lora in (None, LORA):
        with pytest.raises(ConfigurationError, match="is a LoRA adapter of") as refused:
            load(adapter, lora=lora)
        assert str(base) in refused.value.what
        assert f"student-trainer merge {adapter}" in refused.value.fix


def test_adapters_go_on_with_the_base_that_they_know(
    adapter: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = StudentSettings(model=str(base), device="cpu", lora=LORA)
    load_student(settings, adapter)
    tensors = load_file(base / WEIGHTS)
    save_file(dict(reversed(tensors.items())), base / WEIGHTS, metadata={"format": "pt"})
    load_student(settings, adapter)
    replace_one_weight(base)
    with pytest.raises(ConfigurationError, match="weights of the base model are not") as refused:
        load_student(settings, adapter)
    assert refused.value.where == "student.model"
    caplog.set_level(logging.WARNING, logger="student_trainer")
    (adapter / BASE_FILE).unlink()
    load_student(settings, adapter)
    assert "do not record the weights of their base" in caplog.text


def test_adapters_are_merged_into_the_base_that_they_know(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    merge(adapter, tmp_path / "merged")
    replace_one_weight(base)
    with pytest.raises(ConfigurationError, match="weights of the base model are not") as refused:
        merge(adapter, tmp_path / "other")
    assert "--base" in refused.value.fix
    assert not (tmp_path / "other").exists()


@contextmanager
def broken_hub() -> Iterator[tuple[str, list[int]]]:
    """An address that closes every connection, and one entry for each that was made."""
    made: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                made.append(1)
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", made
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_hub_that_cannot_be_reached_is_not_asked_again_and_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """transformers would ask six times for each file, with pauses."""
    from huggingface_hub import HfApi, constants

    with broken_hub() as (address, made):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        assert HfApi().endpoint == address
        for loading in (load_tokenizer, load_student):
            made.clear()
            with pytest.raises(ConfigurationError, match="nor a model the hub gives us") as refused:
                loading(StudentSettings(model="nobody/no-such-model", device="cpu"))
            # Its client connects once more when a connection breaks.
            assert 1 <= len(made) <= 2
            assert "\n" not in refused.value.what
            assert "network" in refused.value.fix
