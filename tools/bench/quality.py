"""Loss-aware bits against uniform bits, at equal bytes on disk.

    uv run tools/bench/quality.py                   the checkpoint that the repository ships
    uv run tools/bench/quality.py SRC --calibration FILE --text FILE --text FILE

The same matrices in every row, group size 64; bytes are those of all ``model*.safetensors``.
``round to nearest`` is stock ``mlx_lm.convert``; ``error feedback`` is ours (GPTQ with fitted
scales and coordinate descent) with the same bits everywhere; ``loss-aware`` takes the bits of
``plastic plan``. KL is the divergence from the source in millinats per token.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlx.nn as nn
from mlx_lm import convert
from plastic_export import Calibration, LossPlan, evaluate, execute_plan, plan_checkpoint
from plastic_export.matrices import module_path
from plastic_export.planfile import write_plan
from rich.console import Console
from rich.table import Table
from strategies import DATA


def rows(
    options: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, float, float | None, Path]]:
    """Every method at every budget: label, bits per weight, predicted KL in nats, folder."""
    budgets = [bits + 0.5 for bits in options.bits]
    calibration = Calibration(options.calibration, 256, options.windows)
    mixed = plan_checkpoint(
        options.source, folder / "mixed.json", calibration=calibration, bits_per_weight=budgets
    )
    write_plan(folder / "uniform.json", uniform(mixed))
    paths = {module_path(m.name) for m in mixed.matrices}
    for bits, budget in zip(options.bits, budgets, strict=True):
        out = folder / f"rounded-{bits}"
        round_to_nearest(options.source, out, bits, paths)
        yield "round to nearest", budget, None, out
        for label, plan in (("error feedback", "uniform"), ("loss-aware", "mixed")):
            out = folder / f"{plan}-{bits}"
            file = folder / f"{plan}.json"
            result = execute_plan(options.source, out, file, bits_per_weight=budget)
            yield label, budget, result.plan.cost, out


def uniform(plan: LossPlan) -> LossPlan:
    """The same budgets with the same bits for every matrix."""
    budgets = (
        replace(b, chosen={m.name: m.offer(int(b.budget)) for m in plan.matrices})
        for b in plan.budgets
    )
    return replace(plan, budgets=tuple(budgets))


def round_to_nearest(source: Path, out: Path, bits: int, paths: set[str]) -> None:
    """Stock conversion of the same matrices."""
    with contextlib.redirect_stdout(io.StringIO()):
        convert(
            str(source),
            str(out),
            quantize=True,
            q_bits=bits,
            q_group_size=64,
            quant_predicate=lambda path, module: path in paths and isinstance(module, nn.Linear),
        )


def main() -> None:
    """Print one row per compressed checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, default=DATA)
    parser.add_argument("--calibration", type=Path, default=DATA / "calibration.txt")
    parser.add_argument("--text", type=Path, action="append")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4], help="2 3 4")
    parser.add_argument("--windows", type=int, default=128, help="of 256 tokens (128)")
    options = parser.parse_args()
    texts = options.text or [DATA / "heldout.txt", DATA / "heldout-prose.txt"]
    table = Table("method", "bits/weight", "model bytes", "predicted", box=None)
    for text in texts:
        table.add_column(f"{text.stem}: KL", justify="right")
        table.add_column("top-1", justify="right")
    with tempfile.TemporaryDirectory() as name:
        for label, budget, predicted, folder in rows(options, Path(name)):
            size = sum(p.stat().st_size for p in folder.glob("model*.safetensors"))
            cells = []
            for r in evaluate(folder, texts, reference=options.source):
                kl, error, top1 = r.kl or 0.0, r.kl_error or 0.0, r.top1 or 0.0
                cells += [f"{1e3 * kl:.3f} ± {1e3 * error:.3f}", f"{top1:.2%}"]
            forecast = "" if predicted is None else f"{1e3 * predicted:.3f}"
            table.add_row(label, f"{budget:g}", f"{size:,}", forecast, *cells)
            print(f"measured {label}, {budget:g} bits per weight", file=sys.stderr)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
