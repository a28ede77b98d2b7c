"""The runs that ``tools/bench/train.py`` compares: one concern per module."""
