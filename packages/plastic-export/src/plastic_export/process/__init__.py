"""Work in a process of its own, which may die without taking the command along.

Stands on no other room.
"""

from plastic_export.process.worker import WorkerError, run_isolated

__all__ = ["WorkerError", "run_isolated"]
