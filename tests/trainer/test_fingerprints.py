"""What the trainer says of the two tokenizers' fingerprints when it meets its teacher."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from teacher_proto.errors import ContractMismatchError

from student_trainer.settings.teacher import TeacherSettings
from student_trainer.teacher.link import TeacherLink
from tests.support.replies import IDENTITY, SERVER, TEACHER
from tests.support.scripted_teacher import serving_in_thread


@pytest.mark.parametrize(
    ("theirs", "side"), [("a" * 64, "the server"), ("v3-" + "a" * 64, "the trainer")]
)
def test_a_server_of_another_version_is_refused_with_the_side_to_upgrade(
    theirs: str, side: str
) -> None:
    student: Any = SimpleNamespace(tokenizer_hash="v2-" + "b" * 64, drawn_below=8)
    identity = replace(IDENTITY, tokenizer_hash=theirs)
    with serving_in_thread() as (teacher, address):
        teacher.info = replace(SERVER, teachers=(replace(TEACHER, identity=identity),))
        with pytest.raises(ContractMismatchError) as found:
            TeacherLink(TeacherSettings(address=address), student, run="test")
    assert teacher.uploads == []
    assert found.value.reason == "TOKENIZER_HASH_VERSION"
    assert found.value.fix == f"upgrade {side} to the other side's release"
    assert "\n" not in str(found.value)
