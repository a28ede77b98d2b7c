"""The parameters of a model that healing trains, and stand-ins that compute in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from plastic_runtime.measure import modules_by_path

from plastic_export.healing.layers import (
    AdaptedLinear,
    DenseLinear,
    DenseRows,
    PackedEmbedding,
    PackedLinear,
    PackedRows,
)
from plastic_export.model.numpy_layers import REPLACED, NumpyEmbedding, NumpyLinear

_PLAIN = 0.5  # for a factor without codes; chosen with the learning rate
_NORM = 2.0**-4  # for the weights of a normalisation; at a quarter the divergence rises at first


class TrainedTensor(NamedTuple):
    """A parameter that healing trains.

    Attributes:
        tensor: Its name in the checkpoint or its adapter.
        fraction: What part of its root mean square moves a weight by about one step of the codes.
    """

    tensor: str
    fraction: float


def trainable(model: nn.Module) -> dict[str, TrainedTensor]:
    """Return what healing trains of a model that mlx-lm built, by the name of the parameter.

    Scales and biases of every affine-quantised layer, and low-rank factors that are not packed;
    where there are any, the weights and biases of normalisations as well.
    """
    from plastic_export.model.plastic_model import CorrectedLinear, FactorLinear

    found: dict[str, TrainedTensor] = {}
    wrapped = []  # by adapters: paths of linear layers, each called "linear"
    for path, module in modules_by_path(model).items():
        if _is_affine(module):
            owner = path.removesuffix(".linear") if path in wrapped else path
            for leaf in ("scales", "biases"):
                found[f"{path}.{leaf}"] = TrainedTensor(f"{owner}.{leaf}", 2.0 ** (1 - module.bits))
        elif type(module) in (FactorLinear, CorrectedLinear):
            plain = [f"{path}.{name}.weight" for name in "uv" if _is_plain(module[name])]
            found |= {name: TrainedTensor(name, _PLAIN) for name in plain}
        elif type(module) is _lora_linear():
            factors = [f"{path}.lora_{side}" for side in "ab"]
            found |= {name: TrainedTensor(name, _PLAIN) for name in factors}
            wrapped.append(f"{path}.linear")  # which comes after it
    return found | _of_normalisations(model) if found else found


def _of_normalisations(model: nn.Module) -> dict[str, TrainedTensor]:
    """The parameters of every module whose weight is a vector."""
    names = [
        f"{path}.{leaf}"
        for path, module in modules_by_path(model).items()
        if _is_vector(module.get("weight"))
        for leaf in ("weight", "bias")
        if _is_vector(module.get(leaf))
    ]
    return {name: TrainedTensor(name, _NORM) for name in names}


def _is_vector(value: object) -> bool:
    if not isinstance(value, mx.array):
        return False
    return value.ndim == 1 and mx.issubdtype(value.dtype, mx.floating)


def _is_plain(factor: nn.Module) -> bool:
    return not _is_affine(factor) and factor.weight.size > 0


def use_trainable_host_layers(model: nn.Module, trained: Container[str]) -> None:
    """Let a model compute in NumPy, its parameters in float32.

    Args:
        model: Changed in place.
        trained: Names of the parameters that a gradient is asked of; no other weight has one.
    """
    model.set_dtype(mx.float32)
    _replace(model, lambda path, module: _stand_in(path, module, trained))
    adapted = _lora_linear()
    _replace(model, lambda path, module: AdaptedLinear(module) if type(module) is adapted else None)


def _replace(model: nn.Module, choose: Callable[[str, nn.Module], nn.Module | None]) -> None:
    modules = model.named_modules()  # type: ignore[no-untyped-call]
    chosen = [(path, choose(path, module)) for path, module in modules]
    model.update_modules(tree_unflatten([(path, m) for path, m in chosen if m is not None]))


def _stand_in(path: str, module: nn.Module, trained: Container[str]) -> nn.Module | None:
    """Return what computes in NumPy instead of a module; None for what stays."""
    kind = _stand_ins().get(type(module))
    if kind is not None and (f"{path}.scales" in trained or f"{path}.weight" in trained):
        return kind(module)
    if isinstance(module, REPLACED) and type(module) in REPLACED:
        return NumpyLinear(module)
    return NumpyEmbedding(module) if type(module) is nn.Embedding else None


def _stand_ins() -> dict[type[nn.Module], Callable[[Any], nn.Module]]:
    from plastic_export.model.plastic_model import QuantizedRows, Rows  # which need mlx-lm

    return {
        nn.QuantizedLinear: PackedLinear,
        nn.QuantizedEmbedding: PackedEmbedding,
        QuantizedRows: PackedRows,
        nn.Linear: DenseLinear,
        Rows: DenseRows,
    }


def _is_affine(module: nn.Module) -> bool:
    """Tell whether it is an affine-quantised layer of those that have a stand-in."""
    packed = type(module) in _stand_ins() and "scales" in module
    return packed and getattr(module, "mode", None) == "affine"


def _lora_linear() -> type[nn.Module]:
    from mlx_lm.tuner.lora import LoRALinear

    found: type[nn.Module] = LoRALinear
    return found
