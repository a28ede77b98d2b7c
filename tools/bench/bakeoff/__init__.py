"""The rows of ``tools/bench/quality.py``: who takes part, one kind per module, and the goals."""
