"""Changes of rank: components and the optimizer's moments, scored, parked, woken, grown.

Stands on ``sleep`` and ``measure``; ``manager`` decides, this room acts.
"""
