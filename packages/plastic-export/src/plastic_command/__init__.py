"""The door of the ``plastic`` command: it stands before the imports, which take seconds."""

from __future__ import annotations

import os
import signal

_INTERRUPTED = 5
_LINE = b"error: interrupted; no output was written\n"


def start() -> None:
    """Run the command; a signal during its imports ends it in a line, as at any later time."""
    _answer_signals(_end)
    from plastic_export.cli import main

    try:
        main()
    finally:
        _answer_signals(signal.SIG_IGN)  # all is said, and the exit status stands


def _answer_signals(answer: signal._HANDLER) -> None:
    """Set the answer to Ctrl-C and SIGTERM, but to those that this process was told to ignore."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, answer)


def _end(number: int, frame: object) -> None:
    """End at once: nothing is open yet, and an exception might be lost within an import."""
    os.write(2, _LINE)
    os._exit(_INTERRUPTED)
