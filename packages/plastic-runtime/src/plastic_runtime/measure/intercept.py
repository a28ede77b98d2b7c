"""Modules by path; and what they compute, watched or altered, forwards and backwards."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

AS_LINEAR = "as_linear"
"""The method by which an embedding is the output layer too; also the last part of its path there"""


class BoundCall:
    """The computation of a module, with all that it is given beside its input.

    Attributes:
        args: What it is given by place.
        kwargs: And by name.

    Examples:
        >>> call = BoundCall(lambda module, x, factor: factor * x, nn.Identity(), (3,), {})
        >>> call(mx.array(2.0)).item()
        6.0
    """

    def __init__(
        self,
        function: Callable[..., Any],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self._function, self._module = function, module
        self.args, self.kwargs = args, kwargs

    def __call__(self, x: mx.array) -> Any:
        """Compute it of an input."""
        return self._function(self._module, x, *self.args, **self.kwargs)


Interceptor = Callable[[str, BoundCall, mx.array], mx.array]


def modules_by_path(model: nn.Module) -> dict[str, nn.Module]:
    """Return all modules of a model in alphabetical order, itself under the empty path.

    Examples:
        >>> list(modules_by_path(nn.Sequential(nn.Linear(2, 2))))
        ['', 'layers.0']
    """
    return dict(sorted(model.named_modules()))  # type: ignore[no-untyped-call]


@contextmanager
def intercepted(modules: Mapping[str, nn.Module], around: Interceptor) -> Iterator[None]:
    """Replace every call ``module(x)`` by ``around(path, call, x)``, then put all back.

    ``call(x)`` is the module's own computation, a `BoundCall`. What an embedding computes as the
    output layer of tied weights goes by its path with ``.as_linear``. Only the class of each module
    changes, to a subclass of its own one, so attributes, ``isinstance``, parameters and paths stay
    what they are inside the block, and the very same classes are back after it, also on an
    exception.
    A module under two paths goes by the first.

    Examples:
        >>> linear = nn.Linear(2, 2)
        >>> with intercepted({"": linear}, lambda path, call, x: x):
        ...     linear(mx.ones(2)).tolist()
        [1.0, 1.0]
    """
    kinds = {id(module): (module, type(module)) for module in modules.values()}
    paths = {id(module): path for path, module in reversed(list(modules.items()))}
    watching: list[type[nn.Module]] = []
    try:
        for identity, (module, kind) in kinds.items():
            watching.append(_watching(kind, paths[identity], around))
            _set_class(module, watching[-1])
        yield
    finally:
        for module, kind in kinds.values():
            _set_class(module, kind)
        for watcher in watching:  # a class lives until it is collected; what it watched need not
            for name in {"__call__", AS_LINEAR} & vars(watcher).keys():
                delattr(watcher, name)


def tapped(
    y: mx.array | list[mx.array], beside: mx.array, record: Callable[[mx.array, mx.array], None]
) -> Any:
    """Return ``y`` itself; the backward pass hands the gradient at ``y`` to ``record``.

    Args:
        y: What a layer computes. Some fused projections return it in parts: the gradient of these
            comes as one array, joined along the last axis.
        beside: What the gradient is recorded with. Its own gradient is zero; MLX follows ``y`` as
            soon as it follows either of the two.
        record: Takes ``beside``, as the backward pass has it, and the gradient.

    Examples:
        >>> seen = []
        >>> def loss(x):
        ...     y = tapped(2 * x, x, lambda x, gradient: seen.append((x.item(), gradient.item())))
        ...     return 3 * y
        >>> mx.grad(loss)(mx.array(5.0)).item()
        6.0
        >>> seen
        [(5.0, 3.0)]
    """

    @mx.custom_function
    def tap(y: mx.array, beside: mx.array) -> mx.array:
        return y

    @tap.vjp
    def backward(primals: Any, gradient: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
        record(primals[1], gradient)
        return gradient, mx.zeros_like(primals[1])

    if isinstance(y, mx.array):
        return tap(y, beside)
    ends = np.cumsum([part.shape[-1] for part in y])[:-1].tolist()
    return cast(mx.array, tap(mx.concatenate(y, axis=-1), beside)).split(ends, axis=-1)


def _watching(kind: type[nn.Module], path: str, around: Interceptor) -> type[nn.Module]:
    """Return a subclass of ``kind`` that computes through ``around``."""

    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> mx.array:
        if not args:  # a model may give even its hidden states by name
            args = (kwargs.pop(_first_parameter(kind)),)
        return around(path, BoundCall(kind.__call__, self, args[1:], kwargs), args[0])

    def as_linear(self: nn.Module, x: mx.array) -> mx.array:
        return around(f"{path}.{AS_LINEAR}", BoundCall(getattr(kind, AS_LINEAR), self, (), {}), x)

    members: dict[str, Any] = {"__call__": __call__, "__module__": kind.__module__}
    if hasattr(kind, AS_LINEAR):
        members[AS_LINEAR] = as_linear
    return type(kind.__name__, (kind,), members)


def _first_parameter(kind: type[nn.Module]) -> str:
    """Return the name of what a module takes first."""
    _, name, *_ = inspect.signature(kind.__call__).parameters
    return name


def _set_class(module: nn.Module, kind: type[nn.Module]) -> None:
    object.__setattr__(module, "__class__", kind)  # nn.Module has a __setattr__ of its own
