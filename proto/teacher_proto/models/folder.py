"""The folder of a model: a path as it stands, or the snapshot of a model of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError, first_line

TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
WEIGHT_FILES = ("*.safetensors", "*.json")
MODEL_FILES = (*TOKENIZER_FILES, *WEIGHT_FILES)
# How the hub's cache names the folder of a model: models--ORGANISATION--NAME.
HUB_CACHE = "models--"
# Weights once more, in formats that nothing here reads.
SECOND_COPIES = ("consolidated*", "original/*", "onnx/*")


def model_folder(model: str, files: Sequence[str] = MODEL_FILES, *, where: str) -> Path:
    """The folder that holds a model's ``files``; those of a hub model are fetched first.

    A hub that cannot be reached is tried once: what was fetched before is then used, or
    the model is refused at once.

    Args:
        model: a folder, or a hub name.
        files: patterns of the names of the files that are wanted.
        where: names the setting in errors.

    Raises:
        ConfigurationError: there is no such folder, or the hub has no such model for us.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    parts = model.split("/")
    if path.exists() or len(parts) > 2 or model.startswith((".", "~")) or not all(parts):
        raise ConfigurationError(
            f"cannot load {model!r}: there is no such directory",
            where=where,
            fix="give a directory with config.json, safetensors files and a tokenizer, or a hub id",
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                model, allow_patterns=list(files), ignore_patterns=list(SECOND_COPIES)
            )
        )
    except Exception as error:  # also those of the HTTP library that the hub uses
        raise ConfigurationError(
            f"{model!r} is neither a directory here nor a model the hub gives us: "
            f"{first_line(error)}",
            where=where,
            fix=_hub_fix(),
        ) from error


def public_name(name: str) -> str:
    """What others may read of a model's or a file's name: a name on the hub as it is; of a
    path its last part, or the hub's name where it is a snapshot in the hub's cache."""
    path = Path(name).expanduser()
    if not (path.is_absolute() or path.exists() or len(path.parts) > 2):
        return name
    path = path if path.name.strip(".") else path.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith(HUB_CACHE):
        return "/".join(path.parent.parent.name.removeprefix(HUB_CACHE).split("--"))
    return path.name


def read_tokenizer(library: Any, folder: str | Path) -> Any:
    """The tokenizer of a folder, as transformers builds it of its tokenizer.json.

    Where mistral-common is installed and the folder holds its file too, transformers would
    take that library's tokenizer, which encodes without tokenizer.json.

    Args:
        library: the module transformers. Whatever it raises is raised.
    """
    found = library.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    own = getattr(found, "backend_tokenizer", None)
    if own is None and (Path(folder) / "tokenizer.json").is_file():
        return library.PreTrainedTokenizerFast.from_pretrained(folder)
    return found


def _hub_fix() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "give a directory, or unset HF_HUB_OFFLINE so that the model can be fetched"
    return "check the name, the network and HF_TOKEN, or give a directory"
