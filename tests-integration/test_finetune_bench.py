"""The comparison of adapters in little: what it makes, keeps, chooses and judges."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.optimizers import Adam
from plastic_export import load_tokenizer
from plastic_runtime import CautiousAdamW

BENCH = Path(__file__).parents[1] / "tools" / "bench"
SHIPPED = Path(__file__).parent / "data" / "stdlib-llama"
SMALL = ("--ranks", "8", "--rates", "1e-3", "--seeds", "1", "--windows", "2")
FEW = ("--steps", "4", "--warm", "1", "--length", "24", *SMALL)
SOURCE = '''
class Shelf:
    def take(self, name):
        """Take a book."""
        book = self.books[name]
        return book

    def silent(self):
        return None

    def said(self):
        """Say nothing more."""
'''


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders of the comparison as packages."""
    monkeypatch.syspath_prepend(str(BENCH))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """The runs on the shipped checkpoint, and what was printed of them."""
    file = tmp_path_factory.mktemp("compared") / "runs.jsonl"
    methods = ("--methods", "base", "lora", "plastic train")
    words = ["smollm2", "--base", SHIPPED, "--results", file, *methods, *FEW]
    done = subprocess.run(
        [sys.executable, BENCH / "train.py", *words],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in file.read_text().splitlines()], done.stdout


def test_runs_are_weighed_as_files_and_kept(compared: tuple[list[dict[str, Any]], str]) -> None:
    runs, printed = compared
    found = {run["settings"]["method"]: run["figures"] for run in runs}
    assert [*found] == ["base", "lora", "plastic train"]
    assert found["base"]["nbytes"] == 0
    assert 0 < found["plastic train"]["nbytes"] <= found["lora"]["nbytes"]
    assert found["plastic train"]["most"] > 3 * found["plastic train"]["nbytes"]
    assert len(found["lora"]["learnt"]) == 4
    assert found["lora"]["loss"] != found["base"]["loss"]
    assert "plastic train: loss below the best peer of rank 8 (lora), nats" in printed


def test_the_answer_alone_is_learnt(bench: None) -> None:
    pairs, texts = (importlib.import_module(f"training.{name}") for name in ("pairs", "texts"))
    nodes = [pairs.function_pair(SOURCE.splitlines(), node) for node in ast.walk(ast.parse(SOURCE))]
    (pair,) = [node for node in nodes if node is not None]
    assert pair.asked == 'def take(self, name):\n    """Take a book."""'
    assert pair.body == "book = self.books[name]\nreturn book"
    tokenizer = load_tokenizer(SHIPPED)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    window = pairs.chat_window(tokenizer, pair, 200)
    batch = mx.array(window[None])
    answer = [token for token in window.tolist() if token >= 0]
    whole = tokenizer.decode(texts.tokens_of(batch)[0].tolist())
    assert tokenizer.decode(answer).strip() == f"assistant: {pair.body}"
    assert pair.asked in whole
    assert int(texts.learnt(batch).sum()) == len(answer)
    assert pairs.chat_window(tokenizer, pair, 8) is None


@pytest.mark.parametrize("asked", [None, True, False])
def test_ours_is_cautious_unless_all_are_asked_to_be_or_not(
    bench: None, asked: bool | None
) -> None:
    own_setting = importlib.import_module("finetune.asked").own_setting
    setting = importlib.import_module("training.setting")
    options = Namespace(start=None, every=4, norm=None, along=None, cautious=asked)
    options.rate, options.steps, options.warm, options.corrected = 1e-3, 8, 2, True
    assert own_setting(options, "plastic train")["every"] == 4
    assert own_setting(options, "lora")["every"] is None
    assert own_setting(options, "lora")["cautious"] is asked
    assert own_setting(options, "hira")["cautious"] is None
    made = setting.TrainingBench(options, None)
    for ours in (True, False):
        cautious = ours if asked is None else asked
        assert type(made.optimizer(cautious=ours)) is (CautiousAdamW if cautious else Adam)


def test_one_seed_meets_no_spread(bench: None) -> None:
    asked, targets = (importlib.import_module(f"finetune.{name}") for name in ("asked", "targets"))
    tables = importlib.import_module("finetune.tables")

    def runs(seeds: int) -> list[Any]:
        return [
            asked.KeptRun(
                {"method": method, "rank": 8, "rate": 1e-3, "seed": seed},
                {"loss": loss + seed / 100, "nbytes": 10, "old": [1.0], "step": 1.0},
            )
            for method, loss in (("lora", 2.0), ("plastic train", 1.5))
            for seed in range(seeds)
        ]

    for seeds, met in ((1, False), (3, True)):
        lora, ours = tables.at_best_rates(runs(seeds))
        (shown,) = targets.gains([ours], [lora])
        assert shown.met is met
