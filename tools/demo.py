"""Watch ranks adapt: `uv run tools/demo.py` (no network, under a minute on two CPU cores).

Part one trains a stack of PlasticBlocks on random inputs while a PlasticityManager changes their
ranks. Part two has a known answer: a student starts at wrong ranks and has to find the ranks of
the teacher whose outputs it learns from. Part three compresses the checkpoint that the repository
ships for a range of sizes, dials it through them, and measures each. Ends with exit code 1 if
part two finds other ranks, or a smaller size is not further away, or a bit is not back.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from plastic_core import PlasticBlock, RankLayer, linalg
from plastic_core.files import sha256_file
from plastic_export import (
    Budget,
    Calibration,
    Choices,
    Evaluation,
    SizeRange,
    compare,
    dial,
    execute_plan,
    plan_checkpoint,
)
from plastic_runtime import PlasticityManager, events_table, format_bytes

SEED = 0
DIMS = 16
NOISE = 0.03  # of the teacher's outputs: what no rank can explain

# The singular values of what the teacher adds to each frozen matrix: their number is its true
# rank. The third layer's spectrum decays, so its stable rank, 1.9, is below its true rank, 4.
TRUTH = [[1.0] * 2, [1.0] * 5, [1.0, 0.7, 0.5, 0.4], [1.0] * 3]
START = [6, 2, 8, 1]

SHIPPED = Path(__file__).parents[1] / "tests-integration" / "data" / "stdlib-llama"
SIZES = (3.5, 3.375, 3.25, 3.125, 3.0)  # bits per weight, the first one as compressed
# Fewer ways to store a matrix than by default, and little text: part three is to take seconds.
OFFERED = Choices(bits=(2, 3), factor_bits=(4,), bare=True, group_sizes=(64,))

Batch = tuple[mx.array, mx.array]


class Network(nn.Module):
    """Linear layers with tanh between them."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = list(layers)

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers[:-1]:
            x = mx.tanh(layer(x))
        y: mx.array = self.layers[-1](x)
        return y


def main() -> int:
    """Run all parts; return 0 if each came out as it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the logs")
    folder = parser.parse_args().out or Path(tempfile.mkdtemp(prefix="plastic-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    random_inputs(fresh(folder / "blocks.jsonl"))
    found_all = known_truth(fresh(folder / "teacher.jsonl"))
    dialled = turn_the_dial(folder / "dial.json")
    print(f"\nLogs: {folder}    {time.perf_counter() - started:.0f} s")
    return 0 if found_all and dialled else 1


def random_inputs(log: Path) -> None:
    """A stack of blocks learns to repeat the previous token of random sequences."""
    print("Part one: two PlasticBlocks on random inputs\n", flush=True)
    keys = mx.random.split(mx.random.key(SEED))
    model = nn.Sequential(*[PlasticBlock(16, 2, 32, rank=3, key=key) for key in keys])

    def batch(seed: int) -> Batch:
        x = mx.random.normal((8, 12, 16), key=mx.random.key(seed))
        return x[:, 1:], x[:, :-1]

    optimizer = optim.Adam(learning_rate=5e-3)
    manager = PlasticityManager(
        model,
        optimizer,
        loss=lambda: mean_squared_error(model, *batch(1)),
        strategy="theorem",
        log=log,
        delta=0.01,
        gamma=0.02,
        window=2,
        patience=2,
        cooldown=1,
        guard=2,
    )
    adapt(model, optimizer, manager, batch, evaluations=30, steps=5)
    print_report(manager)


def known_truth(log: Path) -> bool:
    """A student that starts at wrong ranks looks for its teacher's."""
    print("\nPart two: a student looks for the ranks of its teacher\n", flush=True)
    teacher, student = make_teacher_and_student()

    def batch(seed: int) -> Batch:
        of_inputs, of_noise = mx.random.split(mx.random.key(seed))
        x = mx.random.normal((128, DIMS), key=of_inputs)
        return x, teacher(x) + NOISE * mx.random.normal((128, DIMS), key=of_noise)

    optimizer = optim.Adam(learning_rate=3e-3)
    manager = PlasticityManager(
        student,
        optimizer,
        loss=lambda: mean_squared_error(student, *batch(1)),
        strategy="stable",
        log=log,
        delta=0.02,
        gamma=0.05,
        window=2,
        patience=2,
        cooldown=1,
        guard=4,
    )
    adapt(student, optimizer, manager, batch, evaluations=250, steps=20)
    print_report(manager)
    return found_the_truth(manager)


def make_teacher_and_student() -> tuple[nn.Module, nn.Module]:
    """Four layers each, on the same frozen matrices; the teacher's additions are known."""
    rng = np.random.default_rng(SEED)

    def orthonormal(columns: int) -> np.ndarray:
        return linalg.qr(rng.standard_normal((DIMS, columns)))[0]

    def linear(weight: np.ndarray) -> nn.Linear:
        layer = nn.Linear(DIMS, DIMS, bias=False)
        layer.weight = mx.array(weight, dtype=mx.float32)
        return layer

    frozen = [orthonormal(DIMS) for _ in TRUTH]
    added = [(orthonormal(len(s)) * s) @ orthonormal(len(s)).T for s in TRUTH]
    keys = mx.random.split(mx.random.key(SEED), len(START))
    teacher = [linear(W + D) for W, D in zip(frozen, added, strict=True)]
    student = [
        RankLayer.from_linear(linear(W), rank, keep_base=True, key=key)
        for W, rank, key in zip(frozen, START, keys, strict=True)
    ]
    return Network(teacher), Network(student)


def mean_squared_error(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
    return mx.mean(mx.square(model(x) - y))


def adapt(
    model: nn.Module,
    optimizer: optim.Optimizer,
    manager: PlasticityManager,
    batch: Callable[[int], Batch],
    *,
    evaluations: int,
    steps: int,
) -> None:
    """Train on fresh batches; after every few steps the manager sees the validation loss."""
    loss_and_gradients = nn.value_and_grad(model, mean_squared_error)
    validation = [
        mx.concatenate(list(parts)) for parts in zip(*map(batch, range(2, 6)), strict=True)
    ]
    for evaluation in range(evaluations):
        for step in range(steps):
            _, gradients = loss_and_gradients(model, *batch(1000 + evaluation * steps + step))
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
        manager.step(mean_squared_error(model, *validation))
        if manager.settled:
            break


def print_report(manager: PlasticityManager) -> None:
    """Print what the manager did and what is awake and asleep."""
    print(events_table(manager.events))
    awake, asleep = format_bytes(manager.bytes_awake), format_bytes(manager.bytes_asleep)
    print(f"\n{awake} awake, {asleep} asleep in {len(manager.sleep_dict)} components")


def found_the_truth(manager: PlasticityManager) -> bool:
    """Print true and found ranks; whether they agree and a waking repaired a shrink."""
    print(f"\n{'layer':10}{'start':>7}{'true':>7}{'found':>7}")
    found, true = list(manager.ranks().values()), [len(s) for s in TRUTH]
    for path, *ranks in zip(manager.ranks(), START, true, found, strict=True):
        print(f"{path:10}" + "".join(f"{rank:7}" for rank in ranks))
    repaired = sum(event.action == "wake" for event in manager.events)
    verdict = "the true ranks were found" if found == true else "the ranks found are WRONG"
    print(f"\nvalidation loss {manager.moving_loss:.6f}, of which noise {NOISE**2:.6f}")
    print(f"{verdict}: true {true}, found {found}; wakings that repaired a shrink: {repaired}")
    return found == true and repaired > 0


def turn_the_dial(log: Path) -> bool:
    """One compressed folder is dialled through its sizes, down and up again; the curve is KL."""
    print("\nPart three: a dial on the shipped checkpoint\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="plastic-dial-") as name:
        folder = Path(name)
        out = compressed_for_a_range(folder)
        small = [
            dial(out, folder / str(bits), Budget("bits_per_weight", bits), park=True, check=False)
            for bits in SIZES[1:]
        ]
        back = dial(small[-1].dest, folder / "back", check=False).dest
        is_back = sha256_file(back / "model.safetensors") == sha256_file(out / "model.safetensors")
        folders, text = [out, *(each.dest for each in small)], SHIPPED / "heldout.txt"
        curve = compare(folders, [text], reference=SHIPPED, window=128, windows=8)
    kl = print_curve(curve, log)
    farther = all(larger < smaller for larger, smaller in pairwise(kl))
    print(f"\ndialled up again: {'every bit is back' if is_back else 'bits are MISSING'}")
    return farther and is_back


def compressed_for_a_range(folder: Path) -> Path:
    """The checkpoint in a folder whose smaller sizes are good, too."""
    budgets = [min(SIZES), max(SIZES)]
    plan_checkpoint(
        SHIPPED,
        folder / "plan.json",
        calibration=Calibration(SHIPPED / "calibration.txt", window=64, windows=8),
        budgets=budgets,
        choices=OFFERED,
        format="corrected",
    )
    sizes = SizeRange(*budgets)
    return execute_plan(SHIPPED, folder / "out", folder / "plan.json", sizes=sizes, check=False).out


def print_curve(curve: Sequence[Evaluation], log: Path) -> list[float]:
    """Print size against the divergence from the original; return that in millinats."""
    rows = [
        (each.size.model_bytes, 1e3 * each.kl, 1e3 * (each.kl_error or 0.0))
        for each in curve
        if each.size is not None and each.kl is not None
    ]
    log.write_text(json.dumps(rows))
    print(f"{'bytes':>10}{'KL, millinats per token':>28}")
    most = max(kl for _, kl, _ in rows)
    for nbytes, kl, error in rows:
        print(f"{nbytes:>10,}{kl:>14.1f} +- {error:<10.1f}{'#' * round(40 * kl / most)}")
    return [kl for _, kl, _ in rows]


def fresh(path: Path) -> Path:
    """The path, without what an earlier run left there."""
    path.unlink(missing_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
