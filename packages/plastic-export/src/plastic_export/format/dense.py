"""``"dense"``: the product of the factors, which everything loads; the rest asleep."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from plastic_core import Certificate

from plastic_export.folder.shards import as_float32
from plastic_export.format.by_rank import RankFormat, stored_product
from plastic_export.format.errors import dense_certificate
from plastic_export.format.parts import Part, Parts, asleep_parts
from plastic_export.plan.offers import Candidate, Offer


class DenseFormat(RankFormat):
    """Weights of lower rank where the weights were, as large as before."""

    name = "dense"
    framework = "pt"
    about = "the product of the factors, loads everywhere and saves no bytes"

    def parts(self, m: Candidate, offer: Offer) -> Parts:
        """Return ``P.weight`` (out, in), plain."""
        if offer.rank == 0:
            return Parts()
        whole = Part(m.name, m.shape, m.dtype)
        return Parts(whole, None, None, *asleep_parts(m, offer))

    def awake(
        self,
        weight: NDArray[np.float32],
        U: NDArray[np.float32],
        V: NDArray[np.float32],
        dtype: str,
    ) -> tuple[mx.array, Certificate]:
        """Their product."""
        dense = stored_product(U, V, dtype)
        return dense, dense_certificate(weight, as_float32(dense))

    def how_to_run(self, out: Path, offers: Iterable[Offer]) -> list[str]:
        """Say what one must not expect of it."""
        return ["dense format: the file is as large as the source, the rank is lower"]
