"""Compress a checkpoint and say what it cost: the main path of the ``plastic`` command as a script.

    uv run tools/compress.py SRC OUT --keep 0.8 --calibration calibration.txt --text heldout.txt

Without ``--calibration`` the ranks and the factors look at the weights alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from plastic_export import Calibration, compress, evaluate, verify


def main() -> None:
    """Compress, verify, and compare the result with its source on the texts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="folder or Hub id of a checkpoint")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--keep", type=float, default=0.8, help="fraction of the bytes kept")
    parser.add_argument("--calibration", type=Path, help="text to measure activations on")
    parser.add_argument("--text", type=Path, action="append", default=[], help="held-out text")
    options = parser.parse_args()

    result = compress(
        options.source,
        options.out,
        keep=options.keep,
        calibration=Calibration(options.calibration) if options.calibration else None,
    )
    for matrix in result.matrices:
        print(f"{matrix.name}: rank {matrix.rank}, relative error {matrix.relative_error:.4f}")
    print(f"kept {result.plan.kept:.1%}, removed {1 - result.plan.kept:.1%} of the matrices")

    assert verify(options.out) == []
    for row in evaluate(str(options.out), options.text, reference=options.source):
        print(f"{row.text}: perplexity {row.perplexity:.3f}, KL {row.kl:.5f}, top-1 {row.top1:.1%}")


if __name__ == "__main__":
    main()
