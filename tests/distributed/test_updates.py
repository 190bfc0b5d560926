"""The updates of two ranks against the loss's definition, and against one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.distributed.cli import FIRST, Setup
from tests.support.models import make_tiny_model
from tests.support.programs import Zygote
from tests.support.ranks import start_ranks
from tests.trainer.conftest import settings, student_model_dir, write_prompts
from tests.trainer.test_teachers import TWO, A, B, row_losses, write_rows

pytestmark = pytest.mark.ranks

__all__ = ["student_model_dir"]
PROGRAM = ("tests.distributed", "tests.distributed.cli", "peft")
Order = dict[str, Any]
# Tokens of a micro-batch: several for each rank, and one for all its responses.
SMALL, LARGE = 84, 4000


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote(PROGRAM) as started:
        yield started


@pytest.fixture
def make_order(
    student_model_dir: Path, tiny_model_dir: Path, tmp_path: Path
) -> Callable[..., Order]:
    write_prompts(tmp_path / "prompts.jsonl")

    def make(
        model: Path = student_model_dir,
        reshard: str = "after_update",
        changes: Any = None,
        teachers: dict[str, str] | None = None,
        **sections: Any,
    ) -> Order:
        return {
            "config": settings(model, tmp_path, distributed={"reshard": reshard}, **sections),
            "teachers": teachers or {"default": str(tiny_model_dir)},
            "changes": changes,
        }

    return make


@pytest.fixture
def on_ranks(zygote: Zygote, tmp_path: Path) -> Callable[..., list[tuple[Any, dict[str, Tensor]]]]:
    """Runs a case on ranks; what each has found."""

    def start(case: str, order: Order, size: int = 2) -> list[tuple[Any, dict[str, Tensor]]]:
        file = tmp_path / "order.json"
        file.write_text(json.dumps(order))
        ranks = start_ranks(zygote, [case, str(file)], tmp_path, size=size)
        codes = ranks.wait()
        assert codes == [0] * size, "\n".join(ranks.errors(rank)[-3000:] for rank in range(size))
        found = []
        for rank in range(size):
            beside = f"{tmp_path}/{case}-{rank}-of-{size}"
            values = json.loads(Path(f"{beside}.json").read_text())
            found.append((values, load_file(f"{beside}.safetensors")))
        return found

    return start


def definition(
    order: Order, mean: str, count: int | None = None
) -> tuple[float, dict[str, Tensor]]:
    """The loss over the first ``count`` responses and its gradient, in float64."""
    setup = Setup(**order)
    folder = order["config"]["student"]["model"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    pairs = list(zip(setup.every, setup.every_score, strict=True))[:count]
    losses = [row_losses(model, rollout, score) for rollout, score in pairs]
    loss = torch.stack([one.mean() for one in losses]) if mean == "sequence" else torch.cat(losses)
    loss.mean().backward()
    gradients = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.mean().detach()), gradients


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    """Compares all tensors as one vector, in its relative 2-norm."""
    assert actual.keys() == expected.keys()
    apart = sum(
        float((actual[n].double() - one.double()).norm() ** 2) for n, one in expected.items()
    )
    size = sum(float(one.double().norm() ** 2) for one in expected.values())
    assert apart**0.5 <= bound * size**0.5


@pytest.mark.parametrize("mean", ["token", "sequence"])
@pytest.mark.parametrize("kept", ["after_update", "after_pass"])
def test_a_gradient_is_of_the_rows_of_all_ranks(
    make_order: Callable[..., Order], on_ranks: Any, mean: str, kept: str
) -> None:
    order = make_order(
        reshard=kept,
        loss={"mean": mean},
        optimizer={"micro_batch_tokens": SMALL if kept == "after_pass" else LARGE},
        student={"gradient_checkpointing": kept == "after_pass"},
    )
    loss, expected = definition(order, mean)
    share, _ = definition(order, mean, FIRST)
    assert abs(loss - share) > 1e-3, "the ranks' own means must differ"
    (one, gradients), (other, _) = on_ranks("gradients", order)
    assert one["loss"] == other["loss"] == pytest.approx(loss, abs=1e-6)
    assert one["norm"] == other["norm"]
    assert kept == "after_update" or one["passes"] < other["passes"]
    assert_equal(gradients, expected, 1e-5)


def test_a_tied_head_is_spread_with_its_embedding(
    make_order: Callable[..., Order], on_ranks: Any, tmp_path: Path
) -> None:
    model = make_tiny_model(tmp_path / "tied", seed=7, tie_word_embeddings=True)
    order = make_order(model, optimizer={"micro_batch_tokens": SMALL})
    loss, expected = definition(order, "token")
    (one, gradients), _ = on_ranks("gradients", order)
    assert one["loss"] == pytest.approx(loss, abs=1e-6)
    assert_equal(gradients, expected, 1e-5)


def test_a_rank_without_a_usable_row_makes_empty_passes(
    make_order: Callable[..., Order], on_ranks: Any
) -> None:
    order = make_order(loss={"max_non_finite_share": 1.0}, optimizer={"micro_batch_tokens": SMALL})
    loss, expected = definition(order, "token", FIRST)
    (one, gradients), (other, _) = on_ranks("half", order)
    assert one["loss"] == other["loss"] == pytest.approx(loss, abs=1e-6)
    assert_equal(gradients, expected, 1e-5)


@pytest.mark.parametrize("of", ["last", "all"])
def test_what_is_refused_is_refused_on_every_rank(
    make_order: Callable[..., Order], on_ranks: Any, of: str
) -> None:
    order = make_order(loss={"max_non_finite_share": 1.0 if of == "all" else 0.2}, changes=of)
    (one, _), (other, _) = on_ranks("not_finite", order)
    assert one["refusal"] == other["refusal"]
    reason = "NOTHING_USABLE" if of == "all" else "NON_FINITE"
    assert one["refusal"][1] == reason
    assert one["same"]
    assert other["same"]


def test_each_teachers_mean_is_of_all_ranks(
    make_order: Callable[..., Order],
    on_ranks: Any,
    tmp_path: Path,
    tiny_model_dir: Path,
    student_model_dir: Path,
) -> None:
    write_rows(tmp_path / "named.jsonl", [B, A, A, A, A, A])
    order = make_order(
        make_tiny_model(tmp_path / "student", seed=3),
        teachers={A: str(tiny_model_dir), B: str(student_model_dir)},
        data={"train": str(tmp_path / "named.jsonl"), "columns": {"teacher": "teacher"}},
        loss={"balance": "teachers"},
        optimizer={"micro_batch_tokens": SMALL},
    )
    order["config"]["teachers"] = TWO
    ((alone, expected),) = on_ranks("gradients", order, 1)
    (one, gradients), (other, _) = on_ranks("gradients", order)
    assert one["losses"] == other["losses"]
    for name in (A, B):
        assert one["losses"][name] == pytest.approx(alone["losses"][name], abs=1e-6)
    assert_equal(gradients, expected, 1e-5)


@pytest.mark.parametrize("what", ["float32", "bfloat16", "lora"])
def test_several_updates_end_where_one_process_ends(
    make_order: Callable[..., Order], on_ranks: Any, tmp_path: Path, what: str
) -> None:
    student = {"lora": {"rank": 4}} if what == "lora" else {"dtype": what}
    changes = {"updates": 4, "folder": str(tmp_path)}
    order = make_order(student=student, changes=changes, reshard="after_pass")
    ((alone, state),) = on_ranks("updates", order, 1)
    (one, spread), (other, _) = on_ranks("updates", order)
    assert one == other
    # Each micro-batch's gradient is rounded to bfloat16, and ranks cut them otherwise.
    loss, bound = (5e-3, 1e-2) if what == "bfloat16" else (1e-6, 1e-4)
    assert one["losses"] == pytest.approx(alone["losses"], abs=loss)
    assert what == "bfloat16" or one["tokens"] == alone["tokens"]
    assert_equal(spread, state, bound)
    assert any(key.startswith("master/") for key in state) == (what == "bfloat16")
    names = [sorted(p.name for p in (tmp_path / f"saved-{n}").iterdir()) for n in (1, 2)]
    assert names[0] == names[1]
    file = "adapter_model.safetensors" if what == "lora" else "model.safetensors"
    before, after = (load_file(tmp_path / f"saved-{n}" / file) for n in (1, 2))
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
    assert_equal(after, before, bound)


def test_a_rank_may_hold_no_row_of_a_parameter(
    make_order: Callable[..., Order], on_ranks: Any, tmp_path: Path
) -> None:
    """Adapters of rank 1 have a matrix of one row: it is the first rank's."""
    order = make_order(student={"lora": {"rank": 1}}, changes={"folder": str(tmp_path)})
    ((alone, expected),) = on_ranks("resumed", order, 1)
    (one, parameters), (other, _) = on_ranks("resumed", order)
    assert (alone["fewest"], one["fewest"], other["fewest"]) == (1, 1, 0)
    assert alone["same"]
    assert one["same"]
    assert other["same"]
    assert one["losses"] == other["losses"] == pytest.approx(alone["losses"], abs=1e-6)
    assert_equal(parameters, expected, 1e-4)


@pytest.mark.parametrize("place", ["scores", "signal", "losses", "tell"])
def test_what_one_rank_fails_by_ends_the_update_of_all(
    make_order: Callable[..., Order], on_ranks: Any, place: str
) -> None:
    order = make_order(changes=place, optimizer={"micro_batch_tokens": SMALL}, reshard="after_pass")
    ((alone, _),) = on_ranks("gradients", order, 1)
    (one, _), (other, _) = on_ranks("failing", order)
    assert one["same"]
    assert other["same"]
    if place == "signal":
        assert other["refusal"][0] == "SystemExit"
    else:
        assert other["refusal"][0] == "LsmError"
        assert one["refusal"][0] == "RankError"
        assert "rank 1 of 2 has failed: the teacher is gone" in one["refusal"][2]
    assert one["refusal"]
    assert one["loss"] == other["loss"] == pytest.approx(alone["loss"], abs=1e-6)


def test_a_rollout_that_a_signal_ends_leaves_the_shards_whole(
    make_order: Callable[..., Order], on_ranks: Any
) -> None:
    order = make_order()
    ((alone, _),) = on_ranks("gradients", order, 1)
    for values, _ in on_ranks("interrupted", order):
        assert values["spread"]
        assert values["loss"] == pytest.approx(alone["loss"], abs=1e-6)


def test_rows_of_metrics_are_those_of_one_process(
    make_order: Callable[..., Order], on_ranks: Any
) -> None:
    order = make_order()
    ((alone, _),) = on_ranks("rows", order, 1)
    (one, _), (other, _) = on_ranks("rows", order)
    together = [
        first + second for first, second in zip(one["chosen"], other["chosen"], strict=True)
    ]
    assert together == alone["chosen"]
    assert sum(map(sum, together[0])) == 6


def test_memory_is_counted_of_gathered_weights_and_a_ranks_own_part(
    make_order: Callable[..., Order], on_ranks: Any
) -> None:
    order = make_order(student={"dtype": "bfloat16"})
    ((alone, _),) = on_ranks("memory", order, 1)
    (one, _), (other, _) = on_ranks("memory", order)
    assert one["weights"] == other["weights"] == alone["weights"]
    # In one process a bfloat16 parameter has gradient, two moments and master, 16 bytes; ranks
    # share 12, and each adds up a whole gradient of 4.
    assert one["update"] + other["update"] == alone["update"] / 16 * (12 + 2 * 4)
