"""Loads the teachers that the settings name: their engines, adapters, tokenizers and queues."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from teacher_proto.errors import ConfigurationError, LsmError

from teacher_server.engines.adapter_engine import AdapterEngine
from teacher_server.engines.base import Engine, EngineDescription
from teacher_server.engines.probe import self_score
from teacher_server.queue.admission import Admission, AdmissionQueue
from teacher_server.queue.quota import Quotas
from teacher_server.settings.limits import LimitSettings
from teacher_server.settings.teachers import EngineSettings, TeacherSettings
from teacher_server.teachers.adapters import adapters_by_base
from teacher_server.teachers.teacher import Teachers, make_teacher
from teacher_server.teachers.tokenizer import TeacherTokenizer, load_tokenizer

log = logging.getLogger(__name__)

# Passes' worth of tokens that are inside an engine at once where no setting gives a number:
# the pass that runs and the next one. More tokens would only wait inside the engine, out of
# reach of the fair shares; measured, they make it no faster, and fewer leave it idle between
# two passes (benchmarks/load_shares.py).
INFLIGHT_PASSES = 2


def _transformers(model: str, settings: EngineSettings) -> Engine:
    from teacher_server.engines.torch.transformers import TransformersEngine

    return TransformersEngine(
        model,
        dtype=settings.dtype,
        device=settings.device,
        max_batch_tokens=settings.max_batch_tokens,
        deterministic=settings.deterministic,
        max_length=settings.max_length,
    )


def _vllm(model: str, settings: EngineSettings) -> Engine:
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise ConfigurationError(
            "vLLM is not installed",
            where="engine.name",
            fix="install it as docs/vllm.md says, or use engine.name=transformers",
        )
    from teacher_server.engines.vllm.engine import VllmEngine

    return VllmEngine(
        model,
        dtype=settings.dtype,
        device=settings.device,
        max_batch_tokens=settings.max_batch_tokens,
        deterministic=settings.deterministic,
        max_length=settings.max_length,
        options=settings.vllm,
    )


# Every engine by its name in the settings: from a model and the settings to an engine that
# is not started. Making one is cheap; ``Engine.start`` loads the model.
ENGINES: dict[str, Callable[[str, EngineSettings], Engine]] = {
    "transformers": _transformers,
    "vllm": _vllm,
}


@dataclass(frozen=True)
class _Loaded:
    """A teacher that has no identity yet; ``queue``: the teacher whose queue it shares."""

    engine: Engine
    tokenizer: TeacherTokenizer
    settings: EngineSettings
    queue: str


async def load_teachers(
    configured: Mapping[str, TeacherSettings], shared: EngineSettings, limits: LimitSettings
) -> Teachers:
    """Loads every teacher, one after the other, and lets each of them score a probe.

    Teachers whose model is a LoRA adapter share the engine and the queue of their base.

    Raises:
        ConfigurationError: a model cannot be loaded, or an adapter's base is not served.
        EngineError: an engine fails its self-score.
    """
    adapters = await asyncio.to_thread(adapters_by_base, configured)
    loaded: dict[str, _Loaded] = {}
    try:
        for name, own_adapters in adapters.items():
            with named(name, len(configured)):
                settings = configured[name]
                own = settings.engine(shared)
                tokenizer = await asyncio.to_thread(load_tokenizer, settings.model)
                # In a thread because the engine's imports take seconds.
                engine = await asyncio.to_thread(ENGINES[own.name], settings.model, own)
                loaded[name] = _Loaded(engine, tokenizer, own, name)
                if own_adapters:
                    engine.hold_adapters(own_adapters)
                await engine.start()
            for other, adapter in own_adapters.items():
                with named(other, len(configured)):
                    directory = str(adapter.directory)
                    own_tokenizer = tokenizer
                    if (adapter.directory / "tokenizer.json").is_file():
                        own_tokenizer = await asyncio.to_thread(
                            load_tokenizer, directory, settings.model
                        )
                if adapter.base_digest not in ("", engine.description.weights_digest):
                    log.warning(
                        "teacher %s: its adapter was trained on other weights than those of its "
                        "base %s, such as the same ones before they were quantised or changed",
                        other,
                        name,
                    )
                handle = AdapterEngine(engine, other, adapter, configured[other].model)
                loaded[other] = _Loaded(handle, own_tokenizer, own, name)
            for each in (name, *own_adapters):
                with named(each, len(configured)):
                    _check_fit(each, loaded[each].engine.description, loaded[each].tokenizer)
                    await self_score(loaded[each].engine)
                log.info("teacher %s is loaded from %s", each, configured[each].model)
    except BaseException:
        await asyncio.gather(*(one.engine.close() for one in loaded.values()))
        raise
    quotas = Quotas()
    queues = {
        name: make_admission(
            limits,
            loaded[name].settings.max_batch_tokens,
            loaded[name].engine.description.pass_tokens,
            quotas,
        )
        for name in adapters
    }
    return Teachers(
        {
            name: make_teacher(
                name,
                loaded[name].engine,
                loaded[name].tokenizer,
                limits,
                queues[loaded[name].queue],
            )
            for name in configured
        }
    )


@contextlib.contextmanager
def named(teacher: str, teachers: int) -> Iterator[None]:
    """An error of the project that is raised inside says which of several teachers it is about."""
    try:
        yield
    except LsmError as error:
        if teachers > 1 and f"teachers.{teacher}" not in error.where:
            error.where = f"teachers.{teacher}" + (f" ({error.where})" if error.where else "")
        raise


def make_admission(
    limits: LimitSettings, max_batch_tokens: int, pass_tokens: int | None, quotas: Quotas
) -> Admission:
    """The queue in front of one engine; ``quotas`` are those of all teachers together."""
    return Admission(
        AdmissionQueue(
            max_inflight_tokens=limits.max_inflight_tokens
            or inflight_tokens(max_batch_tokens, pass_tokens),
            max_queue_tokens=limits.max_queue_tokens,
            quotas=quotas,
        )
    )


def inflight_tokens(max_batch_tokens: int, pass_tokens: int | None) -> int:
    """Tokens inside an engine at once: enough to keep it busy."""
    return INFLIGHT_PASSES * (pass_tokens or max_batch_tokens)


def _check_fit(name: str, description: EngineDescription, tokenizer: TeacherTokenizer) -> None:
    where = f"teachers.{name}.model"
    beyond = tokenizer.check_special_ids(description.vocabulary_size, where)
    if beyond:
        log.info(
            "teacher %s: %d added tokens have no logits; requests that hold them are refused",
            name,
            beyond,
        )
