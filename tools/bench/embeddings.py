"""What it is worth to have the embeddings in the budget: whole checkpoints of one size.

    uv run tools/bench/embeddings.py                        the checkpoint that the repository ships
    uv run tools/bench/embeddings.py SRC --calibration FILE --text FILE

For each number of bits per weight of the linear layers one row with the embeddings copied as they
are, and one with them planned, for model files of no more bytes. KL is the divergence from the
source in millinats per token.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from plastic_export import (
    BitsPlan,
    Budget,
    Calibration,
    Compressed,
    evaluate,
    execute_plan,
    plan_checkpoint,
    read_plan,
)
from rich.console import Console
from rich.table import Table
from strategies import DATA


def bits_of_embeddings(result: Compressed[BitsPlan]) -> str:
    """The bits of the embeddings; none where they are copied."""
    kinds = {m.name: m.matrix.kind for m in read_plan(result.out.parent / "with.json").matrices}
    chosen = [offer.bits for n, offer in result.plan.chosen.items() if kinds[n] == "embedding"]
    return ", ".join("copied" if bits is None else str(bits) for bits in chosen) or "copied"


def row(label: str, result: Compressed[BitsPlan], options: argparse.Namespace) -> list[str]:
    """One checkpoint, measured."""
    found = evaluate(result.out, options.text, reference=options.source, windows=options.measured)
    cells = [label, f"{result.model_bytes:,}", bits_of_embeddings(result)]
    cells += [f"{result.plan.bits_per_weight:.3f}", f"{1e3 * result.plan.predicted:.3f}"]
    return cells + [f"{1e3 * (r.kl or 0):.3f} ± {1e3 * (r.kl_error or 0):.3f}" for r in found]


def main() -> None:
    """Print two rows per budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, default=DATA)
    parser.add_argument("--calibration", type=Path, default=DATA / "calibration.txt")
    parser.add_argument("--text", type=Path, action="append")
    parser.add_argument("--bits", type=float, nargs="+", default=[2.5, 3.5, 4.5])
    parser.add_argument("--windows", type=int, default=64, help="of 256 tokens to calibrate (64)")
    parser.add_argument("--measured", type=int, default=24, help="windows per text (24)")
    options = parser.parse_args()
    options.text = options.text or [DATA / "heldout.txt", DATA / "heldout-prose.txt"]
    columns = ("embeddings", "model bytes", "their bits", "bits/weight", "predicted")
    table = Table(*columns, *(text.stem for text in options.text), box=None)
    text, source = Calibration(options.calibration, 256, options.windows), options.source
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare, full = folder / "without.json", folder / "with.json"
        plan_checkpoint(source, bare, calibration=text, budgets=options.bits, embeddings=False)
        copied = [
            execute_plan(source, folder / f"without-{bits}", bare, budget=bits)
            for bits in options.bits
        ]
        sizes = [Budget("size", result.model_bytes) for result in copied]
        plan_checkpoint(source, full, calibration=text, budgets=sizes)
        for size, result in zip(sizes, copied, strict=True):
            table.add_row(*row("copied", result, options))
            out = folder / f"with-{size}"
            planned = execute_plan(source, out, full, budget=str(size))
            table.add_row(*row("planned", planned, options))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
