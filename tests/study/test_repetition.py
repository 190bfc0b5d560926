"""The repetition probe: its pushes against finite differences, and whole commands on models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.errors import ConfigurationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from student_trainer.cli import run
from student_trainer.study.repetition.cases import CASES, Case, read_cases
from student_trainer.study.repetition.loop import check_length, make_loop
from student_trainer.study.repetition.probe import by_repetition, direction
from student_trainer.study.repetition.report import shown
from student_trainer.study.repetition.signals import ROWS, objectives, pushes
from tests.support.models import make_tiny_model
from tests.trainer.processes import serve

V, K = 40, 5


def rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of a student, log q of a teacher, and the loop's next ids."""
    made = torch.Generator().manual_seed(seed)
    logits, teacher = (2 * torch.randn(count, V, generator=made).double() for _ in range(2))
    return logits, torch.log_softmax(teacher, -1), torch.randint(V, (count,), generator=made)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def reference_loss(name: str, z: np.ndarray, q: np.ndarray, y: int, drawn: np.ndarray) -> float:
    """The definitions, in NumPy, of one row; ``drawn``: the student that drew y."""
    p, top = softmax(z), np.argsort(-q)[:K]
    if name == "sampled_token":
        return -(p[y] / drawn[y]) * (math.log(q[y]) - math.log(drawn[y]))
    if name == "full_reverse_kl":
        return float((p * np.log(p / q)).sum())
    if name == "lsm, tail bucket":
        a = np.append(p[top], 1 - p[top].sum())
        b = np.append(q[top], 1 - q[top].sum())
    else:
        a, b = p[top] / p[top].sum(), q[top] / q[top].sum()
    return float((b * np.log(b / a)).sum() if "forward" in name else (a * np.log(a / b)).sum())


@pytest.mark.parametrize("name", objectives(K))
def test_a_push_is_what_a_small_step_does_to_the_next_token(name: str) -> None:
    logits, log_q, ids = rows(4, seed=1)
    found = pushes(objectives(K), logits, log_q, ids, K)[name]
    for row in range(4):
        z, q, y = logits[row].numpy(), log_q[row].exp().numpy(), int(ids[row])
        drawn, step = softmax(z), 1e-5
        grad = np.zeros(V)
        for v in range(V):
            near = np.eye(V)[v] * step
            above, below = (reference_loss(name, z + s * near, q, y, drawn) for s in (1, -1))
            grad[v] = (above - below) / (2 * step)
        moved = softmax(z - 1e-4 * grad)
        wanted = (math.log(moved[y]) - math.log(drawn[y])) / 1e-4
        assert float(found[row]) == pytest.approx(wanted, rel=2e-3, abs=1e-5)


def test_rows_in_several_batches_are_those_of_one() -> None:
    logits, log_q, ids = rows(ROWS + 3, seed=2)
    whole = pushes(objectives(K), logits, log_q, ids, K)
    tail = pushes(objectives(K), logits[ROWS:], log_q[ROWS:], ids[ROWS:], K)
    for name in whole:
        assert torch.allclose(whole[name][ROWS:], tail[name], rtol=1e-10, atol=1e-12)


def test_a_student_that_is_the_teacher_is_pushed_nowhere() -> None:
    logits, _, ids = rows(3, seed=3)
    for found in pushes(objectives(K), logits, torch.log_softmax(logits, -1), ids, K).values():
        assert float(found.abs().max()) < 1e-9


def test_figures_are_means_over_each_repetition() -> None:
    values = {"teacher_log_prob": torch.tensor([1.0, 3.0, 5.0, 7.0])}
    signals = {"lsm": torch.tensor([0.5, -0.1, 0.0, 1e-9])}
    first, second = by_repetition(values, signals, 2)
    assert first["teacher_log_prob"] == 2.0
    assert first["first_teacher_log_prob"] == 1.0
    assert first["signals"]["lsm"]["push"] == pytest.approx(0.2)
    assert (first["signals"]["lsm"]["up"], first["signals"]["lsm"]["down"]) == (0.5, 0.5)
    assert second["repeats"] == 1
    assert (second["signals"]["lsm"]["up"], second["signals"]["lsm"]["down"]) == (0, 0)
    assert [direction(push) for push in (0.1, -0.1, 1e-9)] == ["up", "down", "none"]


@pytest.mark.parametrize(
    ("last", "places"),
    [(1, [0, 1]), (2, [0, 1, 2]), (16, [0, 1, 2, 4, 8, 16]), (6, [0, 1, 2, 4, 6])],
)
def test_a_table_shows_some_repetitions_and_the_last(last: int, places: list[int]) -> None:
    found = shown([{"repeats": n} for n in range(last + 1)])
    assert [one["repeats"] for one in found] == places


@pytest.fixture(scope="session")
def student_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``tiny_model_dir``, with the same tokenizer and other weights."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "student", seed=7)


@pytest.fixture
def cases_file(tmp_path: Path) -> Path:
    case = {"name": "a", "question": "What?", "answer": "The answer", "loop": " is, is"}
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps(case) + "\n\n")
    return path


def probe(out: Path, cases: Path, *more: str) -> dict[str, Any]:
    command = ["study", "repetition", "--out", str(out), "--cases", str(cases)]
    assert run([*command, "--repetitions", "3", "--top-k", "8", *more]) == 0
    found: dict[str, Any] = json.loads((out / "repetition.json").read_text())
    return found


def test_the_teacher_alone_is_as_transformers_computes_it(
    tiny_model_dir: Path, cases_file: Path, tmp_path: Path
) -> None:
    found = probe(tmp_path, cases_file, "--model", str(tiny_model_dir))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What?"}], add_generation_prompt=True, tokenize=False
    )
    text = chat + "The answer" + " is, is" * 4
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.inference_mode():
        log_q = model(ids).logits[0].double().log_softmax(-1)
    case = found["cases"][0]
    length = case["loop_tokens"]
    at = slice(-4 * length - 1, -1)
    sampled = log_q[at].gather(1, ids[0, -4 * length :, None])[:, 0].view(4, length)
    entropy = -(log_q[at].exp() * log_q[at]).sum(-1).view(4, length)
    for repeats, one in enumerate(case["repetitions"]):
        assert one["repeats"] == repeats
        assert one["teacher_log_prob"] == pytest.approx(float(sampled[repeats].mean()), abs=1e-4)
        assert one["teacher_entropy"] == pytest.approx(float(entropy[repeats].mean()), abs=1e-4)
        assert "signals" not in one
    assert "direction_at_the_end" not in found["figures"]
    assert str(tiny_model_dir) not in json.dumps(found)


def test_a_served_teacher_gives_what_the_same_one_gives_here(
    tiny_model_dir: Path, student_dir: Path, cases_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    both = ("--student", str(student_dir))
    here = probe(tmp_path / "here", cases_file, "--model", str(tiny_model_dir), *both)
    with serve(tmp_path / "server", default=tiny_model_dir) as server:
        served = probe(tmp_path / "served", cases_file, "--teacher", server.address, *both)
    for one, other in zip(
        here["cases"][0]["repetitions"], served["cases"][0]["repetitions"], strict=True
    ):
        for name in ("teacher_log_prob", "teacher_entropy", "student_log_prob"):
            assert one[name] == pytest.approx(other[name], abs=1e-4)
        for name, signal in one["signals"].items():
            assert signal["push"] == pytest.approx(other["signals"][name]["push"], abs=1e-3)
    text = (tmp_path / "here" / "repetition.md").read_text()
    assert text in capsys.readouterr().out
    assert all(name in text for name in objectives(8))
    assert "<svg" in (tmp_path / "here" / "repetition.svg").read_text()
    counts = here["figures"]["direction_at_the_end"]["lsm"]
    assert sum(counts.values()) == 1
    assert "HOST:PORT" in served["command"]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        (["--teacher", "127.0.0.1:1"], "--teacher"),
        (["--student", "STUDENT"], "--student"),
        (["--model", "MODEL", "--repetitions", "0"], "--repetitions"),
        (["--model", "MODEL", "--top-k", "1"], "--top-k"),
        (["--model", "MODEL", "--top-k", "320"], "--top-k"),
        (["--model", "MODEL", "--repetitions", "400"], "--repetitions"),
        (["--model", "/nowhere/at/all"], "--model"),
        (["--model", "MODEL", "--student", "OTHER"], "--student"),
        (["--model", "MODEL", "--cases", "/nowhere/cases.jsonl"], "--cases"),
    ],
)
def test_wrong_options_are_refused(
    options: list[str], where: str, tiny_model_dir: Path, student_dir: Path,
    other_tokenizer_model_dir: Path, tmp_path: Path,
) -> None:  # fmt: skip
    names = {"MODEL": tiny_model_dir, "STUDENT": student_dir, "OTHER": other_tokenizer_model_dir}
    given = [str(names.get(option, option)) for option in options]
    with pytest.raises(ConfigurationError, match="Fix: ") as caught:
        run(["study", "repetition", "--out", str(tmp_path), *given])
    assert caught.value.where.startswith(where)
    assert list(tmp_path.iterdir()) == []


CASE = {"name": "a", "question": "b", "answer": "c", "loop": " d"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no case"),
        ("{", "no JSON"),
        ("[1]", "these fields"),
        (json.dumps({**CASE, "more": "e"}), "these fields"),
        (json.dumps({**CASE, "loop": ""}), "empty"),
        (json.dumps({**CASE, "loop": 3}), "no text"),
        (f"{json.dumps(CASE)}\n{json.dumps(CASE)}", "two cases 'a'"),
    ],
)
def test_wrong_cases_are_refused(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=problem):
        read_cases(path)


def test_a_loop_is_the_same_tokens_each_time(tiny_model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    for case in CASES:
        loop = make_loop(case, tokenizer, 5)
        assert loop.repetitions == 6
        response = loop.selection.response
        assert tokenizer.decode(response.tolist()) == case.answer + case.loop * 6
        unit = response[loop.selection.rows].reshape(6, loop.length)
        assert (unit == unit[0]).all()
        check_length([loop], 512, "--repetitions")
    with pytest.raises(ConfigurationError, match="not the same tokens"):
        make_loop(Case("letters", "q", "The te", "acher"[:3]), tokenizer, 5)
