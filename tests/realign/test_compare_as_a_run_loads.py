"""``teacher-server tokenizers compare`` and both programs read a tokenizer alike, and say where
it encodes otherwise than its tokenizer.json."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from teacher_proto.errors import ConfigurationError
from teacher_proto.tokenizer_hash import tokenizer_hash
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from student_trainer.settings.student import StudentSettings
from student_trainer.student import tokenizer as student_side
from teacher_server.cli import run
from teacher_server.teachers import tokenizer as teacher_side

# What transformers builds of this class has NFC and another expression.
REBUILT = "Qwen2Tokenizer"
PLAIN = "PreTrainedTokenizerFast"
Relabelled = Callable[..., Path]


@pytest.fixture
def relabelled(tiny_model_dir: Path, tmp_path: Path) -> Relabelled:
    """A model's folder under another name, with changes of its tokenizer_config.json."""

    def make(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_model_dir, folder)
        config = folder / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))
        return folder

    return make


def compare(capsys: pytest.CaptureFixture[str], student: Path, teacher: Path) -> Any:
    capsys.readouterr()
    assert run(["tokenizers", "compare", str(student), str(teacher), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_compare_loads_models_as_a_run_does(
    relabelled: Relabelled, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = relabelled("other", tokenizer_class=REBUILT)
    assert (other / "tokenizer.json").read_bytes() == (
        tiny_model_dir / "tokenizer.json"
    ).read_bytes()
    found = compare(capsys, other, tiny_model_dir)
    assert found["level"] == "CROSS"
    assert "the normalizer (" in found["difference"]
    assert "the pre-tokenizer (" in found["difference"]
    student = student_side.load_tokenizer(StudentSettings(model=str(other)))
    teacher = teacher_side.load_tokenizer(str(tiny_model_dir))
    assert found["student"]["tokenizer_hash"] == tokenizer_hash(student.backend_tokenizer.to_str())
    assert found["teacher"]["tokenizer_hash"] == teacher.hash


def test_compare_says_same_where_the_run_is_same(
    relabelled: Relabelled, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = relabelled("other", tokenizer_class=PLAIN)
    for teacher in (tiny_model_dir, tiny_model_dir / "tokenizer.json"):
        found = compare(capsys, other, teacher)
        assert found["level"] == "SAME"
        assert found["difference"] == ""


def test_compare_takes_a_file_as_it_is(
    relabelled: Relabelled, capsys: pytest.CaptureFixture[str]
) -> None:
    other = relabelled("other", tokenizer_class=REBUILT)
    found = compare(capsys, other, other / "tokenizer.json")
    assert found["level"] == "CROSS"
    assert run(["tokenizers", "compare", str(other), str(other / "tokenizer.json")]) == 0
    assert "they differ in the normalizer (" in capsys.readouterr().out


def test_compare_tells_the_difference_of_what_cannot_be_realigned(tmp_path: Path) -> None:
    files = []
    for name, score in (("a", -1.0), ("b", -2.0)):
        model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", score]]}
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps({"model": model}))
    for other, said in ((files[1], "they differ in the vocabulary ("), (files[0], "one finger")):
        with pytest.raises(ConfigurationError, match="not BPE") as found:
            run(["tokenizers", "compare", str(files[0]), str(other)])
        assert said in found.value.what


def both_sides(folder: Path) -> None:
    student_side.load_tokenizer(StudentSettings(model=str(folder)))
    teacher_side.load_tokenizer(str(folder))


def test_both_sides_warn_of_a_tokenizer_that_encodes_otherwise_than_its_file(
    relabelled: Relabelled, caplog: pytest.LogCaptureFixture
) -> None:
    folder = relabelled("rebuilt", tokenizer_class=REBUILT)
    both_sides(folder)
    both_sides(folder)
    warnings = [one for one in caplog.records if one.levelno >= logging.WARNING]
    student, teacher, again = [one for one in warnings if str(folder) in one.message]
    assert student.name == student_side.__name__
    assert teacher.name == again.name == teacher_side.__name__
    for record in (student, teacher):
        # The first text of the probe that shows it, its ids both ways, and the parts.
        assert "as loaded, and by the file" in record.message
        assert "] and [" in record.message
        assert "the normalizer (" in record.message
        assert PLAIN in record.message
        assert "\n" not in record.message


@pytest.mark.parametrize("label", [PLAIN, "TokenizersBackend"])
def test_nobody_warns_where_ids_are_the_same(
    relabelled: Relabelled, caplog: pytest.LogCaptureFixture, label: str
) -> None:
    folder = relabelled(label, tokenizer_class=label)
    both_sides(folder)
    assert not [one for one in caplog.records if str(folder) in one.message]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_5"])
def test_the_warning_says_for_which_families_its_advice_changes_nothing(
    relabelled: Relabelled, caplog: pytest.LogCaptureFixture, family: str
) -> None:
    folder = relabelled(family, tokenizer_class=PLAIN)
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    followed = type(AutoTokenizer.from_pretrained(folder)) is PreTrainedTokenizerFast
    assert followed or family != "llama"
    both_sides(folder)
    warnings = [one.message for one in caplog.records if str(folder) in one.message]
    assert len(warnings) == (0 if followed else 2)
    for warning in warnings:
        assert "changes nothing for families" in warning
        assert "Qwen2 and Qwen3.5" in warning


def test_special_tokens_are_read_as_tokens_on_both_sides(
    relabelled: Relabelled, caplog: pytest.LogCaptureFixture
) -> None:
    folder = relabelled("split", split_special_tokens=True)
    student = student_side.load_tokenizer(StudentSettings(model=str(folder)))
    teacher = teacher_side.load_tokenizer(str(folder))
    special = student.eos_token
    assert student(f"a{special}b", add_special_tokens=False)["input_ids"][1] == student.eos_token_id
    assert student(f"a{special}b", add_special_tokens=False)["input_ids"] == (
        teacher.encode(f"a{special}b").tolist()
    )
    assert caplog.text.count("sets split_special_tokens") == 2
