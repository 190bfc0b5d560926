"""What a teacher says of its chat templates, and what replacing one does to its identity."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from teacher_proto import codec
from teacher_proto.templates.names import names_read
from teacher_proto.types import TeacherIdentity
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

from teacher_server.engines.base import EngineDescription
from teacher_server.teachers.chat import chat_templates
from teacher_server.teachers.teacher import identity_of
from tests.realign.real_tokenizers import CONFIG_SHA256, chat_template
from tests.server.running import running
from tests.support.models import CHAT_TEMPLATE, make_tiny_model

# Template -> the names that it reads.
NAMES = {
    "{{ a }}{{ b.c }}{{ d['e'] }}": {"a", "b", "d"},
    "{% set a = 1 %}{{ a }}": set(),
    "{{ a }}{% set a = 1 %}{{ a }}": {"a"},
    "{% if not a is defined %}{% set a = 1 %}{% endif %}{{ a }}": {"a"},
    "{% if x %}{% set a = 1 %}{% else %}{% set a = 2 %}{% endif %}{{ a }}": {"x"},
    "{% if x %}{% set a = 1 %}{% elif y %}{{ b }}{% else %}{% set a = 2 %}{% endif %}{{ a }}": {
        *("x", "y", "a", "b"),
    },
    "{% if x %}{% set a = 1 %}{% else %}{{ raise_exception('no') }}{% endif %}{{ a }}": {
        *("x", "raise_exception"),
    },
    "{% for m in messages %}{{ m }}{{ loop.index }}{% set a = m %}{{ a }}{% endfor %}{{ a }}": {
        *("messages", "a"),
    },
    "{% for k, v in d.items() if v %}{{ k }}{{ v }}{% else %}{{ k }}{% endfor %}": {"d", "k"},
    "{% for m in ms %}{% if m %}{% continue %}{% else %}{% set a = 1 %}{% endif %}{{ a }}"
    "{% endfor %}": {"ms"},
    "{% macro f(x, y=z) %}{{ x }}{{ y }}{{ w }}{{ g() }}{{ caller() }}{% endmacro %}"
    "{% macro g() %}{% endmacro %}{{ f(1) }}{{ x }}": {"z", "w", "x"},
    "{% set ns = namespace(a=b) %}{% set ns.a = c %}{{ ns.a }}": {"namespace", "b", "c"},
    "{% set a %}{{ b }}{% endset %}{{ a }}": {"b"},
    "{% with a = b %}{{ a }}{% endwith %}{{ a }}": {"a", "b"},
    "{{ strftime_now('%d') if strftime_now is defined else day }}": {"strftime_now", "day"},
    "{% generation %}{{ a }}{% endgeneration %}": {"a"},
    "{% filter trim %}{{ a }}{% endfilter %}{{ 'a' | default(b) }}": {"a", "b"},
    "a {# {{ a }} #} b": set(),
}


@pytest.mark.parametrize("template", NAMES)
def test_the_names_that_a_template_reads(template: str) -> None:
    environment = _compile_jinja_template(template).environment
    assert names_read(environment.parse(template)) == NAMES[template]


def tokenizer(template: Any, **tokens: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(json.dumps(EMPTY))
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    made.chat_template = template
    return made


EMPTY = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "BPE", "vocab": {"a": 0, "<s>": 1, "</s>": 2}, "merges": []},
}
# Of real templates: arguments, and whether they print the date.
REAL = {
    "llama3_2": (("custom_tools", "date_string", "tools", "tools_in_user_message"), True),
    "qwen3": (("enable_thinking", "tools"), False),
}


@pytest.mark.parametrize("name", CONFIG_SHA256)
def test_the_arguments_of_real_templates(name: str) -> None:
    found = chat_templates(tokenizer(chat_template(name), bos_token="<s>"))
    assert (found.arguments, found.reads_clock) == REAL[name]


def test_an_argument_is_a_name_that_nothing_else_gives() -> None:
    found = chat_templates(
        tokenizer(
            "{{ bos_token }}{{ eos_token }}{{ messages }}{{ add_generation_prompt }}{{ mood }}"
            "{{ range(3) }}{{ namespace() }}{{ tools }}",
            bos_token="<s>",
        )
    )
    # There is no eos token, so a caller may give one.
    assert found.arguments == ("eos_token", "mood", "tools")


def test_of_several_templates_every_one_counts() -> None:
    named = {"default": "{{ a }}", "tool_use": "{{ strftime_now('%d') }}{{ b }}"}
    found = chat_templates(tokenizer(named))
    assert (found.arguments, found.reads_clock) == (("a", "b"), True)
    digests = {
        chat_templates(tokenizer(one)).digest
        for one in (
            named,
            named | {"tool_use": "{{ b }}"},
            named | {"default": "{{ b }}"},
            {"default": named["default"]},
            named | {"rag": "{{ c }}"},
        )
    }
    assert len(digests) == 5
    assert (
        chat_templates(tokenizer("{{ a }}")).digest
        == chat_templates(tokenizer({"default": "{{ a }}"})).digest
    )


def test_a_special_token_that_a_template_prints_is_a_part_of_it() -> None:
    printing, silent = "{{ bos_token }}é", "é"
    assert (
        chat_templates(tokenizer(printing, bos_token="<s>")).digest
        != chat_templates(tokenizer(printing, bos_token="</s>")).digest
    )
    assert (
        chat_templates(tokenizer(silent, bos_token="<s>")).digest
        == chat_templates(tokenizer(silent)).digest
    )
    fields = {"special_tokens": {"bos_token": "<s>"}, "templates": {"default": printing}}
    canonical = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
    assert (
        chat_templates(tokenizer(printing, bos_token="<s>")).digest
        == hashlib.sha256(canonical.encode()).hexdigest()
    )


def test_a_broken_template_is_known_by_its_text(caplog: pytest.LogCaptureFixture) -> None:
    found = chat_templates(tokenizer("{% if %}"))
    assert (found.arguments, found.reads_clock) == ((), False)
    assert found.digest
    assert "cannot be compiled" in caplog.text


def test_without_a_template_there_is_no_digest_and_the_identity_is_as_before() -> None:
    found = chat_templates(tokenizer(None))
    assert (found.digest, found.arguments) == ("", ())
    description = EngineDescription(
        engine="transformers",
        model="m",
        vocabulary_size=3,
        max_length=4,
        dtype="float32",
        quantization="",
        weights_digest="w",
        adapter_digest="a",
        deterministic=True,
    )
    before = (
        '{"adapter_digest":"a","dtype":"float32","quantization":"","tokenizer_hash":"t",'
        '"weights_digest":"w"}'
    )
    bare = identity_of(description, "t", "")
    assert bare.digest == hashlib.sha256(before.encode()).hexdigest()
    fields = dataclasses.asdict(identity_of(description, "t", "c"))
    digest = fields.pop("digest")
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert digest == hashlib.sha256(canonical.encode()).hexdigest()
    assert digest != bare.digest


async def test_a_replaced_chat_template_is_another_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates: dict[str, Any] = {
        "plain": CHAT_TEMPLATE,
        "again": CHAT_TEMPLATE,
        "replaced": CHAT_TEMPLATE + " ",
        "named": {"default": CHAT_TEMPLATE, "tool_use": "{{ tools }}"},
        "renamed": {"default": CHAT_TEMPLATE, "tool_use": "{{ tools }} "},
        "none": None,
    }
    for name, template in templates.items():
        made = make_tiny_model(tmp_path / name, num_hidden_layers=1)
        own = AutoTokenizer.from_pretrained(made)
        own.chat_template = template
        own.save_pretrained(made)
        if template is None:
            (made / "chat_template.jinja").unlink(missing_ok=True)
    async with running({name: tmp_path / name for name in templates}, monkeypatch) as server:
        found = {teacher.name: teacher for teacher in server.info.teachers}
    identities = {name: teacher.identity for name, teacher in found.items()}
    assert identities["plain"] == identities["again"]
    assert len({one.digest for one in identities.values()}) == len(templates) - 1
    bare = {
        dataclasses.replace(one, digest="", chat_template_digest="") for one in identities.values()
    }
    assert len(bare) == 1
    for name, teacher in found.items():
        assert teacher.chat is not None
        assert teacher.chat.has_template == (name != "none")
        assert teacher.chat.template_digest == teacher.identity.chat_template_digest
    named = found["named"].chat
    assert named is not None
    assert named.arguments == ("tools",)


def test_an_identity_of_before_is_read_as_one_without_a_template() -> None:
    old = TeacherIdentity("d", "w", "float32", "", "", "t")
    data = codec.serialize(codec.teacher.encode_identity(old))
    assert (
        codec.teacher.decode_identity(codec.teacher.teacher_pb2.TeacherIdentity.FromString(data))
        == old
    )
