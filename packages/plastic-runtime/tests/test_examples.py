"""Every public function and class shows an example, and every example runs.

An example may use ``mx``, ``nn``, ``np``, ``optim``, ``Path``, ``RankLayer``, ``Factors`` and every
name of ``plastic_runtime`` and of its room ``dialling`` without importing it. It may write files in
the folder where it runs; in that lies ``FACTORED``, a factored checkpoint of two matrices, which
``load_factored`` loads.
"""

import doctest
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import plastic_runtime
import pytest
from plastic_core import Factors, RankLayer
from plastic_runtime import dialling, distributed, log, manager, measure, sleep, surgery, training

ROOMS = (
    plastic_runtime,
    distributed,
    measure,
    sleep,
    dialling,
    log,
    surgery,
    manager,
    training,
)
PUBLIC: dict[str, Any] = {
    f"{room.__name__}.{name}": getattr(room, name)
    for room in ROOMS
    for name in getattr(room, "__all__", ())
    if inspect.isclass(getattr(room, name)) or inspect.isfunction(getattr(room, name))
}
COMMON = {"mx": mx, "nn": nn, "np": np, "optim": optim, "Path": Path}


@pytest.mark.parametrize("path", PUBLIC)
def test_it_has_an_example_that_runs(
    path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    thin_folder: Path,
    load_thin: Callable[[str], nn.Module],
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = PUBLIC[path]
    names = {**vars(plastic_runtime), **COMMON, "RankLayer": RankLayer, "Factors": Factors}
    names |= {**vars(dialling), "load_factored": load_thin}
    names |= vars(inspect.getmodule(shown))
    (test, *_) = doctest.DocTestFinder(recurse=False).find(shown, path, globs=names)
    assert test.examples, f"{path} has no example"
    assert "Examples:\n" in (shown.__doc__ or "")
    printed: list[str] = []
    doctest.DocTestRunner().run(test, out=printed.append)
    assert not printed, "".join(printed)
