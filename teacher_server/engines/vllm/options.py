"""From the server's settings to vLLM's engine arguments. Nothing here imports vLLM."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.models.text_model import stated_length
from teacher_proto.processes.vllm_options import CPU_BLOCK_SIZE, Passed, always, reason_of

from teacher_server.engines.adapter import Adapter

WHERE = "engine.vllm"
POSITIONS = "max_position_embeddings"
TEXT_CONFIG = "text_config"
TEXT_ONLY = "language_model_only"
MAXIMUM_SEQUENCES = 256
# Memory for keys and values on a CPU, where vLLM would take nearly all of it.
CPU_CACHE_BYTES = 4 * 2**30
CPU_CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"

# Arguments that this engine sets itself, and what to use instead of them.
OURS = {
    "model": "teachers.NAME.model",
    "tokenizer": "the model's folder, which holds it",
    "skip_tokenizer_init": "nothing: vLLM never sees text here",
    "dtype": "engine.dtype",
    "max_model_len": "engine.max_length",
    "max_num_batched_tokens": "engine.max_batch_tokens",
    "max_logprobs": "limits.max_top_k",
    "runner": "nothing: the engine generates no text",
    "worker_extension_cls": "nothing: the engine needs its own",
    "scheduler_cls": "nothing: the engine needs its own",
    "async_scheduling": "nothing: a scoring step leaves nothing to overlap",
    "generation_config": "nothing: the engine generates no text",
    "disable_log_stats": "the server's own metrics",
    "language_model_only": "nothing: text alone is scored",
    "trust_remote_code": "a checkpoint of an architecture that vLLM knows by itself",
    "load_format": "a checkpoint in safetensors",
    "enable_lora": "a teacher whose model is the adapter's folder",
    "lora_modules": "a teacher whose model is the adapter's folder",
    "lora_target_modules": "nothing: the adapters say which modules they change",
    "max_cpu_loras": "nothing: every adapter stays in memory",
}
# Features of vLLM that change which tokens a row sees, or take keys and values from elsewhere.
REFUSED = {
    "speculative_config": "it speeds up generation, and nothing is generated",
    "kv_transfer_config": "rows need hidden states, which other engines' caches do not hold",
    "enable_prompt_embeds": "prompts are token ids only",
    "logits_processors": "rows are the model's own distributions",
    "data_parallel_external_lb": "this server is the one front of its engines",
    "data_parallel_hybrid_lb": "this server is the one front of its engines",
}
PASSED = Passed(WHERE, "server", OURS, REFUSED)


def engine_arguments(
    *,
    model: str,
    dtype: str,
    max_length: int | None,
    max_batch_tokens: int,
    deterministic: bool,
    options: Mapping[str, Any],
    known: Collection[str],
    on_cpu: bool,
    adapters: Sequence[Adapter] = (),
    adapter_ranks: Iterable[int] = (),
) -> dict[str, Any]:
    """Arguments for vLLM's ``AsyncEngineArgs`` by name.

    Args:
        options: passed through. Whatever is not given keeps vLLM's default, except for
            ``block_size`` and ``kv_cache_memory_bytes`` on a CPU.
        known: the names that this vLLM knows.
        adapter_ranks: the ranks that it can make room for.

    Raises:
        ConfigurationError: an option is unknown, refused or set elsewhere.
    """
    for name in options:
        PASSED.check(name, known)
    defaults: dict[str, Any] = {
        "enable_prefix_caching": True,
        "max_num_seqs": min(MAXIMUM_SEQUENCES, max_batch_tokens),
    }
    if on_cpu:
        defaults["block_size"] = CPU_BLOCK_SIZE
        if not os.environ.get(CPU_CACHE_VARIABLE):
            defaults["kv_cache_memory_bytes"] = CPU_CACHE_BYTES
    arguments = defaults | dict(options)
    arguments["hf_overrides"] = _merged(length_overrides(model), options.get("hf_overrides", {}))
    if TEXT_ONLY in known:
        # Of a model for text and images only the language model is loaded.
        arguments[TEXT_ONLY] = True
    if deterministic:
        for name, value in (("enable_prefix_caching", False), ("max_num_seqs", 1)):
            if options.get(name, value) != value:
                raise ConfigurationError(
                    f"{options[name]!r} does not go with engine.deterministic, under which every "
                    "sequence is read alone and whole",
                    where=f"{WHERE}.{name}",
                    fix="leave one of the two out",
                )
            arguments[name] = value
    if adapters:
        arguments |= adapter_arguments(adapters, options, adapter_ranks)
    return (
        arguments
        | always(model, dtype, max_length)
        | {
            "max_num_batched_tokens": max_batch_tokens,
            "enable_chunked_prefill": True,
            "load_format": "safetensors",
            "async_scheduling": False,
        }
    )


def length_overrides(directory: str) -> dict[str, Any]:
    """What vLLM is told of a length that YaRN reaches and ``max_position_embeddings`` leaves
    out, where config.json has it: of a model with images in ``text_config``. Empty where the
    two agree."""
    try:
        document = json.loads((Path(directory) / "config.json").read_text())
        nested = document.get(TEXT_CONFIG)
        config = SimpleNamespace(**(document if nested is None else nested))
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # vLLM says what is wrong with the file
    own = getattr(config, POSITIONS, None)
    reached, _ = stated_length(config)
    if reached is None or own is None or reached <= own:
        return {}
    return {POSITIONS: reached} if nested is None else {TEXT_CONFIG: {POSITIONS: reached}}


def _merged(ours: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Both, where ``given`` counts; of objects in both, each field."""
    both = {
        name: _merged(ours[name], given[name])
        for name in ours.keys() & given.keys()
        if isinstance(ours[name], Mapping) and isinstance(given[name], Mapping)
    }
    return {**ours, **given, **both}


def adapter_arguments(
    adapters: Sequence[Adapter], options: Mapping[str, Any], ranks: Iterable[int]
) -> dict[str, Any]:
    """Room for every adapter, so that none is loaded while requests are served.

    Only modules that an adapter changes are wrapped. The LM head is never one of them,
    because rows are computed outside of vLLM's own record of which token has which
    adapter.

    Raises:
        ConfigurationError: the rank of an adapter is above vLLM's limit, or above the one
            that ``options`` sets.
    """
    largest = max(adapters, key=lambda adapter: adapter.rank)
    limit = options.get("max_lora_rank")
    room = [limit] if limit is not None else sorted(ranks)
    fitting = [size for size in room if size >= largest.rank]
    if not fitting:
        raise ConfigurationError(
            f"its rank of {largest.rank} is above {room[-1]}",
            where=f"adapter {largest.directory}",
            fix=f"raise {WHERE}.max_lora_rank"
            if limit is not None
            else "merge it into its base (merge_and_unload) and serve the result as a model",
        )
    slots = options.get("max_loras", len(adapters))
    return {
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": max(slots, len(adapters)),
        "max_lora_rank": fitting[0],
        "lora_target_modules": sorted(
            {module.rpartition(".")[2] for adapter in adapters for module in adapter.modules}
        ),
    }


def refused(model: str, message: str) -> ConfigurationError:
    """The error with vLLM's own reason."""
    return ConfigurationError(
        f"vLLM cannot serve it as configured: {reason_of(message)}",
        where=f"model {model}",
        fix="change what the message names: the model, engine.dtype, engine.max_length, or an "
        "option under engine.vllm",
    )


def checkpoint_dtype(directory: str) -> str:
    """The dtype a checkpoint was saved in; the "auto" of vLLM turns float32 into bfloat16.

    Raises:
        ConfigurationError: its config.json does not name it, or cannot be read.
    """
    path = Path(directory) / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot be read: {error}", where=str(path)) from error
    for part in (config.get(TEXT_CONFIG) or {}, config):
        for key in ("dtype", "torch_dtype"):
            if isinstance(part.get(key), str):
                return str(part[key])
    raise ConfigurationError(
        "it does not name the dtype of its weights",
        where=str(path),
        fix="set engine.dtype, such as --dtype bfloat16",
    )
