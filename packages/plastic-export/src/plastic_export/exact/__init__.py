"""What gives back every bit of a source, stored beside an output.

Stands on ``checkpoint`` and ``folder``.
"""
