"""A model as dense tensors, computed one at a time and forgotten before the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from plastic_core.files import FormatError, dtype_name

from plastic_export.checkpoint.packing import Packing
from plastic_export.checkpoint.tensors import FLOATS
from plastic_export.folder.shards import as_float32
from plastic_export.merging.dense_layers import DenseForm, Values, dense_form
from plastic_export.merging.over_base import OverBase
from plastic_export.model.library import brief, mlx_lm_utils
from plastic_export.model.load import load_watched


@dataclass(frozen=True)
class DenseTensor:
    """A tensor of a dense model.

    Attributes:
        name: Its name in mlx-lm's model.
        dtype: The type of what is stored of it: ``"F32"``, ``"F16"`` or ``"BF16"``.
        shape: Its shape.
        values: Computes it in float32.
        packing: How it is packed where it is nothing but codes; None otherwise.
        layer: The layer whose weight it is where that is not plain.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: Callable[[], Values]
    packing: Packing | None = None
    layer: nn.Module | None = None

    @property
    def is_plain(self) -> bool:
        """Tell whether it is stored as it is."""
        return self.layer is None


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
        self._model = _loaded(source, with_adapter=with_adapter)
        self._file = source.checkpoint.folder / "config.json"
        modules = dict(self._model.named_modules())  # type: ignore[no-untyped-call]
        forms = {path: dense_form(module) for path, module in modules.items()}
        self._layers = {path: modules[path] for path, form in forms.items() if form}
        self._parameters: dict[str, list[str]] = {}
        self._plain_arrays: dict[str, mx.array] = {}
        self.tensors = list(self._listed({p: form for p, form in forms.items() if form}))

    def forget(self, tensor: DenseTensor) -> None:
        """Free what was read for a tensor; it cannot be computed again."""
        self._plain_arrays.pop(tensor.name, None)
        nothing = [(name, mx.zeros(0)) for name in self._parameters.pop(tensor.name)]
        self._model.update(tree_unflatten(nothing))

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
            raise FormatError.about(self._file.parent, reason, remedy, tensor=name)
        self._plain_arrays[name] = array
        self._parameters[name] = [] if of_layer else [name]
        return DenseTensor(name, dtype, array.shape, lambda: as_float32(self._plain_arrays[name]))


def _loaded(source: OverBase, *, with_adapter: bool) -> nn.Module:
    """Load the checkpoint with the adapter laid over it, nothing read yet."""
    folder = source.checkpoint.folder
    model = load_watched(folder, lambda weights: weights, with_adapter=False)
    if source.adapter is None or not with_adapter:
        return model
    return _adapted(model, source.adapter)


def _adapted(model: nn.Module, adapter: Path) -> nn.Module:
    try:
        laid: nn.Module = mlx_lm_utils().load_adapters(model, str(adapter))
    except (FormatError, OSError, MemoryError):
        raise
    except Exception as error:  # mlx-lm's own code, which raises what it likes
        reason = f"mlx-lm cannot lay it over the checkpoint: {brief(error)}"
        raise FormatError.about(adapter, reason, "name the checkpoint it was made for") from error
    return laid.eval()


def _named_arrays(module: nn.Module) -> list[tuple[str, mx.array]]:
    flat: Any = tree_flatten(module.parameters())  # type: ignore[no-untyped-call]
    return list(flat)


def _parents(name: str) -> Iterator[str]:
    """``"a.b.c"`` -> ``"a"``, ``"a.b"``: a layer before the layers that it is made of."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts)))
