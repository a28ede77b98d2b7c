"""The size of a run that was given none: what mlx-lm's own LoRA takes with its defaults."""

from __future__ import annotations

from collections.abc import Mapping

RANK, BLOCKS, ITEM = 8, 16, 4  # of mlx_lm.lora: its rank, its last blocks, bytes of float32


def default_size(shapes: Mapping[str, tuple[int, int]]) -> int:
    """Return the bytes of the factors that ``mlx_lm.lora`` trains without options.

    That is rank 8 in float32 on the linear layers of the last 16 blocks; its file is larger by a
    header.

    Args:
        shapes: Shape ``(out, in)`` of the layers to adapt, by path. Those in no numbered block,
            such as a head, count for nothing; where there are no others all of them count.

    Examples:
        >>> default_size({f"layers.{i}.q_proj": (64, 64) for i in range(20)})
        65536
    """
    blocks = {path: number for path in shapes if (number := _block(path)) is not None}
    last = sorted({*blocks.values()})[-BLOCKS:]
    taken = {path: shapes[path] for path, number in blocks.items() if number in last} or shapes
    return sum(ITEM * min(RANK, *shape) * sum(shape) for shape in taken.values())


def _block(path: str) -> int | None:
    """Return the number of the block that a layer is in."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)
