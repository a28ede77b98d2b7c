"""Adapters of low rank: one type, and the forms of mlx-lm, PEFT and kohya that it is read from.

Stands on ``source`` and below. What makes adapters (training, extraction) hands over an `Adapter`.
"""
