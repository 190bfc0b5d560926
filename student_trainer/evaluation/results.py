"""The frozen positions and the results of an evaluation, as JSON files.

Nothing here needs torch. Divergences are in nats, lengths in tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.files import write_text


@dataclass(frozen=True)
class FrozenContinuation:
    """One continuation that is frozen before training.

    Attributes:
        prompt_id: of the held-out prompt it continues.
        token_ids: its n >= 1 tokens.
        rows: indices in [0, n) of the evaluated positions, strictly increasing.
    """

    prompt_id: str
    token_ids: tuple[int, ...]
    rows: tuple[int, ...]


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
        """sha256 over everything above, hexadecimal."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True)
class FullDivergence:
    """Divergences of student pi and teacher q at temperature 1, means over rows.

    Attributes:
        rows: rows in the means.
        dropped_rows: rows left out because the teacher's row is not finite, or gives an
            id a probability of 0, which makes a divergence infinite.
        ids: number of compared ids: those of a token that both vocabularies have.
        reverse_kl: KL(pi || q) over the whole vocabulary, nats.
        forward_kl: KL(q || pi) over the whole vocabulary, nats.
        agreement: share of rows whose most likely id is the same.
    """

    rows: int
    dropped_rows: int
    ids: int
    reverse_kl: float
    forward_kl: float
    agreement: float


@dataclass(frozen=True)
class RealignedDivergence:
    """Divergences of student pi and a teacher q with another tokenizer, at temperature 1:
    means over the positions that are not masked. None of them is over the teacher's whole
    vocabulary, which does not exist in the student's tokens.

    Attributes:
        rows: positions in the means.
        masked_rows: positions left out because the teacher's row is masked.
        reverse_kl, forward_kl: KL(pi || q) and KL(q || pi), both renormalised on the
            certified ids, nats.
        agreement: share of positions whose most likely id, over all ids, is the same.
        student_mass: the student's mass on the certified ids. Mass outside them is not in
            the divergences.
        coverage: the teacher's mass on the certified ids.
        open_mass: the teacher's mass that is not settled.
    """

    rows: int
    masked_rows: int
    reverse_kl: float
    forward_kl: float
    agreement: float
    student_mass: float
    coverage: float
    open_mass: float


@dataclass(frozen=True)
class ChunkLikelihood:
    """Both sides' likelihood of the student's fresh answers, summed over chunks. The end of
    a turn counts in the likelihood but not in the bytes.

    Attributes:
        chunks, bytes: how many of them are in the sums.
        student_bits_per_byte: from the student's own tokens.
        teacher_bits_per_byte: from the teacher's encoding of the same text.
    """

    chunks: int
    bytes: int
    student_bits_per_byte: float
    teacher_bits_per_byte: float


@dataclass(frozen=True)
class Lengths:
    """Fresh responses: their number, mean tokens, and share cut at the length limit."""

    responses: int
    mean: float
    truncated_share: float


@dataclass(frozen=True)
class Sample:
    """One fresh response as text; ``finished`` is False when the length limit cut it."""

    prompt_id: str
    prompt: str
    response: str
    tokens: int
    finished: bool


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
class Evaluation:
    """One evaluation of a student.

    Attributes:
        prompts: number of held-out prompts.
        frozen: on the frozen positions; None when there are none.
        fresh: on positions of the fresh responses; None when turned off.
        lengths: of the fresh responses; None when turned off.
        samples: of the first prompts, in order.
        frozen_digest: of the frozen positions.
        teacher: the teacher that scored every row.
        seconds: how long the evaluation took.
        frozen_realigned, fresh_realigned: instead of ``frozen`` and ``fresh`` when the
            teacher has another tokenizer.
        likelihood: of the fresh responses, also only then.
    """

    prompts: int
    frozen: FullDivergence | None
    fresh: FullDivergence | None
    lengths: Lengths | None
    samples: tuple[Sample, ...]
    frozen_digest: str
    teacher: TeacherDescription
    seconds: float
    frozen_realigned: RealignedDivergence | None = None
    fresh_realigned: RealignedDivergence | None = None
    likelihood: ChunkLikelihood | None = None


def save_frozen(frozen: FrozenPositions, path: Path) -> None:
    """Writes the frozen positions, whole or not at all."""
    _write(path, asdict(frozen))


def load_frozen(path: Path) -> FrozenPositions:
    """Reads the file. Raises ConfigurationError when it is missing or malformed."""
    raw = _read(path)
    try:
        continuations = tuple(
            FrozenContinuation(str(c["prompt_id"]), _integers(c["token_ids"]), _integers(c["rows"]))
            for c in raw["continuations"]
        )
        return FrozenPositions(
            prompts=tuple(str(p) for p in raw["prompts"]),
            continuations=continuations,
            seed=int(raw["seed"]),
            temperature=float(raw["temperature"]),
            top_p=float(raw["top_p"]),
            max_new_tokens=int(raw["max_new_tokens"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(path, error) from error


def save_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Writes an evaluation, whole or not at all."""
    _write(path, asdict(evaluation))


def load_evaluation(path: Path) -> Evaluation:
    """Reads the file. Raises ConfigurationError when it is missing or malformed."""
    raw = _read(path)
    try:
        return Evaluation(
            prompts=int(raw["prompts"]),
            frozen=_optional(FullDivergence, raw["frozen"]),
            fresh=_optional(FullDivergence, raw["fresh"]),
            lengths=_optional(Lengths, raw["lengths"]),
            samples=tuple(Sample(**sample) for sample in raw["samples"]),
            frozen_digest=str(raw["frozen_digest"]),
            teacher=TeacherDescription(**raw["teacher"]),
            seconds=float(raw["seconds"]),
            frozen_realigned=_optional(RealignedDivergence, raw.get("frozen_realigned")),
            fresh_realigned=_optional(RealignedDivergence, raw.get("fresh_realigned")),
            likelihood=_optional(ChunkLikelihood, raw.get("likelihood")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(path, error) from error


def _optional(kind: Any, value: Any) -> Any:
    return None if value is None else kind(**value)


def _integers(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, allow_nan=False) + "\n")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(
            "there is no such file", where=str(path), fix="give the directory of a run"
        ) from error
    except (OSError, ValueError) as error:
        raise _malformed(path, error) from error


def _malformed(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"it cannot be read ({type(error).__name__}: {error})",
        where=str(path),
        fix="run the training again, or restore the file",
    )
