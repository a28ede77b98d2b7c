"""The one error for a file that is damaged, foreign or unsafe."""

from __future__ import annotations

from os import PathLike

_LONGEST_NAME = 120
_LONGEST_REASON = 400


class FormatError(ValueError):
    """A file is not what it should be.

    The message is one line: ``<file>: tensor '<name>': <reason>; <what to do>``,
    without the tensor where none is to blame.

    Examples:
        >>> print(FormatError.about("a.json", "it is cut", "download it again", tensor="w"))
        a.json: tensor 'w': it is cut; download it again
    """

    @classmethod
    def about(
        cls, file: str | PathLike[str], reason: str, remedy: str, *, tensor: str | None = None
    ) -> FormatError:
        """Build the error from its parts.

        Args:
            file: File or folder to blame.
            reason: What is wrong with it.
            remedy: What the user can do about it.
            tensor: Name of the tensor to blame, if it is one tensor.

        Returns:
            The error, to be raised. Its message holds no line break and no control
            character, whatever the file and the tensor are called.
        """
        where = _one_line(str(file))
        if tensor is not None:
            where += f": tensor {_shortened(tensor)}"
        return cls(f"{where}: {_one_line(reason)[:_LONGEST_REASON]}; {remedy}")


def _one_line(text: str) -> str:
    return text if text.isprintable() else repr(text)[1:-1]


def _shortened(name: str) -> str:
    if len(name) <= _LONGEST_NAME:
        return repr(name)
    return f"{name[:_LONGEST_NAME]!r}... ({len(name)} characters)"
