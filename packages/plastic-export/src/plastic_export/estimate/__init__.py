"""Time, memory and disk of the work of a command, told and checked before it begins.

Pure but for the trial and the look at the machine. Stands on ``checkpoint`` alone.
"""
