"""The end of an assistant's turn, as chat templates of many kinds write it."""

from __future__ import annotations

from typing import Any

import pytest
from teacher_proto.templates.reply_end import ReplyEnd, reply_end
from transformers import PreTrainedTokenizerFast

from tests.realign.real_tokenizers import chat_template, tokenizer_file
from tests.support.models import CHAT_TEMPLATE, END_OF_TEXT, ENGLISH, IM_END, train_tokenizer

END = {"whole": "<|end|>", "user": "<|user|>", "assistant": "<|assistant|>", "close": "<|close|>"}
ROLES = "{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
TEXTS = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'] + ':\\n' + message['content'] + '\\n\\n' }}"
    "{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = train_tokenizer(ENGLISH, 280)
    found.add_special_tokens({"extra_special_tokens": list(END.values())})
    return found


def looped(after_message: str, after_all: str = "", message: str = ROLES) -> str:
    return (
        f"{{% for message in messages %}}{message}{after_message}{{% endfor %}}{after_all}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )


@pytest.mark.parametrize(
    ("template", "known", "ends"),
    [
        pytest.param(CHAT_TEMPLATE, [], IM_END, id="each turn is closed"),
        pytest.param(CHAT_TEMPLATE, [END_OF_TEXT], IM_END, id="the tokenizer names another"),
        pytest.param(
            looped("<|end|>\n", "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"),
            [END_OF_TEXT],
            "<|end|>",
            id="closed turns and an end of the text",
        ),
        pytest.param(
            looped("\n", "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"),
            [],
            END_OF_TEXT,
            id="an end of the text at the very end alone",
        ),
        pytest.param(looped("\n"), [], "<|user|>", id="the next turn's beginning"),
        pytest.param(
            looped("{% if not loop.last %}<|end|>{% endif %}"),
            [],
            "<|end|>",
            id="all but the last turn are closed",
        ),
        pytest.param(
            looped("{% if loop.last %}<|endoftext|>{% else %}<|end|>{% endif %}"),
            [],
            END_OF_TEXT,
            id="the last turn is closed in another way",
        ),
        pytest.param(looped("<|close|><|end|>"), [], "<|end|>", id="two tokens together"),
        pytest.param(looped("<|end|>\n<|close|>"), [], "<|end|>", id="two tokens apart"),
        pytest.param(
            looped("<|close|>\n<|end|>"), ["<|end|>"], "<|end|>", id="two tokens, one known"
        ),
        pytest.param(
            CHAT_TEMPLATE.replace("<|im_end|>\\n", "<|im_end|>")
            .replace("{% if add_generation_prompt %}", "")
            .replace("{% endif %}", ""),
            [END_OF_TEXT],
            IM_END,
            id="a generation prompt after every reply",
        ),
        pytest.param(
            looped("<|end|>") + "<|assistant|>",
            [],
            "<|end|>",
            id="the same, turns begin with roles",
        ),
        pytest.param(
            looped("") + "<|assistant|>",
            [],
            "<|user|>",
            id="the same, nothing ends a turn",
        ),
        pytest.param(
            looped(
                "<|end|>",
                message=(
                    "{% if loop.first and message['role'] != 'system' %}"
                    "{{ raise_exception('a system message comes first') }}{% endif %}" + ROLES
                ),
            ),
            [],
            "<|end|>",
            id="wants a system message",
        ),
        pytest.param(
            looped("<|end|>", message="{{ message['content'][0]['text'] + '' }}"),
            [],
            "<|end|>",
            id="wants contents in parts",
        ),
        pytest.param(
            "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}"
            + looped("<|end|>"),
            [],
            "<|end|>",
            id="takes one question",
        ),
    ],
)
def test_the_token_that_ends_a_turn(
    tokenizer: Any, template: str, known: list[str], ends: str
) -> None:
    tokenizer.chat_template = template
    found = reply_end(tokenizer, tokenizer.convert_tokens_to_ids(known))
    assert tokenizer.convert_ids_to_tokens(found.token_id) == ends
    assert found.refusal is None


def test_a_turn_that_ends_with_text(tokenizer: Any) -> None:
    tokenizer.chat_template = TEXTS
    assert reply_end(tokenizer) == ReplyEnd(text="\n\n### user:\n")
    tokenizer.chat_template = TEXTS.replace("+ '\\n\\n'", "+ '\\n\\n[over] '")
    assert reply_end(tokenizer) == ReplyEnd(text="\n\n[over] ")


def test_a_template_that_refuses_every_conversation(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('only in my own format\\nplease') }}"
    assert reply_end(tokenizer) == ReplyEnd(refusal="only in my own format")
    tokenizer.chat_template = "{{ messages[-1]['role'] }}"
    assert reply_end(tokenizer) == ReplyEnd(refusal="it leaves the reply out")
    tokenizer.chat_template = None
    assert reply_end(tokenizer) == ReplyEnd()


def test_a_template_s_arguments(tokenizer: Any) -> None:
    tokenizer.chat_template = looped("{% if closed %}<|end|>{% else %}<|close|>{% endif %}")
    ends = [reply_end(tokenizer, arguments={"closed": one}).token_id for one in (True, False)]
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|end|>", "<|close|>"]


# Of published tokenizers: the token that begins a text, the one that ends it, and the end of
# a turn, which nothing but the template names.
REAL = {
    "gemma3": ("<bos>", "<eos>", "<end_of_turn>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    "mistral_nemo": ("<s>", "</s>", "</s>"),
    "qwen3": (None, "<|endoftext|>", "<|im_end|>"),
}


@pytest.mark.parametrize("name", REAL)
def test_the_end_of_a_published_template_is_found_without_a_generation_config(name: str) -> None:
    bos, eos, end = REAL[name]
    file = str(tokenizer_file(name))
    found = PreTrainedTokenizerFast(
        tokenizer_file=file, bos_token=bos, eos_token=eos, chat_template=chat_template(name)
    )
    for known in ([], [found.eos_token_id]):
        assert found.convert_ids_to_tokens(reply_end(found, known).token_id) == end
