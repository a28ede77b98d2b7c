"""One folder dialled to several sizes, beside a folder planned for each of them.

    uv run tools/bench/dialling/sizes.py --range 3 3.5        the checkpoint that comes along
    uv run tools/bench/dialling/sizes.py SRC --range 3 3.5 --text FILE --text FILE

The folder that is dialled is written for the range (``compress --range``); those beside it are
planned for their size alone, by the same plan in the format ``corrected``. Divergences from the
source are in millinats per token.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from plastic_export import (
    Budget,
    Calibration,
    Choices,
    SizeRange,
    dial,
    evaluate,
    execute_plan,
    plan_checkpoint,
)
from plastic_export.format import FORMATS
from rich.console import Console
from rich.table import Table

DATA = Path(__file__).parents[3] / "tests-integration" / "data" / "stdlib-llama"


class DialledRow(NamedTuple):
    """One size: seconds that dialling took, divergences on every text."""

    bits: float
    seconds: float
    planned: list[float]
    dialled: list[float]


def text_divergences(folder: Path, options: argparse.Namespace) -> list[float]:
    """Return the divergence from the source on every text, nats per token."""
    return [r.kl or 0.0 for r in evaluate(folder, options.text, reference=options.source)]


def dialled_rows(options: argparse.Namespace, folder: Path) -> list[DialledRow]:
    """Measure every size."""
    own = FORMATS["corrected"].choices or Choices()
    wanted, plan, found = SizeRange(*options.range), folder / "plan.json", list[DialledRow]()
    plan_checkpoint(
        options.source,
        plan,
        calibration=Calibration(windows=options.windows, window=options.window),
        budgets=wanted.sizes,
        choices=own,
        format="corrected",
    )
    large = execute_plan(options.source, folder / "large", plan, sizes=wanted, check=False).out
    for bits in wanted.sizes:
        alone = folder / f"planned-{bits}"
        execute_plan(options.source, alone, plan, budget=bits, check=False)
        start = time.perf_counter()
        turned = dial(large, folder / f"dialled-{bits}", Budget("bits_per_weight", bits))
        seconds = time.perf_counter() - start
        pair = (text_divergences(place, options) for place in (alone, turned.dest))
        found.append(DialledRow(bits, seconds, *pair))
        print(f"measured {bits}", file=sys.stderr)
    return found


def size_table(found: list[DialledRow], options: argparse.Namespace) -> Table:
    """Return the table."""
    table = Table("bits per weight", "dialled in", box=None)
    for text in options.text:
        for column in (f"{text.stem}: planned", "dialled", "over"):
            table.add_column(column, justify="right")
    for row in found:
        cells: list[Any] = []
        for own, turned in zip(row.planned, row.dialled, strict=True):
            cells += [f"{1e3 * own:.1f}", f"{1e3 * turned:.1f}", f"{turned / own:.2f}"]
        table.add_row(f"{row.bits:g}", f"{row.seconds:.1f} s", *cells)
    return table


def main() -> None:
    """Print one row per size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, default=DATA)
    parser.add_argument("--text", type=Path, action="append")
    parser.add_argument("--range", type=float, nargs=2, default=[3, 3.5])
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--window", type=int, default=256)
    options = parser.parse_args()
    options.text = options.text or [DATA / "heldout.txt", DATA / "heldout-prose.txt"]
    with tempfile.TemporaryDirectory() as name:
        found = dialled_rows(options, Path(name))
    Console(width=160).print(size_table(found, options))


if __name__ == "__main__":
    main()
