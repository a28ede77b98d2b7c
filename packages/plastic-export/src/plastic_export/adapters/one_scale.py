"""One scale for all layers, for the forms that know no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import mlx.core as mx

from plastic_export.adapters.adapter import LoraPair


def with_one_scale(layers: Mapping[str, LoraPair]) -> tuple[dict[str, LoraPair], float]:
    """Return the same products with the scale that most layers have, and that scale.

    Where all have it nothing changes. Elsewhere ``B`` takes the quotient, in float32 unless its
    own dtype holds the result exactly.

    Args:
        layers: The updates by path, at least one.
    """
    scales = Counter(pair.scale for pair in layers.values() if pair.scale)
    scale = scales.most_common(1)[0][0] if scales else 1.0
    return {path: _rescaled(pair, scale) for path, pair in layers.items()}, scale


def _rescaled(pair: LoraPair, scale: float) -> LoraPair:
    if pair.scale == scale:
        return pair
    wide = pair.B.astype(mx.float32) * (pair.scale / scale)
    narrow = wide.astype(pair.B.dtype)
    is_exact = mx.array_equal(narrow.astype(mx.float32), wide).item()
    if is_exact:
        return LoraPair(pair.A, narrow, scale)
    return LoraPair(pair.A.astype(mx.float32), wide, scale)
