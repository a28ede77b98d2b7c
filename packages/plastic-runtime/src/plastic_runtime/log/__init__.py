"""What happened, line by line: events of the manager, losses of a run.

Stands on no other room.
"""
