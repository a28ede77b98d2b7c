"""Components asleep: in memory, and on the disk.

Stands on no other room.
"""
