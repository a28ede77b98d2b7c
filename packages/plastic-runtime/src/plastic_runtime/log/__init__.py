"""Logs, line by line: the events of the manager, the losses of a run.

Stands on no other room.
"""

from plastic_runtime.log.rank_changes import CHANGES

__all__ = ["CHANGES"]
