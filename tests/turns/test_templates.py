"""What follows a turn, held against eight published chat templates with their tokenizers."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ChatMessage, ChatPrompt, TextPrompt
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from student_trainer.data.rendering import PromptReader
from student_trainer.rollout.turns.template import TurnTemplate
from student_trainer.settings.data import DataSettings
from student_trainer.tasks.calling.formats import calls_in
from student_trainer.tasks.calling.tool import Calculator
from tests.realign.real_tokenizers import TEMPLATES_SHA256, _file, tokenizer_file

NOW = "2026-11-30T00:00:00"
# Ends of a turn, and the format of calls; Llama 3.1's tokenizer is that of 3.2.
TEMPLATES = {
    "llama3_2": ("<|eot_id|>", "llama"),
    "qwen3": ("<|im_end|>", "hermes"),
    "deepseek_v3": ("<\uff5cend\u2581of\u2581sentence\uff5c>", "deepseek"),
    "mistral_nemo": ("</s>", "mistral"),
    "qwen2_5": ("<|im_end|>", "hermes"),
    "gemma3": ("<end_of_turn>", ""),
    "llama3": ("<|eot_id|>", ""),
    "llama3_1": ("<|eot_id|>", ""),
}
# Templates that write the results of tools after a turn that calls them.
CALLING = ("llama3_2", "qwen3", "mistral_nemo", "qwen2_5")
TOOLS = [Calculator().schema]


@cache
def loaded(name: str) -> tuple[Any, TurnTemplate]:
    """A tokenizer with its template, and what follows a turn of it."""
    config = json.loads(_file(name, "tokenizer_config.json", TEMPLATES_SHA256[name]).read_text())
    begins = config.get("bos_token")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file("llama3_2" if name == "llama3_1" else name)),
        bos_token=begins["content"] if isinstance(begins, dict) else begins,
        eos_token=TEMPLATES[name][0],
        chat_template=config["chat_template"],
    )
    reader = PromptReader(tokenizer, DataSettings(train="x"), NOW)
    return tokenizer, TurnTemplate(reader, [tokenizer.eos_token_id])


def carried(tokenizer: Any, whole: list[int], parts: list[tuple[list[int], bool]]) -> None:
    """Checks that the parts are the whole, one after the other, and that the mask has exactly the
    student's turns with their ends."""
    ids = [token for part, _ in parts for token in part]
    assert ids == whole[: len(ids)], tokenizer.decode(whole[: len(ids)])
    own = [token for part, is_own in parts if is_own for token in part]
    assert own.count(tokenizer.eos_token_id) == sum(is_own for _, is_own in parts)


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_and_observations_are_what_the_template_writes_of_the_whole(name: str) -> None:
    tokenizer, template = loaded(name)
    said = ["go north", "look at the door", "open it"]
    heard = ["You see a door.", "It is closed.\nIt is red.", "It opens."]
    asked = {"role": "user", "content": "You are in a room."}
    messages = [asked]
    for turn, answer in zip(said, heard, strict=True):
        messages += [
            {"role": "assistant", "content": turn},
            {"role": "user", "content": answer},
        ]
    reader = PromptReader(tokenizer, DataSettings(train="x"), NOW)

    def rendered(some: list[dict[str, str]]) -> list[int]:
        prompt = ChatPrompt(tuple(ChatMessage(m["role"], m["content"]) for m in some), now=NOW)
        text = reader.render(prompt, "the whole")
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    source = ChatPrompt((ChatMessage("user", asked["content"]),), now=NOW)
    parts = [(rendered([asked]), False)]
    for turn, answer in zip(said, heard, strict=True):
        own = tokenizer(turn, add_special_tokens=False)["input_ids"]
        parts.append(([*own, tokenizer.eos_token_id], True))
        following = template.following(source, [{"role": "user", "content": answer}], ended=True)
        parts.append((following.tolist(), False))
    carried(tokenizer, rendered(messages), parts)
    cut = template.following(source, [{"role": "user", "content": heard[0]}], ended=False)
    assert cut.tolist() == [tokenizer.eos_token_id, *parts[2][0]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_format_of_calls_is_found(name: str) -> None:
    assert loaded(name)[1].tool_format() == TEMPLATES[name][1]


@pytest.mark.parametrize("name", CALLING)
def test_calls_and_results_are_what_the_template_writes_of_the_whole(name: str) -> None:
    tokenizer, template = loaded(name)
    reader = PromptReader(tokenizer, DataSettings(train="x"), NOW)
    asked = ChatMessage("user", "How much is 6 times 7?")
    call = {"name": "calculator", "arguments": {"expression": "6 * 7"}}
    calling = ChatMessage(
        "assistant",
        "",
        {"tool_calls": [{"id": "abcdefgh1", "type": "function", "function": call}]},
    )
    result = {
        "role": "tool", "content": "42", "name": "calculator", "tool_call_id": "abcdefgh1",
    }  # fmt: skip
    answered = ChatMessage("tool", "42", {k: result[k] for k in ("name", "tool_call_id")})

    def rendered(*messages: ChatMessage) -> str:
        arguments = {"tools": TOOLS}
        return reader.render(
            ChatPrompt(messages, template_arguments=arguments, now=NOW), "the whole"
        )

    def encoded(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    prompt = rendered(asked)
    whole = rendered(asked, calling, answered)
    own, end, _ = whole.removeprefix(prompt).partition(tokenizer.eos_token)
    assert end, "the template ends the turn"
    read = calls_in(own, template.tool_format())
    assert [(one.name, one.arguments) for one in read] == [("calculator", {"expression": "6 * 7"})]
    following = template.following(
        ChatPrompt((asked,), template_arguments={"tools": TOOLS}, now=NOW), [result], ended=True
    )
    parts = [
        (encoded(prompt), False),
        ([*encoded(own), tokenizer.eos_token_id], True),
        (following.tolist(), False),
    ]
    carried(tokenizer, encoded(whole), parts)
    assert len(encoded(whole)) == sum(len(part) for part, _ in parts)


def test_what_a_template_cannot_continue_is_refused_with_its_reason() -> None:
    _, template = loaded("gemma3")
    source = ChatPrompt((ChatMessage("user", "?"),), now=NOW)
    with pytest.raises(ConfigurationError, match="alternate") as refused:
        template.check(source, ("tool",), "tasks.it")
    assert refused.value.where == "tasks.it"
    template.check(source, ("user",), "tasks.it")
    tokenizer, template = loaded.__wrapped__("llama3")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ loop.length }} {{ m.content }}<|eot_id|>{% endfor %}"
    )
    with pytest.raises(ConfigurationError, match="writes the prompt otherwise"):
        template.check(source, ("user",), "tasks.it")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"
        "{% if not add_generation_prompt %}<|end_of_text|>{% endif %}"
    )
    template.check(source, ("user",), "tasks.it")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    with pytest.raises(ConfigurationError, match=r"rollout\.stop_ids"):
        template.check(source, ("user",), "tasks.it")


def test_after_a_text_observations_follow_as_they_are() -> None:
    tokenizer, template = loaded("qwen2_5")
    heard = [{"role": "user", "content": "\nA door."}, {"role": "user", "content": " Red.\n"}]
    found = template.following(TextPrompt("A room.\n"), heard, ended=True)
    assert tokenizer.decode(found) == "\nA door. Red.\n"
    # Llama 2's puts a space before whatever it takes for a beginning.
    for name in ("qwen2_5", "llama2"):
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file(name)))
        reader = PromptReader(tokenizer, DataSettings(train="x"), NOW)
        own = tokenizer("go north", add_special_tokens=False)["input_ids"]
        for text in (
            "\nA door.\n> ",
            "A door",
            " A door",
            "xylophone",
            "...",
            "\n\n",
            "\u00e9t\u00e9",
        ):
            heard = [{"role": "user", "content": text}]
            found = TurnTemplate(reader, [0]).following(TextPrompt("A room.\n"), heard, ended=True)
            whole = tokenizer.decode([*own, *found], clean_up_tokenization_spaces=False)
            assert whole == f"go north{text}", name


def test_a_tokenizer_that_reads_each_word_otherwise_where_it_begins_is_refused() -> None:
    vocabulary = {"<unk>": 0, "go north": 1, "x": 2, "\n": 3, ".": 4}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    reader = PromptReader(
        PreTrainedTokenizerFast(tokenizer_object=words), DataSettings(train="x"), NOW
    )
    with pytest.raises(ConfigurationError, match="otherwise behind another text"):
        TurnTemplate(reader, [0]).check(TextPrompt("A room.\n"), ("user",), "tasks.it")


def test_an_empty_observation_adds_nothing_to_a_text() -> None:
    _, template = loaded("qwen2_5")
    empty = template.following(TextPrompt("?"), [{"role": "user", "content": ""}], ended=False)
    assert np.array_equal(empty, np.zeros(0, np.int32))


def test_a_word_that_the_conversation_holds_is_not_taken_for_the_turn() -> None:
    tokenizer, template = loaded("qwen2_5")
    source = ChatPrompt((ChatMessage("user", "7f3a9e 7f3a9ex"),), now=NOW)
    found = template.following(source, [{"role": "user", "content": "7f3a9exx"}], ended=True)
    assert tokenizer.decode(found).startswith("\n<|im_start|>user\n7f3a9exx<|im_end|>")
