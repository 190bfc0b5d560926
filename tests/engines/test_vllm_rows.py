"""What vLLM's workers do with hidden states, without vLLM: a real head, slices and failures."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from teacher_proto.program.logit_treatment import LogitTreatment
from teacher_proto.rows import Rows, WideRows, most_wide

from teacher_server.engines.base import Job
from teacher_server.engines.torch.head import LanguageModelHead
from teacher_server.engines.torch.projection import LinearProjection
from teacher_server.engines.vllm.rows import PassSlice, RowScorer, RunnerProjection
from teacher_server.engines.vllm.wire import RowPlan, RowsStatus, unpack
from tests.engines.conformance import arrays, ids, make_job

SIZE, WIDTH = 97, 16


@pytest.fixture(scope="module")
def projection() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, SIZE, bias=False).requires_grad_(False)


def runner_of(projection: torch.nn.Linear) -> RunnerProjection:
    return RunnerProjection(projection, SIZE, torch.device("cpu"))


def job_with_explicit(seed: int, length: int, prompt: int = 6) -> Job:
    job = make_job(seed, SIZE, prompt=prompt, lengths=(length,), top_k=5, temperature=0.8)
    (span,) = job.spans
    chosen = np.flatnonzero(np.arange(length) % 3 != 1).astype(np.int32)
    explicit = ids(seed, len(chosen) * 2, SIZE).reshape(-1, 2)
    explicit[0, 1] = -1
    return replace(job, spans=(replace(span, positions=chosen, explicit_ids=explicit),))


def run(
    scorer: RowScorer, hidden: torch.Tensor, plan: RowPlan, cuts: Many[int], start: int = 0
) -> Any:
    """Reads a request from ``start`` in slices that end at ``cuts`` and at its length."""
    for low, high in zip([start, *cuts], [*cuts, plan.length], strict=True):
        part = PassSlice("a", low, high - low, 0, plan.to_extra_args())
        finished = scorer.step(hidden[low:high], [part], lambda: 0.5)
        if high == plan.length:
            return finished["a"]
        assert not finished
    raise AssertionError("unreachable")


def rows_of(job: Job, hidden: torch.Tensor, projection: torch.nn.Linear) -> Rows:
    """The same rows from the embedded engine's head."""
    plan = RowPlan.of(job, job.spans[0])
    head = LanguageModelHead(LinearProjection(projection, 64), LogitTreatment())
    (rows,) = head.score(hidden[plan.indices], [plan.request(0, plan.count)], lambda: None)
    return rows


@pytest.mark.parametrize("cuts", [[], [1], [6], [5, 6, 7, 20], list(range(1, 24))])
def test_slices_give_what_one_pass_gives(projection: torch.nn.Linear, cuts: list[int]) -> None:
    job = job_with_explicit(1, 20)
    plan = RowPlan.of(job, job.spans[0])
    hidden = torch.randn(plan.length, WIDTH)
    progress = run(RowScorer(runner_of(projection), True), hidden, plan, cuts)
    assert progress.packed.status is RowsStatus.FINITE
    assert progress.computed_tokens == plan.length
    assert progress.seconds == 0.5 * (len(cuts) + 1)
    ours = unpack(plan, progress.packed.ids, progress.packed.values)
    expected = rows_of(job, hidden, projection)
    assert arrays(ours).keys() == arrays(expected).keys()
    for name, value in arrays(expected).items():
        np.testing.assert_allclose(arrays(ours)[name], value, rtol=0, atol=1e-6, err_msg=name)
        assert arrays(ours)[name].dtype == value.dtype


WIDE = np.arange(0, SIZE, 2, dtype=np.int32)


@pytest.mark.parametrize("cuts", [[], [6, 9], list(range(1, 24))])
def test_wide_rows_travel_with_the_others(projection: torch.nn.Linear, cuts: list[int]) -> None:
    """A request that starts over has each of them once, and no more than every second is wide."""
    job = replace(job_with_explicit(1, 20), wide_ids=WIDE)
    plan = RowPlan.of(job, job.spans[0])
    assert RowPlan.from_extra_args(plan.to_extra_args()).spec == plan.spec
    hidden = torch.randn(plan.length, WIDTH)
    scorer = RowScorer(runner_of(projection), True)
    scorer.step(hidden[:9], [PassSlice("a", 0, 9, 0, plan.to_extra_args())], lambda: 0.0)
    packed = run(scorer, hidden, plan, cuts).packed
    assert packed.status is RowsStatus.FINITE
    ours = unpack(plan, *packed.arrays())
    expected = rows_of(job, hidden, projection)
    assert isinstance(ours, WideRows)
    assert isinstance(expected, WideRows)
    few = expected.as_many_wide()
    assert len(few.wide) < len(expected.wide), "more of them qualify than may be wide"
    assert len(packed.wide_values) <= most_wide(plan.count)
    assert packed.wide_values.base is None, "no more is held than is sent"
    np.testing.assert_array_equal(ours.wide, few.wide)
    np.testing.assert_allclose(ours.wide_log_probs, few.wide_log_probs, rtol=0, atol=1e-6)
    for name, value in arrays(expected).items():
        np.testing.assert_allclose(arrays(ours)[name], value, rtol=0, atol=1e-6, err_msg=name)


def test_requests_of_one_step_keep_their_own_rows(projection: torch.nn.Linear) -> None:
    jobs = [job_with_explicit(2, 9), make_job(3, SIZE, lengths=(7,)), job_with_explicit(4, 12)]
    plans = [RowPlan.of(job, job.spans[0]) for job in jobs]
    hidden = [torch.randn(plan.length, WIDTH) for plan in plans]
    offsets = np.cumsum([0, *(plan.length for plan in plans)])
    slices = [
        PassSlice(str(i), 0, plan.length, int(offsets[i]), plan.to_extra_args())
        for i, plan in enumerate(plans)
    ]
    finished = RowScorer(runner_of(projection), True).step(torch.cat(hidden), slices, lambda: 1.0)
    for index, (job, plan) in enumerate(zip(jobs, plans, strict=True)):
        packed = finished[str(index)].packed
        ours = unpack(plan, packed.ids, packed.values)
        expected = rows_of(job, hidden[index], projection)
        np.testing.assert_array_equal(ours.support.ids, expected.support.ids)
        np.testing.assert_allclose(ours.support.log_probs, expected.support.log_probs, atol=1e-6)
        np.testing.assert_allclose(ours.sampled.values, expected.sampled.values, atol=1e-6)
    assert sum(progress.seconds for progress in finished.values()) == pytest.approx(1.0)


def test_a_plan_survives_its_journey() -> None:
    job = job_with_explicit(5, 8)
    plan = RowPlan.of(job, job.spans[0])
    again = RowPlan.from_extra_args(plan.to_extra_args())
    assert again.spec == plan.spec
    np.testing.assert_array_equal(again.indices, plan.indices)
    np.testing.assert_array_equal(again.sampled, plan.sampled)
    np.testing.assert_array_equal(again.explicit, plan.explicit)
    assert plan.indices[0] == len(job.prompt_ids) - 1


def test_a_row_from_the_cache_is_never_returned(projection: torch.nn.Linear) -> None:
    job = job_with_explicit(6, 10)
    plan = RowPlan.of(job, job.spans[0])
    hidden = torch.randn(plan.length, WIDTH)
    first = int(plan.indices[0])
    scorer = RowScorer(runner_of(projection), True)
    assert run(scorer, hidden, plan, [], start=first).packed.status is RowsStatus.FINITE
    late = run(scorer, hidden, plan, [], start=first + 1)
    assert late.packed.status is RowsStatus.ROW_MISSING
    assert late.packed.values.shape[0] == 0


def test_a_request_that_starts_over_gives_the_same_rows(projection: torch.nn.Linear) -> None:
    job = job_with_explicit(7, 14)
    plan = RowPlan.of(job, job.spans[0])
    hidden = torch.randn(plan.length, WIDTH)
    scorer = RowScorer(runner_of(projection), True)
    straight = run(scorer, hidden, plan, [9])
    scorer.step(hidden[:15], [PassSlice("a", 0, 15, 0, plan.to_extra_args())], lambda: 0.0)
    resumed = run(scorer, hidden, plan, [12], start=4)
    assert resumed.packed.status is RowsStatus.FINITE
    np.testing.assert_array_equal(straight.packed.ids, resumed.packed.ids)


def test_what_is_not_finite_stays_its_own(projection: torch.nn.Linear) -> None:
    job = make_job(8, SIZE, lengths=(6,))
    plan = RowPlan.of(job, job.spans[0])
    good, bad = torch.randn(plan.length, WIDTH), torch.randn(plan.length, WIDTH)
    bad[-1] = float("nan")
    slices = [
        PassSlice("good", 0, plan.length, 0, plan.to_extra_args()),
        PassSlice("bad", 0, plan.length, plan.length, plan.to_extra_args()),
    ]
    finished = RowScorer(runner_of(projection), True).step(
        torch.cat([good, bad]), slices, lambda: 0.0
    )
    assert finished["bad"].packed.status is RowsStatus.NOT_FINITE
    assert finished["good"].packed.status is RowsStatus.FINITE


class Failing:
    """A head whose second product runs out of memory."""

    def __init__(self, projection: torch.nn.Linear) -> None:
        self._projection = projection
        self.calls = 0

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 2:
            raise torch.OutOfMemoryError("no memory left")
        return self._projection(hidden)


def test_running_out_of_memory_fails_the_step_and_not_the_worker(
    projection: torch.nn.Linear,
) -> None:
    failing = Failing(projection)
    runner = RunnerProjection(failing, SIZE, torch.device("cpu"))
    runner.block_rows = 4
    scorer = RowScorer(runner, True)
    job = make_job(9, SIZE, lengths=(20,))
    plan = RowPlan.of(job, job.spans[0])
    hidden = torch.randn(plan.length, WIDTH)
    assert run(scorer, hidden, plan, []).packed.status is RowsStatus.OUT_OF_MEMORY
    assert failing.calls == 5, "the other ranks wait for every product"
    assert run(scorer, hidden, plan, []).packed.status is RowsStatus.FINITE


def test_a_rank_that_follows_makes_the_same_products(projection: torch.nn.Linear) -> None:
    shapes: dict[bool, list[int]] = {True: [], False: []}
    job = make_job(10, SIZE, lengths=(21,))
    plan = RowPlan.of(job, job.spans[0])
    hidden = torch.randn(plan.length, WIDTH)
    for leads, seen in shapes.items():

        def compute(
            rows: torch.Tensor, leads: bool = leads, seen: list[int] = seen
        ) -> torch.Tensor | None:
            seen.append(len(rows))
            return projection(rows) if leads else None

        runner = RunnerProjection(compute, SIZE, torch.device("cpu"))
        runner.block_rows = 4
        run(RowScorer(runner, leads), hidden, plan, [13])
    assert shapes[True] == shapes[False] != []


def test_what_was_gathered_for_gone_requests_is_dropped(projection: torch.nn.Linear) -> None:
    scorer = RowScorer(runner_of(projection), True)
    job = make_job(11, SIZE, lengths=(20,))
    plan = RowPlan.of(job, job.spans[0])
    hidden = torch.randn(plan.length, WIDTH)
    scorer.step(hidden[:20], [PassSlice("a", 0, 20, 0, plan.to_extra_args())], lambda: 0.0)
    scorer.forget({"a"})
    assert run(scorer, hidden, plan, [], start=20).packed.status is RowsStatus.FINITE
    scorer.step(hidden[:20], [PassSlice("a", 0, 20, 0, plan.to_extra_args())], lambda: 0.0)
    scorer.forget(set())
    assert run(scorer, hidden, plan, [], start=20).packed.status is RowsStatus.ROW_MISSING
