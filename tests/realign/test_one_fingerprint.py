"""Real tokenizers have one fingerprint however they are loaded, where they have the same ids."""

from __future__ import annotations

import gc
import json
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from teacher_proto.fingerprint.parts import canonical_parts, content_of
from teacher_proto.fingerprint.probe import probe_texts
from teacher_proto.tokenizer_hash import tokenizer_hash

from tests.realign.real_tokenizers import published_files

NAMES = (
    "qwen3",
    "gemma2",
    "gpt4o",
    "mistral_nemo",
    "llama3",
    "deepseek_v3",
    "gpt35turbo",
    "claude",
    "gpt2",
    "llama2",
)
FILE, PUBLISHED = "tokenizer.json", "as published"
PLAIN = "PreTrainedTokenizerFast"
LABELS = {"qwen3": (PUBLISHED, PLAIN, "Qwen2TokenizerFast")}
# The classes that their tokenizer_config.json names build something else than the file has.
REBUILT = {"gpt4o", "llama2"}


@dataclass(frozen=True)
class Loaded:
    fingerprint: str
    ids: list[list[int]]


def load_each_way(file: Path, config: Path, folder: Path, labels: list[str]) -> dict[str, Loaded]:
    """The file itself, and what transformers makes of it under each label."""
    from transformers import AutoTokenizer

    from teacher_server.teachers.tokenizer import TextTokenizer

    gc.disable()  # Half of the time otherwise, for millions of small lists that stay.
    text = file.read_text(encoding="utf-8")
    texts = probe_texts(row[1] for row in canonical_parts(content_of(text))["added_tokens"])
    found = {FILE: Loaded(tokenizer_hash(text), TextTokenizer(text).encode_each(texts))}
    shutil.copyfile(file, folder / FILE)
    for label in labels:
        settings = json.loads(config.read_text(encoding="utf-8"))
        if label != PUBLISHED:
            settings["tokenizer_class"] = label
        (folder / config.name).write_text(json.dumps(settings), encoding="utf-8")
        backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        found[label] = Loaded(tokenizer_hash(backend.to_str()), [one.ids for one in encodings])
    return found


@pytest.fixture(scope="module")
def loading(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Future[dict[str, Loaded]]]]:
    files = {name: published_files(name) for name in NAMES}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as pool:
        yield {
            name: pool.submit(
                load_each_way,
                *files[name],
                tmp_path_factory.mktemp(name),
                list(LABELS.get(name, (PUBLISHED, PLAIN))),
            )
            for name in NAMES
        }


@pytest.mark.parametrize("name", NAMES)
def test_a_real_tokenizer_has_one_fingerprint_where_ids_agree(
    loading: dict[str, Future[dict[str, Loaded]]], name: str
) -> None:
    found = loading[name].result(timeout=300)
    file = found[FILE]
    assert len(found) == 1 + len(LABELS.get(name, (PUBLISHED, PLAIN)))
    for label, loaded in found.items():
        assert (loaded.ids == file.ids) == (loaded.fingerprint == file.fingerprint), label
    others = {label for label, loaded in found.items() if loaded.fingerprint != file.fingerprint}
    assert others == ({PUBLISHED} if name in REBUILT else set())


def test_different_tokenizers_have_different_fingerprints(
    loading: dict[str, Future[dict[str, Loaded]]],
) -> None:
    found = {loaded.result(timeout=300)[FILE].fingerprint for loaded in loading.values()}
    assert len(found) == len(NAMES)
