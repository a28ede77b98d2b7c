"""Every public function and class shows an example, and every example runs.

An example runs in a folder of its own that holds

- ``SRC``, the small checkpoint, with a tokenizer of one token per character, and ``text.txt``,
- ``FACTORED``, SRC by rank at half its bytes, and ``PACKED``, SRC by the one plan in ``plan.json``,
- ``TUNED``, SRC with a difference of rank 2 in each projection of a query,
- ``data``, rows to train on, and ``RUN``, a finished run of 4 steps on them,
- ``tasks``, the definition of the task ``letters``: six questions of two answers each.

It may use ``mx``, ``nn``, ``np``, ``Path`` and every name of ``plastic_export`` without importing
it.
"""

from __future__ import annotations

import doctest
import inspect
import json
import shutil
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import plastic_export
import pytest
from plastic_core.testing import matrix_from_spectrum
from plastic_export import (
    Calibration,
    Choices,
    TrainingOptions,
    compress,
    execute_plan,
    plan_checkpoint,
    train,
)

HOME = Path(plastic_export.__file__).parent
ROOMS = [
    ".".join(("plastic_export", *init.parent.relative_to(HOME).parts))
    for init in sorted(HOME.rglob("__init__.py"))
]
SHOWN: dict[str, Any] = {
    f"{room}.{name}": getattr(import_module(room), name)
    for room in ROOMS
    for name in getattr(import_module(room), "__all__", ())
}
PUBLIC = {
    path: shown
    for path, shown in SHOWN.items()
    if (inspect.isclass(shown) or inspect.isfunction(shown))
    and shown.__module__.startswith("plastic_export")
}
NEED_HARNESS = ("plastic_export.evaluate_tasks", "plastic_export.TaskScore")
"""Examples that ask lm-evaluation-harness, an extra that not every environment has."""
COMMON = {"mx": mx, "nn": nn, "np": np, "Path": Path}
LETTERS = """
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/letters.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{answers}}"
doc_to_target: 0
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
SHORT = TrainingOptions(
    steps=4, batch=2, window=32, rank=2, evaluate_every=2, evaluate_batches=2, state="last"
)


@pytest.fixture(scope="module")
def material(
    write_readable: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the examples find in their folder."""
    folder = tmp_path_factory.mktemp("material")
    source, text = write_readable(folder / "SRC"), folder / "text.txt"
    letters = np.random.default_rng(0).integers(48, 126, 3000)
    text.write_text("".join(map(chr, letters)))
    calibration = Calibration(text, window=24, windows=8)
    choices = Choices(bits=(2, 4, 8))
    plan = folder / "plan.json"
    plan_checkpoint(source, plan, calibration=calibration, budgets=[4.5], choices=choices)
    execute_plan(source, folder / "PACKED", plan)
    compress(source, folder / "FACTORED", keep=0.5)
    write_tuned(source, folder / "TUNED")
    (folder / "data").mkdir()
    rows = [{"text": text.read_text()[i : i + 40]} for i in range(0, 480, 40)]
    for name, chosen in (("train", rows[:8]), ("valid", rows[8:])):
        (folder / "data" / f"{name}.jsonl").write_text(
            "".join(f"{json.dumps(r)}\n" for r in chosen)
        )
    train(source, folder / "data", folder / "RUN", SHORT)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "letters.yaml").write_text(LETTERS)
    asked = [{"question": letter, "answers": ["AB", "XYZ"]} for letter in "ABCXYZ"]
    (folder / "tasks" / "letters.jsonl").write_text("".join(f"{json.dumps(q)}\n" for q in asked))
    return folder


def write_tuned(source: Path, folder: Path) -> None:
    """Write what a fine-tune might have made of a checkpoint."""
    shutil.copytree(source, folder)
    weights = mx.load(str(source / "model.safetensors"))
    for name in [name for name in weights if name.endswith("q_proj.weight")]:
        delta = matrix_from_spectrum(np.array([3.0, 1.0]), *weights[name].shape, seed=0)
        weights[name] += mx.array(delta.astype(np.float32)).astype(weights[name].dtype)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


@pytest.mark.parametrize("path", PUBLIC)
def test_it_has_an_example_that_runs(
    path: str, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path in NEED_HARNESS and find_spec("lm_eval") is None:
        pytest.skip("the extra `tasks` is not installed")
    shutil.copytree(material, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    shown = PUBLIC[path]
    names = {**vars(plastic_export), **COMMON, **vars(inspect.getmodule(shown))}
    (test, *_) = doctest.DocTestFinder(recurse=False).find(shown, path, globs=names)
    assert test.examples, f"{path} has no example"
    assert "Examples:\n" in (shown.__doc__ or "")
    printed: list[str] = []
    doctest.DocTestRunner().run(test, out=printed.append)
    assert not printed, "".join(printed)
