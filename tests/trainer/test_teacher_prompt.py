"""What a teacher reads of the prompts, by its own chat template or the student's, over a real
server; judged by the template and a plain forward pass of the same models."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import TokenPrompt, TokenText
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from student_trainer.data import PromptSets, load_prompts, rendering
from student_trainer.evaluation.cache import cached_rows
from student_trainer.evaluation.rows import Selection
from student_trainer.run import checkpoint
from student_trainer.settings.student import StudentSettings
from student_trainer.settings.teacher import TeacherSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student, load_student
from student_trainer.teacher.link import TeacherLink
from student_trainer.teacher.prompts import AtTeacher, carried
from student_trainer.teacher.reading import TeacherReading
from student_trainer.train import train
from tests.support.models import CHAT_TEMPLATE, END_OF_TEXT
from tests.trainer.processes import Server, serve
from tests.trainer.test_run import artefacts, in_directory, losses

MakeConfig = Callable[..., TrainConfig]
MONDAY = "2026-11-30T23:59:58"
CONVERSATION = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital"},
    {"role": "user", "content": "of what? The teacher"},
]
ENDING = "assistant\\n"
assert ENDING in CHAT_TEMPLATE
OPEN, CLOSED = "<think>\\n", "<think>\\n\\n</think>\\n\\n"
TEMPLATES: dict[str, str | None] = {
    "default": CHAT_TEMPLATE,
    "open": CHAT_TEMPLATE.replace(ENDING, ENDING + OPEN),
    "closed": CHAT_TEMPLATE.replace(ENDING, ENDING + CLOSED),
    "dated": "{{ strftime_now('%d %B %Y') }}\n" + CHAT_TEMPLATE,
    "other": (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    ),
    "bare": None,
    # Of a tokenizer that puts a token before texts.
    "begins": CHAT_TEMPLATE,
    "writes": "{{ bos_token }}" + CHAT_TEMPLATE,
}


def with_template(model: Path, name: str, folder: Path) -> Path:
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATES[name]
    if name in ("begins", "writes"):
        tokenizer.bos_token = END_OF_TEXT
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, tokenizer.bos_token_id)]
        )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Path]:
    """Teachers by the name of their template."""
    root = tmp_path_factory.mktemp("teachers")
    return {name: with_template(tiny_model_dir, name, root / name) for name in TEMPLATES}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), **folders) as running:
        yield running


class Asked:
    """A student of one template at a teacher of another."""

    def __init__(
        self, student: Student, link: TeacherLink, prompts: PromptSets, teacher: Path
    ) -> None:
        self.student = student
        self.link = link
        self.prompts = prompts
        self.teacher = AutoTokenizer.from_pretrained(teacher)
        self.model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()

    def found(self) -> AtTeacher:
        (found,) = self.link.reading.read(self.prompts.train)
        return found

    def notes(self) -> list[str]:
        tally = self.link.reading.renderings()
        for one in self.link.reading.read(self.prompts.train):
            tally.add(one)
        own = tally.notes(own=True) if self.link.renders else []
        return own + self.link.reading.notes(self.prompts.train, self.prompts.arguments)

    def text(self, found: AtTeacher) -> str:
        """What the teacher reads, by what the service says of it."""
        sent = self.link.wire_prompt(found.item)
        if isinstance(sent, TokenPrompt):
            return str(self.student.tokenizer.decode(sent.token_ids))
        (read,) = self.link.client.render([sent], teacher=self.link.info.name, timeout=60)
        assert read.token_ids is not None
        return str(self.teacher.decode(read.token_ids))

    def check_scores(self, found: AtTeacher, text: str) -> None:
        """The service scores a response as a plain forward pass does after ``text``."""
        response = np.array([40, 41, 42, 43], np.int32)
        scored = self.link.score_rows(
            found.item, response, np.arange(4, dtype=np.int32), k := 8, 1.0
        )
        prompt = self.teacher(text, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*prompt, *response.tolist()]])
        with torch.no_grad():
            rows = self.model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        support, sampled = scored.rows.support, scored.rows.sampled
        assert support is not None
        assert sampled is not None
        assert np.allclose(support.log_probs, rows.topk(k, -1).values, atol=1e-4)
        expected = rows.gather(-1, torch.from_numpy(response.astype(np.int64))[:, None])[:, 0]
        assert np.allclose(sampled.values, expected, atol=1e-4)


@pytest.fixture
def ask(
    make_config: MakeConfig,
    server: Server,
    student_model_dir: Path,
    foreign_student_dir: Path,
    folders: dict[str, Path],
    tmp_path: Path,
) -> Iterator[Callable[..., Asked]]:
    links: list[TeacherLink] = []
    students: dict[tuple[str, bool], Student] = {}

    def ask(
        template: str, name: str, row: Any = None, *, across: bool = False, **sections: Any
    ) -> Asked:
        if (template, across) not in students:
            source = foreign_student_dir if across else student_model_dir
            folder = with_template(source, template, tmp_path / f"{template}{across}")
            loaded = load_student(StudentSettings(model=str(folder), device="cpu"))
            students[template, across] = loaded
        student = students[template, across]
        rows = tmp_path / "rows.jsonl"
        rows.write_text(json.dumps(row or {"messages": CONVERSATION}) + "\n")
        data = {
            "train": str(rows),
            "now": MONDAY,
            "max_prompt_tokens": 128,
            **sections.get("data", {}),
        }
        at = {"address": server.address, "name": name, **sections.get("teacher", {})}
        config = make_config(data=data, teacher=at)
        prompts = load_prompts(config.data, student.tokenizer)
        link = TeacherLink(config.named_teachers["default"], student, run="test")
        links.append(link)
        return Asked(student, link, prompts, folders[name])

    yield ask
    for link in links:
        link.close()


def rendered(tokenizer: PreTrainedTokenizerFast, template: str) -> str:
    """The conversation by a template that prints no date, by transformers alone."""
    return str(
        tokenizer.apply_chat_template(
            CONVERSATION,
            chat_template=TEMPLATES[template],
            add_generation_prompt=True,
            tokenize=False,
        )
    )


def test_the_teacher_judges_under_its_own_template_or_the_students(
    ask: Callable[..., Asked],
) -> None:
    own = ask("default", "other")
    text = rendered(own.teacher, "other")
    found = own.found()
    assert own.text(found) == text
    assert found.tokens == len(own.teacher(text)["input_ids"])
    own.check_scores(found, text)
    own.check_scores(AtTeacher(own.prompts.train[0], None), text)  # before it is asked
    (note,) = own.notes()
    assert "reads 1 of 1 conversations as its own chat template renders them" in note
    assert "differs at token 0" in note
    student = ask("default", "other", teacher={"prompt": "student"})
    unasked = AtTeacher(student.prompts.train[0], None)
    student.check_scores(unasked, rendered(own.teacher, "default"))
    (note,) = student.notes()
    assert 'under the student\'s prompts (teacher.prompt = "student")' in note
    assert "renders 1 of 1 conversations otherwise" in note


def test_equal_templates_send_the_students_tokens_and_say_nothing(
    ask: Callable[..., Asked],
) -> None:
    for settings in ({}, {"prompt": "student"}):
        asked = ask("default", "default", teacher=settings)
        sent = asked.link.wire_prompt(asked.found().item)
        assert isinstance(sent, TokenPrompt)
        assert sent.token_ids.tolist() == asked.prompts.train[0].token_ids.tolist()
        assert asked.notes() == []


def test_a_teacher_without_a_template_reads_the_students_tokens(ask: Callable[..., Asked]) -> None:
    asked = ask("default", "bare")
    assert not asked.link.renders
    unasked = AtTeacher(asked.prompts.train[0], None)
    asked.check_scores(unasked, rendered(asked.teacher, "default"))
    assert asked.link.reading.notes(asked.prompts.train, ()) == [
        "the teacher has no chat template for the conversations: it reads the student's tokens"
    ]


def test_the_students_tokens_are_refused_to_a_teacher_with_another_tokenizer(
    ask: Callable[..., Asked],
) -> None:
    with pytest.raises(ConfigurationError, match="cannot read its tokens"):
        ask("default", "default", across=True, teacher={"prompt": "student"})


# (student's template, teacher's, what is left out of the teacher's prompt, what is added).
THINKING = [
    ("open", "open", "", ""),
    ("open", "default", "", "<think>\n"),
    ("open", "closed", "<think>\n\n</think>\n\n", "<think>\n"),
    ("default", "open", "<think>\n", ""),
    ("default", "closed", "", ""),
    ("closed", "default", "", ""),  # the tiny tokenizers have no token for it
    ("closed", "open", "<think>\n", "<think>\n\n</think>\n\n"),
    ("closed", "closed", "", ""),
]


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(("student", "teacher", "left_out", "added"), THINKING)
def test_thinking_that_one_template_opens_is_carried_to_the_teacher(
    ask: Callable[..., Asked], across: bool, student: str, teacher: str, left_out: str, added: str
) -> None:
    asked = ask(student, teacher, across=across)
    found = asked.found()
    assert (found.left_out, found.added) == (left_out, added)
    text = rendered(asked.teacher, teacher).removesuffix(left_out) + added
    assert asked.text(found) == text
    assert found.tokens == len(asked.teacher(text)["input_ids"])
    if not across:
        asked.check_scores(found, text)
    said = " ".join(asked.notes())
    assert (f"begins the answer with {left_out!r} and the student's does not" in said) == bool(
        left_out
    )
    assert (f"begins the answer with {added!r} and the teacher's does not" in said) == bool(added)


def test_closed_thinking_is_given_to_a_teacher_that_has_tokens_for_it() -> None:
    open_, closed = "<think>\n", "<think>\n\n</think>\n\n"
    assert carried(closed, "", has_tokens=True) == (False, True)
    assert carried(closed, "", has_tokens=False) == (False, False)
    assert carried("", closed, has_tokens=True) == (False, False)
    assert carried("</think>", open_, has_tokens=True) == (True, True)


@pytest.mark.parametrize("across", [False, True])
def test_the_teachers_template_prints_the_runs_date(
    ask: Callable[..., Asked], across: bool
) -> None:
    asked = ask("default", "dated", across=across)
    found = asked.found()
    text = "30 November 2026\n" + rendered(asked.teacher, "default")
    assert asked.text(found) == text
    if not across:
        asked.check_scores(AtTeacher(asked.prompts.train[0], None), text)


def test_an_argument_that_the_teachers_template_does_not_read_is_said(
    ask: Callable[..., Asked],
) -> None:
    asked = ask("default", "default", data={"template_arguments": {"enable_thinking": False}})
    (student,) = asked.prompts.notes
    (teacher,) = asked.notes()
    assert "student's chat template does not read enable_thinking" in student
    assert "teacher's chat template does not read enable_thinking" in teacher


def test_a_teacher_that_ends_its_turns_otherwise_is_said(ask: Callable[..., Asked]) -> None:
    asked = ask("default", "other")
    chat = asked.link.info.chat
    assert chat is not None
    info = replace(asked.link.info, chat=replace(chat, turn_ends=(TokenText(40, "E"),)))
    settings = TeacherSettings()
    reading = TeacherReading(asked.link.client, info, settings, asked.student, realigned=False)
    (note,) = reading.notes(asked.prompts.train, ())
    assert "ends its turns with 'E' and the student with '<|im_end|>'" in note
    assert asked.link.reading.notes(asked.prompts.train, ()) == []


def test_a_text_is_the_students_tokens_to_a_teacher_with_its_tokenizer(
    ask: Callable[..., Asked],
) -> None:
    asked = ask("default", "other", {"prompt": "The teacher reads"})
    found = asked.found()
    assert asked.text(found) == "The teacher reads"
    asked.check_scores(found, "The teacher reads")
    assert asked.notes() == []


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("teacher", ["begins", "writes"])
def test_a_token_that_begins_every_prompt_begins_the_teachers_once(
    ask: Callable[..., Asked], teacher: str, across: bool
) -> None:
    asked = ask("begins", teacher, data={"add_bos": "always"}, across=across)
    found = asked.found()
    text = END_OF_TEXT + rendered(asked.teacher, "begins")
    assert asked.student.tokenizer.decode(asked.prompts.train[0].token_ids) == text
    assert asked.text(found) == text
    assert found.tokens == len(asked.teacher(text, add_special_tokens=False)["input_ids"])
    assert asked.notes() == []


def test_a_teachers_template_that_writes_no_begin_is_said(ask: Callable[..., Asked]) -> None:
    asked = ask("writes", "begins", across=True)
    assert asked.text(asked.found()) == rendered(asked.teacher, "begins")
    (note,) = asked.notes()
    assert f"the teacher's chat template writes no {END_OF_TEXT!r}" in note
    assert "for 1 of 1 conversations" in note
    assert ask("writes", "writes", across=True).notes() == []


@pytest.fixture
def conversations(
    make_config: MakeConfig,
    server: Server,
    student_model_dir: Path,
    tmp_path: Path,
) -> Callable[..., TrainConfig]:
    """A configuration over conversations: a student of one template at a teacher of another."""
    rows = tmp_path / "conversations.jsonl"
    asked = [[{"role": "user", "content": f"What is {n}?"}] for n in range(6)]
    rows.write_text("".join(json.dumps({"messages": one}) + "\n" for one in asked))

    def make(template: str, name: str, **sections: Any) -> TrainConfig:
        model = tmp_path / f"student-{template}"
        if not model.exists():
            with_template(student_model_dir, template, model)
        data = {"train": str(rows), "max_prompt_tokens": 128, "held_out_fraction": 0.5}
        evaluation = {"prompts": 0, "max_new_tokens": 8, "samples": 0}
        evaluation |= sections.pop("evaluation", {})
        at = {"address": server.address, "name": name, **sections.pop("teacher", {})}
        every = {"every": 1, **sections.pop("checkpoint", {})}
        return make_config(
            model, data=data, evaluation=evaluation, teacher=at, checkpoint=every, **sections
        )

    return make


class Clock(datetime):
    """A machine's clock that stands still."""

    stands = datetime.fromisoformat(MONDAY)

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        assert tz is None
        return cls.stands


def test_a_run_of_templates_that_print_the_date_goes_on_tomorrow(
    conversations: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "datetime", Clock)
    settings = conversations("dated", "dated", evaluation={"prompts": 2})
    straight, broken = (tmp_path / name for name in ("straight", "broken"))
    train(in_directory(settings, straight))
    train(in_directory(settings, broken, steps=2))
    monkeypatch.setattr(Clock, "stands", datetime.fromisoformat("2026-12-01T00:00:02"))
    train(in_directory(settings, broken))
    assert losses(broken) == losses(straight)
    assert artefacts(broken, 3) == artefacts(straight, 3)
    frozen = [(run / "evaluation" / "frozen.json").read_bytes() for run in (straight, broken)]
    assert frozen[0] == frozen[1]
    assert checkpoint.load_state(broken / "checkpoints" / "step-000003").now == MONDAY


def as_of_an_earlier_version(run: Path) -> None:
    """Takes from the run's checkpoints what versions without these settings did not keep."""
    for folder in (run / "checkpoints").iterdir():
        path = folder / "state.json"
        state = json.loads(path.read_text())
        del state["now"], state["config"]["teacher"]["prompt"]
        del state["config"]["data"]["now"], state["config"]["data"]["add_bos"]
        parts = dict(p.split("=") for p in state["data_digest"].removeprefix("source:").split(","))
        state["data_digest"] = f"as-read:{parts['as-read']}"
        path.write_text(json.dumps(state))
        manifest = json.loads((folder / "manifest.json").read_text())
        content = path.read_bytes()
        manifest["files"]["state.json"] = {
            "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_of_an_earlier_version_goes_on_where_the_teacher_reads_the_same(
    conversations: Callable[..., TrainConfig],
) -> None:
    settings = conversations("default", "default")
    run = settings.run.output_dir
    train(in_directory(settings, run, steps=1))
    as_of_an_earlier_version(run)
    train(in_directory(settings, run, steps=2))
    assert [step for step, _ in losses(run)] == [1, 2]


def test_a_run_of_an_earlier_version_is_refused_by_the_name_of_what_its_teacher_read(
    conversations: Callable[..., TrainConfig],
) -> None:
    settings = conversations("default", "other", teacher={"prompt": "student"})
    run = settings.run.output_dir
    train(in_directory(settings, run, steps=1))
    as_of_an_earlier_version(run)
    own = conversations("default", "other")
    with pytest.raises(ConfigurationError, match=r"3 train prompts would be read otherwise") as e:
        train(in_directory(own, run, steps=2))
    assert e.value.where == "teacher.prompt"
    train(in_directory(settings, run, steps=2))
    assert [step for step, _ in losses(run)] == [1, 2]
    with pytest.raises(ConfigurationError, match=r"teacher\.prompt \('student' to 'own'\)"):
        train(in_directory(own, run, steps=3))


def test_frozen_rows_of_another_reading_are_asked_for_again(
    ask: Callable[..., Asked], tmp_path: Path
) -> None:
    found = []
    for prompt in ("own", "own", "student"):
        asked = ask("default", "other", teacher={"prompt": prompt})
        response = np.array([40, 41, 42], np.int32)
        piece = Selection(asked.found().item, response, np.arange(3, dtype=np.int32))
        (rows,) = cached_rows(asked.link, [piece], 320, "digest", tmp_path / "cache")
        found.append(rows.log_probs)
    assert np.array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2], atol=1e-2)
