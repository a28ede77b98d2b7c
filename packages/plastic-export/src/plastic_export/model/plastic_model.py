"""A stock mlx-lm model with some of its linear layers stored as thin matrices.

This file lies beside a factored checkpoint and is what mlx-lm runs when it is given
--trust-remote-code. It imports mlx and mlx-lm, nothing else. config.json names the
architecture ("stock"), and the layers that are stored otherwise, by path:

    "model_type": "llama",
    "quantization_config": {},
    "architectures": ["PlasticLlamaForCausalLM"],
    "model_file": "plastic_model.py",
    "plastic": {
        "version": 3,
        "stock": {"architectures": ["LlamaForCausalLM"]},
        "ranks": {"model.layers.0.self_attn.q_proj": 43, ...},
        "corrected": {"model.layers.0.mlp.up_proj": {"rank": 9, "backbone": true, ...}, ...}
    }

Tools that know no factors refuse a quantisation without a method, or that name; else they would
run random matrices.

A layer of "ranks" with weight W = u.weight @ v.weight has the tensors

    <path>.v.weight (r, in)     <path>.u.weight (out, r)     <path>.u.bias (out,), if it has one

A layer of "corrected" with weight W = base.weight + u.weight.T @ v.weight has the tensors

    <path>.v.weight (r, in)     <path>.u.weight (r, out)     <path>.base.weight (out, in)

and <path>.base.bias (out,), if it has one; without "backbone" no <path>.base, but <path>.bias. All
three are packed, with scales and biases beside them, where "quantization" has an entry for
<path>.v, <path>.u or <path>.base.

A folder can be loaded at another size: by an entry "plastic_dial": {"fraction": 0.5} of config.json
or of the model_config of mlx_lm.load, which goes before the environment variable PLASTIC_DIAL, such
as fraction=0.5, which goes before config.json. That needs the package plastic-runtime.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.utils import _get_classes

VERSION = 3
READS = (2, 3)  # version 2 names the architecture where every config.json does
SIZE = "plastic_dial"  # the entry that states another size
VARIABLE = "PLASTIC_DIAL"


@dataclass
class ModelArgs:
    """The stock model's class and arguments, the layers that are stored otherwise, and the size."""

    model_class: type
    args: Any
    ranks: dict[str, int]
    corrected: dict[str, dict[str, Any]]
    size: Any = None

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "ModelArgs":
        """Read them from the content of config.json, which then says what is loaded."""
        size = loaded_size(config)
        if size is not None:
            config.update(size.config(config))
        plastic = config["plastic"]
        if plastic["version"] not in READS:
            raise ValueError(
                f"config.json: the factored format has version {plastic['version']}, this "
                f"plastic_model.py reads version {VERSION}; take the file of the same release"
            )
        stock = {**config, **plastic.get("stock", {})}
        model_class, args_class = _get_classes(stock)
        args = args_class.from_dict(stock)
        return cls(model_class, args, plastic["ranks"], plastic["corrected"], size)


def loaded_size(config: dict[str, Any]) -> Any:
    """The folder of this file at another size; None where nobody asks for one."""
    stated = stated_size(config)
    if not stated:
        return None
    try:
        from plastic_runtime.dialling import LoadedSize
    except ImportError:
        raise ImportError(
            f"{SIZE!r} or {VARIABLE} asks for another size, {stated!r}, which needs the package "
            "plastic-runtime; install it, or write that size with `plastic dial`"
        ) from None
    return LoadedSize(Path(__file__).parent, stated)


def stated_size(config: dict[str, Any]) -> Any:
    """The size that is asked for; None, if it was given as model_config, is that of the files."""
    file = Path(__file__).parent / "config.json"
    if not file.is_file():  # the copy in the package, which builds what a folder stores
        return None
    written = json.loads(file.read_text())
    if SIZE in config and (SIZE not in written or config[SIZE] != written[SIZE]):
        return config[SIZE]
    return os.environ.get(VARIABLE) or config.get(SIZE)


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


class CorrectedLinear(nn.Module):
    """y = base(x) + u(v(x)): a backbone and a correction of low rank, or that alone."""

    def __init__(self, inputs: int, outputs: int, rank: int, *, backbone: bool, bias: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.v = linear(inputs, rank, bias=False)
        self.u = Rows(mx.zeros((rank, outputs)))
        if backbone:
            self.base: nn.Module = linear(inputs, outputs, bias=bias)
        elif bias:
            self.bias = mx.zeros((outputs,))

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., in) to (..., out)."""
        y: mx.array = self.u(self.v(x))
        if "base" in self:
            y = self.base(x) + y
        return y + self.bias if "bias" in self else y


class Rows(nn.Module):
    """y = x @ weight: the weight (r, out) transposed, so that it packs whatever its rank.

    No nn.Linear, because tools that convert those take the last axis for the inputs.
    """

    def __init__(self, weight: mx.array) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weight = weight

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., r) to (..., out)."""
        return x @ self.weight

    def to_quantized(
        self, group_size: int | None = None, bits: int | None = None, mode: str = "affine"
    ) -> "QuantizedRows":
        """Pack the weight along the outputs, as nn.quantize asks for it."""
        return QuantizedRows(self.weight, group_size, bits, mode)


class QuantizedRows(nn.Module):
    """`Rows` with a packed weight."""

    def __init__(
        self, weight: mx.array, group_size: int | None, bits: int | None, mode: str
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.group_size, self.bits, self.mode = group_size, bits, mode
        self.weight, self.scales, *biases = mx.quantize(weight, group_size, bits, mode=mode)
        if biases:
            self.biases = biases[0]
        self.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., r) to (..., out)."""
        return mx.quantized_matmul(
            x,
            self.weight,
            scales=self.scales,
            biases=self.get("biases"),
            transpose=False,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )


def linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    """An nn.Linear of zeros; unlike nn.Linear itself it allows no inputs, for rank 0."""
    layer = nn.Linear(1, 1, bias=bias)
    layer.weight = mx.zeros((outputs, inputs))
    if bias:
        layer.bias = mx.zeros((outputs,))
    return layer


def replacements(args: ModelArgs, layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The stand-ins for the stock model's layers, by path."""
    found: dict[str, nn.Module] = {}
    for path, rank in args.ranks.items():
        inputs, outputs, bias = sizes(path, layers.get(path))
        found[path] = FactorLinear(inputs, outputs, rank, bias=bias)
    for path, entry in args.corrected.items():
        inputs, outputs, bias = sizes(path, layers.get(path))
        rank, backbone = entry["rank"], entry["backbone"]
        found[path] = CorrectedLinear(inputs, outputs, rank, backbone=backbone, bias=bias)
    return found


def sizes(path: str, layer: nn.Module | None) -> tuple[int, int, bool]:
    """Inputs and outputs of the stock model's layer at this path, and whether it has a bias."""
    if type(layer) is not nn.Linear:
        raise ValueError(
            f"config.json: 'plastic' gives a rank to {path!r}, which is no linear layer "
            "of this model; restore the config.json that was written with the weights"
        )
    outputs, inputs = layer.weight.shape
    return inputs, outputs, "bias" in layer


class Factored:
    """What is mixed into the stock class: layers of our own, out of reach of its sanitize."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args.args)  # type: ignore[call-arg]
        self.dialled = args.size
        layers = dict(self.named_modules())  # type: ignore[attr-defined]
        found = replacements(args, layers)
        self.factored = {path: layers[path].weight.shape for path in found}
        self.update_modules(tree_unflatten(list(found.items())))  # type: ignore[attr-defined]

    def with_correction(
        self, base: nn.Module, inputs: int, outputs: int, rank: int
    ) -> CorrectedLinear:
        """A layer with a correction of zeros beside a layer that has none."""
        layer = CorrectedLinear(inputs, outputs, rank, backbone=False, bias=False)
        layer.base = base
        return layer

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Let the stock class rename and reshape its own tensors, but not ours.

        Weights of zeros stand in for ours, or it would take the head for missing and tie it.
        """
        if self.dialled is not None:
            with self.dialled:
                weights = self.dialled.weights(weights)
        ours = tuple(f"{path}." for path in self.factored)
        kept = {name: weight for name, weight in weights.items() if name.startswith(ours)}
        stock = {name: weight for name, weight in weights.items() if name not in kept}
        standing = {f"{path}.weight": mx.zeros(shape) for path, shape in self.factored.items()}
        if hasattr(super(), "sanitize"):
            stock = super().sanitize(stock | standing)  # type: ignore[misc]
        own = {name: weight for name, weight in stock.items() if name not in standing}
        return own | kept


def Model(args: ModelArgs) -> nn.Module:
    """Build the model: the stock class in everything except its factored layers."""
    stock = args.model_class
    members = {"__module__": stock.__module__, "__qualname__": stock.__qualname__}
    model: nn.Module = type(stock.__name__, (Factored, stock), members)(args)
    return model
