"""The names of tensors in GGUF, for those of mlx-lm's models."""

from __future__ import annotations

from typing import Any

from plastic_core.files import FormatError

from plastic_export.gguf.package import gguf_package

_SUFFIXES = (".weight", ".bias")


class TensorNames:
    """The names of one model, by what the package ``gguf`` knows of its architecture.

    Args:
        architecture: The architecture, such as ``"llama"``.
        blocks: How many blocks it has.
        where: What the model is called in messages.
    """

    def __init__(self, architecture: str, blocks: int, where: Any) -> None:
        package = gguf_package()
        known = {name: arch for arch, name in package.MODEL_ARCH_NAMES.items()}
        self._map = package.get_tensor_name_map(known[architecture], blocks)
        self._where, self._architecture = where, architecture

    def of(self, name: str) -> str:
        """Return the name in GGUF.

        Raises:
            FormatError: If the architecture has no such tensor there.
        """
        found: str | None = self._map.get_name(name, try_suffixes=_SUFFIXES)
        if found is None:
            reason = f"the architecture {self._architecture!r} of GGUF has no such tensor"
            remedy = "`plastic gguf` prints the commands of llama.cpp's converter"
            raise FormatError.about(self._where, reason, remedy, tensor=name)
        return found


def tensor_kind(name: str) -> str:
    """Return the kind of a tensor, whatever its block.

    Examples:
        >>> tensor_kind("blk.12.attn_q.weight")
        'attn_q'
    """
    return next(part for part in name.split(".") if part != "blk" and not part.isdigit())
