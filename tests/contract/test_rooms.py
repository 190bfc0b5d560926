"""The shape of the house: few files a room, no circles, and who may import what."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract import rooms

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "teacher_proto": ROOT / "proto" / "teacher_proto",
    "teacher_server": ROOT / "teacher_server",
    "student_trainer": ROOT / "student_trainer",
}
MODULES = rooms.read_modules(*PACKAGES.values())
LOOSE_FILES = 8
FILES_IN_A_FOLDER = 12


def of(package: str) -> list[rooms.Module]:
    return [module for module in MODULES.values() if module.name.partition(".")[0] == package]


def test_all_modules_are_read() -> None:
    assert {"teacher_proto.errors", "teacher_server.cli", "student_trainer.cli"} <= MODULES.keys()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_few_loose_files(package: str) -> None:
    loose = rooms.loose_files(PACKAGES[package])
    assert len(loose) <= LOOSE_FILES, loose


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_has_few_files(package: str) -> None:
    full = {
        str(folder.relative_to(ROOT)): loose
        for folder in rooms.folders(PACKAGES[package])
        if len(loose := rooms.loose_files(folder)) > FILES_IN_A_FOLDER
    }
    assert full == {}


def test_no_modules_import_each_other() -> None:
    assert rooms.circles(rooms.module_graph(MODULES)) == []


def test_no_rooms_import_each_other() -> None:
    assert rooms.circles(rooms.room_graph(MODULES)) == []


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("teacher_proto", {"teacher_server", "student_trainer", "torch", "transformers"}),
        ("teacher_server", {"student_trainer"}),
        ("student_trainer", {"teacher_server"}),
    ],
)
def test_packages_stay_apart(package: str, forbidden: set[str]) -> None:
    assert {m.name: found for m in of(package) if (found := rooms.roots(m) & forbidden)} == {}


@pytest.mark.parametrize(("package", "files"), [("teacher_server", 1), ("student_trainer", 1)])
def test_at_most_one_file_of_a_package_imports_vllm(package: str, files: int) -> None:
    assert len([m.name for m in of(package) if "vllm" in rooms.roots(m)]) == files


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder / "house"


HOUSE = {
    "house/__init__.py": "",
    "house/__main__.py": "from house.cli import main",
    "house/py.typed": "",
    "house/cli.py": "def main():\n    from house.kitchen import cook",
    "house/kitchen/__init__.py": "from house.kitchen.cook import cook",
    "house/kitchen/cook.py": "import torch.nn\nfrom house.cellar.wine import pour",
    "house/cellar/__init__.py": "",
    "house/cellar/wine.py": "def pour(): ...",
}


def test_a_good_house_is_found_good(tmp_path: Path) -> None:
    house = write(tmp_path, HOUSE)
    modules = rooms.read_modules(house)
    assert rooms.module_graph(modules)["house.kitchen.cook"] == {"house.cellar.wine"}
    assert rooms.circles(rooms.module_graph(modules)) == []
    assert rooms.circles(rooms.room_graph(modules)) == []
    assert rooms.loose_files(house) == ["cli.py"]
    assert [folder.name for folder in rooms.folders(house)] == ["cellar", "kitchen"]
    assert rooms.roots(modules["house.kitchen.cook"]) == {"torch", "house"}


IMPORT = "from house.kitchen.cook import cook"


@pytest.mark.parametrize(
    "text",
    [
        IMPORT,
        "import house.kitchen.cook",
        "from house.kitchen import cook",
        f"def pour():\n    {IMPORT}",
        f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {IMPORT}",
    ],
)
def test_modules_that_import_each_other_are_seen(text: str, tmp_path: Path) -> None:
    modules = rooms.read_modules(write(tmp_path, HOUSE | {"house/cellar/wine.py": text}))
    assert rooms.circles(rooms.module_graph(modules)) == [
        {"house.kitchen.cook", "house.cellar.wine"}
    ]


def test_rooms_that_import_each_other_are_seen(tmp_path: Path) -> None:
    more = {"house/cellar/rack.py": "import house.kitchen.pot", "house/kitchen/pot.py": ""}
    modules = rooms.read_modules(write(tmp_path, HOUSE | more))
    assert rooms.circles(rooms.module_graph(modules)) == []
    assert rooms.circles(rooms.room_graph(modules)) == [{"house.kitchen", "house.cellar"}]


def test_a_loose_module_and_a_room_that_import_each_other_are_seen(tmp_path: Path) -> None:
    more = {"house/cellar/rack.py": "import house.cli"}
    modules = rooms.read_modules(write(tmp_path, HOUSE | more))
    assert {"house.cli", "house.cellar", "house.kitchen"} in rooms.circles(
        rooms.room_graph(modules)
    )


def test_loose_files_are_counted(tmp_path: Path) -> None:
    more = {f"house/cellar/{n}.toml": "" for n in range(13)}
    house = write(tmp_path, HOUSE | more | {"house/cellar/wine_pb2.pyi": ""})
    assert len(rooms.loose_files(house / "cellar")) == 14
