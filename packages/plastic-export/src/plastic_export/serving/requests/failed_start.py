"""An answer that could not be begun."""

from __future__ import annotations

from plastic_core.files import FormatError

OUR_FAULT = (FormatError, OSError, RuntimeError, MemoryError)
"""What a request is not to blame for."""


class FailedStart(BaseException):
    """What kept an answer from being begun.

    No Exception, since mlx-lm's server answers 404 to all of them.

    Args:
        cause: What was raised.

    Attributes:
        cause: The same.
        status: Status of HTTP: 500 where the request is not to blame, else 400.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.status = 500 if isinstance(cause, OUR_FAULT) else 400
