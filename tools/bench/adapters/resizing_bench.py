"""Cut an adapter down: `plastic resize` beside the way of kohya's ``resize_lora.py``.

That way multiplies the factors of every layer out, takes a full SVD of the product in torch, and
cuts all layers to one rank, or each to a share of its own norm (``sv_fro``). Above 2,048 on both
sides it would take a randomised SVD instead, which is not measured here.

    uv run --with torch tools/bench/adapters/resizing_bench.py           # made up, SmolLM2's shapes
    uv run --with torch tools/bench/adapters/resizing_bench.py --adapter DIR
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from plastic_core.linalg import to_numpy
from plastic_export import Adapter, LoraPair, RankGoal, read_adapter, resize, write_adapter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from meters import peak, resident, spent

BLOCK = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}
"""The shapes of a block of SmolLM2-135M."""

Choose = Callable[[Any], int]
"""The rank that singular values of one layer are cut to."""


class CutAdapter(NamedTuple):
    """One way to cut an adapter down: bytes, relative error, seconds on the clock, memory."""

    name: str
    nbytes: int
    error: float
    seconds: float
    memory: int


def made_up(blocks: int, rank: int) -> Adapter:
    """Return an adapter whose layers differ in strength and in the fall of their spectrum."""
    rng, layers = np.random.default_rng(0), {}
    for i in range(blocks):
        for name, (out, in_) in BLOCK.items():
            falling = rng.uniform(0.75, 0.98) ** np.arange(rank) * rng.lognormal(0.0, 0.7)
            A = mx.array((rng.standard_normal((rank, in_)) * falling[:, None]).astype(np.float32))
            B = mx.array(rng.standard_normal((out, rank)).astype(np.float32) / math.sqrt(out))
            layers[f"model.layers.{i}.{name}"] = LoraPair(A, B, 2.0)
    return Adapter(layers)


def by_product(adapter: Adapter, choose: Choose) -> Adapter:
    """Cut every layer down by a full SVD of its product, in torch."""
    import torch

    layers = {}
    for path, (A, B, scale) in adapter.layers.items():
        product = torch.tensor(to_numpy(B)) @ torch.tensor(to_numpy(A))
        U, S, Vh = torch.linalg.svd(product)
        rank = choose(S.numpy())
        left = (U[:, :rank] * S[:rank]).contiguous()
        layers[path] = LoraPair(mx.array(Vh[:rank].numpy()), mx.array(left.numpy()), scale)
    return Adapter(layers)


def keep_norm(share: float) -> Choose:
    """Return the least rank that keeps a share of the norm."""

    def choose(S: Any) -> int:
        held = np.cumsum(np.square(S)) / np.square(S).sum()
        return int(np.searchsorted(held, share**2)) + 1

    return choose


def error(before: Adapter, after: Adapter) -> float:
    """Return the relative Frobenius error over all layers, in float64."""
    lost = whole = 0.0
    for path, pair in before.layers.items():
        wanted = product_of(pair)
        whole += float(np.square(wanted).sum())
        found = product_of(after.layers[path]) if path in after.layers else 0.0
        lost += float(np.square(wanted - found).sum())
    return math.sqrt(lost / whole)


def product_of(pair: LoraPair) -> Any:
    """Return the update of one matrix in float64."""
    return pair.scale * (to_numpy(pair.B).astype(np.float64) @ to_numpy(pair.A))


def cut_and_read(name: str, adapter: Adapter, cut: Callable[[], Path]) -> CutAdapter:
    """Run one way and read what it wrote."""
    before = resident()
    seconds, folder = spent(cut)
    memory = peak() - before
    (file,) = folder.glob("*.safetensors")
    return CutAdapter(
        name, file.stat().st_size, error(adapter, read_adapter(folder)), seconds.wall, memory
    )


def main() -> None:
    """Print a table: each way of kohya's, and ours at its bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", type=Path, help="An adapter; else one is made up.")
    parser.add_argument("--blocks", type=int, default=30, help="Blocks of the one made up.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work, own = Path(name), options.adapter
        source = own or write_adapter(made_up(options.blocks, 32), work / "source", "peft")
        adapter = read_adapter(source)
        ways: dict[str, Choose] = {
            "one rank, 8": lambda S: 8,
            "sv_fro 0.9": keep_norm(0.9),
            "sv_fro 0.97": keep_norm(0.97),
        }
        rows = []
        for i, (way, choose) in enumerate(ways.items()):

            def theirs(choose: Choose = choose, out: Path = work / f"theirs{i}") -> Path:
                return write_adapter(by_product(read_adapter(source), choose), out, "peft")

            rows.append(cut_and_read(f"product, {way}", adapter, theirs))
            goal = RankGoal(max_bytes=rows[-1].nbytes)

            def ours(goal: RankGoal = goal, out: Path = work / f"ours{i}") -> Path:
                return resize(source, out, goal, form="peft").out

            rows.append(cut_and_read("plastic resize, its bytes", adapter, ours))
    print(f"{'way':28} {'bytes':>12} {'error':>8} {'seconds':>8} {'MB beyond':>10}")
    for row in rows:
        figures = f"{row.nbytes:12,} {row.error:8.4f} {row.seconds:8.2f} {row.memory / 1e6:10.0f}"
        print(f"{row.name:28} {figures}")


if __name__ == "__main__":
    main()
