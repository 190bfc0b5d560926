"""Identities and their digests are what docs/contract.md defines for any language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from teacher_proto.models import weights

from teacher_server.engines.base import EngineDescription
from teacher_server.teachers.chat import ChatTemplates
from teacher_server.teachers.teacher import identity_of
from tests.contract import identity_reference as reference
from tests.contract.identity_vectors import FILE, vectors

VECTORS: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))


def test_the_file_of_vectors_is_that_of_the_definition() -> None:
    assert vectors() == VECTORS


@pytest.mark.parametrize("vector", VECTORS["identities"], ids=lambda one: one["name"])
def test_the_server_gives_an_identity_its_digest(vector: dict[str, Any]) -> None:
    fields = dict(vector["identity"])
    digest = fields.pop("digest")
    tokenizer, chat = fields.pop("tokenizer_hash"), fields.pop("chat_template_digest")
    description = EngineDescription(
        engine="transformers",
        model="/srv/models/anything",
        vocabulary_size=1,
        max_length=1,
        deterministic=False,
        **fields,
    )
    assert identity_of(description, tokenizer, chat).digest == digest


@pytest.mark.parametrize("vector", VECTORS["chat_templates"], ids=lambda one: one["name"])
def test_the_server_gives_chat_templates_their_digest(vector: dict[str, Any]) -> None:
    reads = vector["reads"]
    given = reads["special_tokens"] | {"unk_token": "<unk>"}  # no template reads it
    names = frozenset(reads["special_tokens"]) | {"messages"}
    assert ChatTemplates(reads["templates"], names, given).digest == vector["digest"]


def test_a_tokenizer_without_a_template_has_no_digest() -> None:
    assert ChatTemplates({}, frozenset(), {"eos_token": "</s>"}).digest == ""


def test_weights_have_the_digest_of_their_tensors_however_they_are_cut(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a.weight": torch.randn(3, 5, generator=generator),
        "a.bias": torch.randn(3, generator=generator).to(torch.bfloat16),
        "B.scale": torch.tensor(2.0),
        "none": torch.zeros(0, 4),
    }
    whole = tmp_path / "model.safetensors"
    save_file(tensors, whole, metadata={"format": "pt"})
    halves = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    save_file({name: tensors[name] for name in ("none", "a.bias")}, halves[0])
    save_file({name: tensors[name] for name in ("B.scale", "a.weight")}, halves[1])
    expected = reference.weights_digest(whole)
    assert reference.weights_digest(*halves) == expected
    assert weights.weights_digest([whole]) == weights.weights_digest(halves) == expected
