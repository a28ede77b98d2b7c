"""The layers of a loaded model whose components are turned, exchanged in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from plastic_core.files import MLX_DTYPES, FormatError

from plastic_runtime.dialling.strips import StoredMatrix, Strip

Added = Mapping[Strip, mx.array]
"""Components that a layer is given, by the tensor that they belong to."""


class TurnedLayer:
    """One layer of a model, and how many of its components are awake.

    Args:
        model: The model.
        module: The layer as it stands in the model.
        stored: What the folder stores of it.
        folder: The folder, for messages.

    Attributes:
        rank: How many components are awake.

    Raises:
        FormatError: If the layer is not what is loaded from that folder.
    """

    def __init__(
        self, model: nn.Module, module: nn.Module | None, stored: StoredMatrix, folder: Path
    ) -> None:
        self.stored = stored
        self._model, self._folder = model, folder
        if module is None:
            raise self._foreign("is not there")
        self.module = module
        self.rank = self._rank()

    def turn(self, rank: int, added: Added) -> nn.Module | None:
        """Have other components awake: the first ones of the folder.

        Args:
            rank: How many.
            added: The components from the present rank to ``rank``; none where it is lower.

        Returns:
            The module that is to take the place of the present one; None where that stays.

        Cost:
            A copy of what stays, one tensor at a time.
        """
        before, self.rank = self.rank, rank
        if rank == 0:
            self.module = self.module["base"]
            return self.module
        if before == 0:
            self.module = self._with_correction(rank)
        for strip in self.stored.strips:
            part = self.module[strip.side]
            new = added.get(strip)
            if before:
                kept = mx.take(part[strip.leaf], mx.arange(min(before, rank)), axis=strip.axis)
                new = kept if new is None else mx.concatenate([kept, new], axis=strip.axis)
            mx.eval(new)
            setattr(part, strip.leaf, new)
        return self.module if before == 0 else None

    def check_growth(self) -> None:
        """Refuse to grow a layer that the model file of the folder cannot build.

        Raises:
            FormatError: Saying what to do.
        """
        if self.rank == 0 and not hasattr(self._model, "with_correction"):
            reason = "no component of it is awake, or its plastic_model.py is of an older version"
            remedy = "write it with all of them awake first: `plastic dial OUT NEW --full`"
            raise FormatError.about(self._folder, reason, remedy)

    def _with_correction(self, rank: int) -> nn.Module:
        """Return a layer of the model's own kind beside the present one."""
        r, base = self.stored.record, self.module
        layer: Any = self._model.with_correction(base, *reversed(r.shape), rank)
        if self.stored.is_packed:
            u, v = r.factor_group_sizes
            layer.u = layer.u.to_quantized(u, r.factor_bits)
            layer.v = layer.v.to_quantized(v, r.factor_bits)
        layer.train(base.training)
        found: nn.Module = layer
        return found

    def _rank(self) -> int:
        if "v" not in self.module or "u" not in self.module:
            if "scales" not in self.module or self.stored.record.bits is None:
                raise self._foreign(f"is {type(self.module).__name__}")
            return 0
        rank: int = self.module["v"]["weight"].shape[0]
        for strip in self.stored.strips:
            held = self.module[strip.side].get(strip.leaf)
            if held is None or held.dtype != MLX_DTYPES[strip.dtype]:
                raise self._foreign(f"has other numbers in {strip.side!r}")
            if held.shape != strip.shape(rank) or rank > self.stored.components:
                raise self._foreign(f"has the shape {held.shape} in {strip.side!r}")
        return rank

    def _foreign(self, reason: str) -> FormatError:
        return FormatError.about(
            self._folder,
            f"the model was not loaded from it: its layer {self.stored.path!r} {reason}",
            "load it with mlx_lm.load or plastic_export.load_model, and change no types",
        )
