"""A stock mlx-lm model with some of its linear layers stored as two thin matrices.

This file lies beside a factored checkpoint and is what mlx-lm runs when it is given
--trust-remote-code. It imports mlx and mlx-lm, nothing else. config.json names the
architecture as always ("model_type"), and the factored layers with their ranks:

    "model_file": "plastic_model.py",
    "plastic": {"version": 1, "ranks": {"model.layers.0.self_attn.q_proj": 43, ...}}

A layer of rank r with weight W = u.weight @ v.weight has the tensors

    <path>.v.weight (r, in)     <path>.u.weight (out, r)     <path>.u.bias (out,), if it has one
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.utils import _get_classes

VERSION = 1


@dataclass
class ModelArgs:
    """The stock model's class and arguments, and the rank of each factored layer."""

    model_class: type
    args: Any
    ranks: dict[str, int]

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "ModelArgs":
        """Read them from the content of config.json."""
        plastic = config["plastic"]
        if plastic["version"] != VERSION:
            raise ValueError(
                f"config.json: the factored format has version {plastic['version']}, "
                f"this plastic_model.py reads version {VERSION}; take the file of the same release"
            )
        model_class, args_class = _get_classes(config)
        return cls(model_class, args_class.from_dict(config), plastic["ranks"])


class FactorLinear(nn.Module):
    """y = u(v(x)): a linear layer of rank r that costs r (in + out) products instead of in * out.

    Both factors are real nn.Linear layers, so quantisation, LoRA and saving treat them as such.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, *, bias: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.v = linear(inputs, rank, bias=False)
        self.u = linear(rank, outputs, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., in) to (..., out)."""
        y: mx.array = self.u(self.v(x))
        return y


def linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    """An nn.Linear of zeros; unlike nn.Linear itself it allows no inputs, for rank 0."""
    layer = nn.Linear(1, 1, bias=bias)
    layer.weight = mx.zeros((outputs, inputs))
    if bias:
        layer.bias = mx.zeros((outputs,))
    return layer


def factor_linear(path: str, layer: nn.Module | None, rank: int) -> FactorLinear:
    """The two-factor stand-in for the stock model's layer at this path."""
    if type(layer) is not nn.Linear:
        raise ValueError(
            f"config.json: 'plastic' gives a rank to {path!r}, which is no linear layer "
            "of this model; restore the config.json that was written with the weights"
        )
    outputs, inputs = layer.weight.shape
    return FactorLinear(inputs, outputs, rank, bias="bias" in layer)


class Factored:
    """What is mixed into the stock class: factored layers, out of reach of its sanitize."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args.args)  # type: ignore[call-arg]
        self.factored = tuple(args.ranks)
        layers = dict(self.named_modules())  # type: ignore[attr-defined]
        factors = [(p, factor_linear(p, layers.get(p), r)) for p, r in args.ranks.items()]
        self.update_modules(tree_unflatten(factors))  # type: ignore[attr-defined]

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Let the stock class rename and reshape its own tensors, but not the factors."""
        ours = tuple(f"{path}.{factor}." for path in self.factored for factor in "uv")
        factors = {name: weight for name, weight in weights.items() if name.startswith(ours)}
        stock = {name: weight for name, weight in weights.items() if name not in factors}
        if hasattr(super(), "sanitize"):
            stock = super().sanitize(stock)  # type: ignore[misc]
        return stock | factors


def Model(args: ModelArgs) -> nn.Module:
    """Build the model: the stock class in everything except its factored layers."""
    stock = args.model_class
    members = {"__module__": stock.__module__, "__qualname__": stock.__qualname__}
    model: nn.Module = type(stock.__name__, (Factored, stock), members)(args)
    return model
