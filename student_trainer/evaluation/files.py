"""The files of an evaluation: frozen positions and results, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.files import write_text

from student_trainer.evaluation.results import (
    ByPrompt,
    ChunkLikelihood,
    CoarseDivergence,
    Evaluation,
    FrozenContinuation,
    FrozenPositions,
    FullDivergence,
    Lengths,
    RealignedDivergence,
    Sample,
    SampledPosition,
    TaskResult,
    TeacherDescription,
)


def save_frozen(frozen: FrozenPositions, path: Path) -> None:
    """Writes the frozen positions, whole or not at all."""
    _write(path, asdict(frozen))


def load_frozen(path: Path) -> FrozenPositions:
    """Reads the file. Raises ConfigurationError when it is missing or malformed."""
    raw = _read(path)
    try:
        continuations = tuple(
            FrozenContinuation(
                str(c["prompt_id"]),
                _integers(c["token_ids"]),
                _integers(c["rows"]),
                None if c.get("place") is None else int(c["place"]),
            )
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
        return _evaluation(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(path, error) from error


def _evaluation(raw: Any) -> Evaluation:
    return Evaluation(
        prompts=int(raw["prompts"]),
        frozen=_summed(FullDivergence, raw["frozen"]),
        fresh=_summed(FullDivergence, raw["fresh"]),
        lengths=_optional(Lengths, raw["lengths"]),
        samples=tuple(_sample(sample) for sample in raw["samples"]),
        frozen_digest=str(raw["frozen_digest"]),
        teacher=_optional(TeacherDescription, raw["teacher"]),
        seconds=float(raw["seconds"]),
        frozen_realigned=_realigned(raw.get("frozen_realigned")),
        fresh_realigned=_realigned(raw.get("fresh_realigned")),
        likelihood=_summed(ChunkLikelihood, raw.get("likelihood")),
        by_teacher={name: _evaluation(one) for name, one in raw.get("by_teacher", {}).items()},
        tasks={name: _task(one) for name, one in raw.get("tasks", {}).items()},
    )


def _task(value: Any) -> TaskResult:
    return TaskResult(
        responses=int(value["responses"]),
        score=None if value["score"] is None else float(value["score"]),
        values={str(name): float(one) for name, one in value["values"].items()},
        failures={str(kind): int(count) for kind, count in value["failures"].items()},
        lengths=Lengths(**value["lengths"]),
        by_prompt=_by_prompt(value["by_prompt"]),
    )


def _optional(kind: Any, value: Any) -> Any:
    return None if value is None else kind(**value)


def _summed(kind: Any, value: Any) -> Any:
    """A result that has its sums by prompt, or is of before they were kept."""
    if value is None:
        return None
    told = value.get("by_prompt")
    return kind(**{**value, "by_prompt": None if told is None else _by_prompt(told)})


def _by_prompt(told: Any) -> ByPrompt:
    return ByPrompt(
        tuple(str(prompt) for prompt in told["prompts"]),
        tuple(float(count) for count in told["counts"]),
        {name: tuple(float(one) for one in row) for name, row in told["sums"].items()},
    )


def _realigned(value: Any) -> RealignedDivergence | None:
    """A file of before there were coarse rows says nothing of them."""
    if value is None:
        return None
    coarse = _optional(CoarseDivergence, value.get("coarse"))
    found: RealignedDivergence = _summed(RealignedDivergence, {**value, "coarse": coarse})
    return found


def _sample(value: Any) -> Sample:
    positions = tuple(SampledPosition(**position) for position in value.get("positions", ()))
    return Sample(**{**value, "positions": positions})


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
