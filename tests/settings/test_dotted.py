"""Classes by their dotted names, from folders of the configuration and from Python's path."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import ConfigDict
from teacher_proto.errors import EXIT_CONFIGURATION, ConfigurationError
from teacher_proto.program.files import file_sha256

from student_trainer.settings.base import Settings
from student_trainer.settings.dotted import importable_from, load_dotted, sources


class Shape:
    """What the loaded classes extend."""

    sides = 0


BASE = "from tests.settings.test_dotted import Shape\n"
SQUARE = BASE + "class Square(Shape):\n    sides = 4\n"


@pytest.fixture(autouse=True)
def only_our_modules() -> Iterator[None]:
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        file = folder / (name.replace("__", "/") + ".py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return folder


def load(name: str, *folders: Path) -> type[Shape]:
    with importable_from(folders):
        return load_dotted(name, Shape, "loss.kind")


def refused(name: str, *folders: Path) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load(name, *folders)
    assert caught.value.where == "loss.kind"
    assert caught.value.fix
    assert caught.value.exit_code == EXIT_CONFIGURATION
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301
    return caught.value


def test_a_class_of_a_file_beside_the_configuration(tmp_path: Path) -> None:
    path = list(sys.path)
    found = load("shapes_a:Square", write(tmp_path / "a", shapes_a=SQUARE))
    assert (found.sides, found.__name__) == (4, "Square")
    assert sys.path == path


def test_a_file_imports_what_stands_beside_it(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "a",
        counts_b="SIDES = 6\n",
        shapes_b=BASE + "import counts_b\nclass Six(Shape):\n    sides = counts_b.SIDES\n",
    )
    assert load("shapes_b:Six", folder).sides == 6


def test_a_module_of_a_package(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", shapes_c__square=SQUARE)
    assert load("shapes_c.square:Square", folder).sides == 4


def test_an_installed_module_needs_no_folder() -> None:
    assert load(f"{__name__}:Installed") is Installed


def test_a_module_that_is_there_without_a_file_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ModuleType("shapes_k")
    vars(made)["Installed"] = Installed
    monkeypatch.setitem(sys.modules, "shapes_k", made)
    assert load("shapes_k:Installed") is Installed
    assert sys.modules["shapes_k"] is made


def test_what_python_finds_by_itself_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a package does that is installed for editing, beside whose folder a configuration is."""
    folder = write(tmp_path / "a", shapes_l=SQUARE, shapes_m=SQUARE)

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: object) -> ModuleSpec | None:
            return PathFinder.find_spec(name, [str(folder)]) if name == "shapes_l" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    installed = importlib.import_module("shapes_l")
    assert load("shapes_m:Square", folder).sides == 4
    write(folder, shapes_m=SQUARE.replace("4", "5"))
    assert load("shapes_m:Square", folder).sides == 5
    assert sys.modules["shapes_l"] is installed


class Installed(Shape):
    sides = 3


def test_a_file_does_not_hide_an_installed_module(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", json=SQUARE)
    assert "has no Square" in str(refused("json:Square", folder))


def test_the_first_folder_wins(tmp_path: Path) -> None:
    first = write(tmp_path / "a", shapes_d=SQUARE)
    second = write(tmp_path / "b", shapes_d=SQUARE.replace("4", "5"))
    assert load("shapes_d:Square", first, second).sides == 4
    assert load("shapes_d:Square", second, first).sides == 5


def test_a_changed_file_is_imported_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", shapes_e=SQUARE)
    first = load("shapes_e:Square", folder)
    assert load("shapes_e:Square", folder) is first
    write(folder, shapes_e=SQUARE.replace("4", "44"))
    assert load("shapes_e:Square", folder).sides == 44
    assert first.sides == 4


def test_what_was_found_is_found_again_after_the_block(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", shapes_j=SQUARE)
    found = load("shapes_j:Square", folder)
    assert load_dotted("shapes_j:Square", Shape, "loss.kind") is found
    write(folder, shapes_j=SQUARE.replace("4", "44"))
    assert load_dotted("shapes_j:Square", Shape, "loss.kind").sides == 44
    other = write(tmp_path / "b", shapes_j=SQUARE.replace("4", "5"))
    assert load("shapes_j:Square", other).sides == 5


def test_outside_the_block_the_folder_is_not_looked_in(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", shapes_f=SQUARE)
    with importable_from([folder]):
        pass
    assert "there is no module shapes_f" in str(refused("shapes_f:Square"))


@pytest.mark.parametrize("name", ["", "shapes", "shapes:", ":Square", "a b:C", "a:B.C", "../a:B"])
def test_another_form_is_refused(name: str, tmp_path: Path) -> None:
    error = refused(name, tmp_path)
    assert f"{name!r} is not the name of a class" in error.what
    assert "package.module:Name" in error.fix


@pytest.mark.parametrize(
    ("text", "says", "fix"),
    [
        (None, "there is no module shapes_g, neither installed nor in {folder}", "shapes_g.py"),
        (SQUARE.replace("Square", "Sqare"), "has no Square", "did you mean shapes_g:Sqare?"),
        ("", "has no Square", f"extend {__name__}.Shape"),
        ("class Square: ...", f"does not extend {__name__}.Shape", f"extend {__name__}.Shape"),
        (BASE + "Square = Shape", "does not extend", f"extend {__name__}.Shape"),
        ("def Square(): ...", "is a function and not a class", "extend"),
        ("Square = 3", "is of type int and not a class", "extend"),
        (
            "\n1 / 0",
            "raises ZeroDivisionError: division by zero ({folder}/shapes_g.py, line 2)",
            "",
        ),
        ("raise SystemExit(3)", "raises SystemExit: 3 ({folder}/shapes_g.py, line 1)", ""),
        ("\nimport nothing_h", "raises ModuleNotFoundError: No module named 'nothing_h'", ""),
        ("x = = 1", "raises SyntaxError: invalid syntax", "python -c 'import shapes_g'"),
    ],
)
def test_errors_say_what_where_why_and_how_to_mend_it(
    text: str | None, says: str, fix: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "a", **({} if text is None else {"shapes_g": text}))
    path = list(sys.path)
    error = refused("shapes_g:Square", folder)
    assert says.format(folder=folder) in error.what
    assert fix in error.fix
    assert sys.path == path


def test_a_module_that_raised_is_tried_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", shapes_i="1 / 0")
    refused("shapes_i:Square", folder)
    write(folder, shapes_i=SQUARE)
    assert load("shapes_i:Square", folder).sides == 4


class Section(Settings):
    kind: str = ""
    shape: Shape | None = None
    more: tuple[Section, ...] = ()

    model_config = ConfigDict(arbitrary_types_allowed=True)


def test_the_files_of_what_settings_name_are_told(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "a",
        counts_o="SIDES = 6\n",
        shapes_o="from tests.settings.test_dotted import Section\nimport counts_o\n"
        "class Own(Section): ...\n",
        shapes_p=SQUARE,
    )
    with importable_from([folder]):
        own = load_dotted("shapes_o:Own", Section, "loss.kind")
    whole = Section(kind="named", more=(Section(), own(kind="shapes_o:Own")))
    assert [(s.module, s.path, s.sha256, s.folder) for s in sources(whole)] == [
        (name, folder / f"{name}.py", file_sha256(folder / f"{name}.py"), folder)
        for name in ("counts_o", "shapes_o")
    ]
    (installed,) = sources(Section(kind=f"{__name__}:Section"))
    assert (installed.module, installed.path, installed.folder) == (
        __name__,
        Path(__file__),
        None,
    )
    assert sources(Section(kind="named")) == []
