"""One row of the zoo: a checkpoint through every command."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model as load_stock

from zoo.building import TEXT, build_checkpoint
from zoo.running import LEFT_OUT, Outcome, RefusedError, WrongError, command, outcome_of
from zoo.stock import WINDOW, WINDOWS, divergence, run_stock

FEW = ("--window", WINDOW, "--windows", WINDOWS)
BUDGETS = (5, 8)  # bits per weight
BUDGETS_OF_PACKED = (3, 4)
ODD = ("--include", "*.[13].*")  # half of the blocks, to wait half as long
CHOICES: dict[str, tuple[str, ...]] = {
    "mixed": (),
    "corrected": ("--factor-bits", "8", *ODD),
    "adapter": ODD,
}
KEEP = 0.6
LEAST = 1e-3
"""Nats per token below which a divergence is not compared with its prediction."""
ABOVE, BELOW = 5.0, 0.05
"""Measured over predicted divergence, at most and at least; 0.067 is the least that was seen."""


PASSING = re.compile(re.escape(gettempdir()) + r"/[^\s/:;,]+")
"""Folders whose names are other ones in every run."""


@dataclass(frozen=True)
class Row:
    """A checkpoint, and the folder for what the commands write."""

    source: Path
    work: Path

    @cached_property
    def text(self) -> Path:
        """The text on which it is measured."""
        file = self.work / "text.txt"
        file.write_text(TEXT)
        return file

    @cached_property
    def predicted(self) -> mx.array:
        """What stock mlx-lm predicts from the checkpoint."""
        return run_stock(self.source)

    @cached_property
    def is_packed(self) -> bool:
        """Whether it has few bits already."""
        config = json.loads((self.source / "config.json").read_text())
        return bool(config.get("quantization", {}).get("bits", 16) < 8)

    def inspect(self) -> None:
        """Inspect it."""
        command("inspect", self.source)

    def plan(self, format: str) -> None:
        """Plan two budgets in a format, and carry out both of ``mixed``, the first of others."""
        file = self.work / f"{format}.json"
        bits, budgets = (2, BUDGETS_OF_PACKED) if self.is_packed else (4, BUDGETS)
        words = ("--format", format, "--bits", bits, *CHOICES[format], *FEW, "--out", file)
        asked = ",".join(map(str, budgets))
        text = ("--calibration", self.text)
        planned = command("plan", self.source, *text, "--bits-per-weight", asked, *words)
        chosen = planned["budgets"] if format == "mixed" else planned["budgets"][:1]
        outs = [self.work / f"{format}-{budget['asked']}" for budget in chosen]
        for out, budget in zip(outs, chosen, strict=True):
            self.compress(out, "--plan", file, "--bits-per-weight", budget["asked"])
        measured = self.evaluate(*outs, own=format == "corrected")
        for budget, kl in zip(chosen, measured, strict=True):
            compare(budget["predicted_kl"], kl)

    def compress(self, out: Path, *words: object) -> None:
        """Compress it, and check the digests; a refusal leaves nothing behind."""
        try:
            command("compress", self.source, out, *words)
        except Exception as error:
            if out.exists():
                raise WrongError(f"compress left {out.name} behind: {error}") from error
            raise
        command("verify", out)

    def evaluate(self, *outs: Path, own: bool) -> list[float]:
        """Measure outputs against it, by this project and by stock mlx-lm, which must agree."""
        words = ("--text", self.text, *FEW)
        command("evaluate", self.source, *words)  # what is refused of it is refused of outputs
        try:
            evaluated = command("evaluate", *outs, "--reference", self.source, *words)
            found = evaluated["evaluations"]
        except RefusedError as error:
            raise WrongError(f"an output cannot be evaluated: {error}") from error
        measured = [float(one["kl"]) for one in found]
        for out, kl in zip(outs, measured, strict=True):
            adapter = out / "adapters" if (out / "adapters").is_dir() else None
            stock = divergence(self.predicted, run_stock(out, adapter=adapter, own=own))
            if not math.isclose(kl, stock, rel_tol=0.2, abs_tol=LEAST):
                raise WrongError(f"{out.name}: evaluate says {kl:.4g} nats, mlx-lm {stock:.4g}")
        return measured

    def by_rank(self, format: str) -> None:
        """Compress it by rank, with what restores every bit where the format has that."""
        out = self.work / format
        exact = ("--exact",) if format == "factored" else ()
        words = ("--keep", KEEP, "--format", format, "--strategy", "stable")
        self.compress(out, *words, *exact)
        self.evaluate(out, own=format == "factored")

    def restore(self) -> None:
        """Restore what was compressed by rank to the bit."""
        out = self.work / "restored"
        command("restore", self.work / "factored", out)
        compare_parameters(self.source, out)

    def train(self) -> None:
        """Take four steps, and run the adapter in stock mlx-lm."""
        data, run = self.work / "data", self.work / "run"
        write_rows(data)
        every = ("--steps", 4, "--evaluate-every", 2, "--evaluate-batches", 1)
        few = ("--rank", 2, "--batch", 1, "--window", WINDOW)
        command("train", self.source, "--data", data, "--out", run, *every, *few)
        run_stock(self.source, adapter=run / "adapters")


CELLS: dict[str, Callable[[Row], None]] = {
    "inspect": Row.inspect,
    "mixed": lambda row: row.plan("mixed"),
    "corrected": lambda row: row.plan("corrected"),
    "adapter": lambda row: row.plan("adapter"),
    "dense": lambda row: row.by_rank("dense"),
    "factored": lambda row: row.by_rank("factored"),
    "restore": Row.restore,
    "train": Row.train,
}
"""Columns of the table, in the order in which they run."""


def run_row(
    model_type: str, form: str, work: Path, cells: Collection[str] = tuple(CELLS)
) -> dict[str, Outcome]:
    """Build a checkpoint and run the cells of its row.

    Args:
        model_type: Type of the configuration.
        form: One of its forms.
        work: Folder that does not exist yet.
        cells: Those to run.

    Returns:
        What came of every cell; lines name files from ``work`` on.
    """
    row = Row(build_checkpoint(work / "SRC", model_type, form), work)
    outcomes: dict[str, Outcome] = {}
    without_plots = patch.dict(sys.modules, {"matplotlib": None})  # they take longer than a plan
    for name, cell in CELLS.items():
        if name not in cells or (name == "restore" and not (work / "factored").is_dir()):
            outcomes[name] = Outcome(LEFT_OUT)
            continue
        with without_plots:
            outcome = outcome_of(partial(cell, row))
        line = PASSING.sub("TEMPORARY", outcome.line.replace(f"{work}/", ""))
        outcomes[name] = Outcome(outcome.status, line, outcome.seconds)
        mx.clear_cache()
    return outcomes


def compare(predicted: float, measured: float) -> None:
    """Check that a divergence is about as predicted."""
    least, most = BELOW * predicted - LEAST, ABOVE * predicted + LEAST
    if not least <= measured <= most:
        raise WrongError(f"predicted {predicted:.4g} nats per token, measured {measured:.4g}")


def compare_parameters(first: Path, second: Path) -> None:
    """Check that stock mlx-lm loads two folders to the same bits."""
    loaded, other = parameters(first), parameters(second)
    if names := loaded.keys() ^ other.keys():
        raise WrongError(f"{second.name} has other parameters than {first.name}: {sorted(names)}")
    for name, value in loaded.items():
        if not same_bits(value, other[name]):
            raise WrongError(f"{name} of {second.name} differs from that of {first.name}")


def same_bits(one: mx.array, other: mx.array) -> bool:
    """Tell whether two arrays are of one type and shape and have the same bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(mx.array_equal(one.flatten().view(mx.uint8), other.flatten().view(mx.uint8)))


def parameters(folder: Path) -> dict[str, Any]:
    """Return the parameters of a checkpoint as stock mlx-lm loads it, by name."""
    model, _ = load_stock(folder)
    return dict(tree_flatten(model.parameters()))


def write_rows(folder: Path) -> None:
    """Write a few texts to learn from, as mlx-lm reads them."""
    folder.mkdir()
    rows = [json.dumps({"text": TEXT[n : n + 60]}) for n in range(0, 480, 60)]
    for name in ("train", "valid"):
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
