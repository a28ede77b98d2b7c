"""Logs, line by line: the events of the manager, the losses of a run.

Stands on no other room.
"""
