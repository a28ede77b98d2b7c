"""Every public function and class shows an example, and every example runs."""

import doctest
import inspect
from typing import Any

import plastic_select
import plastic_select.rules
import pytest

PUBLIC = [
    f"{home.__name__}.{name}"
    for home in (plastic_select, plastic_select.rules)
    for name in home.__all__
    if inspect.isclass(getattr(home, name)) or inspect.isfunction(getattr(home, name))
]


def public(path: str) -> Any:
    home, _, name = path.rpartition(".")
    return getattr({"plastic_select": plastic_select}.get(home, plastic_select.rules), name)


@pytest.mark.parametrize("path", PUBLIC)
def test_it_has_an_example_that_runs(path: str) -> None:
    shown = public(path)
    names = vars(inspect.getmodule(shown))
    (test, *_) = doctest.DocTestFinder(recurse=False).find(shown, path, globs=dict(names))
    assert test.examples, f"{path} has no `Examples:`"
    assert "Examples:\n" in (shown.__doc__ or "")
    printed: list[str] = []
    doctest.DocTestRunner().run(test, out=printed.append)
    assert not printed, "".join(printed)
