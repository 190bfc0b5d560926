"""Removing layers from a decoder.

The layers are found by structure, so that no architecture has to be named: the decoder is
the one ModuleList as long as the configuration's number of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from teacher_proto.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import nn

# Names under which a layer's modules keep their layer's number.
INDEX_NAMES = ("layer_idx", "layer_id", "layer_index", "layer_number")


def layers_to_drop(
    layers: int, *, drop: Sequence[int] | None = None, keep: int | None = None
) -> tuple[int, ...]:
    """The indices of the layers to remove, ascending.

    Args:
        layers: how many layers the model has.
        drop: the indices to remove, counted from 0.
        keep: how many layers to keep, evenly spaced, with the first and the last among
            them (only the first when ``keep`` is 1).

    Raises:
        ConfigurationError: both or neither of ``drop`` and ``keep`` are given, an index is
            out of range or given twice, or no layer would be left or removed.
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


def drop_layers(network: Any, dropped: Sequence[int]) -> None:
    """Removes layers from a transformers model in memory and adapts its configuration.

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


def find_layers(network: nn.Module, layers: int, where: str = "--model") -> tuple[nn.Module, str]:
    """The module that owns the decoder's ModuleList, and the list's name in it.

    Among several lists of that length (of experts, for example) the decoder's is the one
    with the most parameters.

    Args:
        where: which setting names the model, for the error.

    Raises:
        ConfigurationError: there is no list of that length.
    """
    from torch import nn

    found: list[tuple[int, str]] = []
    for path, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            found.append((sum(p.numel() for p in module.parameters()), path))
    if not found:
        raise ConfigurationError(
            f"{type(network).__name__} has no ModuleList of its {layers} layers",
            where=where,
            fix="choose a model whose decoder keeps its layers in one list",
        )
    path = max(found)[1]
    parent, _, name = path.rpartition(".")
    return network.get_submodule(parent), name


def per_layer_fields(config: Any, layers: int) -> list[str]:
    """The names of the configuration's lists that have one entry per layer."""
    return [
        name
        for name, value in vars(config).items()
        if isinstance(value, list | tuple)
        and len(value) == layers
        and name != "architectures"
        and not name.endswith("_token_id")
        and not name.startswith("_")
    ]
