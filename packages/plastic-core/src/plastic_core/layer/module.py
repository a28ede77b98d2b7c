"""The class ``nn.Module`` as typed code calls it."""

import mlx.nn as nn


class Module(nn.Module):
    """The base of the project's layers: ``nn.Module`` with a typed ``__init__``.

    Examples:
        >>> class Doubled(Module):
        ...     def __call__(self, x):
        ...         return 2 * x
        >>> Doubled()(3)
        6
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
