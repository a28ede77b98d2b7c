"""A linear layer over factors, in the language of MLX's own tools."""

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from plastic_core.factors.factors import Factors
from plastic_core.layer.checks import check_factors, check_shape
from plastic_core.layer.mlx_linear import Linear, dense_weight, linear_from, quantized, without_bias


class FactoredLinear(nn.Module):
    """The half of ``RankLayer`` that does not change its rank: how it computes and converts."""

    U: mx.array
    S: mx.array
    Vh: mx.array
    base: Linear | None

    def __init__(
        self,
        U: mx.array,
        S: mx.array,
        Vh: mx.array,
        *,
        base: Linear | None = None,
        bias: mx.array | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        check_factors(U, S, Vh)
        self.U, self.S, self.Vh = U, S, Vh
        self.base = base
        if bias is not None:
            check_shape("bias", bias, self.shape[:1])
            self.bias = bias
        if base is not None:
            check_shape("base", dense_weight(base), self.shape)
            if "bias" in self and "bias" in base:
                raise ValueError("`bias` must be None where `base` has a bias of its own.")
            base.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the layer to ``x`` of shape ``(..., in)``; returns shape ``(..., out)``."""
        y = ((x @ self.Vh.T) * self.S) @ self.U.T
        if self.base is not None:
            backbone = self.base(x)
            y = backbone + y.astype(backbone.dtype)
        return y + self.bias if "bias" in self else y

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.U.shape[0], self.Vh.shape[1]

    @property
    def rank(self) -> int:
        """Number of components in the plastic part."""
        return self.S.shape[0]

    @property
    def max_rank(self) -> int:
        """``min(out, in)``."""
        return min(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of ``U``, ``S`` and ``Vh``."""
        return self.U.nbytes + self.S.nbytes + self.Vh.nbytes

    def children(self) -> dict[str, Any]:
        """Return nothing: for MLX's walks over modules the layer is one leaf, backbone included.

        So ``model.unfreeze()`` does not reach the backbone, and tools that convert layers meet this
        one and not the ``nn.Linear`` inside. ``parameters()`` does contain the backbone's arrays.
        """
        return {}

    def factors(self) -> Factors:
        """Return the plastic part as it is stored."""
        return Factors(self.U, self.S, self.Vh)

    @property
    def weight(self) -> mx.array:
        """The dense ``W``, shape ``(out, in)``, of the backbone's dtype, else that of the factors.

        MLX's tools ask a linear layer for it, mostly for its shape: it is lazy, so that is free.
        """
        plastic = Factors(*(a.astype(mx.float32) for a in self.factors())).dense()
        if self.base is None:
            return plastic.astype(self.U.dtype)
        W = dense_weight(self.base)
        return (W.astype(mx.float32) + plastic).astype(W.dtype)

    def to_linear(self) -> nn.Linear:
        """Return the dense layer, backbone included, as a stock ``nn.Linear``."""
        owner = self if self.base is None or "bias" in self else self.base
        return linear_from(self.weight, owner.get("bias"))

    def fuse(self, dequantize: bool = True) -> nn.Linear:
        """Return ``to_linear()``, under the name and keyword by which mlx-lm asks for it.

        The result is dense even where ``mlx_lm.fuse`` would rather have the quantised backbone's
        format (``dequantize=False``): quantising again would round the plastic part away.
        """
        return self.to_linear()

    def to_quantized(
        self, group_size: int | None = None, bits: int | None = None, mode: str = "affine"
    ) -> "nn.QuantizedLinear | FactoredLinear":
        """Return this layer with its dense weight quantised, as ``nn.quantize`` asks for it.

        Args:
            group_size: Entries per scale, by default that of ``mode``; it must divide ``in``.
            bits: Bits per entry, by default those of ``mode``.
            mode: A mode of ``mx.quantize``.

        Returns:
            Without a backbone an ``nn.QuantizedLinear`` of the product; with one a ``RankLayer``
            with the same factors over the quantised backbone; the layer itself where the backbone
            is quantised already.

        Raises:
            ValueError: If the weight is not finite, which ``mx.quantize`` would hide.
        """
        if self.base is None:
            return quantized(self.to_linear(), group_size, bits, mode)
        if isinstance(self.base, nn.QuantizedLinear):
            return self
        base = quantized(self.base, group_size, bits, mode)
        return type(self)(*self.factors(), base=base, bias=self.get("bias"))

    def to_lora(self, r: int = 8, dropout: float = 0.0, scale: float = 20.0) -> nn.Module:
        """Return mlx-lm's ``LoRALinear`` of rank ``r`` on top of this layer.

        Raises:
            ImportError: If mlx-lm is not installed.
        """
        from mlx_lm.tuner.lora import LoRALinear

        lora: nn.Module = LoRALinear.from_base(self._bias_outside(), r, dropout, scale)
        return lora

    def _extra_repr(self) -> str:
        out, inner = self.shape
        owner = self if self.base is None else self.base
        text = f"input_dims={inner}, output_dims={out}, rank={self.rank}, bias={'bias' in owner}"
        return text if self.base is None else f"{text}, base={self.base}"

    def _bias_outside(self) -> "FactoredLinear":
        """Return the layer with the backbone's bias as its own: ``LoRALinear.fuse`` looks there."""
        if self.base is None or "bias" not in self.base:
            return self
        layer = copy.copy(self)
        layer._no_grad = copy.copy(self._no_grad)
        layer.base, layer.bias = without_bias(self.base), self.base.bias
        layer.freeze(recurse=False, keys="bias")
        return layer
