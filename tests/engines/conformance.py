"""What every engine must do, as one class of tests.

A test module for an engine subclasses ``EngineConformance`` and defines two
module-scoped fixtures on the module's event loop: ``subject`` (what is tested and
what it is compared with) and ``engine`` (``subject.factory()``, started).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from teacher_proto.errors import TeacherUnavailableError
from teacher_proto.rows import LEAST_BELOW, LEAST_BELOW_OWN, Rows, WideRows, may_be_wide

from teacher_server.engines.base import Engine, EngineDescription, Job, JobResult, ScoredSpan

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Subject:
    """An engine under test.

    Attributes:
        factory: makes an engine that was not started; takes ``deterministic``.
        logits: float64 [L, V], a plain forward over int32 [L].
        accuracy: greatest |difference| in nats from the plain forward.
        independence: greatest |difference| in nats between two ways of scoring.
        rounds: random orders to try; fewer for a slow model.
    """

    factory: Callable[..., Engine]
    logits: Callable[[NDArray[np.int32]], Float64]
    vocabulary_size: int
    accuracy: float = 1e-4
    independence: float = 5e-5
    rounds: int = 3

    def log_probs(self, job: Job, span: ScoredSpan) -> Float64:
        """float64 [R, V]: the reference for each selected row."""
        flat = np.concatenate([job.prompt_ids, span.token_ids])
        rows = self.logits(flat)[len(job.prompt_ids) - 1 + span.positions]
        scaled = rows / job.temperature
        scaled -= scaled.max(axis=-1, keepdims=True)
        return scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))


@contextlib.asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[Engine]:
    """Starts an engine, and closes it whatever happens."""
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


def ids(seed: int, count: int, vocabulary_size: int) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, vocabulary_size, count).astype(np.int32)


def every_row(token_ids: NDArray[np.int32]) -> ScoredSpan:
    return ScoredSpan(token_ids, np.arange(len(token_ids), dtype=np.int32))


def make_job(
    seed: int,
    vocabulary_size: int,
    *,
    prompt: int = 12,
    lengths: tuple[int, ...] = (9,),
    top_k: int = 8,
    temperature: float = 1.0,
) -> Job:
    """A group of random ids, all rows selected, every part asked for."""
    return Job(
        prompt_ids=ids(seed, prompt, vocabulary_size),
        spans=tuple(
            every_row(ids(1000 * seed + 1 + number, length, vocabulary_size))
            for number, length in enumerate(lengths)
        ),
        top_k=top_k,
        temperature=temperature,
        vocabulary_limit=vocabulary_size,
        want_sampled=True,
        want_log_tail=True,
    )


def arrays(rows: Rows | None) -> dict[str, NDArray[np.generic]]:
    return {} if rows is None else rows.arrays()


def assert_same_bytes(left: JobResult, right: JobResult) -> None:
    assert len(left.rows) == len(right.rows)
    for one, other in zip(left.rows, right.rows, strict=True):
        assert arrays(one).keys() == arrays(other).keys()
        for name, value in arrays(one).items():
            assert value.tobytes() == arrays(other)[name].tobytes(), name


def assert_close(left: Rows | None, right: Rows | None, tolerance: float) -> None:
    """Equal within ``tolerance`` nats; ids may differ only where they tie within it."""
    assert left is not None
    assert right is not None
    assert arrays(left).keys() == arrays(right).keys()
    for name, value in arrays(left).items():
        other = arrays(right)[name]
        assert value.shape == other.shape, name
        if name.endswith(("log_probs", "log_tail")):
            np.testing.assert_allclose(value, other, rtol=0, atol=tolerance, err_msg=name)
        elif name != "top_ids":
            np.testing.assert_array_equal(value, other, err_msg=name)
    if left.support is None or left.support.ids.shape[1] == 0:
        return
    assert left.support is not None
    # An id may move by one rank or out of the support when its neighbour is this near.
    gaps = -np.diff(left.support.log_probs, axis=1)
    clear = np.minimum(
        np.pad(gaps, ((0, 0), (1, 0)), constant_values=np.inf),
        np.pad(gaps, ((0, 0), (0, 1)), constant_values=0.0),
    )
    moved = left.support.ids != right.support.ids
    assert not (moved & (clear > 2 * tolerance)).any()


def assert_well_formed(job: Job, span: ScoredSpan, rows: Rows | None) -> None:
    """Shapes, dtypes, order, and a mass of at most 1."""
    count = len(span.positions)
    assert rows is not None
    assert rows.support is not None
    assert rows.support.ids.dtype == np.int32
    assert rows.support.log_probs.dtype == np.float32
    assert rows.support.counts.dtype == np.int32
    assert rows.support.ids.shape == rows.support.log_probs.shape == (count, job.top_k)
    for row_ids, values, valid in zip(
        rows.support.ids, rows.support.log_probs, rows.support.counts, strict=True
    ):
        assert (row_ids[valid:] == -1).all()
        assert (values[valid:] == 0).all()
        row_ids, values = row_ids[:valid], values[:valid]
        assert len(set(row_ids.tolist())) == valid
        assert (row_ids >= 0).all()
        assert (row_ids < job.vocabulary_limit).all()
        assert np.isfinite(values).all()
        order = np.lexsort((row_ids, -values))
        np.testing.assert_array_equal(order, np.arange(valid), "descending, ties by lower id")
        assert np.exp(values.astype(np.float64)).sum() <= 1 + 1e-5


def assert_equals_reference(subject: Subject, job: Job, result: JobResult) -> None:
    """Every part of every row against the plain forward; the alignment check."""
    assert len(result.rows) == len(job.spans)
    for span, rows in zip(job.spans, result.rows, strict=True):
        assert_well_formed(job, span, rows)
        reference = subject.log_probs(job, span)
        tolerance = subject.accuracy
        count = np.arange(len(reference))
        if job.want_sampled:
            assert rows.sampled is not None
            assert rows.sampled.valid.all()
            expected = reference[count, span.token_ids[span.positions]]
            np.testing.assert_allclose(rows.sampled.values, expected, rtol=0, atol=tolerance)
        assert rows.support is not None
        allowed = reference[:, : job.vocabulary_limit]
        best = np.argsort(-allowed, axis=1, kind="stable")[:, : job.top_k + 1]
        values = np.take_along_axis(allowed, best, axis=1)
        np.testing.assert_allclose(
            rows.support.log_probs, values[:, : job.top_k], rtol=0, atol=tolerance
        )
        at_ids = np.take_along_axis(allowed, rows.support.ids.astype(np.int64), axis=1)
        np.testing.assert_allclose(rows.support.log_probs, at_ids, rtol=0, atol=tolerance)
        if job.want_log_tail and job.top_k < subject.vocabulary_size:
            assert rows.log_tail is not None
            outside = reference.copy()
            np.put_along_axis(outside, rows.support.ids.astype(np.int64), -np.inf, axis=1)
            tail = np.log(np.exp(outside).sum(axis=1))
            np.testing.assert_allclose(rows.log_tail.values, tail, rtol=0, atol=tolerance)


def prefix_tree_job(
    seed: int, vocabulary_size: int, *, prompt: int, stem: int, count: int, top_k: int = 8
) -> Job:
    """Paths of 1 to 4 tokens that leave a common stem, or each other, and the row after each.

    ``stem``: tokens of the common stem.
    """
    generator = np.random.default_rng(seed)
    stem_ids = ids(seed + 1, stem, vocabulary_size)
    paths = [stem_ids]
    spans = []
    for _ in range(count):
        again = generator.random() < 0.3
        path = paths[int(generator.integers(len(paths)))] if again else stem_ids
        kept = int(generator.integers(len(path) + 1))
        more = generator.integers(0, vocabulary_size, int(generator.integers(1, 5)))
        paths.append(np.concatenate([path[:kept], more]).astype(np.int32))
        token_ids = np.append(paths[-1], np.int32(0))
        spans.append(ScoredSpan(token_ids, np.array([len(token_ids) - 1], np.int32)))
    job = make_job(seed, vocabulary_size, prompt=prompt, top_k=top_k)
    return replace(job, spans=tuple(spans))


class ShiftedEngine:
    """An engine with the classic mistake: row t is the distribution after token t."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def description(self) -> EngineDescription:
        return self._engine.description

    async def score(self, job: Job) -> JobResult:
        spans = []
        for span in job.spans:
            token_ids = np.append(span.token_ids, span.token_ids[-1:])
            spans.append(replace(span, token_ids=token_ids, positions=span.positions + 1))
        return await self._engine.score(replace(job, spans=tuple(spans)))


@pytest.mark.asyncio(loop_scope="module")
class EngineConformance:
    """Every engine passes this as it stands."""

    @pytest.mark.parametrize(
        ("prompt", "lengths"),
        [(12, (9,)), (1, (5,)), (33, (7, 19, 1, 12)), (1, (4, 6, 2)), (60, (30,) * 5)],
    )
    async def test_rows_equal_a_plain_forward(
        self, subject: Subject, engine: Engine, prompt: int, lengths: tuple[int, ...]
    ) -> None:
        job = make_job(1, subject.vocabulary_size, prompt=prompt, lengths=lengths)
        assert_equals_reference(subject, job, await engine.score(job))

    @pytest.mark.parametrize("temperature", [0.7, 2.0])
    async def test_temperature(self, subject: Subject, engine: Engine, temperature: float) -> None:
        job = make_job(2, subject.vocabulary_size, lengths=(11, 6), temperature=temperature)
        assert_equals_reference(subject, job, await engine.score(job))

    async def test_the_alignment_check_catches_an_engine_off_by_one(
        self, subject: Subject, engine: Engine
    ) -> None:
        job = make_job(3, subject.vocabulary_size, prompt=20, lengths=(12, 8))
        assert_equals_reference(subject, job, await engine.score(job))
        shifted = await ShiftedEngine(engine).score(job)
        with pytest.raises(AssertionError):
            assert_equals_reference(subject, job, shifted)

    async def test_a_group_equals_its_continuations_one_by_one(
        self, subject: Subject, engine: Engine
    ) -> None:
        job = make_job(4, subject.vocabulary_size, prompt=40, lengths=(3, 17, 1, 24, 9))
        together = await engine.score(job)
        for span, rows in zip(job.spans, together.rows, strict=True):
            alone = await engine.score(replace(job, spans=(span,)))
            assert_close(rows, alone.rows[0], subject.independence)

    async def test_order_and_neighbours_do_not_matter(
        self, subject: Subject, engine: Engine
    ) -> None:
        size = subject.vocabulary_size
        jobs = [
            make_job(5, size, prompt=25, lengths=(10, 4, 21)),
            make_job(6, size, prompt=31, lengths=(16,), top_k=3, temperature=0.7),
            make_job(7, size, prompt=2, lengths=(40, 1)),
            make_job(8, size, prompt=50, lengths=(5, 5, 5, 5), top_k=0),
            make_job(9, size, prompt=25, lengths=(30,), temperature=2.0),
        ]
        alone = [await engine.score(job) for job in jobs]
        generator = np.random.default_rng(0)
        for _ in range(subject.rounds):
            order = generator.permutation(len(jobs))
            results = await asyncio.gather(*(engine.score(jobs[i]) for i in order))
            for index, result in zip(order, results, strict=True):
                for rows, expected in zip(result.rows, alone[index].rows, strict=True):
                    assert_close(rows, expected, subject.independence)

    async def test_equal_prompts_of_several_jobs_keep_their_own_rows(
        self, subject: Subject, engine: Engine
    ) -> None:
        first = make_job(10, subject.vocabulary_size, prompt=48, lengths=(6, 13))
        second = replace(
            make_job(11, subject.vocabulary_size, prompt=48, lengths=(9, 2), top_k=5),
            prompt_ids=first.prompt_ids,
        )
        for job, result in zip(
            (first, second),
            await asyncio.gather(engine.score(first), engine.score(second)),
            strict=True,
        ):
            assert_equals_reference(subject, job, result)

    async def test_deterministic_mode_gives_equal_bytes_in_any_order(
        self, subject: Subject
    ) -> None:
        size = subject.vocabulary_size
        jobs = [
            make_job(20 + i, size, prompt=4 + 3 * (i % 5), lengths=(5 + i % 7,) * (1 + i % 3))
            for i in range(4 * subject.rounds)
        ]
        async with running(subject.factory(deterministic=True)) as engine:
            assert engine.description.deterministic
            alone = [await engine.score(job) for job in jobs]
            generator = np.random.default_rng(1)
            for _ in range(subject.rounds):
                order = generator.permutation(len(jobs))
                results = await asyncio.gather(*(engine.score(jobs[i]) for i in order))
                for index, result in zip(order, results, strict=True):
                    assert_same_bytes(alone[index], result)
            assert_equals_reference(subject, jobs[3], alone[3])

    async def test_selected_rows_equal_the_same_rows_of_all(
        self, subject: Subject, engine: Engine
    ) -> None:
        job = make_job(12, subject.vocabulary_size, prompt=15, lengths=(26, 14))
        chosen = [np.array([0, 3, 4, 11], np.int32), np.array([13], np.int32)]
        spans = tuple(
            replace(span, positions=positions)
            for span, positions in zip(job.spans, chosen, strict=True)
        )
        everything = await engine.score(job)
        selected = await engine.score(replace(job, spans=spans))
        for all_rows, rows, positions in zip(everything.rows, selected.rows, chosen, strict=True):
            subset = all_rows.at(positions)
            assert_close(rows, subset, subject.independence)

    @pytest.mark.parametrize("prompt", [1, 14])
    async def test_prefix_trees_equal_their_own_forwards(
        self, subject: Subject, engine: Engine, prompt: int
    ) -> None:
        """Off the stem, off another path, along the stem; twice the same; rows on the way."""
        size = subject.vocabulary_size
        job = prefix_tree_job(50, size, prompt=prompt, stem=40, count=12)
        stem = ids(51, 40, size)
        along = ScoredSpan(np.append(stem[:17], np.int32(0)), np.array([17], np.int32))
        off = np.concatenate([stem[:25], ids(52, 6, size)])
        several = ScoredSpan(off, np.array([0, 3, 24, 25, 28, 30], np.int32))
        more = (job.spans[4], along, several, every_row(stem))
        job = replace(job, spans=(*job.spans, *more))
        assert_equals_reference(subject, job, await engine.score(job))

    async def test_explicit_ids_of_prefix_trees(self, subject: Subject, engine: Engine) -> None:
        size = subject.vocabulary_size
        job = prefix_tree_job(53, size, prompt=9, stem=30, count=8)
        explicit = ids(54, 16, size).reshape(8, 1, 2)
        spans = tuple(
            replace(span, explicit_ids=wanted)
            for span, wanted in zip(job.spans, explicit, strict=True)
        )
        result = await engine.score(replace(job, spans=spans))
        for span, rows, wanted in zip(job.spans, result.rows, explicit, strict=True):
            assert rows.explicit is not None
            expected = subject.log_probs(job, span)[0, wanted[0]]
            np.testing.assert_allclose(
                rows.explicit.values[0], expected, rtol=0, atol=subject.accuracy
            )

    async def test_rows_between_given_tokens_see_them(
        self, subject: Subject, engine: Engine
    ) -> None:
        """Scored and given stretches in turn, as several turns of a conversation are."""
        token_ids = ids(13, 30, subject.vocabulary_size)
        scored = np.r_[0:5, 12:20, 26:30].astype(np.int32)
        job = replace(
            make_job(13, subject.vocabulary_size, prompt=18),
            spans=(ScoredSpan(token_ids, scored), ScoredSpan(token_ids[:21], scored[:9])),
        )
        assert_equals_reference(subject, job, await engine.score(job))

    async def test_explicit_ids(self, subject: Subject, engine: Engine) -> None:
        job = make_job(14, subject.vocabulary_size, lengths=(10,), top_k=4)
        (span,) = job.spans
        explicit = ids(15, 50, subject.vocabulary_size).reshape(10, 5)
        explicit[3, 2] = -1
        explicit[7] = -1
        explicit[5, 1] = explicit[5, 0]
        asked = replace(job, spans=(replace(span, explicit_ids=explicit),))
        (rows,) = (await engine.score(asked)).rows
        reference = subject.log_probs(job, span)
        assert rows.explicit is not None
        np.testing.assert_array_equal(rows.explicit.valid, explicit >= 0)
        expected = np.take_along_axis(reference, np.maximum(explicit, 0).astype(np.int64), axis=1)
        expected[explicit < 0] = 0
        np.testing.assert_allclose(rows.explicit.values, expected, rtol=0, atol=subject.accuracy)
        assert rows.explicit.values.dtype == np.float32

    async def test_rows_are_wide_where_their_support_leaves_much_out(
        self, subject: Subject, engine: Engine
    ) -> None:
        """And as the plain forward has them, at the job's temperature; no more than every second
        row is. Where logits are rounded, rows are flat enough that it decides none of them."""
        size = subject.vocabulary_size
        wide = np.arange(3, size, 7, dtype=np.int32)
        temperature = 0.3 if subject.accuracy < 0.01 else 2.0
        accuracy = subject.accuracy / temperature
        job = make_job(20, size, lengths=(11, 4), top_k=5, temperature=temperature)
        plain = (await engine.score(job)).rows
        result = await engine.score(replace(job, wide_ids=wide))
        several = 0
        for span, rows, other in zip(job.spans, result.rows, plain, strict=True):
            assert_close(rows, other, subject.independence)
            assert isinstance(rows, WideRows)
            assert rows.support is not None
            reference = subject.log_probs(job, span)
            left_out = ~np.array([np.isin(wide, ids) for ids in rows.support.ids])
            below = np.where(left_out, np.exp(reference[:, wide]), 0.0).sum(1)
            least = np.where(np.isin(span.token_ids, wide), LEAST_BELOW_OWN, LEAST_BELOW)
            assert (np.abs(np.log(below / least)) > accuracy).all(), "none is at the border"
            expected = np.flatnonzero(below >= least)
            expected = expected[may_be_wide(expected)]
            np.testing.assert_array_equal(rows.wide, expected)
            assert rows.wide_log_probs.dtype == np.float32
            np.testing.assert_allclose(
                rows.wide_log_probs, reference[expected][:, wide], rtol=0, atol=accuracy
            )
            several += len(expected)
        assert several > 0

    async def test_no_support_at_all(self, subject: Subject, engine: Engine) -> None:
        job = make_job(16, subject.vocabulary_size, lengths=(6, 3), top_k=0)
        result = await engine.score(job)
        assert_equals_reference(subject, job, result)
        for rows in result.rows:
            assert rows.log_tail is not None
            assert (rows.log_tail.values == 0).all()
            assert rows.log_tail.valid.all()

    async def test_the_whole_vocabulary(self, subject: Subject, engine: Engine) -> None:
        size = subject.vocabulary_size
        job = make_job(17, size, lengths=(5,), top_k=size)
        result = await engine.score(job)
        assert_equals_reference(subject, job, result)
        (rows,) = result.rows
        assert rows.support is not None
        assert rows.log_tail is not None
        mass = np.exp(rows.support.log_probs.astype(np.float64)).sum(axis=1)
        np.testing.assert_allclose(mass, 1, atol=1e-5)
        assert not rows.log_tail.valid.any(), "nothing is left outside"

    async def test_a_vocabulary_limit_bounds_supports_but_not_the_normaliser(
        self, subject: Subject, engine: Engine
    ) -> None:
        limit = subject.vocabulary_size // 2 + 3
        job = replace(
            make_job(18, subject.vocabulary_size, lengths=(12,), top_k=6), vocabulary_limit=limit
        )
        assert_equals_reference(subject, job, await engine.score(job))
        whole = replace(job, top_k=limit)
        assert_equals_reference(subject, whole, await engine.score(whole))

    async def test_parts_that_were_not_asked_for_are_absent(
        self, subject: Subject, engine: Engine
    ) -> None:
        job = make_job(19, subject.vocabulary_size)
        (rows,) = (await engine.score(replace(job, want_sampled=False, want_log_tail=False))).rows
        assert rows.sampled is None
        assert rows.log_tail is None
        assert rows.explicit is None

    async def test_a_sequence_without_selected_rows(self, subject: Subject, engine: Engine) -> None:
        job = make_job(40, subject.vocabulary_size, lengths=(4, 6))
        nothing = replace(job.spans[0], positions=np.zeros(0, np.int32))
        result = await engine.score(replace(job, spans=(nothing, job.spans[1])))
        assert_well_formed(job, nothing, result.rows[0])
        assert_close(result.rows[1], (await engine.score(job)).rows[1], subject.independence)

    async def test_a_row_does_not_depend_on_its_token_or_later_ones(
        self, subject: Subject, engine: Engine
    ) -> None:
        job = make_job(41, subject.vocabulary_size, lengths=(16,))
        (before,) = (await engine.score(job)).rows
        for position in (0, 1, 8, 15):
            changed = job.spans[0].token_ids.copy()
            changed[position:] = (changed[position:] + 1) % subject.vocabulary_size
            (after,) = (await engine.score(replace(job, spans=(every_row(changed),)))).rows
            kept = slice(0, position + 1)
            for name in ("top_log_probs", "log_tail"):
                np.testing.assert_allclose(
                    arrays(before)[name][kept], arrays(after)[name][kept],
                    rtol=0, atol=subject.independence,
                )  # fmt: skip
            if position < 15:
                following = slice(position + 1, None)
                assert not np.allclose(
                    arrays(before)["top_log_probs"][following],
                    arrays(after)["top_log_probs"][following],
                    rtol=0, atol=subject.independence,
                )  # fmt: skip

    async def test_a_cancelled_job_leaves_its_neighbours_alone(
        self, subject: Subject, engine: Engine
    ) -> None:
        job = make_job(42, subject.vocabulary_size, prompt=30, lengths=(12, 20))
        alone = await engine.score(job)
        cancelled = asyncio.ensure_future(engine.score(make_job(43, subject.vocabulary_size)))
        kept = asyncio.ensure_future(engine.score(job))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        for rows, expected in zip((await kept).rows, alone.rows, strict=True):
            assert_close(rows, expected, subject.independence)

    async def test_work_is_accounted_for(self, subject: Subject, engine: Engine) -> None:
        job = make_job(44, subject.vocabulary_size, prompt=50, lengths=(8, 8, 8, 8))
        result = await engine.score(job)
        assert 0 < result.computed_tokens <= 4 * (50 + 8)
        assert result.engine_seconds > 0

    async def test_a_closed_engine_refuses(self, subject: Subject) -> None:
        engine = subject.factory()
        await engine.start()
        job = make_job(45, subject.vocabulary_size)
        assert_equals_reference(subject, job, await engine.score(job))
        await engine.close()
        with pytest.raises(TeacherUnavailableError):
            await engine.score(job)
        await engine.close()

    async def test_the_description_names_what_was_loaded(
        self, subject: Subject, engine: Engine
    ) -> None:
        description = engine.description
        assert description.vocabulary_size == subject.vocabulary_size
        assert len(description.weights_digest) == 64
        assert description.max_length > 0
        assert not description.deterministic
