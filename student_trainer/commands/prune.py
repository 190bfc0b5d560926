"""A student made by removing whole layers from a causal language model.

The layers are found by structure, so that no architecture is named here: the
decoder is the one ModuleList as long as the configuration's number of layers.
What is saved is loaded again and must give the same logits as the network it
was saved from, with and without a key-value cache.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teacher_proto.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor, nn

# Names under which a layer's modules remember which layer they are.
INDEX_NAMES = ("layer_idx", "layer_id", "layer_index", "layer_number")
PROBE_TOKENS = 12


@dataclass(frozen=True)
class Pruned:
    """What was done.

    Attributes:
        output: the folder of the new model.
        layers: how many layers the model had.
        dropped: the indices removed, ascending.
        parameters_before, parameters_after: number of distinct parameters.
    """

    output: Path
    layers: int
    dropped: tuple[int, ...]
    parameters_before: int
    parameters_after: int


def layers_to_drop(
    layers: int, *, drop: Sequence[int] | None = None, keep: int | None = None
) -> tuple[int, ...]:
    """The layer indices to remove, ascending.

    Args:
        layers: how many the model has.
        drop: the indices, counted from 0.
        keep: how many to keep, evenly spaced, the first and the last among them
            (only the first when ``keep`` is 1).

    Raises:
        ConfigurationError: both or neither are given, an index is out of range
            or given twice, or no layer would be left or none removed.
    """
    if (drop is None) == (keep is None):
        raise ConfigurationError(
            "give either the layers to drop or the number to keep", where="--drop/--keep"
        )
    if keep is not None:
        if not 1 <= keep < layers:
            raise ConfigurationError(
                f"cannot keep {keep} of {layers} layers",
                where="--keep",
                fix=f"choose a number from 1 to {layers - 1}",
            )
        step = (layers - 1) / (keep - 1) if keep > 1 else 0.0
        kept = {round(i * step) for i in range(keep)}
        return tuple(i for i in range(layers) if i not in kept)
    assert drop is not None
    outside = sorted({i for i in drop if not 0 <= i < layers})
    if outside:
        raise ConfigurationError(
            f"the model has no layer {', '.join(map(str, outside))}: its {layers} layers are "
            f"0 to {layers - 1}",
            where="--drop",
            fix=f"choose indices from 0 to {layers - 1}",
        )
    twice = sorted({i for i in drop if list(drop).count(i) > 1})
    if twice:
        raise ConfigurationError(
            f"layer {', '.join(map(str, twice))} is given more than once",
            where="--drop",
            fix="name each layer once",
        )
    if not drop:
        raise ConfigurationError("no layer is named", where="--drop", fix="name at least one layer")
    if len(drop) == layers:
        raise ConfigurationError(
            f"all {layers} layers would be dropped", where="--drop", fix="leave at least one layer"
        )
    return tuple(sorted(drop))


def prune(
    model: str, output: Path, *, drop: Sequence[int] | None = None, keep: int | None = None
) -> Pruned:
    """Save ``model`` without some of its layers, with its tokenizer, to ``output``.

    Args:
        model: folder or hub name of any causal language model of transformers.
        output: a folder that does not exist yet or is empty.
        drop, keep: see ``layers_to_drop``.

    Raises:
        ConfigurationError: wrong layers; the output is in use; the model cannot
            be loaded; its layers cannot be found; or the saved model differs
            from the pruned one when it is loaded again.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(
            "the output exists and is not an empty folder",
            where=str(output),
            fix="give --output a new folder, or delete this one",
        )
    network, tokenizer = _load(model)
    layers = int(network.config.get_text_config().num_hidden_layers)
    dropped = layers_to_drop(layers, drop=drop, keep=keep)
    before = network.num_parameters()
    drop_layers(network, dropped)
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        network.save_pretrained(work)
        tokenizer.save_pretrained(work)
        _check_reload(network, work, model)
        for path in work.iterdir():
            path.chmod(0o644)
        work.chmod(0o755)
        if output.exists():
            output.rmdir()
        work.rename(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Pruned(output, layers, dropped, before, network.num_parameters())


def _load(model: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        network = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"cannot load it as a causal language model: {_first_line(error)}",
            where=f"--model {model}",
            fix="give a folder or hub name with config.json, safetensors and a tokenizer",
        ) from error
    return network.eval(), tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def drop_layers(network: Any, dropped: Sequence[int]) -> None:
    """Remove layers from a transformers model in memory and mend its configuration.

    Raises:
        ConfigurationError: the decoder's layers cannot be found by structure.
    """
    config = network.config.get_text_config()
    layers = int(config.num_hidden_layers)
    owner, name = find_layers(network, layers)
    kept = [i for i in range(layers) if i not in set(dropped)]
    old = getattr(owner, name)
    setattr(owner, name, type(old)([old[i] for i in kept]))
    for new, layer in enumerate(getattr(owner, name)):
        for module in layer.modules():
            for attribute in INDEX_NAMES:
                if isinstance(getattr(module, attribute, None), int):
                    setattr(module, attribute, new)
    for field in per_layer_fields(config, layers):
        values = getattr(config, field)
        setattr(config, field, type(values)(values[i] for i in kept))
    config.num_hidden_layers = len(kept)


def find_layers(network: nn.Module, layers: int) -> tuple[nn.Module, str]:
    """The module that owns the decoder's ModuleList, and the list's name in it.

    Among several lists of that length (experts, say) the decoder's is the one
    with the most parameters.

    Raises:
        ConfigurationError: there is none of that length.
    """
    from torch import nn

    found: list[tuple[int, str]] = []
    for path, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            found.append((sum(p.numel() for p in module.parameters()), path))
    if not found:
        raise ConfigurationError(
            f"{type(network).__name__} has no ModuleList of its {layers} layers",
            where="--model",
            fix="choose a model whose decoder keeps its layers in one list",
        )
    path = max(found)[1]
    parent, _, name = path.rpartition(".")
    return network.get_submodule(parent), name


def per_layer_fields(config: Any, layers: int) -> list[str]:
    """Names of the configuration's lists that hold one entry per layer."""
    return [
        name
        for name, value in vars(config).items()
        if isinstance(value, list | tuple)
        and len(value) == layers
        and name != "architectures"
        and not name.endswith("_token_id")
        and not name.startswith("_")
    ]


def _check_reload(network: Any, folder: Path, model: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        again = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        pairs = list(zip(_probe(network), _probe(again), strict=True))
        equal = all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs)
        reason = "it gives other logits"
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        equal, reason = False, _first_line(error)
    if not equal:
        raise ConfigurationError(
            f"the pruned {type(network).__name__} is not the same when loaded again: {reason}; "
            "its layers depend on their index in a way its configuration cannot express",
            where=f"--model {model}",
            fix="drop other layers, or prune this architecture by hand",
        )


def _probe(network: Any) -> tuple[Tensor, Tensor]:
    """float32 logits of a fixed sequence: whole, and its last token after a cached prefix."""
    import torch

    size = int(network.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(size, (1, PROBE_TOKENS), generator=generator).to(network.device)
    with torch.inference_mode():
        whole = network(input_ids=ids, use_cache=False).logits.float()
        prefix = network(input_ids=ids[:, :-1], use_cache=True)
        last = network(
            input_ids=ids[:, -1:], past_key_values=prefix.past_key_values, use_cache=True
        ).logits.float()
    return whole, last


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder or hub name of the model to prune")
    parser.add_argument("--output", required=True, type=Path, help="folder of the new model")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--drop", type=_indices, metavar="I,J,...", help="layers to remove, counted from 0"
    )
    which.add_argument(
        "--keep", type=int, metavar="N", help="how many layers to keep, evenly spaced"
    )


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of layer numbers such as 3,5,7"
        ) from error


def run(arguments: argparse.Namespace) -> int:
    result = prune(arguments.model, arguments.output, drop=arguments.drop, keep=arguments.keep)
    sys.stdout.write(
        f"dropped layers {', '.join(map(str, result.dropped))} of {result.layers}: "
        f"{result.parameters_before / 1e6:.1f} to {result.parameters_after / 1e6:.1f} million "
        f"parameters\nwrote {result.output}\n"
    )
    return 0
