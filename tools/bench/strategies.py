"""Every strategy at several sizes, beside plain quantisation: bytes on disk against quality.

    uv run tools/bench/strategies.py                   the checkpoint that the repository ships
    uv run tools/bench/strategies.py SRC --calibration FILE --text FILE --text FILE

Bytes are those of all ``model*.safetensors``: scales, offsets, headers and what is not compressed
are counted. ``kept`` is the fraction of the bytes of the compressed matrices. Quantised rows round
the same matrices to nearest with MLX's own ``quantize``, group size 64, as ``mlx_lm.convert`` does.
Quality is measured against the source: divergence in millinats per token, perplexity, agreement.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlx.nn as nn
from mlx_lm import convert
from plastic_export import Calibration, compress, evaluate, open_checkpoint
from plastic_export.checkpoint import compressible, module_path
from plastic_select import STRATEGIES
from plastic_select.rules import NEED_GRAM
from rich.console import Console
from rich.table import Table

DATA = Path(__file__).parents[2] / "tests-integration" / "data" / "stdlib-llama"


def factored(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Compress under every strategy at every size; yields label, fraction kept, folder."""
    for keep in options.keep:
        for strategy in STRATEGIES:
            text = Calibration(options.calibration, windows=64)
            calibration = text if strategy in NEED_GRAM else None
            out = folder / f"{strategy}-{keep}"
            result = compress(
                options.source, out, keep=keep, strategy=strategy, calibration=calibration
            )
            yield strategy, f"{result.plan.kept:.1%}", out


def rounded_to_nearest(
    options: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, str, Path]]:
    """Round the same matrices to nearest at several bits."""
    with open_checkpoint(options.source) as checkpoint:
        paths = {module_path(name) for name in compressible(checkpoint.tensors)}
    for bits in options.bits:
        out = folder / f"q{bits}"
        with contextlib.redirect_stdout(io.StringIO()):
            convert(
                str(options.source),
                str(out),
                quantize=True,
                q_bits=bits,
                q_group_size=64,
                quant_predicate=lambda path, module: (
                    path in paths and isinstance(module, nn.Linear)
                ),
            )
        yield f"rounded to {bits} bits", f"{(bits + 0.5) / 16:.1%}", out


def main() -> None:
    """Print one row per compressed checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, default=DATA)
    parser.add_argument("--calibration", type=Path, default=DATA / "calibration.txt")
    parser.add_argument("--text", type=Path, action="append")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.8, 0.6])
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 4])
    options = parser.parse_args()
    texts = options.text or [DATA / "heldout.txt", DATA / "heldout-prose.txt"]
    table = Table("checkpoint", "kept", "model bytes", box=None)
    for text in texts:
        table.add_column(f"{text.stem}: KL", justify="right")
        table.add_column("perplexity", justify="right")
        table.add_column("top-1", justify="right")
    with tempfile.TemporaryDirectory() as name:
        rows = [("source", "100.0%", options.source)]
        rows += [*factored(options, Path(name)), *rounded_to_nearest(options, Path(name))]
        for label, kept, folder in rows:
            size = sum(p.stat().st_size for p in folder.glob("model*.safetensors"))
            cells = []
            for r in evaluate(folder, texts, reference=options.source):
                kl, error, top1 = r.kl or 0.0, r.kl_error or 0.0, r.top1 or 0.0
                cells += [
                    f"{1e3 * kl:.3f} ± {1e3 * error:.3f}",
                    f"{r.perplexity:.3f}",
                    f"{top1:.2%}",
                ]
            table.add_row(label, kept, f"{size:,}", *cells)
            print(f"measured {label}, {kept}", file=sys.stderr)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
