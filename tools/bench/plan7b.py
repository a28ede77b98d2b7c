"""A plan for a model of 7 billion parameters: the allocation of all of it, the price of one matrix.

    uv run tools/bench/plan7b.py                                    allocation, and 4096 x 4096
    uv run tools/bench/plan7b.py --shapes 4096x11008 --widest 8192  the widest one, Grams in blocks
    uv run tools/bench/plan7b.py --shapes --format corrected        the allocation alone

Allocation: the 226 matrices of a Llama of 32 layers, each with all the options that the format
offers at its shape, priced by a synthetic spectrum (``i^-p``, four times less with every bit).
Seconds are of one budget, of ten, and of the curve that is plotted; the time to build the options,
which pricing takes hours for, is not among them.

Price: one random matrix under synthetic Grams, low rank and a diagonal, all ways of storing it that
the format offers, in a process of its own. Seconds are processor time. Memory is the peak of the
process, with interpreter and libraries, and what was added to it after the weight and its Grams
were there, in weights of float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from meters import peak_resident
from plastic_core import block_side
from plastic_core.linalg import Float64
from plastic_export import Candidate, Choices, LossPlan, Offer, Offered, plan_bits
from plastic_export.checkpoint import Kind
from plastic_export.format import FORMATS, PLAN_FORMATS
from plastic_export.plan import (
    backbones_of,
    choices_for,
    corrected_backbones,
    factor_bytes,
    offered_ranks,
    offers_of,
    packed_bytes,
    pareto,
)
from plastic_export.reporting import plan_frontier
from plastic_runtime import Gram, LossGrams
from plastic_runtime.measure import LONGEST_DENSE_SIDE, is_dense
from rich.console import Console
from rich.table import Table

LAYERS, HIDDEN, INNER, VOCABULARY = 32, 4096, 11008, 32000
BUDGETS = (2.5, 2.75, 3.0, 3.25, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0)
GiB = 2**30
T = TypeVar("T")


def llama() -> list[Candidate]:
    """The matrices of a model of 7 billion parameters, embedding and head among them."""
    square, wide, tall = (HIDDEN, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)
    block = {f"self_attn.{p}_proj": square for p in "qkvo"}
    block |= {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": tall}
    shapes = {f"model.layers.{i}.{n}": s for i in range(LAYERS) for n, s in block.items()}
    found = [matrix(name, shape) for name, shape in shapes.items()]
    table = (VOCABULARY, HIDDEN)
    return [matrix("embed_tokens", table, embedding=True), *found, matrix("lm_head", table)]


def matrix(path: str, shape: tuple[int, int], *, embedding: bool = False) -> Candidate:
    """A bfloat16 matrix with groups of 64."""
    kind: Kind = "embedding" if embedding else "linear"
    return Candidate(f"{path}.weight", shape, "BF16", 64, 2 * shape[0] * shape[1], kind=kind)


def offered(m: Candidate, number: int, choices: Choices) -> Offered:
    """All that pricing would offer, at made-up costs."""
    rng, own = np.random.default_rng(number), choices_for(m, choices)
    s = np.arange(1.0, min(m.shape) + 1) ** -rng.uniform(0.3, 1.2)
    left = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0) / (s @ s)
    scale, offers = 1e-2 * np.exp(rng.normal()), list[Offer]()
    bases = [backbone(m, *packing, scale) for packing in backbones_of(m, own)]
    offers += bases
    corrected = corrected_backbones(m, own)
    beside = [b for b in bases if (b.bits, b.group_size) in corrected]
    for base in [*beside, Offer(None, 0, scale)]:
        for bits in own.factor_bits if base.bits or own.bare else ():
            for rank in offered_ranks(m, base, bits, own):
                nbytes = base.nbytes + factor_bytes(m.shape, rank, bits, m.dtype)
                cost = base.cost * (left[rank] + 4.0**-bits)
                offers.append(base._replace(nbytes=nbytes, cost=cost, rank=rank, factor_bits=bits))
    kept = offers if own.ranks else pareto(offers)
    return Offered(m, (*kept, Offer.unchanged(m)))


def backbone(m: Candidate, bits: int, group_size: int, scale: float) -> Offer:
    """A backbone whose cost falls by four with every bit, and a little with smaller groups."""
    cost = scale * 4.0**-bits * (group_size / 64) ** 0.3
    nbytes = packed_bytes(m.shape, bits, group_size, m.dtype)
    return Offer(bits, nbytes, cost, group_size=group_size)


def choices_of(format: str) -> Choices:
    """What a format of plans offers."""
    return FORMATS[format].choices or Choices()


def allocation(format: str) -> list[str]:
    """One row: how many matrices and options, and the seconds."""
    matrices = [offered(m, i, choices_of(format)) for i, m in enumerate(llama())]
    one_rank = FORMATS[format].one_rank
    plan = LossPlan({"name": ""}, {}, ("", ""), tuple(matrices), (), 0, (), format)
    options = sum(len(m.offers) for m in matrices)
    one, _ = processor_time(lambda: plan_bits(matrices, [3.5], one_rank=one_rank))
    ten, plans = processor_time(lambda: plan_bits(matrices, BUDGETS, one_rank=one_rank))
    curve, _ = processor_time(lambda: plan_frontier(plan))
    gap = max(p.gap for p in plans)
    seconds = [f"{s:.2f} s" for s in (one, ten, curve)]
    return [format, str(len(matrices)), f"{options:,}", *seconds, f"{gap:.1e}"]


def processor_time(f: Callable[[], T]) -> tuple[float, T]:
    """Processor time of a call in seconds, and what it gave."""
    start = time.process_time()
    found = f()
    return time.process_time() - start, found


def random_gram(side: int, widest: int, seed: int) -> Gram:
    """Low rank and a diagonal; blocks of it where it is too wide."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((side, 256)) * np.arange(1.0, 257) ** -0.5
    power = rng.uniform(0.1, 2.0, side)
    if is_dense(side, widest):
        A: Float64 = X @ X.T
        A[np.diag_indices(side)] += power
        return Gram(A, side)
    b = block_side(side)
    parts = X.reshape(-1, b, 256)
    return Gram(parts @ parts.swapaxes(1, 2) + power.reshape(-1, b, 1) * np.eye(b), side)


def price_one(shape: tuple[int, int], format: str, widest: int) -> dict[str, float]:
    """Seconds and bytes of pricing one matrix, in this process."""
    (out, in_), rng = shape, np.random.default_rng(0)
    weight = rng.standard_normal(shape).astype(np.float32) / np.float32(in_**0.5)
    grams = LossGrams(random_gram(in_, widest, 1), random_gram(out, widest, 2))
    before = peak_resident()
    m, choices = matrix("m", shape), choices_of(format)
    seconds, found = processor_time(lambda: offers_of(weight, m, (grams,), choices))
    given = weight.nbytes + grams.input.matrix.nbytes + grams.output.matrix.nbytes
    sizes = {"peak": peak_resident(), "given": given, "added": peak_resident() - before}
    return {"seconds": seconds, "offers": len(found.offers), **sizes}


def priced(shape: str, options: argparse.Namespace) -> list[str]:
    """One row, measured in a process of its own."""
    words = ["--child", shape, "--format", options.format, "--widest", str(options.widest)]
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    rows, columns = sides(shape)
    sizes = [f"{n / GiB:.2f} GiB" for n in (4 * rows * columns, *map(found.get, ("given", "peak")))]
    added = f"{found['added'] / (4 * rows * columns):.1f}"
    return [shape, options.format, str(found["offers"]), f"{found['seconds']:.0f} s", *sizes, added]


def sides(text: str) -> tuple[int, int]:
    """``"4096x11008"``: outputs and inputs."""
    out, in_ = text.split("x")
    return int(out), int(in_)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", default=["4096x4096"], help="OUTxIN to price")
    parser.add_argument("--format", choices=PLAN_FORMATS, default="mixed", help="of prices")
    parser.add_argument(
        "--widest", type=int, default=LONGEST_DENSE_SIDE, help="longest side of a dense Gram"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(price_one(sides(options.child), options.format, options.widest)))
        return
    console = Console(width=140)
    columns = ("format", "matrices", "options", "one budget", "ten budgets", "curve of 40", "gap")
    table = Table(*columns, title="Allocation", box=None)
    for format in PLAN_FORMATS:
        table.add_row(*allocation(format))
    console.print(table, "")
    headings = (
        "shape",
        "format",
        "options",
        "time",
        "weight",
        "with Grams",
        "peak",
        "added/weight",
    )
    table = Table(*headings, title="Price of one matrix", box=None)
    for shape in options.shapes:
        table.add_row(*priced(shape, options))
    console.print(table)


if __name__ == "__main__":
    main()
