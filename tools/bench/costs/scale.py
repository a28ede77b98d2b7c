"""How much is measured: what the targets speak of, or little, to see that everything runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from costs.shapes import HIDDEN, INNER, LAYERS, VOCABULARY


@dataclass(frozen=True)
class Scale:
    """Sizes of everything that is measured.

    Attributes:
        windows: Windows of the calibration text for the real model.
        window: Tokens of each.
        steps: The steps of DWQ.
        side: Of the one matrix.
        layers: Of the model on paper, as `hidden`, `inner`, `vocabulary`.
        block_windows: Windows of 256 tokens that one of its blocks is measured with.
        budgets: Bits per weight of the plans by cheap and by full prices.
        vocabularies: Of the made-up models that are calibrated.
        width: Of these models, and their windows of 256 tokens.
        grown_width: Of the models that grow.
        grown_windows: Four numbers of windows of 128 tokens.
        grown_blocks: Four numbers of blocks.
    """

    windows: int = 64
    window: int = 512
    steps: int = 200
    side: int = 4096
    layers: int = LAYERS
    hidden: int = HIDDEN
    inner: int = INNER
    vocabulary: int = VOCABULARY
    block_windows: tuple[int, int] = (1, 4)
    budgets: tuple[float, ...] = (2.5, 3.5, 4.5)
    vocabularies: tuple[int, ...] = (49_152, 262_144)
    width: int = 640
    width_windows: int = 4
    grown_width: int = 256
    grown_windows: tuple[int, ...] = (16, 32, 64, 128)
    grown_blocks: tuple[int, ...] = (2, 4, 8, 16)


FULL_SCALE = Scale()
QUICK = replace(
    FULL_SCALE,
    windows=48,
    window=16,
    steps=1,
    side=128,
    layers=2,
    hidden=128,
    inner=256,
    vocabulary=1024,
    block_windows=(1, 2),
    budgets=(3.5,),
    vocabularies=(1024,),
    width=128,
    width_windows=1,
    grown_width=64,
    grown_windows=(1, 2, 3, 4),
    grown_blocks=(1, 2, 3, 4),
)
