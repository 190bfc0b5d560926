"""Texts with the special tokens that the teacher's tokenizer begins a text with."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from teacher_proto import codec
from teacher_proto.errors import InvalidRequestError
from teacher_proto.models.begin_tokens import begin_ids, begin_text, missing_begin
from teacher_proto.types import SpecialTokens, TextPrompt, TokenText
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from teacher_server.scoring import prompts as prompts_module
from tests.realign.real_tokenizers import tokenizer_file
from tests.server.crossed import request, upload
from tests.server.running import LONG, Running, running
from tests.server.test_scoring import http_body
from tests.support.models import END_OF_TEXT, IM_END, IM_START, make_tiny_model

# What published tokenizers of these kinds put around a text.
ADDED = ("<a>", "<b>", "<c>")
KINDS: dict[str, tuple[Any, list[str]]] = {
    "none": (None, []),
    "Gemma": (processors.TemplateProcessing("<a> $A", None, [("<a>", 1)]), ["<a>"]),
    "Llama 3": (
        processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing("<a> $A", None, [("<a>", 1)]),
            ]
        ),
        ["<a>"],
    ),
    "T5": (processors.TemplateProcessing("$A <b>", None, [("<b>", 2)]), []),
    "BERT": (processors.BertProcessing(("<b>", 2), ("<a>", 1)), ["<a>"]),
    "RoBERTa": (processors.RobertaProcessing(("<b>", 2), ("<a>", 1)), ["<a>"]),
    "NLLB": (
        processors.TemplateProcessing("<c> <a> $A <b>", None, [("<a>", 1), ("<b>", 2), ("<c>", 3)]),
        ["<c>", "<a>"],
    ),
    "XLNet": (processors.TemplateProcessing("$A <b> <c>", None, [("<b>", 2), ("<c>", 3)]), []),
    "byte level": (processors.ByteLevel(trim_offsets=False), []),
}


def made(processor: Any, **tokens: str) -> PreTrainedTokenizerFast:
    document = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": text, "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for i, text in enumerate(ADDED, 1)
        ],
        "model": {
            "type": "BPE",
            "vocab": {"a": 0} | {text: i for i, text in enumerate(ADDED, 1)},
            "merges": [],
        },
    }
    backend = Tokenizer.from_str(json.dumps(document))
    if processor is not None:
        backend.post_processor = processor
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_post_processor_puts_before_a_text_and_nothing_after_it(kind: str) -> None:
    processor, expected = KINDS[kind]
    tokenizer = made(processor)
    assert tokenizer.convert_ids_to_tokens(list(begin_ids(tokenizer, {}))) == expected


def test_a_configuration_that_asks_for_bos_gets_it() -> None:
    configured = {"add_bos_token": True}
    for processor in (None, KINDS["byte level"][0], KINDS["T5"][0]):
        assert begin_ids(made(processor, bos_token="<a>"), configured) == (1,)
        assert begin_ids(made(processor, bos_token="<a>"), {"add_bos_token": False}) == ()
        assert begin_ids(made(processor), configured) == ()
    # The post-processor is what is used where it says something.
    assert begin_ids(made(KINDS["NLLB"][0], bos_token="<a>"), configured) == (3, 1)
    assert begin_ids(made(KINDS["Gemma"][0], bos_token="<a>"), {"add_bos_token": False}) == (1,)


def test_what_a_text_begins_with_is_not_put_before_it_again() -> None:
    for begin, ids, missing in (
        ([1], [5, 6], [1]),
        ([1], [1, 5], []),
        ([1], [], [1]),
        ([], [5], []),
        ([3, 1], [1, 5], [3]),
        ([3, 1], [3, 1, 5], []),
        ([3, 1], [3, 5], [1]),
        ([3, 1, 2], [3, 1, 5], [2]),
        ([1, 1], [1, 5], [1]),
    ):
        assert list(missing_begin(begin, ids)) == missing, (begin, ids)
        whole = begin_text(begin, np.array(ids, np.int32)).tolist()
        assert whole[: len(begin)] == begin
        assert len(whole) == len(missing) + len(ids)


# Of real tokenizers. DeepSeek's names its token in tokenizer_config.json alone.
DEEPSEEK = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
REAL: dict[str, tuple[dict[str, Any], list[str]]] = {
    "gemma": ({}, ["<bos>"]),
    "deepseek_v3": ({"add_bos_token": True, "bos_token": DEEPSEEK}, [DEEPSEEK]),
}


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_begin_a_text_as_they_are_published(name: str) -> None:
    configuration, texts = REAL[name]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file(name)), bos_token=configuration.get("bos_token")
    )
    assert tokenizer.convert_ids_to_tokens(list(begin_ids(tokenizer, configuration))) == texts


SINGLES = {
    "begins": f"{END_OF_TEXT} $A {IM_END}",
    "ends": f"$A {IM_END}",
    "plain": "",
    "configured": "",
}
BEGINNING = ("begins", "configured")
IDS = {text: i for i, text in enumerate((END_OF_TEXT, IM_START, IM_END))}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def teachers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("models")
    for name, single in SINGLES.items():
        model = make_tiny_model(folder / name, num_hidden_layers=1)
        tokenizer = AutoTokenizer.from_pretrained(model)
        if single:
            specials = [(text, IDS[text]) for text in (END_OF_TEXT, IM_END)]
            processor = processors.TemplateProcessing(single, None, specials)
            tokenizer.backend_tokenizer.post_processor = processor
        tokenizer.save_pretrained(model)
        if name == "configured":
            file = model / "tokenizer_config.json"
            own = json.loads(file.read_text())
            file.write_text(json.dumps(own | {"add_bos_token": True, "bos_token": END_OF_TEXT}))
    with pytest.MonkeyPatch.context() as patch:
        async with running({name: folder / name for name in SINGLES}, patch) as found:
            yield found


@pytest.mark.asyncio(loop_scope="module")
async def test_an_empty_text_is_read_where_the_tokenizer_begins_it(teachers: Running) -> None:
    for name in SINGLES:
        jobs, prompt = teachers.engines[name].jobs, TextPrompt("", SpecialTokens.ADD)
        jobs.clear()
        asked = teachers.request(teacher=name, request_id=f"empty {name}", prompt=prompt)
        (rendered,) = await teachers.client.render(
            [prompt], teacher=name, token_ids=True, timeout=LONG
        )
        if name in BEGINNING:
            await teachers.score(asked)
            assert rendered.token_ids is not None
            assert jobs[0].prompt_ids.tolist() == rendered.token_ids.tolist() == [0]
            continue
        assert rendered.refusal is not None
        assert rendered.refusal.where == "prompt.text"
        with pytest.raises(InvalidRequestError) as raised:
            await teachers.score(asked)
        assert raised.value.what == rendered.refusal.what


TEXTS = {"Once": [], f"{END_OF_TEXT}Once": [0], f"{IM_START}Once": [1], f"x{END_OF_TEXT}": []}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_text_is_read_with_the_begin_that_it_asks_for(teachers: Running) -> None:
    for name, single in SINGLES.items():
        jobs = teachers.engines[name].jobs
        own = [TokenText(0, END_OF_TEXT)] if name in BEGINNING else []
        assert list(teachers.info.teacher(name).begin_tokens) == own, single
        for text in TEXTS:
            read = []
            for special in SpecialTokens:
                jobs.clear()
                prompt = TextPrompt(text, special)
                request = teachers.request(
                    teacher=name, request_id=f"{text} {special}", prompt=prompt
                )
                await teachers.score(request)
                as_json = {"text": text, "special_tokens": special.name.lower()}
                body = http_body(prompt=as_json, teacher=name)
                assert (await teachers.http.post("/v1/score", json=body)).status_code == 200
                grpc, http = (job.prompt_ids.tolist() for job in jobs)
                assert grpc == http
                read.append(grpc)
            jobs.clear()
            body = http_body(prompt={"text": text}, teacher=name)
            assert (await teachers.http.post("/v1/score", json=body)).status_code == 200
            assert jobs[0].prompt_ids.tolist() == read[0]
            adds = name in BEGINNING and not text.startswith(END_OF_TEXT)
            assert read[1] == [0, *read[0]] if adds else read[1] == read[0]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_text_for_a_student_with_another_tokenizer_begins_as_the_teacher_s_do(
    teachers: Running, student_file: bytes, student: Tokenizer
) -> None:
    await teachers.client.register_tokenizer(upload(student_file), timeout=LONG)
    jobs = teachers.engines["begins"].jobs
    read = []
    for special in SpecialTokens:
        jobs.clear()
        asked = request(
            teachers,
            student_file,
            student.encode(" upon a time").ids,
            teacher="begins",
            request_id=f"crossed {special}",
            prompt=TextPrompt("Once", special),
        )
        (scores,) = (await teachers.score(asked)).results
        assert scores.realignment is not None, scores.detail
        (ids,) = {tuple(job.prompt_ids.tolist()) for job in jobs if len(job.prompt_ids) > 1}
        read.append(list(ids))
    assert read[1] == [0, *read[0]]


@pytest.mark.asyncio(loop_scope="module")
async def test_over_http_a_teacher_says_how_it_reads(teachers: Running) -> None:
    listed = (await teachers.http.get("/v1/teacher?teacher=begins")).json()["teachers"][0]
    assert listed["begin_tokens"] == [{"token_id": 0, "text": END_OF_TEXT}]
    assert listed["chat"]["template_digest"] == listed["identity"]["chat_template_digest"]
    assert listed["chat"]["turn_ends"][0] == {"token_id": IDS[IM_END], "text": IM_END}


def test_old_texts_keep_their_bytes() -> None:
    message = codec.encode_render_prompt(TextPrompt("x"))
    assert codec.serialize(message) == b"\x1a\x01x"
    asked = codec.encode_render_prompt(TextPrompt("x", SpecialTokens.ADD))
    assert asked.WhichOneof("source") == "text_prompt"
    asked.text_prompt.special_tokens = 0
    with pytest.raises(InvalidRequestError) as raised:
        codec.request.decode_prompt(asked, "prompt")
    assert raised.value.where == "prompt.text_prompt.special_tokens"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_text_without_its_begin_is_said_once(
    teachers: Running, caplog: pytest.LogCaptureFixture
) -> None:
    prompts_module._say_missing.cache_clear()
    prompts = [TextPrompt("x"), TextPrompt("y"), TextPrompt("z", SpecialTokens.ADD)]
    with caplog.at_level(logging.WARNING, "teacher_server.scoring.prompts"):
        for name in SINGLES:
            await teachers.client.render(prompts, teacher=name, timeout=LONG)
    said = [r.getMessage() for r in caplog.records if r.name.endswith("scoring.prompts")]
    for line, name in zip(said, BEGINNING, strict=True):
        assert f"without {END_OF_TEXT}" in line
        assert f"teacher {name} " in line
