"""The rooms of the four packages: how many modules they hold, what they import, what they show.

A room is a folder of a package, or a module beside the folders. It may import what stands before
it in ``FLOORS``, and nothing else of its package. Other packages, tools and tests that are not
the package's own import what an ``__all__`` lists, by the one ``__init__`` that lists it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOOR = "plastic_command"
"""The start of the command, a file that stands before all packages."""
PACKAGES = {
    path.name: path for path in sorted(ROOT.glob("packages/*/src/plastic_*")) if path.name != DOOR
}
MOST_MODULES = 16
FLOORS = {
    "plastic_select": "linalg check budget spectrum polynomial rules allocation choose together",
    "plastic_core": "linalg files factors loss rounding layer testing",
    "plastic_runtime": "distributed measure sleep dialling log surgery manager training",
    "plastic_export": "process checkpoint folder model source adapters calibration estimate "
    "evaluation tasks plan format exact hub compression dialling training healing merging gguf "
    "shipping reshaping extraction serving reporting cli __main__",
}
Import = tuple[str, str | None, int]
"""Module, name in it (None: the module itself), line."""


def imports(file: Path) -> Iterator[Import]:
    """Every import of a sibling or of the package's own."""
    for node in ast.walk(ast.parse(file.read_text())):
        found: list[Import] = []
        if isinstance(node, ast.Import):
            found = [(alias.name, None, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [(node.module, alias.name, node.lineno) for alias in node.names]
        yield from (i for i in found if i[0].split(".")[0] in PACKAGES)


def room_of(module: str, name: str | None) -> str:
    """The room that an import leads to; empty for the package's own ``__init__``."""
    package, *inside = module.split(".")
    if inside:
        return inside[0]
    folder = PACKAGES[package]
    stands = name and ((folder / name).is_dir() or (folder / f"{name}.py").is_file())
    return str(name) if stands else ""


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_downwards_only(package: str) -> None:
    floors = FLOORS[package].split()
    wrong = []
    for file in sorted(PACKAGES[package].rglob("*.py")):
        inside = file.relative_to(PACKAGES[package])
        room = inside.parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        allowed = {*floors[: floors.index(room) + 1]}
        wrong += [
            f"{inside}:{line} imports {room_of(module, name) or '__init__'}, which is not below"
            for module, name, line in imports(file)
            if module.split(".")[0] == package and room_of(module, name) not in allowed
        ]
    assert not wrong, "\n".join(wrong)


def test_no_folder_holds_too_many_modules() -> None:
    roots = [*PACKAGES.values(), ROOT / "tools"]
    folders = {file.parent for root in roots for file in root.rglob("*.py")}
    counts = {folder: len(list(folder.glob("*.py"))) for folder in folders}
    assert {str(f.relative_to(ROOT)): n for f, n in counts.items() if n > MOST_MODULES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_says_what_it_is_for(package: str) -> None:
    for init in PACKAGES[package].rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text())), init


OF_A_PACKAGE = ("examples", "imports")
"""What a test file beside the rooms' folders may be named after, but for rooms and modules."""


@pytest.mark.parametrize("package", PACKAGES)
def test_test_files_are_named_after_a_module_or_a_room(package: str) -> None:
    source, tests = PACKAGES[package], PACKAGES[package].parents[1] / "tests"
    wrong = []
    for file in sorted(tests.rglob("test_*.py")):
        room = source / file.parent.relative_to(tests)
        subjects = [path.stem for path in room.iterdir()] if room.is_dir() else []
        subjects += OF_A_PACKAGE if room == source else [room.name]
        if not file.stem.removeprefix("test_").startswith(tuple(subjects)):
            wrong.append(str(file.relative_to(tests)))
    assert not wrong, f"named after nothing in {source}: {', '.join(wrong)}"


def shown() -> dict[str, list[str]]:
    """Every name that an ``__all__`` lists, with the packages and rooms that list it."""
    homes: dict[str, list[str]] = {}
    for package, folder in PACKAGES.items():
        for init in sorted(folder.rglob("__init__.py")):
            home = ".".join((package, *init.parent.relative_to(folder).parts))
            for name in getattr(import_module(home), "__all__", ()):
                homes.setdefault(f"{package}.{name}", []).append(home)
    return homes


def test_every_name_has_one_home() -> None:
    assert {name: homes for name, homes in shown().items() if len(homes) > 1} == {}


def test_every_listed_name_is_there_and_hides_no_module() -> None:
    for homes in shown().values():
        for home in homes:
            module = import_module(home)
            # A listing: asked for stable.py, a file system that ignores case finds Stable.py.
            modules = {path.stem for path in Path(str(module.__file__)).parent.iterdir()}
            for name in module.__all__:
                assert hasattr(module, name), f"{home}.{name}"
                same = name in modules
                assert not same, f"{home} lists {name}, which is the name of a module as well"


OUTSIDE = ("packages/*/src/**/*.py", "packages/*/tests/**/*.py", "tools/**/*.py", "tests-*/*.py")


def test_borders_are_crossed_at_the_doors() -> None:
    """What is imported from another package is listed by the ``__init__`` it is taken from."""
    wrong = []
    for file in sorted(file for pattern in OUTSIDE for file in ROOT.glob(pattern)):
        inside = file.relative_to(ROOT)
        own = inside.parts[1].replace("-", "_") if inside.parts[0] == "packages" else ""
        for module, name, line in imports(file):
            package = module.split(".")[0]
            if package != own and not is_listed(module, name):
                wrong.append(f"{inside}:{line} takes {module}.{name or ''}, which is not listed")
    assert not wrong, "\n".join(wrong)


def is_listed(module: str, name: str | None) -> bool:
    """Whether a sibling may import it: a package, a whole room, or a name in an ``__all__``."""
    package, *inside = module.split(".")
    if name is None:
        return len(inside) < 2
    folder = PACKAGES[package].joinpath(*inside)
    if len(inside) > 1 or not folder.is_dir():
        return False
    return name in getattr(import_module(module), "__all__", ()) or (folder / name).is_dir()
