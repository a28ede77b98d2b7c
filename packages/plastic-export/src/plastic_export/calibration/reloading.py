"""Blocks of a model that forget what they have read of its files, and read it again."""

from __future__ import annotations

from collections.abc import Callable

import mlx.nn as nn
from plastic_runtime.measure import modules_by_path


class Reloading:
    """Gives modules of a loaded model the parameters of a freshly loaded one, none of them read.

    MLX reads a parameter when it is first computed with, and keeps it as long as the model has it.

    Args:
        model: The model.
        load: Loads it once more, and reads nothing.

    Examples:
        >>> model = load_model("SRC")
        >>> forget = Reloading(model, lambda: load_model("SRC"))
        >>> before = model(mx.array([[5, 6, 7]]))
        >>> forget("model.layers.0")
        >>> mx.array_equal(model(mx.array([[5, 6, 7]])), before).item()
        True
    """

    def __init__(self, model: nn.Module, load: Callable[[], nn.Module]) -> None:
        self._modules, self._load = modules_by_path(model), load
        self._unread: dict[str, nn.Module] = {}

    def __call__(self, path: str) -> None:
        """Let the module at a path forget what it has read."""
        if path not in self._unread:
            self._unread = modules_by_path(self._load())
        unread = self._unread.pop(path)
        self._modules[path].update(unread.parameters())  # type: ignore[no-untyped-call]
