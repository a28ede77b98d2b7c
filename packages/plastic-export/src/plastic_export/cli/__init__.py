"""The ``plastic`` command: its frame, and one file per subcommand.

Stands on everything; nothing stands on it.
"""

from plastic_export.cli.command import main
from plastic_export.cli.console import DONE

__all__ = ["DONE", "main"]
