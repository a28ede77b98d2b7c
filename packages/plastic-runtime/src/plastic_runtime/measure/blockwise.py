"""The Grams of every linear layer into a file, with those of one block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from plastic_core.files import FormatError

from plastic_runtime.distributed import (
    Team,
    await_file,
    check_alike,
    hand_on,
    stretch,
    taken_over,
)
from plastic_runtime.measure.block_chain import BlockChain, Release, keep
from plastic_runtime.measure.gram_file import GramFile
from plastic_runtime.measure.gram_identity import calibration_identity, check_measurement
from plastic_runtime.measure.grams import LONGEST_DENSE_SIDE, GramRecorder
from plastic_runtime.measure.intercept import intercepted
from plastic_runtime.measure.progress import Track, untracked
from plastic_runtime.measure.recorder import Call, LossRecorder, Modules, linear_layers
from plastic_runtime.measure.sampled_loss import draws
from plastic_runtime.measure.spool import SpooledArrays, spool_name, write_array, written
from plastic_runtime.measure.unfinished_grams import GramParts, discard_parts

LOGITS = 2**23
"""Logits in memory at a time: 32 MiB, and their probabilities and gradients beside them."""
TRIAL = 32  # tokens that show whether a model is a chain


def measure_grams(
    model: nn.Module,
    batches: Iterable[mx.array],
    file: str | Path,
    *,
    seed: int = 0,
    paths: Sequence[str] | None = None,
    widest: int = LONGEST_DENSE_SIDE,
    gradients: int | None = None,
    configuration: Mapping[str, Any] | None = None,
    replace: bool = False,
    needed: bool = True,
    release: Release = keep,
    track: Track = untracked,
    team: Team | None = None,
) -> GramFile:
    r"""Write the Grams of ``loss_grams`` to a file, block by block, and open it.

    The blocks are the items of ``model.layers``. Each in turn is run forwards on all batches, which
    completes its input Grams, and what leaves it is kept on disk; then the gradient at the output
    of the last one is taken, for a few logits at a time. Then, from the last block to the first,
    each is run once more, forwards and backwards, on what was kept, which completes its output
    Grams; last come layers before the blocks, such as embeddings. Labels are those of
    ``loss_grams`` and so are the Grams, up to the rounding of float32, if gradients are taken of
    all batches; the bytes are the same for any number of threads. A model whose
    ``layers`` do not feed one another, or are given something else by a wanted layer before them,
    is one block: its Grams are all in memory, and a cut run begins again.

    What is not finished waits in the folder ``<file>.parts``. A later call with the same model,
    configuration, seed, paths and batches goes on after its last finished block, to bit for bit
    the same file, or opens the file if it is complete.

    Several processes share the batches: each has a stretch of them. Every sum is handed from
    process to process, and each goes on with its own batches from the bits that it was given, so
    the file is that of one process, whatever their number; a run that was cut may go on with
    another number. While one is at a part, the one before it is at the next. All of them see the
    folder of the file.

    Args:
        model: Maps tokens ``(batch, length)`` to logits ``(batch, length, vocabulary)``. It is run
            as it is, in its own types, and put back exactly, also when a pass fails.
        batches: Its inputs. One batch is held with its activations within one block.
        file: File to write. Its folder exists.
        seed: Decides the labels.
        paths: The layers to measure, by path.
        widest: The longest side of a dense Gram, see ``loss_grams``.
        gradients: Of how many batches, spread evenly, gradients are taken; by default of all.
        configuration: What the model was built from, in JSON's types: the file is of it as well.
        replace: Whether a file of another measurement, a damaged one, or parts of such are
            replaced and not refused. The old file stays until the new one is complete.
        needed: Whether a layer that no gradient reaches is refused; else it is left out, like one
            that is not run: what chooses among tokens or experts has none.
        release: Called with the path of a block that has been run, which may then forget what it
            has read and read it anew when it runs again.
        track: Wraps the loops over the blocks and over the logits, with what they do.
        team: The processes that measure together, each with the same arguments; by default this
            one alone. There are no more of them than batches.

    Returns:
        The file, open.

    Raises:
        ValueError: If a path is not that of a linear layer, ``batches`` is empty, an activation
            or a gradient has NaN or infinities (the layer is named), no gradient reaches a
            layer that is needed, or the file or its parts are of another model, configuration,
            seed, choice of layers or text, damaged, or of an earlier layout.
        OSError: If a file cannot be read or written.

    Note:
        In memory: what is not released of the model, the weights of one block once more in
        float32, ``4 in^2`` bytes for every layer of it, then ``4 out^2``, the activations of one
        batch, and three times `LOGITS` numbers. On disk: ``2 (in^2 + out^2)`` bytes per layer for
        good, and meanwhile, in float32, what enters one block, and every block of the batches that
        gradients are taken of. Time per layer: a forward pass and ``in^2`` operations in float32
        per token; where gradients are taken, a forward and a backward pass and ``out^2`` more.
        Of P processes each does a P-th of that, and waits P - 1 times for the longest part. Each
        but one sends the bytes of every Gram once. A model of one block is measured by one
        process after the other, with no gain.

    Examples:
        >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
        >>> with measure_grams(model, [mx.array([[1, 2, 3]])], "grams") as grams:
        ...     list(grams), grams["layers.1"].output.matrix.shape
        (['layers.1'], (5, 5))
    """
    file, batches, team = Path(file), list(batches), team or Team()
    if not batches:
        raise ValueError("`batches` must hold at least one batch.")
    _check_enough(batches, team)
    pulled = _evenly_spread(len(batches) if gradients is None else gradients, len(batches))
    linears, wanted = linear_layers(model, paths)
    made_for = calibration_identity(
        model, batches, seed, wanted, widest, len(pulled), configuration, release=release
    )
    check_alike(team, file, {"measurement": made_for})
    missing = team.leads and (not file.exists() or (replace and not _is_intact(file, made_for)))
    if team.told(missing):

        def measurement(parts: GramParts) -> _Measurement:
            whole = (model, linears, wanted, widest, batches, pulled, seed, needed)
            return _Measurement(*whole, parts, release, track, team)

        _publish(file, made_for, measurement, team, replace=replace)
    await_file(file)
    grams = GramFile(file)
    try:
        check_measurement(file, grams.made_for, made_for)
    except ValueError:
        grams.close()
        raise
    if team.leads:
        discard_parts(file)
    return grams


def _check_enough(batches: Sequence[mx.array], team: Team) -> None:
    """Refuse more processes than there are batches to share."""
    if team.size > len(batches):
        raise ValueError(
            f"there must be at most as many processes as batches of the text, "
            f"{len(batches)} of up to {batches[0].size} tokens, got {team.size}; start fewer, or "
            "take more text."
        )


def _evenly_spread(count: int, size: int) -> frozenset[int]:
    """Return at most ``count`` of the numbers below ``size``, the middles of equal parts."""
    if count < 1:
        raise ValueError(f"`gradients` must be at least 1, got {count}.")
    count = min(count, size)
    return frozenset((2 * i + 1) * size // (2 * count) for i in range(count))


def _publish(
    file: Path,
    made_for: Mapping[str, Any],
    measurement: Callable[[GramParts], _Measurement],
    team: Team,
    *,
    replace: bool,
) -> None:
    """Measure what is missing of a file, and put it there; parts that are damaged begin anew."""
    if not team.leads:
        team.gathered(None)  # the parts are in order
        measurement(GramParts(file, made_for)).measure()
        team.gathered(None)  # the file is there
        return
    parts = GramParts.begun_anew(file, made_for) if replace else GramParts(file, made_for)
    team.gathered(None)
    resumed = parts.finished > 0
    try:
        with np.errstate(invalid="ignore", over="ignore"):  # refused by name, not warned of
            measurement(parts).measure()
    except FormatError:
        if not (replace and resumed) or team.size > 1:
            raise
        discard_parts(file)
        _publish(file, made_for, measurement, team, replace=replace)
        return
    except BaseException as error:
        if not parts.finished or isinstance(error, ValueError):  # which would come again
            discard_parts(file)
        raise
    parts.publish()
    team.gathered(None)


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
    """One measurement, part by part.

    Part 0 is what runs before the blocks, part i the i-th block forwards: their inputs. Then come
    what follows the blocks, the blocks backwards from the last to the first and, if something is
    to be measured there, what runs before them: the gradients.
    """

    model: nn.Module
    linears: Modules
    wanted: Sequence[str]
    widest: int
    batches: Sequence[mx.array]
    pulled: frozenset[int]
    seed: int
    needed: bool
    parts: GramParts
    release: Release
    track: Track
    team: Team

    def measure(self) -> None:
        """Finish all parts: through the blocks to the end, then back from the last to the first."""
        few = self.batches[0][:1, :TRIAL]
        chain = BlockChain.of(self.model, self.linears, self.wanted, few, self.release)
        if chain is None:
            if not self.parts.finished:
                self._at_once()
            return
        count = len(chain.blocks)
        if self.team.leads:
            self.parts.keep(spooled(self.parts.finished, count))
        self.team.gathered(None)  # nobody writes what is about to be removed
        if not self.parts.finished:
            self._enter(chain)
        forwards = range(self.parts.finished - 1, count)
        for number in self.track(forwards, "calibrating, forwards"):
            self._through(chain, number)
        if self.parts.finished == count + 1:
            self._leave(chain)
        last = -1 if chain.early else 0
        backwards = range(2 * count + 1 - self.parts.finished, last - 1, -1)
        for number in self.track(backwards, "calibrating, backwards"):
            if number < 0:
                self._before(chain)
            else:
                self._backwards(chain, number)

    def _mine(self) -> range:
        """Return the numbers of the batches of this process: the first process has the last."""
        return stretch(len(self.batches), self.team.size - 1 - self.team.rank, self.team.size)

    def _draws(self) -> Iterable[tuple[int, mx.array, np.random.Generator]]:
        """Return the batches of this process by number, each with what draws its labels."""
        mine = self._mine()
        of_all = islice(draws(self.seed), mine.start, mine.stop)
        numbers = self.track(mine, "calibrating, logits")
        for number, draw in zip(numbers, of_all, strict=True):
            yield number, self.batches[number], draw

    def _pulled(self) -> list[int]:
        """Return those of its batches of which gradients are taken."""
        return [number for number in self._mine() if number in self.pulled]

    def _begin(self, recorder: LossRecorder) -> LossRecorder:
        """Let a recorder go on from the sums of the process that has the batches before these."""
        before = self.team.rank + 1
        if before < self.team.size:
            recorder.go_on_from(*taken_over(self.team, before))
        return recorder

    def _finish(self, recorder: LossRecorder, tokens: int, *used: str) -> None:
        """Hand the sums of a part on; the process that is the last to have them keeps the part.

        What was spooled for it under the names ``used`` has been read by all processes then.
        """
        if not self.team.leads:
            hand_on(self.team, self.team.rank - 1, recorder.running_sums(), tokens)
            self.parts.pass_over()
            return
        self.parts.finish(recorder, tokens)
        for name in used:
            self.parts.remove(name)

    def _written(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file for the arrays of the batches of this process."""
        return written(self.parts.folder / spool_name(name, self._mine().start))

    def _spooled(self, chain: BlockChain, name: str) -> SpooledArrays:
        """Return the arrays of a name, of all batches or of those that gradients are taken of."""
        some = range(len(self.batches)) if name.startswith("input") else self.pulled

        def entries(number: int) -> int:
            return chain.entry(self.batches[number])[0].size if number in some else 0

        return SpooledArrays(self.parts.folder, name, entries)

    def _at_once(self) -> None:
        """The whole model as one part."""
        recorder = self._begin(self._recorder(self.linears, self.wanted))
        vocabulary = self.model(self.batches[0][:1, :1]).shape[-1]
        for number, batch, draw in self._draws():
            rows = max(1, LOGITS // (batch.shape[1] * vocabulary))
            parts = [batch[i : i + rows] for i in range(0, len(batch), rows)]
            if number in self.pulled:
                recorder.pull_back_model(self.model, ((part, draw) for part in parts))
            else:
                for part in parts:
                    recorder.pass_through(self.model, part)
        self._finish(recorder, recorder.tokens)

    def _within(self, chain: BlockChain, block: str | None, *, both: bool = False) -> LossRecorder:
        """Return a recorder for the layers of one block, or for those after the blocks."""
        linears = self._inside(chain, block)
        wanted = [p for p in self.wanted if chain.block_of(p) == block and p not in chain.early]
        return self._begin(self._recorder(linears, wanted, both=both))

    def _ahead(self, chain: BlockChain) -> LossRecorder:
        """Return one for those before the blocks."""
        linears = {p: m for p, m in self.linears.items() if p in chain.early}
        return self._begin(self._recorder(linears, chain.early, both=False))

    def _inside(self, chain: BlockChain, block: str | None) -> dict[str, nn.Module]:
        """Return the layers of one block, or those outside."""
        return {p: m for p, m in self.linears.items() if chain.block_of(p) == block}

    def _recorder(
        self, linears: Modules, wanted: Sequence[str], *, both: bool = True
    ) -> LossRecorder:
        return LossRecorder(linears, wanted, widest=self.widest, needed=self.needed, both=both)

    def _enter(self, chain: BlockChain) -> None:
        """Keep what enters the first block."""
        recorder, entry = self._ahead(chain), partial(self._entry, chain)
        with self._written("input.0") as inputs, self._written("kept.0") as kept:
            for number in self._mine():
                x = recorder.pass_through(entry, self.batches[number])
                self._keep(number, x, inputs, kept, f"input of '{next(iter(chain.blocks))}'")
        self._finish(recorder, 0)

    def _through(self, chain: BlockChain, number: int) -> None:
        """The input Grams of one block; keep its output."""
        path = list(chain.blocks)[number]
        recorder = self._within(chain, path)
        with (
            self._spooled(chain, f"input.{number}") as inputs,
            self._written(f"input.{number + 1}") as outputs,
            self._written(f"kept.{number + 1}") as kept,
        ):
            for i in self._mine():
                like, calls = chain.entry(self.batches[i])
                x = inputs.read(i, like)
                y = recorder.pass_through(calls[number], x)
                try:
                    self._keep(i, y, outputs, kept, "y")
                except ValueError:
                    raise self._not_finite(path, calls[number], x) from None
        self.release(path)
        self._finish(recorder, 0, f"input.{number}")

    def _keep(self, number: int, x: mx.array, stream: BinaryIO, kept: BinaryIO, what: str) -> None:
        """Write an array for the next block and, where it is needed again, for the way back."""
        write_array(stream, x, what)
        if number in self.pulled:
            write_array(kept, x, what)

    def _not_finite(self, path: str, call: Call, x: mx.array) -> ValueError:
        """Name the layer whose inputs are the first that are not finite, else the block."""
        with intercepted(self.linears, GramRecorder().around):
            mx.eval(call(x))
        return ValueError(
            f"the output of '{path}' must be finite, but is not, though what enters its linear "
            "layers is: look at its other weights."
        )

    def _leave(self, chain: BlockChain) -> None:
        """The Grams of what follows the blocks, and the gradient at the output of the last one."""
        last = len(chain.blocks)
        recorder = self._within(chain, None, both=True)
        with (
            self._spooled(chain, f"input.{last}") as inputs,
            self._written(f"gradient.{last}") as gradients,
        ):
            for number, batch, draw in self._draws():
                y = inputs.read(number, chain.entry(batch)[0])
                if number in self.pulled:
                    gradient = self._after(chain, recorder, batch, y, draw)
                    write_array(gradients, gradient, "gradient of the logits")
                else:
                    recorder.pass_up_to_last(partial(chain.logits_from, batch), y)
        self._finish(recorder, recorder.tokens, f"input.{last}", f"kept.{last}")

    def _after(
        self,
        chain: BlockChain,
        recorder: LossRecorder,
        batch: mx.array,
        y: mx.array,
        draw: np.random.Generator,
    ) -> mx.array:
        """Return the gradient at the output of the last block, from a few logits at a time."""
        shape, few = y.shape, max(1, LOGITS // chain.vocabulary)
        if chain.is_pointwise:
            batch, y = batch.reshape(1, -1), y.reshape(1, -1, *shape[2:])
            parts = [(slice(None), slice(i, i + few)) for i in range(0, batch.size, few)]
        else:
            rows = max(1, few // shape[1])
            parts = [(slice(i, i + rows), slice(None)) for i in range(0, len(batch), rows)]
        pulled = []
        for part in parts:
            logits = partial(chain.logits_from, batch[part])
            pulled.append(recorder.pull_back_loss(logits, y[part], draw))
        return mx.concatenate(pulled, axis=1 if chain.is_pointwise else 0).reshape(shape)

    def _backwards(self, chain: BlockChain, number: int) -> None:
        """The Grams of one block, and the gradient at its input."""
        path = list(chain.blocks)[number]
        recorder = self._within(chain, path)
        with (
            self._spooled(chain, f"kept.{number}") as inputs,
            self._spooled(chain, f"gradient.{number + 1}") as gradients,
            self._written(f"gradient.{number}") as pulled,
        ):
            for place, i in enumerate(self._pulled()):
                batch = self.batches[i]
                like, calls = chain.entry(batch)
                x, gradient = inputs.read(i, like), gradients.read(i, like)
                if place == 0:
                    _, trial = chain.entry(batch[:1, :TRIAL])
                    recorder.spare(trial[number], x[:1, :TRIAL], gradient[:1, :TRIAL])
                gradient = recorder.pull_back(calls[number], x, gradient)
                write_array(pulled, gradient, f"gradient of '{path}'")
        self.release(path)
        used = f"kept.{number}", f"gradient.{number + 1}"
        self._finish(recorder, self.parts.tokens, *used)

    def _before(self, chain: BlockChain) -> None:
        """The gradients of what is wanted before the blocks."""
        recorder = self._ahead(chain)
        with self._spooled(chain, "gradient.0") as gradients:
            for i in self._pulled():
                batch = self.batches[i]
                gradient = gradients.read(i, chain.entry(batch)[0])

                def entry(_: mx.array, batch: mx.array = batch) -> mx.array:
                    return self._entry(chain, batch)

                recorder.pull_back(entry, mx.array(0.0), gradient)
        self._finish(recorder, self.parts.tokens, "gradient.0")

    def _entry(self, chain: BlockChain, batch: mx.array) -> mx.array:
        return chain.entry(batch)[0]


def spooled(finished: int, blocks: int) -> set[str]:
    """Return the names under which arrays are spooled once so many parts are finished. Pure.

    Args:
        finished: Parts of a `_Measurement`.
        blocks: The blocks of its model.

    Examples:
        >>> sorted(spooled(2, blocks=3)), sorted(spooled(5, blocks=3))
        (['input.1', 'kept.0', 'kept.1'], ['gradient.3', 'kept.0', 'kept.1', 'kept.2'])
    """
    if not finished:
        return set()
    back = finished - blocks - 2  # blocks that gradients have come through
    if back < 0:
        return {f"input.{finished - 1}"} | {f"kept.{number}" for number in range(finished)}
    return {f"gradient.{blocks - back}"} | {f"kept.{number}" for number in range(blocks - back)}
