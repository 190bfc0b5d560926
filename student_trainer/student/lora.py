"""LoRA adapters of a student: which modules get one, and which base they belong to.

Beside saved adapters stands the digest of the base's weights, since the base itself is
not saved and could be replaced before the adapters are used again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.models.text_model import TextModel
from teacher_proto.models.weights import weight_files, weights_digest
from teacher_proto.program.files import file_sha256
from torch import nn

from student_trainer.settings.student import LoraSettings
from student_trainer.student.loading import OTHER_WEIGHTS

log = logging.getLogger(__name__)

BASE_FILE = "base_weights.json"
TARGET_MODULES = "student.lora.target_modules"
# Names of modules that choose among the experts of a mixture, or weigh one.
# Dimensions of a parameter that holds the matrices of several experts, whatever its name.
STACKED = 3
ROUTERS = re.compile(r"(.*\.)?(router|gate|\w+_gate)(\.\w+)*")
ELSEWHERE = re.compile(r"attn|attention")
EXPERTS = re.compile(r"(^|[._])experts?([._]|$)")


@dataclass(frozen=True)
class LeftOut:
    """What "all-linear" does not adapt between the embedding and the head.

    Attributes:
        routers: names of modules that choose among experts, or weigh one.
        experts: names and sizes of the experts' weights that are no linear layers.
    """

    routers: tuple[str, ...] = ()
    experts: tuple[tuple[str, int], ...] = ()


def add_adapters(model: Any, text: TextModel, settings: LoraSettings, weights: Path | None) -> Any:
    """The model with new adapters, or with those saved in ``weights``, ready to be trained.

    What is adapted and what is not is logged.

    Raises:
        ConfigurationError: the target modules do not exist, or none would get an adapter.
    """
    from peft import PeftModel

    left_out = _left_out(text.decoder) if settings.target_modules == "all-linear" else LeftOut()
    if weights is not None:
        adapted = PeftModel.from_pretrained(model, str(weights), is_trainable=True)
    else:
        adapted = _new_adapters(model, text, settings, left_out)
    said, experts = describe_adapters(adapted, left_out)
    (log.warning if experts else log.info)("%s", said)
    return adapted


def _new_adapters(model: Any, text: TextModel, settings: LoraSettings, left_out: LeftOut) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = settings.target_modules
    configuration = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=_excluded(model, text, left_out),
    )
    try:
        adapted = get_peft_model(model, configuration)
        # Of some mixtures PEFT adapts routers and experts that are parameters, and writes
        # both into the configuration.
        parameters = set(configuration.target_parameters or ())
        kept = {name for name in parameters if not ROUTERS.fullmatch(name)}
        if left_out.routers and kept != parameters:
            configuration.target_parameters = kept
            adapted = get_peft_model(adapted.unload(), configuration)
    except ValueError as error:
        raise ConfigurationError(str(error), where=TARGET_MODULES) from error
    return adapted


def _excluded(model: Any, text: TextModel, left_out: LeftOut) -> str | None:
    """A pattern of the modules that get no adapter: what text does not use, and routers."""
    names = [rf"{re.escape(name)}(\..*)?" for name in text.unused]
    prefix = next(name for name, module in model.named_modules() if module is text.decoder)
    last = sorted({_suffix(name) for name in left_out.routers})
    names += [rf"{re.escape(prefix)}\..*\.{re.escape(name)}" for name in last]
    return "|".join(names) or None


def _suffix(name: str) -> str:
    """A module's name without what stands before its layer's number."""
    return re.split(r"(?:^|\.)\d+\.", name)[-1]


def _left_out(decoder: nn.Module) -> LeftOut:
    """Routers and experts of a mixture; nothing where the decoder is none."""
    modules = dict(decoder.named_modules())
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    experts = [
        (name, parameter)
        for name, parameter in decoder.named_parameters()
        if EXPERTS.search(name.rpartition(".")[0])
        or (
            parameter.dim() == STACKED
            and not isinstance(modules[name.rpartition(".")[0]], convolutions)
        )
    ]
    if not experts:
        return LeftOut()
    from transformers.pytorch_utils import Conv1D

    linear = {n for n, module in modules.items() if isinstance(module, nn.Linear | Conv1D)}
    routers = [
        name
        for name, module in modules.items()
        if ROUTERS.fullmatch(name)
        and not ELSEWHERE.search(name)
        and not EXPERTS.search(name.rpartition(".")[0])
        and any(True for _ in module.parameters(recurse=False))
    ]
    bare = [(n, p) for n, p in experts if n.rpartition(".")[0] not in linear and p.dim() > 1]
    return LeftOut(tuple(sorted(routers)), tuple((n, p.numel()) for n, p in bare))


def describe_adapters(adapted: Any, left_out: LeftOut) -> tuple[str, bool]:
    """One sentence on what has adapters and what was left out, and whether experts were."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(n, m) for n, m in adapted.named_modules() if isinstance(m, BaseTunerLayer)]
    # The wrapper of a parameter knows its name.
    names = [getattr(m, "parameter_name", None) or n for n, m in layers]
    text = f"LoRA adapts {len(names)} modules ({_counted(names)})"
    if left_out.routers:
        # Some routers are modules around the linear layer that has the weight.
        found = [match[2] for name in left_out.routers if (match := ROUTERS.fullmatch(name))]
        text += f"; routers get none ({_counted(found)})"
    parameters = {m.parameter_name for _, m in layers if hasattr(m, "parameter_name")}
    experts = {n: size for n, size in left_out.experts if n.rpartition(".")[2] not in parameters}
    if experts:
        text += (
            f"; experts that are no linear layers get none ({_counted(experts)}: "
            f"{sum(experts.values()) / 1e6:.1f} M parameters)"
        )
    return text, bool(experts)


def _counted(names: Iterable[str]) -> str:
    counts = Counter(name.rpartition(".")[2] for name in names)
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def base_weights_digest(folder: Path) -> str:
    """The sha256, in hex, of a model's weights; of its tensors where they are safetensors.

    Raises:
        ConfigurationError: there are none, or they are damaged.
    """
    others = sorted(folder.glob(OTHER_WEIGHTS))
    if others and not any(folder.glob("*.safetensors")):
        return hashlib.sha256("\n".join(map(file_sha256, others)).encode()).hexdigest()
    return weights_digest(weight_files(folder))


def save_base(directory: Path, model: str, digest: str) -> None:
    """Writes beside saved adapters which base they belong to."""
    values = {"model": model, "weights_digest": digest}
    (directory / BASE_FILE).write_text(json.dumps(values, indent=1) + "\n")


def check_base(adapters: Path, digest: str, *, where: str, fix: str) -> None:
    """Compares a base with the one that saved adapters were trained on.

    Adapters of an earlier version do not name theirs, which is logged as a warning.

    Args:
        adapters: their folder.
        digest: of the base (``base_weights_digest``).

    Raises:
        ConfigurationError: it is another base.
    """
    file = adapters / BASE_FILE
    if not file.is_file():
        log.warning(
            "the adapters in %s do not record the weights of their base: whether it is still the "
            "same is not known",
            adapters,
        )
        return
    recorded = json.loads(file.read_text())["weights_digest"]
    if recorded != digest:
        raise ConfigurationError(
            "the weights of the base model are not those that the adapters were trained on "
            f"(sha256 {digest[:12]}, and {recorded[:12]} in {file})",
            where=where,
            fix=fix,
        )
