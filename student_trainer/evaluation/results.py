"""The frozen positions and the results of an evaluation.

Nothing here needs torch. Divergences are in nats, lengths in tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class FrozenContinuation:
    """One continuation that is frozen before training.

    Attributes:
        prompt_id: of the held-out prompt it continues.
        token_ids: its n >= 1 tokens.
        rows: indices in [0, n) of the evaluated positions, strictly increasing.
        place: of the prompt in ``FrozenPositions.prompts``: prompts of one id can be different
            ones at the teacher. None in a file of before it was kept.
    """

    prompt_id: str
    token_ids: tuple[int, ...]
    rows: tuple[int, ...]
    place: int | None = None


@dataclass(frozen=True)
class FrozenPositions:
    """The positions that every evaluation of a run is on.

    Attributes:
        prompts: ids of the held-out prompts that are evaluated, in order.
        continuations: of the untrained student; none when ``frozen_rows`` is 0.
        seed, temperature, top_p, max_new_tokens: how the continuations were drawn.
    """

    prompts: tuple[str, ...]
    continuations: tuple[FrozenContinuation, ...]
    seed: int
    temperature: float
    top_p: float
    max_new_tokens: int

    @property
    def rows(self) -> int:
        """Number of positions."""
        return sum(len(continuation.rows) for continuation in self.continuations)

    @property
    def digest(self) -> str:
        """sha256 over everything above, hexadecimal. It is what it was before there were
        places, where there are none."""
        values = asdict(self)
        for continuation in values["continuations"]:
            if continuation["place"] is None:
                del continuation["place"]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@dataclass(frozen=True)
class ByPrompt:
    """What means are made of, prompt by prompt: rows of one prompt depend on each other, so that
    uncertainty is over prompts (``evaluation.course.uncertainty``).

    Attributes:
        prompts: ids, each once.
        counts: of each prompt what its sums are divided by: rows, or bytes.
        sums: of each metric a sum for each prompt.
    """

    prompts: tuple[str, ...]
    counts: tuple[float, ...]
    sums: dict[str, tuple[float, ...]]

    @classmethod
    def of(
        cls,
        prompts: Sequence[str],
        values: Mapping[str, Sequence[float]],
        counts: Sequence[float] | None = None,
    ) -> ByPrompt:
        """Adds up rows.

        Args:
            prompts: R ids, of the prompt of each row.
            values: of each metric R values.
            counts: R numbers; None counts rows.
        """
        places: dict[str, list[int]] = {}
        for place, prompt in enumerate(prompts):
            places.setdefault(prompt, []).append(place)
        each = [1.0] * len(prompts) if counts is None else counts

        def added(row: Sequence[float]) -> tuple[float, ...]:
            return tuple(math.fsum(row[place] for place in of_it) for of_it in places.values())

        return cls(tuple(places), added(each), {name: added(row) for name, row in values.items()})


@dataclass(frozen=True)
class FullDivergence:
    """Divergences of student pi and teacher q at temperature 1, means over rows.

    Attributes:
        rows: rows in the means.
        dropped_rows: rows left out because the teacher refuses the response, or because its
            row is not finite or gives an id a probability of 0, which makes a divergence
            infinite.
        ids: number of compared ids: those of a token that both vocabularies have.
        reverse_kl: KL(pi || q) over the whole vocabulary, nats.
        forward_kl: KL(q || pi) over the whole vocabulary, nats.
        agreement: share of rows whose most likely id is the same.
        by_prompt: the last three by prompt; None in a file of before they were kept.
    """

    rows: int
    dropped_rows: int
    ids: int
    reverse_kl: float
    forward_kl: float
    agreement: float
    by_prompt: ByPrompt | None = None


# Means of RealignedDivergence: None where there is no full row.
OF_FULL_ROWS = ("reverse_kl", "forward_kl", "agreement", "student_mass", "coverage", "open_mass")


@dataclass(frozen=True)
class RealignedDivergence:
    """Divergences of student pi and a teacher q with another tokenizer, at temperature 1:
    means over the full rows, which are neither masked nor coarse; None where there is no full
    row. None of them is over the teacher's whole vocabulary, which does not exist in the
    student's tokens.

    Attributes:
        rows: positions in the means.
        masked_rows: positions left out because the teacher's row is masked, or has a single id
            and no rest.
        reverse_kl, forward_kl: KL(pi || q) and KL(q || pi), both renormalised on the
            certified ids, nats.
        agreement: share of positions whose most likely id, over all ids, is the same.
        student_mass: the student's mass on the certified ids. Mass outside them is not in
            the divergences.
        coverage: the teacher's mass on the certified ids.
        open_mass: the teacher's mass that is not settled.
        coarse_rows: positions that are compared on their ids and the rest, in none of the means
            above: of class COARSE, and full rows of a single id. None in a file of before there
            were any, which counted them as masked.
        coarse: means over these; None where there are none.
        by_prompt: the means over full rows by prompt; None without such rows, and in a file of
            before they were kept.
    """

    rows: int
    masked_rows: int
    reverse_kl: float | None
    forward_kl: float | None
    agreement: float | None
    student_mass: float | None
    coverage: float | None
    open_mass: float | None
    coarse_rows: int | None = None
    coarse: CoarseDivergence | None = None
    by_prompt: ByPrompt | None = None


@dataclass(frozen=True)
class CoarseDivergence:
    """Means over the coarse rows of a RealignedDivergence, over the certified ids and the rest
    of each side.

    Attributes:
        reverse_kl, forward_kl: KL(pi || q) and KL(q || pi), nats.
        student_rest, teacher_rest: mass outside the certified ids.
    """

    reverse_kl: float
    forward_kl: float
    student_rest: float
    teacher_rest: float


@dataclass(frozen=True)
class ChunkLikelihood:
    """Both sides' likelihood of the student's fresh answers, summed over chunks. The end of
    a turn counts in the likelihood but not in the bytes.

    Attributes:
        chunks, bytes: how many of them are in the sums.
        student_bits_per_byte: from the student's own tokens.
        teacher_bits_per_byte: from the teacher's encoding of the same text.
        by_prompt: both by prompt; None in a file of before they were kept.
    """

    chunks: int
    bytes: int
    student_bits_per_byte: float
    teacher_bits_per_byte: float
    by_prompt: ByPrompt | None = None


@dataclass(frozen=True)
class Lengths:
    """Fresh responses: their number, mean tokens, and share cut at the length limit."""

    responses: int
    mean: float
    truncated_share: float


@dataclass(frozen=True)
class SampledPosition:
    """A token of a response as a teacher with another tokenizer knows it.

    Attributes:
        text: of the token alone.
        kind: name of its PositionClass.
        reason: why it is masked or coarse (``teacher.mask_reasons``); empty otherwise.
    """

    text: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """One fresh response as text.

    Attributes:
        tokens: how many of it the student wrote; the text also has the observations of an
            episode.
        finished: False when the length limit cut it.
        positions: of its tokens, in order; empty with one tokenizer, and where the response
            was not scored or not realigned.
    """

    prompt_id: str
    prompt: str
    response: str
    tokens: int
    finished: bool
    positions: tuple[SampledPosition, ...] = ()


@dataclass(frozen=True)
class TeacherDescription:
    """The teacher that scored the rows, as its service describes it."""

    name: str
    model: str
    engine: str
    identity: str
    weights_digest: str
    dtype: str
    quantization: str
    tokenizer_hash: str
    vocabulary_size: int


@dataclass(frozen=True)
class TaskResult:
    """How often a student is right on the held-out prompts of a task.

    Attributes:
        responses: to each prompt.
        score: mean of the responses that have one; None where none has.
        values: means of what else the verifier finds, of the responses that have it.
        failures: responses that could not be judged, by kind; they are not right.
        lengths: of the responses.
        by_prompt: of each prompt its estimates of pass@k, ``pass_at_K``.
    """

    responses: int
    score: float | None
    values: dict[str, float]
    failures: dict[str, int]
    lengths: Lengths
    by_prompt: ByPrompt

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return len(self.by_prompt.prompts)

    @property
    def pass_at(self) -> dict[str, float]:
        """Means over prompts, by ``pass_at_K``."""
        return {name: math.fsum(row) / len(row) for name, row in self.by_prompt.sums.items()}


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a student.

    Attributes:
        prompts: number of held-out prompts.
        frozen: on the frozen positions; None when there are none.
        fresh: on positions of the fresh responses; None when turned off.
        lengths: of the fresh responses; None when turned off.
        samples: of the first prompts, in order.
        frozen_digest: of the frozen positions.
        teacher: the teacher that scored every row; None with several.
        seconds: how long the evaluation took.
        frozen_realigned, fresh_realigned: instead of ``frozen`` and ``fresh`` when the
            teacher has another tokenizer.
        likelihood: of the fresh responses, also only then.
        by_teacher: with several teachers that of each on its own prompts, by its name; then
            nothing but numbers of prompts and responses is of all of them.
        tasks: of each task that judges responses, by its name.
    """

    prompts: int
    frozen: FullDivergence | None
    fresh: FullDivergence | None
    lengths: Lengths | None
    samples: tuple[Sample, ...]
    frozen_digest: str
    teacher: TeacherDescription | None
    seconds: float
    frozen_realigned: RealignedDivergence | None = None
    fresh_realigned: RealignedDivergence | None = None
    likelihood: ChunkLikelihood | None = None
    by_teacher: dict[str, Evaluation] = field(default_factory=dict)
    tasks: dict[str, TaskResult] = field(default_factory=dict)
