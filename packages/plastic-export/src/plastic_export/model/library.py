"""mlx-lm, an extra: imported when it is needed, its errors made short."""

from __future__ import annotations

from types import ModuleType

MESSAGE = 200  # characters of a foreign error that are worth repeating


def mlx_lm_utils() -> ModuleType:
    """Return ``mlx_lm.utils``.

    Raises:
        ModuleNotFoundError: Naming the extra, if mlx-lm is not installed.
    """
    try:
        import mlx_lm.utils
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("mlx_lm"):
            raise
        message = (
            "running a model needs mlx-lm; install the extra: pip install 'plastic-export[lm]'"
        )
        raise ModuleNotFoundError(message, name="mlx_lm") from None
    utils: ModuleType = mlx_lm.utils
    return utils


def brief(error: Exception) -> str:
    """Return the message of an error in one line that is not too long; its type if it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MESSAGE else f"{text[:MESSAGE]}..."
