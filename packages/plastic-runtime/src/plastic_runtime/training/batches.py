"""mlx-lm's batches, from any position on: the order of the data is a function of the seed."""

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import numpy as np

Batches = Callable[..., Iterator[Any]]


class ResumableBatches:
    """A form of mlx-lm's ``iterate_batches`` that goes on where a training was cut.

    Every epoch of a training (``loop=True``) is one pass of the function given, its order drawn
    from a seed made of ``seed`` and the number of the epoch. So a position is one number, the
    batches taken so far, and nothing else has to be remembered. A validation (``loop=False``) has
    the same order every time, and so its first batches are always the same ones. NumPy's global
    random state is seeded by mlx-lm at the start of each pass.

    Args:
        iterate_batches: mlx-lm's, or one that takes the same arguments.
        seed: The seed of the order of the data.
        position: Batches of the training that were taken before.

    Raises:
        ValueError: If ``position`` is negative.

    Examples:
        >>> def in_order(dataset, batch_size, max_seq_length, seed):
        ...     yield from dataset
        >>> batches = ResumableBatches(in_order, position=2)
        >>> stream = batches(["a", "b", "c"], 1, 64, loop=True)
        >>> [next(stream) for _ in range(3)]
        ['c', 'a', 'b']
    """

    def __init__(self, iterate_batches: Batches, *, seed: int = 0, position: int = 0) -> None:
        if position < 0:
            raise ValueError(f"`position` must not be negative, got {position}.")
        self._iterate = iterate_batches
        self.seed = seed
        self.position = position

    def __call__(
        self, dataset: Any, batch_size: int, max_seq_length: int, loop: bool = False, **options: Any
    ) -> Iterator[Any]:
        """Yield batches as mlx-lm's function does, forever with ``loop``."""

        def epoch(number: int) -> Iterator[Any]:
            seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
            return self._iterate(dataset, batch_size, max_seq_length, seed=seed, **options)

        if not loop:
            yield from epoch(0)
            return
        first, skipped = divmod(self.position, max(1, len(dataset) // batch_size))
        for number in count(first):
            # Number 0 is the order of a validation.
            yield from islice(epoch(number + 1), skipped, None)
            skipped = 0
