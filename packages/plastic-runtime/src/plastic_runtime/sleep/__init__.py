"""Where parked components wait: in memory, and on the disk.

Stands on no other room.
"""
