"""One named teacher: an engine, its tokenizer, its identity and its queue."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from teacher_proto.errors import ConfigurationError, EngineError
from teacher_proto.types import Level, TeacherIdentity, TeacherInfo

from teacher_server.access.rules import Principal, authorize, may_use
from teacher_server.config import EngineSettings, LimitSettings, TeacherSettings
from teacher_server.engines.adapter_engine import AdapterEngine
from teacher_server.engines.base import Engine, EngineDescription, Job, Sequence
from teacher_server.queue.admission import Admission, AdmissionQueue
from teacher_server.queue.quota import Quotas
from teacher_server.refusals.validation import TeacherFacts, unknown_teacher
from teacher_server.teachers.adapters import adapters_by_base
from teacher_server.tokenizers.teacher_tokenizer import TeacherTokenizer, load_tokenizer

log = logging.getLogger(__name__)

# Passes' worth of tokens inside an engine at once, when no setting says how many:
# the pass that runs and the next one. More would only wait behind them, where fair
# shares no longer reach; but an engine that cuts batches into passes packs them
# better out of half a batch.
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


# Engine name -> how to make one. Making is cheap; ``Engine.start`` loads.
ENGINES: dict[str, Callable[[str, EngineSettings], Engine]] = {
    "transformers": _transformers,
    "vllm": _vllm,
}


@dataclass(frozen=True)
class Teacher:
    name: str
    engine: Engine
    tokenizer: TeacherTokenizer
    identity: TeacherIdentity
    info: TeacherInfo
    facts: TeacherFacts
    admission: Admission


class Teachers:
    """The teachers of a server, by name: those a principal may ask, or all of them."""

    def __init__(self, teachers: Mapping[str, Teacher], principal: Principal | None = None) -> None:
        self._teachers = {n: t for n, t in teachers.items() if may_use(principal, n)}
        self._principal = principal

    def for_principal(self, principal: Principal | None) -> Teachers:
        return Teachers(self._teachers, principal)

    def __iter__(self) -> Iterator[Teacher]:
        return iter(self._teachers.values())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._teachers)

    def get(self, name: str) -> Teacher:
        """The teacher of this name.

        Raises:
            ForbiddenError: the principal may not ask it.
            UnknownTeacherError: there is none.
            InvalidRequestError: the name is empty.
        """
        if name:
            authorize(self._principal, name)
        try:
            return self._teachers[name]
        except KeyError:
            raise unknown_teacher(name, self.names) from None


def identity_of(description: EngineDescription, tokenizer_hash: str) -> TeacherIdentity:
    """The identity of what an engine loaded.

    The digest is the sha256, in hexadecimal, of the other five fields as a JSON
    object in UTF-8: keys in alphabetical order, no spaces, non-ASCII characters
    as they are.
    """
    fields = {
        "adapter_digest": description.adapter_digest,
        "dtype": description.dtype,
        "quantization": description.quantization,
        "tokenizer_hash": tokenizer_hash,
        "weights_digest": description.weights_digest,
    }
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return TeacherIdentity(digest=hashlib.sha256(canonical.encode()).hexdigest(), **fields)


@dataclass(frozen=True)
class _Loaded:
    """A teacher before its identity; ``queue`` names the teacher whose queue it shares."""

    engine: Engine
    tokenizer: TeacherTokenizer
    settings: EngineSettings
    queue: str


async def load_teachers(
    configured: Mapping[str, TeacherSettings], shared: EngineSettings, limits: LimitSettings
) -> Teachers:
    """Loads every teacher, one after the other, and lets each score itself.

    Teachers whose model is a LoRA adapter share the engine and the queue of their base.

    Raises:
        ConfigurationError: a model cannot be loaded, or an adapter's base is not served.
        EngineError: an engine fails its self-score.
    """
    adapters = await asyncio.to_thread(adapters_by_base, configured)
    loaded: dict[str, _Loaded] = {}
    try:
        for name, own_adapters in adapters.items():
            settings = configured[name]
            own = settings.engine(shared)
            tokenizer = await asyncio.to_thread(load_tokenizer, settings.model)
            # In a thread for the sake of the engine's imports.
            engine = await asyncio.to_thread(ENGINES[own.name], settings.model, own)
            loaded[name] = _Loaded(engine, tokenizer, own, name)
            if own_adapters:
                engine.hold_adapters(own_adapters)
            await engine.start()
            for other, adapter in own_adapters.items():
                directory = str(adapter.directory)
                own_tokenizer = tokenizer
                if (adapter.directory / "tokenizer.json").is_file():
                    own_tokenizer = await asyncio.to_thread(load_tokenizer, directory)
                handle = AdapterEngine(engine, other, adapter, configured[other].model)
                loaded[other] = _Loaded(handle, own_tokenizer, own, name)
            for each in (name, *own_adapters):
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


def make_admission(
    limits: LimitSettings, max_batch_tokens: int, pass_tokens: int | None, quotas: Quotas
) -> Admission:
    """The queue before one engine; ``quotas``: of all teachers together."""
    return Admission(
        AdmissionQueue(
            max_inflight_tokens=limits.max_inflight_tokens
            or inflight_tokens(max_batch_tokens, pass_tokens),
            max_queue_tokens=limits.max_queue_tokens,
            quotas=quotas,
        )
    )


def make_teacher(
    name: str,
    engine: Engine,
    tokenizer: TeacherTokenizer,
    limits: LimitSettings,
    admission: Admission,
) -> Teacher:
    """A teacher over a started engine."""
    description = engine.description
    identity = identity_of(description, tokenizer.hash)
    max_top_k = min(description.vocabulary_size, limits.max_top_k or description.vocabulary_size)
    return Teacher(
        name=name,
        engine=engine,
        tokenizer=tokenizer,
        identity=identity,
        info=TeacherInfo(
            name=name,
            identity=identity,
            vocabulary_size=description.vocabulary_size,
            max_top_k=max_top_k,
            max_length=description.max_length,
            engine=description.engine,
            deterministic=description.deterministic,
            tokenizers={tokenizer.hash: Level.SAME},
            model=description.model,
        ),
        facts=TeacherFacts(
            name=name,
            vocabulary_size=description.vocabulary_size,
            max_top_k=max_top_k,
            max_length=description.max_length,
            tokenizer_hash=tokenizer.hash,
            identity_digest=identity.digest,
            longest_token=tokenizer.longest_token,
        ),
        admission=admission,
    )


def inflight_tokens(max_batch_tokens: int, pass_tokens: int | None) -> int:
    """Tokens inside an engine at once: what keeps it busy and its passes full."""
    return max(max_batch_tokens // 2, INFLIGHT_PASSES * (pass_tokens or max_batch_tokens))


def probe_job(about: EngineDescription, start: int = 1) -> Job:
    """A few tokens to score; another ``start`` gives others."""
    length = min(8, about.max_length)
    ids = (np.arange(start, start + length) * 7919 % about.vocabulary_size).astype(np.int32)
    prompt, scored = ids[: length // 2], ids[length // 2 :]
    sequence = Sequence(token_ids=scored, positions=np.arange(len(scored), dtype=np.int32))
    return Job(
        prompt_ids=prompt,
        sequences=(sequence,),
        top_k=min(16, about.vocabulary_size),
        temperature=1.0,
        vocabulary_limit=about.vocabulary_size,
    )


async def self_score(engine: Engine) -> None:
    """Scores a few tokens and checks that the rows are distributions.

    Raises:
        EngineError: they are not.
    """
    rows = (await engine.score(probe_job(engine.description))).rows[0]
    if not rows.finite or rows.top_log_probs is None or rows.sampled_log_probs is None:
        raise _unsound("its logits are not finite")
    mass = np.exp(rows.top_log_probs.astype(np.float64)).sum(axis=1)
    highest = max(rows.top_log_probs.max(), rows.sampled_log_probs.max())
    if highest > 1e-4 or mass.max() > 1 + 1e-4:
        raise _unsound(f"a row's top 16 hold probability {mass.max():.6f}")


def _unsound(what: str) -> EngineError:
    return EngineError(
        f"the engine fails its self-score: {what}",
        fix="check the model's files and the engine's dtype",
        reason="SELF_SCORE_FAILED",
    )


def _check_fit(name: str, description: EngineDescription, tokenizer: TeacherTokenizer) -> None:
    if tokenizer.size > description.vocabulary_size:
        raise ConfigurationError(
            f"the tokenizer has ids up to {tokenizer.size - 1} and the model only "
            f"{description.vocabulary_size} logits",
            where=f"teachers.{name}.model",
            fix="give a model and a tokenizer that belong together",
        )
