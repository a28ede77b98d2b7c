"""Watch ranks adapt: `uv run tools/demo.py` (no network, well under a minute on two CPU cores).

Part one trains a stack of PlasticBlocks on random inputs while a PlasticityManager changes their
ranks. Part two has a known answer: a student starts at wrong ranks and has to find the ranks of
the teacher whose outputs it learns from. Ends with exit code 1 if it finds others.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from plastic_core import PlasticBlock, RankLayer, linalg
from plastic_runtime import PlasticityManager, events_table, format_bytes

SEED = 0
DIMS = 16
NOISE = 0.03  # of the teacher's outputs: what no rank can explain

# The singular values of what the teacher adds to each frozen matrix: their number is its true
# rank. The third layer's spectrum decays, so its stable rank, 1.9, is below its true rank, 4.
TRUTH = [[1.0] * 2, [1.0] * 5, [1.0, 0.7, 0.5, 0.4], [1.0] * 3]
START = [6, 2, 8, 1]

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
    """Run both parts; return 0 if the true ranks were found, by way of a shrink that hurt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the event logs")
    folder = parser.parse_args().out or Path(tempfile.mkdtemp(prefix="plastic-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    random_inputs(fresh(folder / "blocks.jsonl"))
    found_all = known_truth(fresh(folder / "teacher.jsonl"))
    print(f"\nEvent logs: {folder}    {time.perf_counter() - started:.0f} s")
    return 0 if found_all else 1


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


def fresh(path: Path) -> Path:
    """The path, without what an earlier run left there."""
    path.unlink(missing_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
