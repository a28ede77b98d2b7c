"""The properties of MLX's own linear layers that the package needs."""

import copy

import mlx.core as mx
import mlx.nn as nn

from plastic_core.linalg import as_matrix

Linear = nn.Linear | nn.QuantizedLinear


def dense_weight(linear: Linear) -> mx.array:
    """Return the weight of ``linear``, dequantised where it is packed; shape ``(out, in)``.

    Raises:
        TypeError: If ``linear`` is neither ``nn.Linear`` nor ``nn.QuantizedLinear``.

    Examples:
        >>> dense_weight(nn.Linear(64, 3).to_quantized(group_size=32, bits=4)).shape
        (3, 64)
    """
    if isinstance(linear, nn.QuantizedLinear):
        return mx.dequantize(
            linear.weight,
            linear.scales,
            linear.biases,
            group_size=linear.group_size,
            bits=linear.bits,
            mode=linear.mode,
        )
    if isinstance(linear, nn.Linear):
        return linear.weight
    raise TypeError(
        f"`linear` must be an nn.Linear or nn.QuantizedLinear, got {type(linear).__name__}."
    )


def linear_shape(linear: Linear) -> tuple[int, int]:
    """Return ``(out, in)`` of the weight of ``linear``, whatever its packing.

    Raises:
        TypeError: If ``linear`` is neither ``nn.Linear`` nor ``nn.QuantizedLinear``.

    Examples:
        >>> linear_shape(nn.Linear(64, 3).to_quantized(group_size=32, bits=4))
        (3, 64)
    """
    if isinstance(linear, nn.QuantizedLinear):
        return linear.weight.shape[0], linear.scales.shape[1] * linear.group_size
    out, inner = dense_weight(linear).shape
    return out, inner


def is_stack(module: object) -> bool:
    """Tell whether a module is a stack of experts, such as mlx-lm's ``SwitchLinear``.

    Examples:
        >>> is_stack(nn.Linear(2, 2))
        False
    """
    return all(hasattr(module, name) for name in ("num_experts", "output_dims", "input_dims"))


def linear_from(weight: mx.array, bias: mx.array | None) -> nn.Linear:
    """Return an ``nn.Linear`` that holds these very arrays; ``None`` stands for no bias.

    Examples:
        >>> linear_from(mx.array([[1.0, 2.0]]), None)(mx.array([3.0, 4.0])).tolist()
        [11.0]
    """
    linear = nn.Linear.__new__(nn.Linear)  # __init__ would draw weights from the global state
    nn.Module.__init__(linear)  # type: ignore[no-untyped-call]
    linear.weight = weight
    if bias is not None:
        linear.bias = bias
    return linear


def quantized(
    linear: nn.Linear, group_size: int | None, bits: int | None, mode: str
) -> nn.QuantizedLinear:
    """Return ``linear`` quantised; ``ValueError`` if not finite, which ``mx.quantize`` hides."""
    as_matrix(linear.weight, "weight")
    result: nn.QuantizedLinear = linear.to_quantized(group_size, bits, mode)
    return result


def without_bias(linear: Linear) -> Linear:
    """Return a layer that shares the arrays of ``linear`` but for its bias."""
    bare = copy.copy(linear)
    bare.pop("bias", None)
    return bare
