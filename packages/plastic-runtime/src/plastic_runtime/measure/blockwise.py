"""The Grams of every linear layer into a file, with those of one block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from plastic_core.files import FormatError

from plastic_runtime.measure.block_chain import BlockChain
from plastic_runtime.measure.gram_file import GramFile
from plastic_runtime.measure.gram_identity import calibration_identity, check_measurement
from plastic_runtime.measure.grams import LONGEST_DENSE_SIDE, GramRecorder
from plastic_runtime.measure.intercept import intercepted
from plastic_runtime.measure.progress import Track, untracked
from plastic_runtime.measure.recorder import Call, LossRecorder, Modules, linear_layers, using_numpy
from plastic_runtime.measure.sampled_loss import keys
from plastic_runtime.measure.spool import opened, read_array, write_array, written
from plastic_runtime.measure.unfinished_grams import GramParts, discard_parts


def measure_grams(
    model: nn.Module,
    batches: Iterable[mx.array],
    file: str | Path,
    *,
    seed: int = 0,
    paths: Sequence[str] | None = None,
    widest: int = LONGEST_DENSE_SIDE,
    configuration: Mapping[str, Any] | None = None,
    replace: bool = False,
    needed: bool = True,
    track: Track = untracked,
) -> GramFile:
    r"""Write the Grams of ``loss_grams`` to a file, block by block, and open it.

    The blocks are the items of ``model.layers``. One pass runs them forwards, keeps what enters
    each of them on disk and takes the gradient at the output of the last one. Then, from the last
    block to the first, each is run once more, forwards and backwards, on what was kept: its Grams
    are complete and are written; last come layers before the blocks, such as embeddings. Labels are
    those of ``loss_grams`` and so are the Grams, up to the rounding of float32. A model whose
    ``layers`` do not feed one another, or are given something else by a wanted layer before them,
    is one block: its Grams are all in memory, and a cut run begins again.

    What is not finished waits in the folder ``<file>.parts``. A later call with the same model,
    configuration, seed, paths and batches goes on after its last finished block, to bit for bit
    the same file, or opens the file if it is complete.

    Args:
        model: Maps tokens ``(batch, length)`` to logits ``(batch, length, vocabulary)``. It is run
            as it is, in its own types, and put back exactly, also when a pass fails.
        batches: Its inputs. One batch is held with its activations within one block.
        file: File to write. Its folder exists.
        seed: Decides the labels.
        paths: The layers to measure, by path.
        widest: The longest side of a dense Gram, see ``loss_grams``.
        configuration: What the model was built from, in JSON's types: the file is of it as well.
        replace: Whether a file of another measurement, a damaged one, or parts of such are
            replaced and not refused. The old file stays until the new one is complete.
        needed: Whether a layer that no gradient reaches is refused; else it is left out, like one
            that is not run: what chooses among tokens or experts has none.
        track: Wraps the loops over the batches and over the blocks, with what they do.

    Returns:
        The file, open.

    Raises:
        ValueError: If a path is not that of a linear layer, ``batches`` is empty, an activation
            or a gradient has NaN or infinities (the layer is named), no gradient reaches a
            layer that is needed, or the file or its parts are of another model, configuration,
            seed, choice of layers or text, damaged, or of an earlier layout.
        OSError: If a file cannot be read or written.

    Note:
        In memory: the model, ``8 (in^2 + out^2)`` bytes for every layer of one block, the
        activations of one batch. On disk: ``2 (in^2 + out^2)`` bytes per layer for good, and
        meanwhile the activations that enter every block, in float32. Time: two forward passes, one
        backward pass, and ``in^2 + out^2`` operations in float64 per token and layer.

    Examples:
        >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
        >>> with measure_grams(model, [mx.array([[1, 2, 3]])], "grams") as grams:
        ...     list(grams), grams["layers.1"].output.matrix.shape
        (['layers.1'], (5, 5))
    """
    file, batches = Path(file), list(batches)
    if not batches:
        raise ValueError("`batches` must hold at least one batch.")
    linears, wanted = linear_layers(model, paths)
    made_for = calibration_identity(model, batches, seed, wanted, widest, configuration)
    if not file.exists() or (replace and not _is_intact(file, made_for)):

        def measurement(parts: GramParts) -> _Measurement:
            whole = (model, linears, wanted, widest, batches, seed, needed)
            return _Measurement(*whole, parts, track)

        _publish(file, made_for, measurement, replace=replace)
    grams = GramFile(file)
    try:
        check_measurement(file, grams.made_for, made_for)
    except ValueError:
        grams.close()
        raise
    discard_parts(file)
    return grams


def _publish(
    file: Path,
    made_for: Mapping[str, Any],
    measurement: Callable[[GramParts], _Measurement],
    *,
    replace: bool,
) -> None:
    """Measure what is missing of a file, and put it there; parts that are damaged begin anew."""
    parts = GramParts.begun_anew(file, made_for) if replace else GramParts(file, made_for)
    resumed = parts.finished > 0
    try:
        with np.errstate(invalid="ignore", over="ignore"):  # refused by name, not warned of
            measurement(parts).measure()
    except FormatError:
        if not (replace and resumed):
            raise
        discard_parts(file)
        _publish(file, made_for, measurement, replace=replace)
        return
    except BaseException as error:
        if not parts.finished or isinstance(error, ValueError):  # which would come again
            discard_parts(file)
        raise
    parts.publish()


def _is_intact(file: Path, made_for: Mapping[str, Any]) -> bool:
    """Tell whether a file of Grams is of this measurement, with every byte of it."""
    try:
        with GramFile(file) as grams:
            check_measurement(file, grams.made_for, made_for)
            grams.check()
    except FormatError:
        return False
    return True


@dataclass(frozen=True)
class _Measurement:
    """One measurement: part 0 is what follows the blocks, part i the i-th block from the end.

    One more, if there is something to be measured before the blocks, is that.
    """

    model: nn.Module
    linears: Modules
    wanted: Sequence[str]
    widest: int
    batches: Sequence[mx.array]
    seed: int
    needed: bool
    parts: GramParts
    track: Track

    def measure(self) -> None:
        """Finish all parts: through the blocks to the end, then back from the last to the first."""
        chain = BlockChain.of(self.model, self.linears, self.wanted, self.batches[0][:1])
        if chain is None:
            if not self.parts.finished:
                self._at_once()
            return
        if not self.parts.finished:
            self._forwards(chain)
        last = -1 if chain.early else 0
        numbers = range(len(chain.blocks) - self.parts.finished, last - 1, -1)
        for number in self.track(numbers, "calibrating, block by block"):
            if number < 0:
                self._before(chain)
            else:
                self._backwards(chain, number)

    def _draws(self) -> Iterable[tuple[mx.array, mx.array]]:
        """Return the batches, each with its key."""
        return zip(self.track(self.batches, "calibrating"), keys(self.seed), strict=False)

    def _at_once(self) -> None:
        """The whole model as one part."""
        recorder = self._recording(self.linears, self.wanted)
        recorder.pull_back_model(self.model, self._draws())
        self.parts.finish(recorder, recorder.tokens)

    def _recorder(self, chain: BlockChain, block: str | None) -> LossRecorder:
        """Return a recorder for the layers of one block, or for those after the blocks."""
        linears = {p: m for p, m in self.linears.items() if chain.block_of(p) == block}
        wanted = [p for p in self.wanted if chain.block_of(p) == block and p not in chain.early]
        return self._recording(linears, wanted)

    def _recording(self, linears: Modules, wanted: Sequence[str]) -> LossRecorder:
        return LossRecorder(linears, wanted, widest=self.widest, needed=self.needed)

    def _forwards(self, chain: BlockChain) -> None:
        """Keep the input of every block and the gradient at the output of the last one."""
        recorder, last = self._recorder(chain, None), len(chain.blocks)
        with ExitStack() as stack:
            files = [*map(self._input, range(last)), self._gradient(last)]
            *inputs, gradients = (stack.enter_context(written(file)) for file in files)
            for batch, key in self._draws():
                y = self._through(chain, batch, inputs)
                gradient = recorder.pull_back_loss(partial(chain.logits_from, batch), y, key)
                write_array(gradients, gradient, "gradient of the logits")
        self.parts.finish(recorder, recorder.tokens)

    def _through(self, chain: BlockChain, batch: mx.array, inputs: Sequence[BinaryIO]) -> mx.array:
        """Return the output of the last block, every input kept."""
        x, calls = chain.entry(batch)
        with using_numpy(self.linears):
            for stream, path, call in zip(inputs, chain.blocks, calls, strict=True):
                write_array(stream, x, f"input of '{path}'")
                y = call(x)
                self._check_finite(path, call, x, y)
                x = y
        return x

    def _check_finite(self, path: str, call: Call, x: mx.array, y: mx.array) -> None:
        """Name the layer whose inputs are the first that are not finite, else the block."""
        if mx.isfinite(y).all().item():
            return
        with intercepted(self.linears, GramRecorder().around):
            mx.eval(call(x))
        raise ValueError(
            f"the output of '{path}' must be finite, but is not, though what enters its linear "
            "layers is: look at its other weights."
        )

    def _backwards(self, chain: BlockChain, number: int) -> None:
        """The Grams of one block, and the gradient at its input."""
        path = list(chain.blocks)[number]
        recorder = self._recorder(chain, path)
        with (
            opened(self._input(number)) as inputs,
            opened(self._gradient(number + 1)) as gradients,
            written(self._gradient(number)) as pulled,
        ):
            for batch in self.batches:
                like, calls = chain.entry(batch)
                x, gradient = read_array(inputs, like), read_array(gradients, like)
                gradient = recorder.pull_back(calls[number], x, gradient)
                write_array(pulled, gradient, f"gradient of '{path}'")
        self.parts.finish(recorder, self.parts.tokens)
        self._input(number).unlink()
        self._gradient(number + 1).unlink()

    def _before(self, chain: BlockChain) -> None:
        """The Grams of what is wanted before the blocks."""
        linears = {p: m for p, m in self.linears.items() if p in chain.early}
        recorder = self._recording(linears, chain.early)
        with opened(self._gradient(0)) as gradients:
            for batch in self.batches:
                gradient = read_array(gradients, chain.entry(batch)[0])
                entry = partial(self._entry, chain, batch)
                recorder.pull_back(entry, mx.array(0.0), gradient)
        self.parts.finish(recorder, self.parts.tokens)
        self._gradient(0).unlink()

    def _entry(self, chain: BlockChain, batch: mx.array, _: mx.array) -> mx.array:
        return chain.entry(batch)[0]

    def _input(self, number: int) -> Path:
        return self.parts.folder / f"input.{number}"

    def _gradient(self, number: int) -> Path:
        return self.parts.folder / f"gradient.{number}"
