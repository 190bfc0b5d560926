"""A client or trainer of an earlier tree beside this tree's server, and the other way round:
equal results, or one line that says which side to upgrade."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tomli_w
from teacher_proto import TeacherClient
from teacher_proto.errors import LsmError
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    Continuation,
    Prompt,
    ScoreRequest,
    Segment,
    SpecialTokens,
    TextPrompt,
)

from student_trainer.settings.train import TrainConfig
from student_trainer.train import train
from tests.support.models import ENGLISH, make_tiny_model
from tests.support.old_tree import NEW, Ended, Tree
from tests.trainer.conftest import settings, write_prompts

LONG = 60.0
WHERE = "import teacher_proto; print(teacher_proto.__file__)"
WHICH_SIDE = re.compile(r"(upgrade|update) the (teacher|server|service|trainer|client)")

CLIENT = Path(__file__).with_name("either_client.py")


@pytest.fixture(scope="module")
def trees(old_tree: Tree) -> dict[str, Tree]:
    return {"old": old_tree, "new": NEW}


@pytest.fixture(scope="module")
def servers(
    trees: dict[str, Tree], tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path
) -> Iterator[dict[str, dict[str, Any]]]:
    """What the ready files of an old and of a new server say, over one model."""
    folder = tmp_path_factory.mktemp("servers")
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        starts = {
            name: pool.submit(
                stack.enter_context, tree.serve(folder / name, default=tiny_model_dir)
            )
            for name, tree in trees.items()
        }
        yield {name: start.result() for name, start in starts.items()}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a smaller vocabulary learnt from the same texts."""
    folder = tmp_path_factory.mktemp("foreign") / "model"
    return make_tiny_model(folder, seed=11, texts=ENGLISH, vocabulary_size=290)


def test_each_tree_runs_on_its_own_source(trees: dict[str, Tree]) -> None:
    for tree in trees.values():
        ended = tree.run("-c", WHERE)
        assert ended.stdout.startswith(f"{tree.path}/proto/"), ended.stderr


def test_clients_get_equal_rows_or_hear_which_side_to_upgrade(
    trees: dict[str, Tree], servers: dict[str, dict[str, Any]], foreign: Path
) -> None:
    addresses = [servers[name]["grpc_address"] for name in trees]
    found = {}
    for client, tree in trees.items():
        ended = tree.run(str(CLIENT), str(foreign / "tokenizer.json"), *addresses)
        assert ended.returncode == 0, ended.stderr
        for server, answers in zip(trees, json.loads(ended.stdout), strict=True):
            found[client, server] = answers
    for case, expected in found["old", "old"].items():
        assert isinstance(expected, list), expected
        for pair in itertools.product(trees, repeat=2):
            answer = found[pair][case]
            if isinstance(answer, str):
                assert pair[0] != pair[1], (case, pair, answer)
                assert WHICH_SIDE.search(answer), (case, pair, answer)
            else:
                assert answer == expected, (case, pair)
    for case in ("token ids", "text", "chat"):
        assert isinstance(found["old", "new"][case], list), found["old", "new"][case]
        assert isinstance(found["new", "old"][case], list), found["new", "old"][case]


ONLY_NEW: dict[str, Prompt] = {
    "clock": ChatPrompt((ChatMessage("user", "Hi"),), now="2026-11-29T05:53:12"),
    "no content": ChatPrompt(
        (ChatMessage("user", "Hi"), ChatMessage("assistant", None), ChatMessage("user", "Go on"))
    ),
    "begin of a text": TextPrompt("The capital", SpecialTokens.ADD),
}


@pytest.mark.parametrize("case", ONLY_NEW)
def test_what_an_old_server_would_read_otherwise_it_is_not_asked(
    servers: dict[str, dict[str, Any]], case: str
) -> None:
    """And nothing is lost: the new server answers the same request."""
    prompt = ONLY_NEW[case]
    for server in ("new", "old"):
        with TeacherClient(servers[server]["grpc_address"], run="run", max_attempts=1) as client:
            info = client.get_teacher(timeout=LONG).teacher("default")
            request = ScoreRequest(
                request_id=case,
                run="run",
                teacher="default",
                tokenizer_hash=info.identity.tokenizer_hash,
                prompt=prompt,
                continuations=(Continuation((Segment(np.array([30, 31], np.int32)),)),),
                top_k=4,
                temperature=1.0,
            )
            if server == "new":
                assert client.score(request, timeout=LONG).results[0].rows.support is not None
                (rendered,) = client.render([prompt], teacher="default", timeout=LONG)
                assert rendered.refusal is None
                continue
            with pytest.raises(LsmError, match=WHICH_SIDE):
                client.score(request, timeout=LONG)
            with pytest.raises(LsmError, match=WHICH_SIDE):
                client.render([prompt], teacher="default", timeout=LONG)


def test_a_body_over_http_means_the_same_to_both(servers: dict[str, dict[str, Any]]) -> None:
    bodies = (
        {"prompt": {"token_ids": [5, 6, 7]}, "continuations": [{"token_ids": [30, 31]}]},
        {"prompt": {"text": "The capital"}, "continuations": [{"text": " of France"}]},
        {
            "prompt": {"messages": [{"role": "user", "content": "What is 1?"}]},
            "continuations": [{"text": "The weather"}],
        },
    )
    for body in bodies:
        answers = []
        for ready in servers.values():
            url = f"http://{ready['http_address']}/v1/score"
            answer = httpx.post(url, json=body | {"top_k": 4, "temperature": 1.0}, timeout=LONG)
            assert answer.status_code == 200, answer.text
            answers.append(answer.json()["results"])
        assert answers[0] == answers[1], body


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def train_here(file: Path) -> Ended:
    """As ``Tree.train_several``, in this process."""
    try:
        train(TrainConfig.model_validate(tomllib.loads(file.read_text())))
    except LsmError as error:
        return Ended(1, f"error: {error}\n")
    return Ended(0, "")


@pytest.fixture(scope="module")
def runs(
    old_tree: Tree,
    servers: dict[str, dict[str, Any]],
    foreign: Path,
    tiny_model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[str, str], tuple[Ended, Path]]:
    """How two steps with the other tree's server ended, by trainer and by the student's
    tokenizer, with the run's directory."""
    folder = tmp_path_factory.mktemp("runs")
    write_prompts(folder / "prompts.jsonl")
    files = {}
    for trainer, server in (("old", "new"), ("new", "old")):
        for tokenizer, model in (("same", tiny_model_dir), ("another", foreign)):
            values = settings(
                model,
                folder / f"{trainer}-{tokenizer}",
                run={"steps": 2},
                data={"train": str(folder / "prompts.jsonl")},
                teacher={"address": servers[server]["grpc_address"]},
            )
            file = files[trainer, tokenizer] = folder / f"{trainer}-{tokenizer}.toml"
            file.with_suffix("").mkdir()
            file.write_text(tomli_w.dumps(values))
    old = [file for (trainer, _), file in files.items() if trainer == "old"]
    ended = dict(zip(old, old_tree.train_several(*old), strict=True))
    return {
        case: (ended.get(file) or train_here(file), file.with_suffix("") / "run")
        for case, file in files.items()
    }


@pytest.mark.parametrize("tokenizer", ["same", "another"])
def test_runs_go_alike_or_say_which_side_to_upgrade(
    runs: dict[tuple[str, str], tuple[Ended, Path]], tokenizer: str
) -> None:
    found = []
    for trainer in ("old", "new"):
        ended, run = runs[trainer, tokenizer]
        if ended.code == 0:
            found.append(losses(run))
            assert len(found[-1]) == 2
        else:
            assert WHICH_SIDE.search(ended.error), (trainer, ended.errors)
            assert not (run / "metrics.jsonl").exists(), "it ended before the first step"
    assert not found or found[0] == found[-1]
