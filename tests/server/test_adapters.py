"""Teachers that are LoRA adapters: routing, identity, their base's engine and queue, refusals."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto.errors import ConfigurationError

from teacher_server.settings.teachers import TeacherSettings
from teacher_server.teachers.adapters import adapters_by_base
from tests.server.running import running
from tests.support.adapters import make_adapter, merged
from tests.support.reference import plain_logits


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "math", tiny_model_dir)


@pytest.fixture(scope="module")
def other(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "code", tiny_model_dir, seed=2)


async def test_adapters_are_teachers_on_one_engine(
    tiny_model_dir: Path, adapter: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"math": adapter, "plain": tiny_model_dir, "code": other}
    logits: dict[str, Callable[..., Any]] = {
        "plain": plain_logits(tiny_model_dir),
        "math": plain_logits(merged(tiny_model_dir, adapter)),
        "code": plain_logits(merged(tiny_model_dir, other)),
    }
    async with running(models, monkeypatch) as run:
        assert list(run.engines) == ["plain"]
        assert [info.name for info in run.info.teachers] == ["math", "plain", "code"]
        identities = {info.name: info.identity for info in run.info.teachers}
        assert len({identity.weights_digest for identity in identities.values()}) == 1
        assert identities["plain"].adapter_digest == ""
        assert len({identity.adapter_digest for identity in identities.values()}) == 3
        assert len({identity.digest for identity in identities.values()}) == 3
        assert len({id(t.admission) for t in run.server.service.teachers}) == 1
        requests = [run.request(name, request_id=name) for name in models]
        replies = await asyncio.gather(*(run.score(request) for request in requests))
        for name, reply in zip(models, replies, strict=True):
            assert reply.identity == identities[name]
            rows = logits[name](np.array([1, 2, 3, 4, 5, 6], np.int32))[2:5]
            rows = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
            scores = reply.results[0]
            assert scores.rows.sampled is not None
            np.testing.assert_allclose(
                scores.rows.sampled.values, rows[[0, 1, 2], [4, 5, 6]], rtol=0, atol=1e-4
            )


async def test_an_adapters_own_tokenizer_is_its_teachers(
    other_tokenizer_model_dir: Path, tiny_model_dir: Path, adapter: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One with more tokens than the base has logits cannot be served."""
    own = tmp_path / "own"
    shutil.copytree(adapter, own)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_dir / name, own / name)
    models = {"plain": tiny_model_dir, "math": own}
    async with running(models, monkeypatch) as run:
        assert len({info.identity.tokenizer_hash for info in run.info.teachers}) == 1
    shutil.copy(other_tokenizer_model_dir / "tokenizer.json", own / "tokenizer.json")
    with pytest.raises(ConfigurationError, match=r"teachers\.math\.model"):
        async with running(models, monkeypatch):
            pass


def settings(**teachers: dict[str, Any]) -> dict[str, TeacherSettings]:
    return {name: TeacherSettings.model_validate(value) for name, value in teachers.items()}


def test_the_base_is_the_teacher_whose_model_the_folder_names(
    tiny_model_dir: Path, other_tokenizer_model_dir: Path, adapter: Path
) -> None:
    found = adapters_by_base(
        settings(
            math={"model": str(adapter)},
            wrong={"model": str(other_tokenizer_model_dir)},
            plain={"model": f"{tiny_model_dir}/."},
        )
    )
    assert {base: list(held) for base, held in found.items()} == {"wrong": [], "plain": ["math"]}


def test_a_moved_base_is_named_by_its_teacher(
    tiny_model_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_model_dir, moved)
    plain = {"model": str(moved)}
    found = adapters_by_base(settings(plain=plain, math={"model": str(adapter), "base": "plain"}))
    assert list(found["plain"]) == ["math"]
    with pytest.raises(ConfigurationError, match=r"not served.*teachers\.math\.base=NAME"):
        adapters_by_base(settings(plain=plain, math={"model": str(adapter)}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"math": {"base": "nobody"}}, "not served"),
        ({"math": {"base": "math"}}, "not served"),
        ({"again": {}}, "more than once"),
        ({"math": {"dtype": "float32"}}, "dtype cannot be set"),
        ({"plain": {"base": "math"}}, "no LoRA adapter"),
    ],
)
def test_what_cannot_be_placed_is_refused(
    tiny_model_dir: Path, adapter: Path, changes: dict[str, dict[str, Any]], says: str
) -> None:
    teachers = {"plain": {"model": str(tiny_model_dir)}, "math": {"model": str(adapter)}}
    if "again" in changes:
        teachers["again"] = {"model": str(tiny_model_dir)}
    for name, change in changes.items():
        teachers[name] = teachers[name] | change
    with pytest.raises(ConfigurationError) as refused:
        adapters_by_base(settings(**teachers))
    assert says in str(refused.value)
    assert refused.value.fix
