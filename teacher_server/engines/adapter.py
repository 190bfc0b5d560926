"""LoRA adapters in PEFT's format: what a folder holds, and whether it belongs to a base.

Only JSON and the headers of weight files are read; the engines load the weights. An
adapter that could be applied only in part, or whose base is another model, is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from teacher_proto.errors import ConfigurationError
from teacher_proto.models.weights import tensor_shapes, weights_digest

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BASE_FILE = "base_weights.json"
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
# Settings of PEFT with which an adapter computes more than B @ A times its scale.
NOT_PLAIN = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
# Parts of a module's name that say only what wraps the language model.
WRAPPERS = {"model", "language_model", "text_model", "transformer"}
# Initialisations of an adapter that leave the weights of the base as they are.
PLAIN_STARTS = {"gaussian", "eva", "orthogonal"}


@dataclass(frozen=True)
class Adapter:
    """A plain LoRA adapter.

    Attributes:
        directory: the folder that PEFT wrote.
        base: the model that its configuration names, a path or a hub name; may be empty.
        modules: name of a changed module -> (input size, output size).
        digest: sha256 in hex over its tensors and its scale.
        base_digest: of the weights of the base that it was trained on, where the trainer
            wrote it down (``BASE_FILE``); empty otherwise.
    """

    directory: Path
    base: str
    rank: int
    modules: dict[str, tuple[int, int]]
    digest: str
    base_digest: str = ""


def is_adapter(model: str) -> bool:
    """Whether a teacher's model is the folder of an adapter that PEFT wrote."""
    return (Path(model).expanduser() / CONFIG_FILE).is_file()


def read_adapter(directory: Path) -> Adapter:
    """Reads the configuration of an adapter and the names and shapes of its tensors.

    Raises:
        ConfigurationError: it is not a plain LoRA adapter in safetensors.
    """
    where = f"adapter {directory}"
    try:
        config = json.loads((directory / CONFIG_FILE).read_text())
        kind, rank, alpha = config["peft_type"], int(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"its {CONFIG_FILE} cannot be used: {type(error).__name__}: {error}",
            where=where,
            fix="save it with PEFT's save_pretrained",
        ) from error
    more = [name for name in NOT_PLAIN if config.get(name)]
    if config.get("bias", "none") != "none":
        more.append("bias")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        more.append(f"init_lora_weights={start}, which changes the base's own weights")
    if kind != "LORA" or more:
        raise ConfigurationError(
            f"it is not a plain LoRA adapter ({', '.join(more) or kind})",
            where=where,
            fix="merge it into its base (merge_and_unload) and serve the result as a model",
        )
    file = directory / WEIGHTS_FILE
    if not file.is_file():
        raise ConfigurationError(
            f"it has no {WEIGHTS_FILE}",
            where=where,
            fix="save it with save_pretrained(..., safe_serialization=True)",
        )
    scale = [rank, alpha, bool(config.get("use_rslora"))]
    digest = hashlib.sha256(json.dumps([weights_digest([file]), *scale]).encode())
    return Adapter(
        directory=directory,
        base=str(config.get("base_model_name_or_path") or ""),
        rank=rank,
        modules=_modules(tensor_shapes([file]), rank, where),
        digest=digest.hexdigest(),
        base_digest=_base_digest(directory / BASE_FILE),
    )


def _base_digest(file: Path) -> str:
    try:
        return str(json.loads(file.read_text())["weights_digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _modules(
    shapes: dict[str, tuple[int, ...]], rank: int, where: str
) -> dict[str, tuple[int, int]]:
    modules = {}
    for name in shapes:
        module = name.removeprefix(PREFIX).removesuffix(A).removesuffix(B)
        down, up = shapes.get(PREFIX + module + A, ()), shapes.get(PREFIX + module + B, ())
        if "lora_embedding" in name or module.split(".")[-1] in ("lm_head", "embed_tokens"):
            raise ConfigurationError(
                f"it changes {module}, and only layers between embedding and LM head can be "
                "adapted",
                where=where,
                fix="merge it into its base (merge_and_unload) and serve the result as a model",
            )
        if len(down) != 2 or len(up) != 2 or not down[0] == up[1] == rank:
            raise ConfigurationError(
                f"its tensor {name} is not half of a LoRA pair of rank {rank}",
                where=where,
                fix="save it again with PEFT's save_pretrained",
            )
        modules[module] = (down[1], up[0])
    if not modules:
        raise ConfigurationError("it changes nothing", where=where, fix="give a trained adapter")
    return modules


def check_base(adapter: Adapter, weights: Sequence[Path]) -> None:
    """Compares the modules of an adapter with the weight files of a base.

    Raises:
        ConfigurationError: the base lacks a module, or has it in another shape.
    """
    where = f"adapter {adapter.directory}"
    shapes = {_bare(name): shape for name, shape in tensor_shapes(weights).items()}
    for module, (size_in, size_out) in adapter.modules.items():
        bare = _bare(module)
        shape = shapes.get(f"{bare}.weight")
        packed = shape is None and any(name.startswith(f"{bare}.") for name in shapes)
        if shape != (size_out, size_in) and not packed:
            has = f"is {list(shape)}" if shape is not None else "does not exist"
            raise ConfigurationError(
                f"it changes {module} as [{size_out}, {size_in}], which in the base {has}",
                where=where,
                fix="serve the base that the adapter was trained on",
            )


def _bare(name: str) -> str:
    """A name in weight files without the wrappers, which transformers renames when it loads
    a model for text and images."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def names_model(name: str, model: str) -> bool:
    """Whether ``name``, the base in an adapter's configuration, is a teacher's ``model``."""
    if not name:
        return False
    one, other = Path(name).expanduser(), Path(model).expanduser()
    return name == model or (one.is_dir() and other.is_dir() and one.samefile(other))
