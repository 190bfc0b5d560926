"""A class by its dotted name, ``package.module:Name``: what users bring of their own.

A module is looked for where Python finds any other, and then in the folders of the
configuration files (``importable_from``). A module from such a folder is imported again when its
file has changed, and it never hides an installed one.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from pydantic import BaseModel
from teacher_proto.errors import ConfigurationError, first_line
from teacher_proto.program.files import file_sha256

C = TypeVar("C")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_FOLDERS: ContextVar[tuple[Path, ...]] = ContextVar("folders of the configuration", default=())
_IMPORTS = threading.Lock()


@dataclass(frozen=True)
class Source:
    """The file that a module of a user's own was imported from, as it was then.

    Attributes:
        module: its dotted name.
        path: the file.
        sha256: of its content, hexadecimal.
        folder: the folder of the configuration that it stands in; None where it is installed.
    """

    module: str
    path: Path
    sha256: str
    folder: Path | None


# What was imported from each folder of a configuration, by the modules' names.
_READ: dict[Path, dict[str, Source]] = {}


@contextmanager
def importable_from(folders: Iterable[Path]) -> Iterator[None]:
    """Within the block ``load_dotted`` looks in these folders too, the first one first. What it
    finds there it finds again after the block, in this process."""
    token = _FOLDERS.set(tuple(dict.fromkeys(folder.resolve() for folder in folders)))
    try:
        yield
    finally:
        _FOLDERS.reset(token)


def load_dotted(name: str, base: type[C], where: str) -> type[C]:
    """The class that ``package.module:Name`` names.

    While the module is imported, the folders of the configuration are at the end of
    ``sys.path``, so that it can import what stands beside it; afterwards they are not.

    Args:
        base: what the class must extend.
        where: the setting that has the name, for errors.

    Raises:
        ConfigurationError: the name has another form, no module is found, importing it
            raises, or what it calls Name is not a class that extends ``base``.
    """
    if not DOTTED.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is not the name of a class",
            where=where,
            fix="write it as package.module:Name, such as my_file:MyClass",
        )
    module_name, _, class_name = name.partition(":")
    with _IMPORTS:
        module = _module(module_name, where)
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, base) and found is not base:
        return found
    file = getattr(module, "__file__", None) or "built in"
    fitting = [
        attribute
        for attribute, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, base)
        and value is not base
        and value.__module__ == module_name
    ]
    close = difflib.get_close_matches(class_name, fitting, n=1) or fitting[:1]
    fix = f"did you mean {module_name}:{close[0]}?" if close else f"extend {_full_name(base)}"
    if class_name not in vars(module):
        what = f"the module {module_name} ({file}) has no {class_name}"
    elif isinstance(found, type):
        what = f"{name} ({file}) does not extend {_full_name(base)}"
    else:
        what = f"{name} ({file}) is {_kind_of(found)} and not a class"
    raise ConfigurationError(what, where=where, fix=fix)


def sources(settings: BaseModel) -> list[Source]:
    """The files of the classes that these settings name as ``package.module:Name``, with what
    they import from beside the configuration, in the order of the modules' names."""
    found: dict[str, Source] = {}
    for own in _named_by_dots(settings):
        name = type(own).__module__
        home = next((home for home, read in _READ.items() if name in read), None)
        if home is not None:
            found |= _READ[home]
            continue
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None:
            found[name] = Source(name, Path(file), file_sha256(Path(file)), None)
    return [found[name] for name in sorted(found)]


def _named_by_dots(value: object) -> Iterator[BaseModel]:
    """The sections, at any depth, whose kind is a dotted name."""
    if isinstance(value, BaseModel):
        if ":" in str(getattr(value, "kind", "")):
            yield value
        for name in type(value).model_fields:
            yield from _named_by_dots(getattr(value, name))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _named_by_dots(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _named_by_dots(inner)


def _module(name: str, where: str) -> ModuleType:
    root = name.partition(".")[0]
    homes = [home for home, read in _READ.items() if root in read]
    own = bool(homes) or not (root in sys.modules or _installed(root))
    folders = tuple(dict.fromkeys((*_FOLDERS.get(), *homes)))
    added = [str(folder) for folder in folders if str(folder) not in sys.path]
    sys.path.extend(added)
    try:
        importlib.invalidate_caches()
        if own:
            _forget_what_changed(root, homes, folders)
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _refusal(name, error, folders, where) from error
    finally:
        sys.path[:] = [entry for entry in sys.path if entry not in added]
        if own:
            _remember(folders)
    return module


def _installed(root: str) -> bool:
    """Whether Python finds a top-level module without the folders of the configuration."""
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return any(find is not None and find(root, None) is not None for find in finders)


def _forget_what_changed(root: str, homes: list[Path], folders: tuple[Path, ...]) -> None:
    """Lets modules be imported again where the first folder that has this one is another than it
    was imported from, or one of their files has changed."""
    spec = PathFinder.find_spec(root, [str(folder) for folder in folders])
    now = getattr(sys.modules.get(root), "__file__", None)
    for home in homes:
        changed = any(
            not source.path.is_file() or file_sha256(source.path) != source.sha256
            for source in _READ[home].values()
        )
        if changed or spec is None or spec.origin != now:
            for name in _READ.pop(home):
                sys.modules.pop(name, None)


def _remember(folders: tuple[Path, ...]) -> None:
    """Keeps which modules were imported from right in these folders, and are found nowhere
    else."""
    for name, module in list(sys.modules.items()):
        file, root = getattr(module, "__file__", None), name.partition(".")[0]
        for folder in folders:
            starts = (str(folder / f"{root}.py"), str(folder / root) + os.sep)
            known = name in _READ.get(folder, {})
            if file is not None and file.startswith(starts) and not known and not _installed(root):
                source = Source(name, Path(file), file_sha256(Path(file)), folder)
                _READ.setdefault(folder, {})[name] = source


def _refusal(
    name: str, error: BaseException, folders: tuple[Path, ...], where: str
) -> ConfigurationError:
    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and f"{name}.".startswith(f"{missing}."):
        looked = ", ".join(map(str, folders))
        return ConfigurationError(
            f"there is no module {missing}, neither installed nor in {looked}"
            if looked
            else f"there is no module {missing} installed, nor a configuration file to look beside",
            where=where,
            fix=f"put {missing.replace('.', '/')}.py beside the configuration file, or install it",
        )
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_shown(frame)]
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
    else:
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    said = error.msg if isinstance(error, SyntaxError) else first_line(error)
    return ConfigurationError(
        f"importing the module {name} raises {type(error).__name__}: {said}{place}",
        where=where,
        fix=f"mend it until `python -c 'import {name}'` works in its folder",
    )


def _is_shown(frame: traceback.FrameSummary) -> bool:
    return not frame.filename.startswith("<frozen ") and frame.filename not in (
        __file__,
        importlib.__file__,
    )


def _full_name(found: type) -> str:
    return f"{found.__module__}.{found.__qualname__}"


def _kind_of(found: object) -> str:
    return "a function" if inspect.isroutine(found) else f"of type {type(found).__name__}"
