"""The package ``gguf``, an extra: imported when it is needed."""

from __future__ import annotations

from types import ModuleType

HOW = "writing GGUF needs the package gguf; install the extra: pip install 'plastic-export[gguf]'"


def gguf_package() -> ModuleType:
    """Return ``gguf``.

    Raises:
        ModuleNotFoundError: Naming the extra, if it is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise ModuleNotFoundError(HOW, name="gguf") from None
    package: ModuleType = gguf
    return package
