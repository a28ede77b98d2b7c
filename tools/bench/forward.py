"""Time RankLayer's forward pass against nn.Linear's, as ratios within one run.

    uv run tools/bench/forward.py                         1024 x 1024, 1 and 32 tokens
    uv run tools/bench/forward.py --size 512 --tokens 8 --ranks 16 64 --dtype bfloat16

Beside each ratio stands the ratio of multiplications, r (in + out) / (in out): where the two are
far apart, the small products do not fill the machine. Ranks above in out / (in + out) cost more
than the dense layer in any case.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
from plastic_core import RankLayer

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def layer_of_rank(size: int, rank: int, dtype: mx.Dtype) -> RankLayer:
    """Random factors: no factorisation, only the shapes matter here."""
    keys = mx.random.split(mx.random.key(rank), 3)
    shapes = ((size, rank), (rank,), (rank, size))
    factors = (mx.random.normal(s, key=k).astype(dtype) for s, k in zip(shapes, keys, strict=True))
    return RankLayer(*factors)


def forward_seconds(layer: Callable[[mx.array], mx.array], x: mx.array) -> float:
    start = time.perf_counter()
    mx.eval(layer(x))
    return time.perf_counter() - start


def best_times(
    layers: Sequence[Callable[[mx.array], mx.array]], x: mx.array, repeats: int
) -> list[float]:
    """The least time of each layer over rounds in which every layer has its turn."""
    rounds = [[forward_seconds(layer, x) for layer in layers] for _ in range(repeats + 1)]
    return [min(times) for times in zip(*rounds[1:], strict=True)]  # the first round warms up


def forward_table(
    size: int, tokens: int, ranks: Sequence[int], dtype: mx.Dtype, repeats: int
) -> str:
    linear = nn.Linear(size, size, bias=False)
    linear.set_dtype(dtype)
    layers = [layer_of_rank(size, rank, dtype) for rank in ranks]
    x = mx.random.normal((tokens, size), key=mx.random.key(0)).astype(dtype)
    mx.eval(x, linear.weight, [layer.factors() for layer in layers])
    dense, *times = best_times([linear, *layers], x, repeats)
    lines = [
        f"{tokens} tokens through {size} x {size} in {dtype} on {mx.default_device()}",
        f"nn.Linear {dense * 1e3:.3f} ms",
        f"{'rank':>6} {'ms':>9} {'time ratio':>11} {'multiplications':>16}",
    ]
    for rank, t in zip(ranks, times, strict=True):
        work = 2 * rank / size
        lines.append(f"{rank:>6} {t * 1e3:>9.3f} {t / dense:>11.3f} {work:>16.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="RankLayer's forward against nn.Linear's.")
    parser.add_argument("--size", type=int, default=1024, help="inputs and outputs (1024)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 32], help="rows of x (1 32)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds (10)")
    options = parser.parse_args()
    for tokens in options.tokens:
        dtype = DTYPES[options.dtype]
        print(
            forward_table(options.size, tokens, options.ranks, dtype, options.repeats), end="\n\n"
        )


if __name__ == "__main__":
    main()
