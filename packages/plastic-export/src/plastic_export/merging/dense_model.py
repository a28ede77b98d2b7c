"""A model as dense tensors, computed one at a time and forgotten before the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from plastic_core.files import FormatError, dtype_name

from plastic_export.adapters.adapter import LoraPair
from plastic_export.checkpoint.packing import Packing
from plastic_export.checkpoint.tensors import FLOATS, module_path
from plastic_export.folder.shards import as_float32
from plastic_export.merging.dense_layers import DenseForm, Values, dense_form
from plastic_export.merging.over_base import OverBase
from plastic_export.model.load import load_watched


@dataclass(frozen=True)
class DenseTensor:
    """A tensor of a dense model.

    Attributes:
        name: Its name in mlx-lm's model.
        dtype: The type of what is stored of it: ``"F32"``, ``"F16"`` or ``"BF16"``.
        shape: Its shape.
        values: Computes it in float32, finite; a FormatError names it otherwise.
        packing: How it is packed where it is nothing but codes; None otherwise.
        layer: The layer whose weight it is where that is not plain.
        is_updated: Whether the update of an adapter is added to it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: Callable[[], Values]
    packing: Packing | None = None
    layer: nn.Module | None = None
    is_updated: bool = False

    @property
    def is_plain(self) -> bool:
        """Tell whether it is stored as it is."""
        return self.layer is None and not self.is_updated


class DenseModel:
    """The model of a checkpoint and its adapter as dense tensors, in the order of mlx-lm's model.

    Args:
        source: The checkpoint and its adapter.
        with_adapter: Whether the adapter is merged in.

    Attributes:
        tensors: The tensors. Nothing of them is read yet.

    Raises:
        FormatError: If mlx-lm cannot load it, or a tensor is neither numbers nor codes of MLX.
        ModuleNotFoundError: If mlx-lm is not installed.
        OSError: If a file is missing or cannot be read.
    """

    def __init__(self, source: OverBase, *, with_adapter: bool = True) -> None:
        folder = source.checkpoint.folder
        self._model = load_watched(folder, lambda weights: weights, with_adapter=False)
        adapter = source.adapter if with_adapter else None
        self._updates = {} if adapter is None else dict(adapter.layers)
        self._folder = folder
        modules = dict(self._model.named_modules())  # type: ignore[no-untyped-call]
        forms = {path: dense_form(module) for path, module in modules.items()}
        self._layers = {path: modules[path] for path, form in forms.items() if form}
        self._parameters: dict[str, list[str]] = {}
        self._plain_arrays: dict[str, mx.array] = {}
        found = {path: form for path, form in forms.items() if form}
        self.tensors = [self._finite(self._updated(t)) for t in self._listed(found)]
        self._check_updates()

    def forget(self, tensor: DenseTensor) -> None:
        """Free what was read for a tensor; it cannot be computed again."""
        self._plain_arrays.pop(tensor.name, None)
        nothing = [(name, mx.zeros(0)) for name in self._parameters.pop(tensor.name)]
        self._model.update(tree_unflatten(nothing))

    def _updated(self, tensor: DenseTensor) -> DenseTensor:
        """Return a tensor with the update of its layer, if the adapter has one."""
        pair = self._updates.pop(module_path(tensor.name), None)
        if pair is None:
            return tensor
        values = tensor.values
        return replace(
            tensor, values=lambda: _with_update(values(), pair), packing=None, is_updated=True
        )

    def _finite(self, tensor: DenseTensor) -> DenseTensor:
        """Return a tensor that refuses to be computed where it is not finite."""

        def values() -> Values:
            found = tensor.values()
            if not np.isfinite(found).all():
                reason, remedy = "it holds NaN or an infinity", "repair it"
                raise FormatError.about(self._folder, reason, remedy, tensor=tensor.name)
            return found

        return replace(tensor, values=values)

    def _check_updates(self) -> None:
        """Refuse an adapter with updates of layers that the model has not."""
        if self._updates:
            reason = f"the model has no layer {next(iter(self._updates))!r}, which the adapter has"
            remedy = "name the base that the adapter was made for"
            raise FormatError.about(self._folder, reason, remedy)

    def _listed(self, forms: dict[str, DenseForm]) -> Iterator[DenseTensor]:
        listed = set[str]()
        for name, array in _named_arrays(self._model):
            path = next((path for path in _parents(name) if path in forms), None)
            if path is None:
                yield self._plain(name, array)
            elif path not in listed:
                listed.add(path)
                yield from self._of_layer(path, forms[path])

    def _of_layer(self, path: str, form: DenseForm) -> Iterator[DenseTensor]:
        layer, name = self._layers[path], f"{path}.weight"
        self._parameters[name] = [f"{path}.{leaf}" for leaf, _ in _named_arrays(layer)]
        yield DenseTensor(name, form.dtype, form.shape, form.values, form.packing, layer)
        if form.bias is not None:
            yield self._plain(f"{path}.bias", form.bias, of_layer=True)

    def _plain(self, name: str, array: mx.array, *, of_layer: bool = False) -> DenseTensor:
        dtype = dtype_name(array)
        if dtype not in FLOATS:
            reason = f"it holds {dtype}, which is neither numbers nor codes of MLX"
            remedy = "take the checkpoint that it was made from"
            raise FormatError.about(self._folder, reason, remedy, tensor=name)
        self._plain_arrays[name] = array
        self._parameters[name] = [] if of_layer else [name]
        return DenseTensor(name, dtype, array.shape, lambda: as_float32(self._plain_arrays[name]))


def _with_update(values: Values, pair: LoraPair) -> Values:
    """Add the update of an adapter, in float32."""
    return values + np.float32(pair.scale) * (as_float32(pair.B) @ as_float32(pair.A))


def _named_arrays(module: nn.Module) -> list[tuple[str, mx.array]]:
    flat: Any = tree_flatten(module.parameters())  # type: ignore[no-untyped-call]
    return list(flat)


def _parents(name: str) -> Iterator[str]:
    """``"a.b.c"`` -> ``"a"``, ``"a.b"``: a layer before the layers that it is made of."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts)))
