"""Every public function and class shows itself in an example, and every example runs."""

import doctest
import inspect
import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

import plastic_core
import pytest

MODULES = ["plastic_core"] + [
    module.name for module in pkgutil.walk_packages(plastic_core.__path__, "plastic_core.")
]
DOORS = [name for name in MODULES if hasattr(import_module(name), "__all__")]


def is_shown(thing: object) -> bool:
    """Whether a name is of a function or class, which must have an example."""
    return inspect.isroutine(thing) or inspect.isclass(thing)


PUBLIC = [
    (home, name)
    for home in DOORS
    for name in import_module(home).__all__
    if is_shown(getattr(import_module(home), name))
]


def examples(module: ModuleType) -> list[doctest.DocTest]:
    """The doctests of what is defined in a module."""
    found = doctest.DocTestFinder().find(module, module.__name__)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_every_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, test in enumerate(examples(import_module(name))):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        report = list[str]()
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
        assert not report, "".join(report)


@pytest.mark.parametrize(("home", "name"), PUBLIC)
def test_every_public_function_and_class_has_an_example(home: str, name: str) -> None:
    shown = getattr(import_module(home), name)
    found = doctest.DocTestFinder(recurse=True).find(shown, name)
    assert any(test.examples for test in found), f"{home}.{name} has no `Examples:`"
