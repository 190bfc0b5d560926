"""Tables on disk, and the command that compares two tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import MaskReason

from teacher_server.cli import run
from teacher_server.realign.pair.cache import TableCache
from tests.realign.toys import bpe_document, toy

STUDENT = [("a", "b"), ("ab", "c")]
TEACHER = [("b", "c")]


def folder(path: Path, merges: list[tuple[str, str]]) -> str:
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps(bpe_document("abcde", merges)))
    return str(path)


def test_tables_are_read_back_and_damaged_ones_built_anew(tmp_path: Path) -> None:
    student, teacher = toy("abc", STUDENT), toy("abc", TEACHER)
    built = TableCache(tmp_path).get(student, teacher).static
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for content in (whole, whole[:50], b""):
        file.write_bytes(content)
        again = TableCache(tmp_path).get(student, teacher).static
        np.testing.assert_array_equal(again.first_student_token, built.first_student_token)
        np.testing.assert_array_equal(again.trie_edges, built.trie_edges)
    assert file.read_bytes() == whole


def test_compare_prints_what_a_program_can_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, teacher = folder(tmp_path / "s", STUDENT), folder(tmp_path / "t", TEACHER)
    text = tmp_path / "text"
    text.write_text("abcabdae")
    words = ["tokenizers", "compare", student, teacher, "--text", str(text)]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # abc ab d a e | a bc a b d a e: the teacher has no boundary after "ab" of neither word.
    assert found["level"] == "CROSS"
    assert found["student"]["tokens"] == 5
    assert found["teacher"]["tokens"] == 7
    assert found["shares"] == {
        "aligned": 1.0,
        "inside_a_teacher_token": 0.0,
        "masked": 0.0,
    }
    reasons = found["mask_reasons"]
    assert reasons == dict.fromkeys(
        ("NOT_CANONICAL", "UNREADABLE", "NO_COUNTERPART", "LONG_CHUNK"), 0.0
    )
    assert {*reasons, *found["mask_reasons_that_need_rows"]} == {*MaskReason.__members__} - {
        "MERGED_SPACES"
    }
    assert {"role": "END_OF_TEXT", "student": "</s>", "teacher": "</s>"} in found["roles"]
    assert run(words) == 0
    assert "level               CROSS" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b""])
def test_a_text_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes | None) -> None:
    student = folder(tmp_path / "s", STUDENT)
    text = tmp_path / "text"
    if content is not None:
        text.write_bytes(content)
    with pytest.raises(ConfigurationError):
        run(["tokenizers", "compare", student, student, "--text", str(text)])
