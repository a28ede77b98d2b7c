"""The dial on a loaded model: its size, turned in place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from plastic_core.files import Closing

from plastic_runtime.dialling.asked_size import AskedSize
from plastic_runtime.dialling.components import FolderComponents
from plastic_runtime.dialling.layers import Added, TurnedLayer
from plastic_runtime.dialling.spending import Ranks

POINTS = 17
"""How many sizes a curve has unless another number is asked for."""


class Sizes(NamedTuple):
    """The ends of a dial, in bytes of all weights.

    Examples:
        >>> Sizes(1000, 2000).largest
        2000
    """

    least: int
    largest: int


class DialStop(NamedTuple):
    """One size of a curve.

    Attributes:
        nbytes: Bytes of all weights.
        fraction: The same over those with everything awake.
        price: What the components asleep cost, in the unit ``Dial.priced_in``.
        ranks: Components awake of every matrix that has any, by tensor name.
        asked: The bytes to ask for to get it: a strategy that is asked for ``nbytes`` itself may
            choose less.

    Examples:
        >>> DialStop(1000, 0.5, 0.02, {"w": 3}, 1010).price
        0.02
    """

    nbytes: int
    fraction: float
    price: float
    ranks: dict[str, int]
    asked: int


class Dial(Closing):
    """A loaded model whose size is turned in place, from the components that its folder stores.

    To turn it down frees memory; to turn it up reads what is missing from the folder, whose files
    stay open: the bits are those of a model that was loaded at that size. Everything outside of
    the turned layers stays, a cache of keys and values too, so it may be turned between two tokens.

    A compiled function sees the change where it is given the model as an input, as in
    ``mx.compile(step, inputs=model.state)``: the shapes are others, so its next call compiles it
    anew. One that was compiled without goes on with the weights that it was compiled with, and
    keeps them in memory.

    One thread turns at a time; the model must not run meanwhile.

    Args:
        model: The model that mlx-lm, or ``plastic_export.load_model``, made of the folder, at any
            size.
        folder: The folder, of the format ``"corrected"`` or ``"factored"``. Only headers and the
            manifest are read.

    Raises:
        FormatError: If the folder is damaged, has no components or no prices of them, or the model
            was not loaded from it.
        BusyError: If another process is writing the folder.
        OSError: If a file cannot be read.

    Examples:
        >>> model = load_factored("FACTORED")
        >>> with Dial(model, "FACTORED") as dial:
        ...     dial.to(fraction=0.8) <= 0.8 * dial.largest
        ...     dial.to(bytes=dial.largest) == dial.nbytes == dial.largest
        True
        True
    """

    def __init__(self, model: nn.Module, folder: str | Path) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._components = FolderComponents(Path(folder))
        try:
            modules = dict(model.named_modules())  # type: ignore[no-untyped-call]
            self._layers = {
                name: TurnedLayer(model, modules.get(stored.path), stored, Path(folder))
                for name, stored in self._components.matrices.items()
            }
        except BaseException:
            self.close()
            raise

    @property
    def ranks(self) -> dict[str, int]:
        """Components awake of every matrix that has any, by tensor name."""
        return {name: layer.rank for name, layer in self._layers.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all weights now."""
        return self._components.sizes.nbytes(self.ranks)

    @property
    def fraction(self) -> float:
        """The same over those with everything awake."""
        return self.nbytes / self.largest

    @property
    def least(self) -> int:
        """Bytes of all weights at the least ranks."""
        return self._components.sizes.least

    @property
    def largest(self) -> int:
        """Bytes of all weights with everything awake that the folder stores."""
        return self._components.sizes.largest

    @property
    def sizes(self) -> Sizes:
        """The least and the largest size."""
        return Sizes(self.least, self.largest)

    @property
    def priced_in(self) -> str:
        """The unit of prices: ``"nats per token"``, or ``"energy asleep"`` without any prices.

        The first is the predicted rise of the KL divergence to the source. The second is the
        fraction of the squared spectra that is asleep, where a strategy chose the ranks.
        """
        return self._components.sizes.priced_in

    def to(self, *, bytes: int | None = None, fraction: float | None = None) -> int:
        """Turn the model to the best size that is not larger than what is asked for.

        The same argument gives the same bits, whatever was asked for before: those of a model that
        was loaded at that size.

        Args:
            bytes: Bytes of all weights. Files are larger by their headers.
            fraction: The same, as a fraction of ``largest``.

        Returns:
            The bytes of all weights now.

        Raises:
            ValueError: If not exactly one is given, or it is below the least or above the largest
                size; both are named.
            TypeError: If it is not a number.
            FormatError: If the folder changed. The model is as it was.

        Cost:
            Reads what is missing, and copies what stays of every matrix that is turned, one matrix
            at a time.
        """
        size = AskedSize.of({"bytes": bytes, "fraction": fraction})
        with self._lock:
            ranks = self._components.sizes.ranks_within(size)
            self._turn({name: r for name, r in ranks.items() if r != self._layers[name].rank})
            return self.nbytes

    def curve(self, points: int = POINTS) -> list[DialStop]:
        """Return sizes from the least to the largest, increasing, and what each costs.

        Args:
            points: How many at most, at least 2, evenly apart.

        Raises:
            ValueError: If there are fewer.
        """
        if points < 2:
            raise ValueError(f"`points` must be at least 2, got {points}")
        found = {}
        for n in np.linspace(self.least, self.largest, points).astype(int).tolist():
            stop = self._stop(n)
            found[stop.nbytes] = stop
        return [found[n] for n in sorted(found)]

    def close(self) -> None:
        """Close the files of the folder. The model stays at its size."""
        self._components.close()

    def _stop(self, asked: int) -> DialStop:
        sizes = self._components.sizes
        ranks = sizes.ranks_within(AskedSize("bytes", asked))
        nbytes = sizes.nbytes(ranks)
        return DialStop(nbytes, nbytes / self.largest, sizes.price(ranks), ranks, asked)

    def _turn(self, ranks: Ranks) -> None:
        """Read all that is missing, then turn layer by layer."""
        read = {name: self._missing(name, rank) for name, rank in ranks.items()}
        exchanged = {}
        with _without_cache():
            for name, rank in ranks.items():
                layer = self._layers[name]
                module = layer.turn(rank, read.pop(name))
                if module is not None:
                    exchanged[layer.stored.path] = module
        self._model.update_modules(tree_unflatten(list(exchanged.items())))

    def _missing(self, name: str, rank: int) -> Added:
        layer = self._layers[name]
        if rank <= layer.rank:
            return {}
        layer.check_growth()
        read = self._components.read
        return {strip: read(strip, layer.rank, rank) for strip in layer.stored.strips}


@contextmanager
def _without_cache() -> Iterator[None]:
    """Have MLX give back what is freed at once, and put nothing small into a larger buffer."""
    limit = mx.set_cache_limit(0)
    try:
        mx.clear_cache()
        yield
    finally:
        mx.set_cache_limit(limit)
