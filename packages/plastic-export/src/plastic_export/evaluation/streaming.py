"""The predictions of a checkpoint for many windows, one of its blocks in memory at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map
from plastic_core.files import Closing
from plastic_core.linalg import to_numpy
from plastic_runtime import Track, Weighted
from plastic_runtime.measure import BlockChain, BoundCall, intercepted

from plastic_export.evaluation.by_blocks import blocks_of, many_files
from plastic_export.evaluation.measures import (
    LogProbabilities,
    log_probabilities,
    log_probabilities_of,
)
from plastic_export.model.load import load_for_inference
from plastic_export.model.numpy_attention import use_numpy_attention

Lost = Callable[[str], None]
"""Is told the path of a block."""
_CHECK = 8  # tokens that tell whether the blocks are a chain
_CHECK_RUNS = 2  # of every block


def log_probabilities_by_blocks(
    folder: Path,
    batches: Sequence[mx.array],
    vocabulary: int,
    track: Track,
    check_whole: Callable[[], None] = lambda: None,
    *,
    context: int = 0,
    lost: Lost = lambda block: None,
    adapter: Path | None = None,
) -> Iterator[LogProbabilities]:
    """Yield what `log_probabilities` returns for every batch, to the same bits.

    Every item of ``model.layers`` is read once, runs over all batches and is given back; what goes
    from one to the next is on disk meanwhile. A model whose blocks do not feed one another is held
    as a whole.

    Memory: the largest block, what is outside the blocks (embeddings and head), and one batch.
    Disk: the activations of all tokens in float32, twice, in the folder of temporary files.

    Args:
        folder: Folder of a checkpoint.
        batches: Token ids, each of shape (windows, tokens).
        vocabulary: How many tokens may follow.
        track: Wraps the loop over the blocks and, after them, the batches.
        check_whole: Is called before a model is held as a whole, and may refuse it.
        context: See `log_probabilities`.
        lost: Is told the first block that makes what is not finite; not where a model is held as
            a whole.
        adapter: Folder of an adapter that is laid over the checkpoint.

    Raises:
        FormatError, ModuleNotFoundError, OSError: As `load_for_inference` does.
    """
    with ExitStack() as stack:
        stack.enter_context(many_files())
        model = _Streamed(folder, adapter)
        chain = model.chain(batches[0][:1, :_CHECK])
        if chain is None:
            check_whole()
            for each in batches:
                yield log_probabilities(model.module, each, vocabulary, context=context)
            return
        calls, watch = list[dict[str, Any]](), _Watch(lost)
        hidden = stack.enter_context(Spool())
        for tokens in batches:
            x, of_blocks = chain.entry(tokens)
            hidden.write(x)
            calls.append(dict(zip(chain.blocks, of_blocks, strict=True)))
        for step in track(model.steps(chain, batches), f"running {folder.name}"):
            if isinstance(step, str):
                hidden = stack.enter_context(_through(step, model, calls, hidden, watch))
                continue
            with use_numpy_attention():
                logits = chain.logits_from(batches[step], hidden.read())
                log_p = log_probabilities_of(logits[:, context:], vocabulary)
            yield log_p


def _through(
    path: str, model: _Streamed, calls: Sequence[dict[str, Any]], hidden: Spool, watch: _Watch
) -> Spool:
    """Run one block over all batches, each with its own call of it, and let the block go."""
    following = Spool()
    with hidden, use_numpy_attention():
        for of_blocks in calls:
            y = of_blocks[path](hidden.read())
            following.write(y)
            watch(path, y)
    model.let_go(path)
    return following


class _Watch:
    """Tells of the first block that makes what is not finite, and of no other."""

    def __init__(self, lost: Lost) -> None:
        self._lost: Lost | None = lost

    def __call__(self, block: str, y: mx.array) -> None:
        if self._lost is not None and not np.isfinite(to_numpy(y.astype(mx.float32))).all():
            self._lost(block)
            self._lost = None


class _Streamed:
    """A model of which every block can be run a few times, each time read anew.

    Args:
        folder: Folder of a checkpoint.
        adapter: Folder of an adapter that is laid over it, if there is one.
    """

    def __init__(self, folder: Path, adapter: Path | None) -> None:
        self.module = load_for_inference(folder, adapter=adapter)
        self._blocks = blocks_of(self.module)
        copies = [
            blocks_of(load_for_inference(folder, adapter=adapter)) for _ in range(_CHECK_RUNS)
        ]
        self._unread = {path: [_read_by(copy[path]) for copy in copies] for path in self._blocks}

    def chain(self, tokens: mx.array) -> BlockChain | None:
        """Return its blocks as a chain, or None where they are none."""

        def around(path: str, call: BoundCall, x: mx.array) -> Any:
            y = call(x)
            mx.eval(y)
            self.let_go(path)
            return y

        with intercepted(self._blocks, around), use_numpy_attention():
            return BlockChain.of(self.module, {}, [], tokens)

    def steps(self, chain: BlockChain, batches: Sequence[mx.array]) -> Weighted[str | int]:
        """Return the path of every block, which takes all batches, then the number of every batch.

        The weights are bytes of weights times tokens. What follows the blocks takes the largest
        array outside of them: the head or, where it is tied, the embedding.
        """
        sizes = {path: sum(_sizes(block).values()) for path, block in chain.blocks.items()}
        own = tuple(f"{path}." for path in sizes)
        outside = [n for name, n in _sizes(self.module).items() if not name.startswith(own)]
        tokens = [batch.size for batch in batches]
        steps: list[str | int] = [*sizes, *range(len(batches))]
        weights = [size * sum(tokens) for size in sizes.values()]
        return Weighted(steps, [*weights, *(max(outside, default=0) * n for n in tokens)])

    def let_go(self, path: str) -> None:
        """Give back what a block has read; after its last run it cannot run again."""
        block, spare = self._blocks[path], self._unread[path]
        rest = spare.pop() if spare else tree_map(_emptied, _read_by(block))
        block.update(rest)
        mx.clear_cache()


def _sizes(module: nn.Module) -> dict[str, int]:
    """Return the bytes of every parameter by name."""
    arrays: dict[str, mx.array] = dict(tree_flatten(_read_by(module)))
    return {name: array.nbytes for name, array in arrays.items()}


def _read_by(block: nn.Module) -> dict[str, Any]:
    parameters: dict[str, Any] = block.parameters()  # type: ignore[no-untyped-call]
    return parameters


def _emptied(array: mx.array) -> mx.array:
    return mx.zeros((0,), array.dtype)


class Spool(Closing):
    """Arrays in a temporary file without a name, written in order and then read in that order.

    Examples:
        >>> with Spool() as spool:
        ...     spool.write(mx.array([1.5, 2.5]))
        ...     spool.read().tolist()
        [1.5, 2.5]
    """

    def __init__(self) -> None:
        self._stream = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close
        self._types = list[mx.Dtype]()
        self._start = 0

    def write(self, x: mx.array) -> None:
        """Append an array of any floating type up to float32."""
        self._types.append(x.dtype)
        np.save(self._stream, to_numpy(x.astype(mx.float32)))

    def read(self) -> mx.array:
        """Return the next array, each of its bits as it was written."""
        self._stream.seek(self._start)
        values = np.load(self._stream)
        self._start = self._stream.tell()
        return mx.array(values).astype(self._types.pop(0))

    def close(self) -> None:
        """Give back the room on the disk."""
        self._stream.close()
