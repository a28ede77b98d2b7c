"""An adapter from two checkpoints: what one has learnt beyond the other, at a rank per layer.

Stands on ``source``, ``calibration``, ``evaluation``, ``folder`` and ``training``.
"""
