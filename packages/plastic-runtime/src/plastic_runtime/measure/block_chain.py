"""A model as a chain of blocks: each takes what the one before it returned, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn

from plastic_runtime.measure.intercept import intercepted, modules_by_path
from plastic_runtime.measure.probes import LINEARS
from plastic_runtime.measure.recorder import Call, Modules, using_numpy

Release = Callable[[str], None]
"""Is told the path of a block whose weights are not needed for now."""


def keep(path: str) -> None:
    """Let go of nothing: the `Release` of a model that is in memory."""


CLOSE = 1e-3
"""Largest relative difference of two equal computations, half precision included (heuristic)."""


class BlockChain:
    """The blocks of a model, to be run one at a time: the items of its ``layers``.

    Args:
        model: The model.
        blocks: Its blocks by path, in the order in which they run; known to be a chain.

    Attributes:
        early: The wanted paths of what runs before the blocks.
        vocabulary: How many logits there are.
        is_pointwise: Whether they depend on the last block's output at their position alone.

    Examples:
        >>> model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)))
        >>> chain = BlockChain(model, {"layers.0": model.layers[0], "layers.1": model.layers[1]})
        >>> chain.block_of("layers.1.layers.0")
        'layers.1'
    """

    def __init__(self, model: nn.Module, blocks: Modules, release: Release = keep) -> None:
        self.model = model
        self.blocks = blocks
        self.release = release
        self.early: list[str] = []
        self.vocabulary = 0
        self.is_pointwise = False

    @classmethod
    def of(
        cls,
        model: nn.Module,
        linears: Modules,
        wanted: Collection[str],
        batch: mx.array,
        release: Release = keep,
    ) -> BlockChain | None:
        """Return the chain that a model is, or None if it cannot be told to be one.

        Told by a pass over ``batch``: every block must run once, in order, on the very array
        that the block before it returned; whatever else it is given must not depend on the
        blocks; what follows must depend on the last one alone; and a wanted layer must run inside
        one block, after all of them, or before, if nothing but the input of the first one depends
        on it. A model that cannot run without its blocks, as where one leaves keys for another, is
        none.

        Args:
            model: The model.
            linears: Its linear layers by path.
            wanted: Those to be measured.
            batch: A few of its inputs; run three or four times through the blocks.
            release: Called with the path of a block that has been run, whose weights may go.
        """
        blocks = model_blocks(model)
        if not blocks or _entangled(linears, blocks):
            return None
        chain = cls(model, blocks, release)
        inside = {p: m for p, m in linears.items() if chain.block_of(p) is not None}
        apart = {p: m for p, m in linears.items() if p not in inside}
        outside = {p: m for p, m in apart.items() if p in wanted}
        try:
            with using_numpy(inside), using_numpy(apart, keep=True):  # a head is widened once
                return chain if chain._holds(batch, outside, wanted) else None
        except Exception:  # the model's own code, which misses what a block was to leave
            return None

    def block_of(self, path: str) -> str | None:
        """Return the block that a module is in."""
        return block_of(path, self.blocks)

    def entry(self, batch: mx.array) -> tuple[mx.array, list[Call]]:
        """Return what enters the first block, and the call of every block as the model makes it.

        A call binds the other arguments, such as a mask. No block is run, nor what follows them.
        """
        entered: list[mx.array] = []
        calls: list[Call] = []

        def passing(path: str, call: Call, x: mx.array) -> mx.array:
            entered.append(x)
            calls.append(call)
            if len(calls) == len(self.blocks):
                raise _Entered
            return x

        with suppress(_Entered), intercepted(self.blocks, passing):
            self.model(batch)
        return entered[0], calls

    def logits_from(self, batch: mx.array, y: mx.array) -> mx.array:
        """Run the rest of the model on the output ``y`` of the last block."""
        last = list(self.blocks)[-1]
        with intercepted(self.blocks, lambda path, call, x: y if path == last else x):
            return cast(mx.array, self.model(batch))

    def _holds(self, batch: mx.array, outside: Modules, wanted: Collection[str]) -> bool:
        steps, logits, early, late = self._watched(batch, outside)
        if early & late or not _linked(steps, list(self.blocks)):
            return False
        self.early = [path for path in wanted if path in early]
        self.vocabulary = logits.shape[-1]
        x, calls = self.entry(batch)
        if self.early:  # with other results of theirs, the rest must be the same
            with intercepted(outside, self._halved):
                calls = self.entry(batch)[1]
                if not _close(self.logits_from(batch, steps[-1].output), logits):
                    return False
        for path, call in zip(self.blocks, calls, strict=True):
            x = self._run(path, call, x)
        if x.shape[:-1] == batch.shape:
            last = self.logits_from(batch[:, -1:], x[:, -1:])
            self.is_pointwise = _close(last, logits[:, -1:])
        return _close(x, steps[-1].output) and _close(self.logits_from(batch, x), logits)

    def _run(self, path: str, call: Call, x: mx.array) -> mx.array:
        """Run a block and let go of its weights."""
        y = call(x)
        mx.eval(y)
        self.release(path)
        return y

    def _halved(self, path: str, call: Call, x: mx.array) -> mx.array:
        return 0.5 * call(x) if path in self.early else call(x)

    def _watched(
        self, batch: mx.array, outside: Modules
    ) -> tuple[list[_Step], mx.array, set[str], set[str]]:
        """Run an ordinary pass: steps, logits, layers that ran before and after the last block."""
        steps: list[_Step] = []
        early, late = set[str](), set[str]()

        def step(path: str, call: Call, x: mx.array) -> mx.array:
            y = self._run(path, call, x)
            steps.append(_Step(path, x, y))
            return y

        def elsewhere(path: str, call: Call, x: mx.array) -> mx.array:
            (early if len(steps) < len(self.blocks) else late).add(path)
            return call(x)

        with intercepted(self.blocks, step), intercepted(outside, elsewhere):
            logits = self.model(batch)
        return steps, logits, early, late


class _Entered(Exception):  # it is no error
    """All blocks were called; what follows them is not wanted."""


class _Step(NamedTuple):
    path: str
    input: mx.array
    output: mx.array


def model_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the items of ``model.layers``, the blocks of mlx-lm's models; none if they are odd.

    Examples:
        >>> list(model_blocks(nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Sequential())))
        ['layers.0', 'layers.1']
    """
    items = getattr(model, "layers", None)
    if not isinstance(items, list) or not all(isinstance(m, nn.Module) for m in items):
        return {}
    paths = {id(m): path for path, m in modules_by_path(model).items()}
    blocks = {paths[id(m)]: m for m in items if id(m) in paths and not isinstance(m, LINEARS)}
    return blocks if len(blocks) == len(items) else {}


def _entangled(linears: Modules, blocks: Modules) -> bool:
    """Tell whether a linear layer is in two blocks, or in one and outside."""
    owners: dict[int, str | None] = {}
    for path, linear in linears.items():
        owner = block_of(path, blocks)
        if owners.setdefault(id(linear), owner) != owner:
            return True
    return False


def block_of(path: str, blocks: Modules) -> str | None:
    """Return the block that a path lies in, None outside.

    Examples:
        >>> blocks = {"layers.1": nn.Sequential(), "layers.10": nn.Sequential()}
        >>> block_of("layers.10.up", blocks), block_of("head", blocks)
        ('layers.10', None)
    """
    return next((block for block in blocks if path.startswith(f"{block}.")), None)


def _linked(steps: list[_Step], blocks: list[str]) -> bool:
    """Tell whether each step takes the very output of the one before it, all alike."""
    if [step.path for step in steps] != blocks or not mx.issubdtype(
        steps[0].input.dtype, mx.floating
    ):
        return False
    x = steps[0].input
    for step in steps:
        if step.input is not x or not _alike(step.input, step.output):
            return False
        x = step.output
    return True


def _alike(x: mx.array, y: object) -> bool:
    return isinstance(y, mx.array) and (x.shape, x.dtype) == (y.shape, y.dtype)


def _close(a: mx.array, b: mx.array) -> bool:
    """Tell whether two results of the same computation are, also where they are not finite."""
    if not _alike(a, b):
        return False
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    largest = mx.where(mx.isfinite(b), mx.abs(b), 0).max()
    close = mx.allclose(a, b, rtol=0.0, atol=CLOSE * float(largest), equal_nan=True)
    return bool(close.item())
