"""What every way of storing a matrix costs in bytes and in nats per token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray
from plastic_core import Backbone, GramRoot, difference, error_feedback, predicted_cost
from plastic_core.quantize import BITS
from plastic_runtime import LossGrams

from plastic_export.arrays import MLX_DTYPES
from plastic_export.lossplan import Candidate, Offer, Offered, packed_bytes
from plastic_export.matrices import FLOATS, module_path, stored_parts
from plastic_export.reader import Checkpoint
from plastic_export.track import Track, untracked

GROUP_SIZES = (64, 32)  # the first one that divides the inputs
DAMPING = 1e-2
"""Added to both Grams, as a fraction of the mean eigenvalue (heuristic)."""


def candidate(checkpoint: Checkpoint, name: str) -> Candidate | None:
    """The matrix ``name`` as a candidate; None if no group size divides its inputs."""
    out, in_ = checkpoint.shape(name)
    group_size = next((g for g in GROUP_SIZES if in_ % g == 0), None)
    if group_size is None:
        return None
    stored = stored_parts(name, checkpoint.tensors)
    return Candidate(
        name=name,
        shape=(out, in_),
        # The scales' type where the weight is packed; those of the mx and nv modes are no floats.
        dtype=next((t.dtype for t in stored if t.dtype in FLOATS), "BF16"),
        group_size=group_size,
        source_bytes=sum(t.nbytes for t in stored),
    )


def rounded(
    weight: NDArray[np.float32], bits: int, gram: NDArray[np.float64], m: Candidate
) -> Backbone:
    """The weight in ``bits`` bits, as both a price and a written file mean it."""
    dtype = MLX_DTYPES[m.dtype]
    return error_feedback(weight, bits, gram, group_size=m.group_size, dtype=dtype)


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Add the name of the matrix to what is refused in the block."""
    try:
        yield
    except ValueError as error:
        error.add_note(f"at {name!r}")
        raise


def price(
    checkpoint: Checkpoint,
    candidates: Sequence[Candidate],
    grams: Mapping[str, LossGrams],
    *,
    track: Track = untracked,
) -> tuple[Offered, ...]:
    """Quantise every matrix to every number of bits and predict what each costs.

    One matrix is in memory at a time, besides the Grams.

    Args:
        checkpoint: The open source.
        candidates: The matrices, each with Grams.
        grams: Both Grams by module path.
        track: Wraps the loop over the matrices.

    Returns:
        What each offers, in the order of ``candidates``: every number of bits that makes it
        smaller than it is in the source, then as it is, at no cost.

    Raises:
        FormatError: If a weight cannot be read or is not finite.
        ValueError: If a weight cannot be quantised, or nothing was measured at its layer.
    """
    found: dict[str, Offered] = {}
    seen, root = None, GramRoot(None)
    for m in track(_by_site(candidates, grams), "pricing"):
        weight, both = checkpoint.matrix(m.name), grams[module_path(m.name)]
        with blaming(m.name):
            if both.input is not seen:
                seen, root = both.input, GramRoot.of(both.input.matrix, damping=DAMPING)
            found[m.name] = _priced(weight, m, both, root)
    return tuple(found[m.name] for m in candidates)


def _by_site(candidates: Sequence[Candidate], grams: Mapping[str, LossGrams]) -> list[Candidate]:
    """Matrices with the same inputs one after the other, so that their root is made once."""
    sites: dict[int, list[Candidate]] = defaultdict(list)
    for m in candidates:
        sites[id(grams[module_path(m.name)].input)].append(m)
    return [m for site in sites.values() for m in site]


def _priced(
    weight: NDArray[np.float32], m: Candidate, grams: LossGrams, inputs: GramRoot
) -> Offered:
    outputs = GramRoot.of(grams.output.matrix, damping=DAMPING)
    offers = []
    for bits in BITS:
        nbytes = packed_bytes(m.shape, bits, m.group_size, m.dtype)
        if nbytes < m.source_bytes:
            change = difference(weight, rounded(weight, bits, grams.input.matrix, m))
            cost = predicted_cost(change, inputs=inputs, outputs=outputs)
            offers.append(Offer(bits, nbytes, cost))
    offers.append(Offer(None, m.source_bytes, 0.0))
    return Offered(**asdict(m), offers=tuple(offers))
