"""mlx-lm, an extra: imported when it is needed, its errors made short."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import ModuleType

from plastic_core.files import FormatError

METAL_IS_MISSING = "No Metal back-end"  # what MLX says of a kernel that it has for Metal alone
NO_GRADIENT = ("[Primitive::vjp] Not implemented", "Cannot calculate VJP")
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
    except ValueError as error:  # it raises its own limit of open files on import
        message = f"mlx-lm cannot be imported: {brief(error)}; allow it more open files (ulimit -n)"
        raise ValueError(message) from error
    utils: ModuleType = mlx_lm.utils
    return utils


def model_failure(error: BaseException) -> str | None:
    """Say in a line what failed in mlx-lm's own code, or that it has no gradient; else None.

    The innermost frame tells: an error of this project is a defect, and to be seen as one.
    """
    if METAL_IS_MISSING in str(error):
        return "mlx-lm runs this model in a kernel for Metal alone; use a Mac for it"
    if isinstance(error, FormatError):
        return None
    if any(said in str(error) for said in NO_GRADIENT):
        return (
            f"the model cannot be differentiated, {brief(error).rstrip('.')}; compress it by rank"
        )
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [str(frame.f_globals.get("__name__")).split(".") for frame in frames]
    # ValueErrors from elsewhere in it are about data and settings, and say so themselves.
    start = ["mlx_lm", "models"] if isinstance(error, ValueError) else ["mlx_lm"]
    own = [i for i, names in enumerate(modules) if names[: len(start)] == start]
    if not own or modules[-1][0] not in ("mlx_lm", "mlx"):
        return None
    place = f"{Path(*modules[own[-1]])}.py, line {frames[own[-1]].f_lineno}"
    what = f"{type(error).__name__}: {brief(error)}"
    return f"mlx-lm's own code fails on this model ({place}): {what}"


def brief(error: BaseException) -> str:
    """Return the message of an error in one line that is not too long; its type if it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MESSAGE else f"{text[:MESSAGE]}..."
