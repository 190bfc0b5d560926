"""What ends a response: ids of the generation config, the tokenizer, the chat template and the
settings, and texts."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import SpecialRole, TeacherIdentity
from transformers import AutoTokenizer

from student_trainer.data import load_prompts
from student_trainer.rollout.generate import generate
from student_trainer.rollout.stopping import StopStrings
from student_trainer.run.checkpoint import TrainState
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.settings.student import StudentSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.inputs import ends
from student_trainer.startup.inputs import student as load
from student_trainer.startup.start import Start
from student_trainer.student.masking import token_bytes
from student_trainer.student.model import Student, load_student
from student_trainer.student.response_ends import describe_terminators
from student_trainer.teacher.own_tokenizer import registration_of, special_roles

# Of the tiny models' tokenizers.
TEXT_END, START, TURN_END = 0, 1, 2
NEXT_TURN = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEXTS = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'] + ':\\n' + message['content'] + '\\n\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### assistant:\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def base_dir(student_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with a chat template: tokenizer and generation config name the end of a
    text alone."""
    folder = tmp_path_factory.mktemp("models") / "base"
    shutil.copytree(student_model_dir, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | {"eos_token_id": TEXT_END}))
    return folder


def base(folder: Path, template: str | None = None, tmp_path: Path | None = None) -> Student:
    changes: dict[str, Any] = {}
    if template is not None:
        assert tmp_path is not None
        changes["chat_template"] = tmp_path / "template.jinja"
        changes["chat_template"].write_text(template)
    return load_student(StudentSettings(model=str(folder), device="cpu", **changes))


def test_a_base_student_ends_its_turns_as_its_chat_template_does(
    base_dir: Path, tmp_path: Path
) -> None:
    student = base(base_dir)
    assert student.terminators == (TEXT_END, TURN_END)
    found, notes = describe_terminators(student, RolloutSettings())
    assert found == (
        "a response ends with <|endoftext|> (0: generation config, tokenizer) or "
        "<|im_end|> (2: chat template)"
    )
    assert not notes
    roles = special_roles(student.tokenizer, student.terminators)
    assert roles[TURN_END] is SpecialRole.TURN_END
    assert roles[TEXT_END] is SpecialRole.END_OF_TEXT
    # A template that closes no turn: a response goes on with what begins the next one.
    student = base(base_dir, NEXT_TURN, tmp_path)
    assert student.terminators == (TEXT_END, START)
    assert special_roles(student.tokenizer, student.terminators)[START] is SpecialRole.TURN_END


def test_the_run_s_template_arguments_say_how_a_turn_ends(
    base_dir: Path, tmp_path: Path, make_config: Callable[..., TrainConfig]
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for message in messages %}{{ message['content'] }}"
        "{% if enable_thinking is defined and not enable_thinking %}<|im_end|>"
        "{% else %}<|im_start|>{% endif %}{% endfor %}"
    )
    for arguments, end in (({}, START), ({"enable_thinking": False}, TURN_END)):
        settings = {"chat_template": str(template)}
        config = make_config(base_dir, student=settings, data={"template_arguments": arguments})
        start = Start(config)
        load(start)
        student = start.student
        assert student.terminators == (TEXT_END, end)
        found, _ = describe_terminators(student, config.rollout)
        assert f"({end}: chat template)" in found
        assert registration_of(student, "run").special_tokens[end] is SpecialRole.TURN_END


def test_a_base_student_learns_nothing_from_what_follows_its_turn(
    base_dir: Path, make_config: Callable[..., TrainConfig]
) -> None:
    student = base(base_dir)
    prompts = load_prompts(make_config().data, student.tokenizer).train
    settings = RolloutSettings(group_size=4, max_new_tokens=24, temperature=0.8)
    rollouts = generate(student, prompts, settings, seed=0, step=1)
    ended = [r for r in rollouts if TURN_END in r.token_ids]
    assert len(ended) >= 2
    for rollout in ended:
        assert rollout.token_ids.tolist().index(TURN_END) == len(rollout.token_ids) - 1
        assert rollout.finished


def test_turns_that_end_with_text_alone_and_templates_that_cannot_be_asked_are_said(
    base_dir: Path, tmp_path: Path
) -> None:
    student = base(base_dir, TEXTS, tmp_path)
    assert student.terminators == (TEXT_END,)
    (note,) = describe_terminators(student, RolloutSettings())[1]
    assert r"rollout.stop_strings = ['\n\n### user:'] would" in note
    settings = RolloutSettings(stop_strings=("### user:",))
    found, notes = describe_terminators(student, settings)
    assert found.endswith("or the text '### user:' (rollout.stop_strings)")
    assert not notes
    student = base(base_dir, "{{ raise_exception('no') }}", tmp_path)
    assert student.terminators == (TEXT_END,)
    (note,) = describe_terminators(student, settings)[1]
    assert "renders no plain conversation" in note


def test_ids_of_the_settings_end_a_response_too(base_dir: Path) -> None:
    settings = StudentSettings(model=str(base_dir), device="cpu")
    student = load_student(settings, stop_ids=(START, 40))
    assert student.terminators == (TEXT_END, START, TURN_END, 40)
    found, _ = describe_terminators(student, RolloutSettings(stop_ids=(START, 40)))
    assert "<|im_start|> (1: rollout.stop_ids)" in found
    with pytest.raises(ConfigurationError, match=r"id 5000 is to end .* 320 ids") as caught:
        load_student(settings, stop_ids=(5000,))
    assert caught.value.where == "rollout.stop_ids"
    with pytest.raises(ValidationError):
        RolloutSettings(stop_strings=("",))


@pytest.mark.parametrize(
    ("strings", "pieces", "ends_at"),
    [
        pytest.param(["stop"], [b"a", b"st", b"op", b"x"], 2, id="over several tokens"),
        pytest.param(["stop"], [b"a st", b"opped", b"x"], 1, id="more than the text"),
        pytest.param(["b"], [b"a", b"abc", b"x"], 1, id="inside a token"),
        pytest.param(["\u00e9"], [b"\xc3", b"\xa9"], 1, id="over the bytes of a character"),
        pytest.param(["longer text", "t"], [b"a", b"b t", b"x"], 1, id="the shorter first"),
        pytest.param(["aab"], [b"a", b"a", b"a", b"b"], 3, id="after a false beginning"),
        pytest.param(["<|im_end|>"], [b"a", b"<|im_end|>"], 1, id="a special token's text"),
        pytest.param(["none"], [b"no", b"n", b" e"], None, id="nowhere"),
    ],
)
def test_texts_end_a_response_however_its_tokens_spell_them(
    strings: list[str], pieces: list[bytes], ends_at: int | None
) -> None:
    stopping = StopStrings(strings, dict(enumerate(pieces)), 2)
    found = None
    for place in range(len(pieces)):
        # The other row stands still at a token without bytes.
        if stopping.completed([0, 1], [place, 999]):
            found = place
            break
    assert found == ends_at


def test_a_response_is_cut_after_the_token_that_completes_a_text(
    student: Student, make_config: Callable[..., TrainConfig]
) -> None:
    prompts = load_prompts(make_config().data, student.tokenizer).train
    plain = RolloutSettings(group_size=3, max_new_tokens=24, batch_size=4, temperature=0.8)
    pieces = token_bytes(student.tokenizer)
    whole = generate(student, prompts, plain, seed=0, step=1)
    texts = [[pieces[t] for t in r.token_ids.tolist()] for r in whole]
    # Two characters over the joint of two tokens.
    longest = max(texts, key=len)
    joints = [one[-1:] + other[:1] for one, other in itertools.pairwise(longest)]
    string = next(joint for joint in joints[3:] if joint.isascii()).decode()
    settings = plain.model_copy(update={"stop_strings": (string,)})
    cut = generate(student, prompts, settings, seed=0, step=1)
    stopped = 0
    for before, after, said in zip(whole, cut, texts, strict=True):
        lengths = [len(b"".join(said[: n + 1])) for n in range(len(said))]
        end = b"".join(said).find(string.encode())
        expected = len(said) if end < 0 else 1 + sum(n < end + 2 for n in lengths)
        assert after.token_ids.tolist() == before.token_ids[:expected].tolist()
        np.testing.assert_allclose(after.log_probs, before.log_probs[:expected], atol=1e-5)
        assert after.finished == (before.finished or end >= 0)
        stopped += end >= 0
    assert stopped > 0


@pytest.mark.parametrize("kept", [None, (TEXT_END,)], ids=["before they were kept", "kept"])
def test_a_run_whose_responses_ended_otherwise_is_not_continued_unasked(
    base_dir: Path, make_config: Callable[..., TrainConfig], kept: tuple[int, ...] | None
) -> None:
    start = Start(make_config(base_dir))
    start.student = base(base_dir)
    identity = TeacherIdentity("", "", "", "", "", "")
    values = start.config.model_dump(mode="json")
    start.resumed = TrainState(1, 1, 1, "", {"default": identity}, values, terminators=kept)
    with pytest.raises(ConfigurationError, match=r"ids \[0\], and now .*<|im_end|> \(2: chat"):
        ends(start)
    start.config = make_config(base_dir, checkpoint={"allow_changed": ["rollout.stop_ids"]})
    assert ends(start).startswith("a response ends with")
    start.config = make_config(base_dir)
    start.resumed = replace(start.resumed, terminators=start.student.terminators)
    assert ends(start).startswith("a response ends with")
    # What the tokenizer and the generation config name has always ended a response.
    start.student = replace(start.student, terminators=(TEXT_END,))
    start.resumed = replace(start.resumed, terminators=kept)
    assert ends(start).startswith("a response ends with")
