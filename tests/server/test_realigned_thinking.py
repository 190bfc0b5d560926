"""Thinking across tokenizers: the template's switch, and the tokens that open and close it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    ContinuationScores,
    Level,
    PositionClass,
    SpecialRole,
)
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from teacher_server.engines.base import Job
from tests.server.crossed import block, changed, given, request, upload
from tests.server.running import LONG, Running, continuation, running
from tests.server.test_scoring import reference
from tests.support.models import (
    CHAT_TEMPLATE,
    CODE,
    ENGLISH,
    save_model,
    tiny_llama_config,
    train_tokenizer,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPEN, CLOSE = "<think>", "</think>"
# As templates of models with a switch write it: thinking that is off is thinking that is over.
TEMPLATE = CHAT_TEMPLATE + (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}"
    "{% endif %}"
)
SIZE = 322
TEXT = " the day was warm"


@pytest.fixture(scope="module")
def thinking_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 322 tokens whose template has a switch; the tokens of thinking are
    added ones that are not special, as Qwen3 has them."""
    tokenizer = train_tokenizer(ENGLISH, SIZE - 2)
    tokenizer.add_tokens([AddedToken(text, special=False) for text in (OPEN, CLOSE)])
    tokenizer.chat_template = TEMPLATE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(tiny_llama_config(SIZE, initializer_range=0.4))
    return save_model(model, tmp_path_factory.mktemp("models") / "thinking", tokenizer)


@pytest.fixture(scope="module")
def thinker_file() -> bytes:
    """A student that spells the two tokens otherwise than any teacher does."""
    tokenizer = train_tokenizer(CODE, 350)
    tokenizer.add_special_tokens({"extra_special_tokens": ["[T]", "[/T]"]})
    return tokenizer.backend_tokenizer.to_str().encode()


@pytest.fixture(scope="module")
def thinker(thinker_file: bytes) -> Tokenizer:
    return Tokenizer.from_str(thinker_file.decode())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(
    thinking_dir: Path, teacher_dir: Path, thinker_file: bytes, thinker: Tokenizer
) -> AsyncIterator[Running]:
    """One teacher with the tokens of thinking, ``plain`` without; the student's roles are told."""
    roles = {
        thinker.token_to_id("[T]"): SpecialRole.THINK_OPEN,
        thinker.token_to_id("[/T]"): SpecialRole.THINK_CLOSE,
    }
    models = {"default": thinking_dir, "plain": teacher_dir}
    with pytest.MonkeyPatch.context() as patch:
        async with running(models, patch) as server:
            levels = await server.client.register_tokenizer(
                upload(thinker_file, special_tokens=roles), timeout=LONG
            )
            assert levels == dict.fromkeys(models, Level.CROSS)
            yield server


def rollout_job(server: Running) -> Job:
    """The last one that was not for rows beyond a rollout's own."""
    return [job for job in server.engines["default"].jobs if job.want_sampled][-1]


def thoughtful(student: Tokenizer) -> list[int]:
    """A rollout that thinks: open, text, close, text."""
    begin, stop = student.token_to_id("[T]"), student.token_to_id("[/T]")
    words = student.encode(TEXT).ids
    return [begin, *words, stop, *words]


def chat(**arguments: Any) -> ChatPrompt:
    return ChatPrompt((ChatMessage("user", "Hi"),), template_arguments=arguments)


async def test_the_teacher_s_own_template_has_the_switch(
    server: Running, thinking_dir: Path, thinker_file: bytes, thinker: Tokenizer
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(thinking_dir)
    messages = [{"role": "user", "content": "Hi"}]
    tokens = thinker.encode(TEXT).ids
    read, rows = {}, {}
    for name, arguments in (
        ("off", {"enable_thinking": False}),
        ("on", {"enable_thinking": True}),
        ("unsaid", {}),
    ):
        asked = request(
            server, thinker_file, tokens, prompt=chat(**arguments), top_k=32, request_id=name
        )
        rows[name] = (await server.score(asked)).results[0]
        read[name] = rollout_job(server).prompt_ids.tolist()
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **arguments
        )
        assert read[name] == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    begin, stop = tokenizer.convert_tokens_to_ids([OPEN, CLOSE])
    gap = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    assert read["off"] == [*read["on"], begin, *gap, stop, *gap]
    assert read["unsaid"] == read["on"]
    np.testing.assert_array_equal(rows["unsaid"].rows.support.ids, rows["on"].rows.support.ids)
    spoken = rollout_job(server).spans[0].token_ids.tolist()
    likelihoods = []
    for name in ("off", "on"):
        own = reference(thinking_dir, read[name], spoken)[range(len(spoken)), spoken]
        likelihoods.append(block(rows[name]).chunk_log_likelihood.sum())
        assert likelihoods[-1] == pytest.approx(float(own.sum()), abs=1e-2)
    assert abs(likelihoods[0] - likelihoods[1]) > 0.1


async def test_tokens_of_thinking_are_each_other_s_by_role(
    server: Running, thinking_dir: Path, thinker_file: bytes, thinker: Tokenizer
) -> None:
    """Whatever their spelling: their rows and values are those of the teacher's tokens."""
    tokens = thoughtful(thinker)
    begin, stop = tokens[0], thinker.token_to_id("[/T]")
    rollouts = continuation(*tokens), continuation(stop, *thinker.encode(TEXT).ids)
    asked = request(server, thinker_file, [], continuations=rollouts, top_k=SIZE)
    results = (await server.score(asked)).results
    job = rollout_job(server)
    teacher = Tokenizer.from_file(str(thinking_dir / "tokenizer.json"))
    words = teacher.encode(TEXT).ids
    opens, closes = teacher.token_to_id(OPEN), teacher.token_to_id(CLOSE)
    spoken = [[opens, *words, closes, *words], [closes, *words]]
    assert [one.token_ids.tolist() for one in job.spans] == spoken
    row, inside = 0, 1 + len(words)
    own = [reference(thinking_dir, job.prompt_ids.tolist(), one).numpy() for one in spoken]
    for scores, rows, token, its in zip(results, own, (begin, stop), (opens, closes), strict=True):
        assert block(scores).position_class[row] == PositionClass.SPECIAL
        assert given(scores.rows.sampled).valid[row]
        assert given(scores.rows.sampled).values[row] == pytest.approx(rows[row, its], abs=2e-4)
        at = given(scores.rows.support).ids[row].tolist().index(token)
        assert given(scores.rows.support).log_probs[row, at] == pytest.approx(
            rows[row, its], abs=2e-4
        )
    # A special token is a chunk, in the middle of a text too, whose row may be masked.
    found = block(results[0])
    chunk = found.chunk_index[tokens.index(stop)]
    assert found.chunk_log_likelihood[chunk] == pytest.approx(own[0][inside, closes], abs=2e-4)


async def test_a_teacher_without_them_reads_and_scores_their_text(
    server: Running, teacher_dir: Path, thinker_file: bytes, thinker: Tokenizer
) -> None:
    tokens = thoughtful(thinker)
    places = [index for index, token in enumerate(tokens) if token >= 350]
    assert len(places) == 2
    asked = request(server, thinker_file, tokens, teacher="plain", request_id="none")
    scores = (await server.score(asked)).results[0]
    job = [job for job in server.engines["plain"].jobs if job.want_sampled][-1]
    spoken = job.spans[0].token_ids.tolist()
    own = reference(teacher_dir, job.prompt_ids.tolist(), spoken)[range(len(spoken)), spoken]
    teacher = Tokenizer.from_file(str(teacher_dir / "tokenizer.json"))
    texts = ["[T]", TEXT, "[/T]", TEXT]
    lengths = [len(teacher.encode(text).ids) for text in texts]
    assert spoken == teacher.encode("".join(texts)).ids
    assert len(spoken) == sum(lengths)
    ends = np.cumsum([0, *lengths])
    spelt = [float(own[ends[text] : ends[text + 1]].sum()) for text in (0, 2)]
    found = block(scores)
    np.testing.assert_allclose(
        found.chunk_log_likelihood[found.chunk_index[places]], spelt, atol=1e-3
    )
    assert (found.position_class[places] == PositionClass.ALIGNED).all()
    assert not found.lost_mass[places].any()
    kept = found.position_class != PositionClass.MASKED
    metrics = (await server.http.get("/metrics")).text
    counted = [
        float(line.split()[-1])
        for line in metrics.splitlines()
        if line.startswith("lsm_teacher_realigned_rows_total")
        and 'position_class="MASKED",teacher="plain"' in line
    ]
    assert sum(counted) == (~kept).sum()


async def test_what_the_student_has_no_token_for_is_spelt(
    server: Running, thinking_dir: Path, thinker_file: bytes, thinker: Tokenizer
) -> None:
    """The mass of the teacher's token is that of what the student begins its text with, and the
    teacher reads the text that the student writes as its token."""

    def forget(document: dict[str, Any]) -> None:
        document["added_tokens"] = [t for t in document["added_tokens"] if t["id"] < 350]

    without = changed(thinker_file, forget)
    await server.client.register_tokenizer(upload(without), timeout=LONG)
    tokens = thinker.encode(TEXT).ids
    with_, none = [
        (await server.score(request(server, file, tokens, top_k=SIZE, request_id=name))).results[0]
        for file, name in ((thinker_file, "with"), (without, "without"))
    ]
    job = rollout_job(server)
    rows = reference(thinking_dir, job.prompt_ids.tolist(), job.spans[0].token_ids.tolist())
    teacher = Tokenizer.from_file(str(thinking_dir / "tokenizer.json"))
    both = [teacher.token_to_id(OPEN), teacher.token_to_id(CLOSE)]
    begins = {thinker.encode(text).ids[0] for text in (OPEN, CLOSE)}

    def mass(scores: ContinuationScores) -> float:
        support = given(scores.rows.support)
        known = np.isin(support.ids[0], list(begins)) & (support.ids[0] >= 0)
        return float(np.exp(support.log_probs[0][known]).sum())

    spelt = float(rows[0, both].exp().sum())
    assert mass(none) - mass(with_) == pytest.approx(spelt, rel=1e-2)
    assert block(none).lost_mass[0] == pytest.approx(block(with_).lost_mass[0], abs=1e-6)
    written = thinker.encode(OPEN + TEXT + CLOSE).ids
    asked = request(server, without, written, top_k=8, request_id="spelt")
    scores = (await server.score(asked)).results[0]
    spoken = rollout_job(server).spans[0].token_ids.tolist()
    assert spoken == [both[0], *teacher.encode(TEXT).ids, both[1]]
    prompt = rollout_job(server).prompt_ids.tolist()
    own = reference(thinking_dir, prompt, spoken)[range(len(spoken)), spoken]
    found = block(scores)
    assert found.chunk_log_likelihood[found.chunk_index[0]] == pytest.approx(
        float(own[0]), abs=2e-4
    )
