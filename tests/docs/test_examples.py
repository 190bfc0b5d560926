"""The README's examples, run as they stand against a real server."""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from student_trainer import recipes
from student_trainer.settings.data import DataSettings
from student_trainer.settings.train import TrainConfig
from tests.server.running import Running, running

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert found, f"the README has no {language} block"
    return found


def test_the_configuration_is_one_the_trainer_takes() -> None:
    (text,) = blocks("toml")
    config = TrainConfig.model_validate(tomllib.loads(text))
    assert config.loss.kind == "lsm"


def test_the_data_example_is_one_the_trainer_takes() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    settings = DataSettings.model_validate(tomllib.loads(text)["data"])
    assert settings.columns.user == "question"


def test_every_recipe_is_in_the_documents() -> None:
    page = (ROOT / "docs/training.md").read_text()
    assert all(f"`{name}`" in page for name in recipes.names())


def test_the_loss_runs_and_reaches_the_model() -> None:
    _, text = blocks("python")
    model = torch.nn.Module()
    model.lm_head = torch.nn.Linear(4, 11, bias=False)
    top = torch.log_softmax(torch.randn(3, 11), -1).topk(5)
    names: dict[str, Any] = {
        "model": model,
        "hidden": torch.randn(3, 4, requires_grad=True),
        "ids": torch.tensor([1, 2, 3]),
        "weights": torch.ones(3),
        "top_ids": top.indices,
        "top_log_probs": top.values,
        "valid": torch.ones(3, 5, dtype=torch.bool),
    }
    exec(compile(text, "README.md", "exec"), names)
    assert bool(names["result"].used.all())
    assert float(model.lm_head.weight.grad.abs().sum()) > 0


async def test_the_client_and_curl_get_rows(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running({"default": tiny_model_dir}, monkeypatch) as server:
        await _client_example(server)
        body = re.search(r"-d '(\{.*?\})'", README, re.DOTALL)
        assert body is not None
        reply = await server.http.post("/v1/score", json=json.loads(body[1]))
        assert reply.status_code == 200, reply.text
        (result,) = reply.json()["results"]
        assert all(len(row["top"]) == 5 for row in result["rows"])


async def _client_example(server: Running) -> None:
    text, _ = blocks("python")
    text = text.replace("127.0.0.1:50051", server.server.grpc_address).replace(
        "top_k=32", "top_k=16"
    )
    names: dict[str, Any] = {
        "prompt_ids": np.array([1, 2, 3], np.int32),
        "response_ids": np.array([4, 5], np.int32),
    }
    code = compile(text, "README.md", "exec")
    await asyncio.to_thread(exec, code, names)
    assert names["rows"].support.ids.shape == (2, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for array in names["rows"].arrays().values():
            torch.from_numpy(array)


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"])
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_make_target_named_in_the_documents_exists() -> None:
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in [*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for name in re.findall(r"`make ([a-z-]+)", page.read_text()):
            assert name in rules, f"{page.name} names make {name}"
