"""Which ids end a teacher's turn: of its template, generation config and tokenizer."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.types import PositionClass, SpecialRole
from transformers import GenerationConfig, LlamaForCausalLM

from teacher_server.teachers.tokenizer import TeacherTokenizer
from teacher_server.teachers.turn_ends import load_generation_config, turn_ends
from tests.server.crossed import block, given, request, upload
from tests.server.running import LONG, running
from tests.server.test_scoring import reference
from tests.support.models import (
    CODE,
    END_OF_TEXT,
    ENGLISH,
    IM_END,
    IM_START,
    save_model,
    tiny_llama_config,
    train_tokenizer,
)


@pytest.fixture
def tokenizer() -> Any:
    return train_tokenizer(ENGLISH, 280)


def test_turn_ends_are_those_of_template_generation_config_and_tokenizer(tokenizer: Any) -> None:
    text, start, end = tokenizer.convert_tokens_to_ids([END_OF_TEXT, IM_START, IM_END])
    tokenizer.eos_token = END_OF_TEXT
    assert turn_ends(tokenizer, None) == (end, text)
    assert turn_ends(tokenizer, GenerationConfig(eos_token_id=[start, text])) == (end, text, start)
    assert turn_ends(tokenizer, GenerationConfig(eos_token_id=start)) == (end, text, start)
    tokenizer.chat_template = None
    assert turn_ends(tokenizer, GenerationConfig(eos_token_id=[start, text])) == (text, start)
    tokenizer.eos_token = None
    assert turn_ends(tokenizer, None) == ()


def test_a_loaded_tokenizer_asks_its_template_once(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered, render = [], tokenizer.apply_chat_template

    @wraps(render)
    def counted(conversation: Any, **arguments: Any) -> Any:
        rendered.append([turn["role"] for turn in conversation])
        return render(conversation, **arguments)

    monkeypatch.setattr(tokenizer, "apply_chat_template", counted)
    loaded = TeacherTokenizer(tokenizer)
    assert loaded.turn_ends == turn_ends(tokenizer, None)
    # Once for the tokenizer and once for the comparison: without and with another question.
    assert rendered == [["user", "assistant"], ["user", "assistant", "user"]] * 2


def test_a_folder_s_generation_config(tiny_model_dir: Path, tmp_path: Path) -> None:
    own = load_generation_config(str(tiny_model_dir))
    assert own is not None
    assert own.eos_token_id == 2
    # A folder without generation_config.json has what its config.json says.
    (tmp_path / "config.json").write_text((tiny_model_dir / "config.json").read_text())
    of_config = load_generation_config(str(tmp_path))
    assert of_config is not None
    assert of_config.eos_token_id == 2
    (tmp_path / "config.json").unlink()
    assert load_generation_config(str(tmp_path)) is None


NEXT_TURN = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.mark.asyncio
async def test_what_only_template_and_generation_config_call_an_end_is_the_student_s_turn_end(
    tmp_path: Path,
) -> None:
    """As of GLM: nothing closes a turn, the next one's beginning ends it, and so does an
    observation; the tokenizer names the end of a text alone."""
    own = train_tokenizer(ENGLISH, 300)
    markers = ["<|user|>", "<|assistant|>", "<|observation|>"]
    own.add_special_tokens({"extra_special_tokens": markers})
    own.eos_token, own.chat_template = END_OF_TEXT, NEXT_TURN
    user, _, observation = own.convert_tokens_to_ids(markers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(tiny_llama_config(303))
    # It is certain that its turn ends, with any of the three.
    said = own.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    ids = torch.tensor([own(said + "the day")["input_ids"]])
    with torch.no_grad():
        last = model.model(ids).last_hidden_state[0, -1]
        for token, logit in ((own.eos_token_id, 9.0), (user, 10.0), (observation, 8.0)):
            model.lm_head.weight[token] = last * logit / (last @ last)
    model.generation_config.eos_token_id = [own.eos_token_id, observation]
    folder = save_model(model, tmp_path / "teacher", own)
    student = train_tokenizer(CODE, 330)
    file = student.backend_tokenizer.to_str().encode()
    end = student.eos_token_id
    with pytest.MonkeyPatch.context() as patch:
        async with running({"default": folder}, patch) as server:
            roles = {end: SpecialRole.TURN_END}
            await server.client.register_tokenizer(upload(file, special_tokens=roles), timeout=LONG)
            asked = request(server, file, [*student.encode("the day"), end], top_k=64)
            scores = (await server.score(asked)).results[0]
            job = [job for job in server.engines["default"].jobs if job.want_sampled][-1]
    spoken = job.spans[0].token_ids.tolist()
    assert spoken[-1] == user
    rows = reference(folder, job.prompt_ids.tolist(), spoken).exp()
    ends = float(rows[len(spoken) - 1, [own.eos_token_id, user, observation]].sum())
    assert ends > 0.95
    assert block(scores).position_class[-1] == PositionClass.SPECIAL
    assert float(np.exp(given(scores.rows.sampled).values[-1])) == pytest.approx(ends, rel=1e-3)
